"""Checks a data set before training: every case, differences between cases, and a summary.

findings.py lists the kinds of findings.
"""

import platform
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np

from swinunetr_jax.data import brats
from swinunetr_jax.data.check.check_case import check_case
from swinunetr_jax.data.check.findings import CaseReport, Finding
from swinunetr_jax.data.discovery.cases import Case, Dataset
from swinunetr_jax.errors import InputError
from swinunetr_jax.version import __version__

T = TypeVar("T")


@dataclass(frozen=True)
class DatasetReport:
    """The reports of the cases that were checked, in the data set's order, and the findings and the summary that follow from them."""

    dataset: Dataset
    cases: tuple[CaseReport, ...]

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """All findings: those of each case, then those of the data set as a whole."""
        comparisons = _between_cases(self.dataset, self.cases)
        of_cases: list[Finding] = []
        for report in self.cases:
            of_cases += (*report.findings, *(finding for finding in comparisons if finding.case == report.case.name))
        of_dataset = [Finding(None, "warning", "left-out", None, text) for text in self.dataset.warnings]
        return (*of_cases, *of_dataset, *(finding for finding in comparisons if finding.case is None))

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    def summary(self) -> dict[str, Any]:
        """Returns counts and distributions over the cases as JSON values; shapes in voxels, spacing in mm, volumes in ml."""
        cases = [report.case for report in self.cases]
        folds = Counter(case.fold for case in cases if case.fold is not None)
        label_volumes: dict[int, list[float]] = {}
        for report in self.cases:
            for value, volume in (report.volumes_ml or {}).items():
                label_volumes.setdefault(value, []).append(volume)
        ranges: dict[str, list[tuple[float, float]]] = {}
        for channel in (channel for report in self.cases for channel in report.channels):
            if channel.low is not None and channel.high is not None:
                ranges.setdefault(channel.name, []).append((channel.low, channel.high))
        return {
            "cases": len(cases),
            "splits": dict(Counter(case.split for case in cases)),
            "with_label": sum(report.volumes_ml is not None for report in self.cases),
            "folds": {str(fold): folds[fold] for fold in sorted(folds)},
            "shape": _spread([report.shape for report in self.cases if report.shape]),
            "spacing": _spread([report.spacing for report in self.cases if report.spacing]),
            "orientations": dict(Counter(report.orientation for report in self.cases if report.orientation).most_common()),
            "intensities": {
                name: {
                    "low": _rounded(min(low for low, _ in channel_ranges)),
                    "high": _rounded(max(high for _, high in channel_ranges)),
                }
                for name, channel_ranges in ranges.items()
            },
            "labels": {
                str(value): {"cases": len(volumes), **_spread([(volume,) for volume in volumes], single=True)}
                for value, volumes in sorted(label_volumes.items())
            },
        }

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON values: versions, layout, summary, findings, and the facts of every case."""
        dataset = self.dataset
        return {
            "swinunetr_jax": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "nibabel")},
            "dataset": str(dataset.root.absolute()),
            "layout": dataset.layout,
            "channels": dataset.channels and list(dataset.channels),
            "labels": dataset.labels,
            "ignored": dataset.ignored,
            "sound": not self.errors,
            "summary": self.summary(),
            "findings": [
                {
                    "case": finding.case,
                    "severity": finding.severity,
                    "kind": finding.kind,
                    "path": finding.path and str(finding.path),
                    "message": finding.message,
                }
                for finding in self.findings
            ],
            "cases": {report.case.name: _facts(report) for report in self.cases},
        }


def check_dataset(
    dataset: Dataset,
    *,
    channels: Sequence[str] | None = None,
    labels: Collection[int] | None = None,
    progress: Callable[[CaseReport], None] | None = None,
    workers: int = 1,
) -> DatasetReport:
    """Reads every file of every case once and reports everything that is wrong.

    Args:
        dataset: the data set to check.
        channels: the channels that a network takes; by default every case must have as many as the others.
        labels: the values that may occur besides 0; by default those that the data set names, or any value if it names none.
        progress: called after each case, in order, in the calling thread.
        workers: the number of threads that read. Each needs a few times the memory of the largest file.
    """
    if workers < 1:
        raise InputError(f"`workers` must be at least 1, got {workers}.")
    examine = partial(check_case, channels=channels, labels=labels if labels is not None else _label_values(dataset))
    reports = []
    for report in _check_each(examine, dataset.cases, workers):
        reports.append(report)
        if progress:
            progress(report)
    return DatasetReport(dataset, tuple(reports))


def _check_each(examine: Callable[[Case], CaseReport], cases: Sequence[Case], workers: int) -> Iterator[CaseReport]:
    """Yields the reports in order. Threads suffice, because decompression and most of numpy release Python's global interpreter lock."""
    if workers == 1:
        yield from map(examine, cases)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(examine, cases)
    finally:  # after an interruption, cases that are being checked are completed and no other one is started
        pool.shutdown(cancel_futures=True)


def _label_values(dataset: Dataset) -> set[int] | None:
    """Returns the values that the data set names, or None if it names none."""
    if dataset.labels is None:
        return None
    return {member for value in dataset.labels.values() for member in (value if isinstance(value, list) else [value])}


# Between cases


def _between_cases(dataset: Dataset, reports: Sequence[CaseReport]) -> list[Finding]:
    """Returns the findings that follow from a comparison of cases."""
    findings = [
        *_differing(
            reports,
            "orientation",
            lambda report: report.orientation,
            lambda own, majority, share: (
                f"the axes point to {own}, but in {share} to {majority}; train in one orientation or reorient the file."
            ),
        ),
        *_differing(
            reports,
            "spacing",
            lambda report: report.spacing and tuple(round(size, 2) for size in report.spacing),
            lambda own, majority, share: (
                f"the voxels are {join_sizes(own)} mm, but {share} have {join_sizes(majority)} mm; resample the case."
            ),
        ),
        *_differing(
            [
                report
                for report in reports
                if not {finding.kind for finding in report.findings} & {"incomplete", "unreadable", "channel-count"}
            ],
            "channel-count",
            lambda report: len(report.channels),
            lambda own, majority, share: (
                f"it has {own} channel{'s' * (own != 1)}, but {share} have {majority}; complete the case or leave it out."
            ),
            "error",
        ),
        *_copies(reports),
    ]
    unlabelled = [report.case for report in reports if not report.case.can_train and report.case.images]
    implicit = dataset.layout in ("brats", "case-folder", "files") or dataset.root.name.startswith("imagesTr")
    if implicit and 2 * len(unlabelled) < len(reports):
        # No list says which cases are for training. If only a few cases have no label, that is probably a mistake.
        text = "it has no label map, unlike most cases, and counts as a test case; add the label if it is for training."
        findings += [Finding(case.name, "warning", "missing-label", None, text) for case in unlabelled]
    return findings if dataset.labels else findings + _conventions(reports)  # a dataset.json states the meaning of labels 3 and 4


def _differing(
    reports: Sequence[CaseReport],
    kind: str,
    value_of: Callable[[CaseReport], T | None],
    message: Callable[[T, T, str], str],
    severity: str = "warning",
) -> list[Finding]:
    """Returns a finding for each case that differs from the majority, or one for the data set as a whole if there is no majority.

    Args:
        reports: the cases.
        kind: the kind of the findings.
        value_of: the value to compare.
        message: a function of the case's value, the majority's value, and a phrase such as "9 of 10 cases".
        severity: the severity of the findings.
    """
    values = [(report, value) for report in reports if (value := value_of(report))]
    counts = Counter(value for _, value in values).most_common()
    if len(counts) < 2:
        return []
    majority, count = counts[0]
    if severity == "warning" and 2 * count <= len(values):
        text = f"{len(counts)} different {kind}s occur, none of them in most cases; convert all cases to one."
        return [Finding(None, severity, kind, None, text)]
    share = f"{count} of {len(values)} cases"
    return [
        Finding(report.case.name, severity, kind, None, message(value, majority, share))
        for report, value in values
        if value != majority
    ]


def _copies(reports: Sequence[CaseReport]) -> list[Finding]:
    """Returns a finding for each image that occurs in two cases, because training on one makes the score of the other too high."""
    seen: dict[str, tuple[str, str]] = {}
    findings: dict[tuple[str, str], Finding] = {}
    for report in reports:
        for channel in report.channels:
            name = report.case.name
            first_case, first_file = seen.setdefault(channel.digest, (name, channel.path.name))
            if first_case != name and channel.low != channel.high:
                text = (
                    f"it has the same voxels as {first_file} of case {first_case}; leave one out, because scores are too high if one "
                    "copy is trained on and the other validated on."
                )
                findings.setdefault((name, first_case), Finding(name, "warning", "duplicate", channel.path, text))
    return list(findings.values())


def _conventions(reports: Sequence[CaseReport]) -> list[Finding]:
    """Returns a finding if cases have label 3 or 4 and none has both, as in a mixture of BraTS data of different years."""
    names = {label: [report.case.name for report in reports if label in (report.volumes_ml or {})] for label in brats.ET_LABELS}
    values = {value for report in reports for value in report.volumes_ml or {}}
    reported = any(finding.kind in ("et-label", "unknown-label") for report in reports for finding in report.findings)
    if reported or not values <= set(range(5)) or set(names[3]) & set(names[4]) or not (names[3] and names[4]):
        return []
    text = (
        f"label 3 occurs in {len(names[3])} of the cases and label 4 in {len(names[4])} others, but none has both: do both mean the "
        f"enhancing tumour, as in BraTS {brats.NAMING[3].years} and {brats.NAMING[4].years}? If so, renumber one of the two labels."
    )
    return [Finding(None, "warning", "et-label", None, text)]


# Numbers and texts


def join_sizes(values: Sequence[float]) -> str:
    """Returns the values as text such as '1 × 1 × 2.5'."""
    return " × ".join(f"{value:g}" for value in values)


def _spread(rows: list[tuple[float, ...]], single: bool = False) -> dict[str, Any]:
    """Returns the median, minimum and maximum of each column as lists, or those of the only column as numbers if `single`."""
    if not rows:
        return {}
    table = np.array(rows, np.float64)
    values = {"median": np.median(table, 0), "min": table.min(0), "max": table.max(0)}
    rounded = {name: [_rounded(number) for number in value] for name, value in values.items()}
    return {name: value[0] for name, value in rounded.items()} if single else rounded


def _rounded(value: float | None) -> float | None:
    """Returns the value rounded to six significant digits, since float32 holds no more."""
    return None if value is None else float(f"{value:.6g}")


def _facts(report: CaseReport) -> dict[str, Any]:
    """Returns the facts of a case as JSON values."""
    case = report.case
    return {
        "split": case.split,
        "fold": case.fold,
        "images": [str(path) for path in case.images],
        "label": case.label and str(case.label),
        "shape": report.shape and list(report.shape),
        "spacing": report.spacing and list(report.spacing),
        "orientation": report.orientation,
        "channels": [
            {
                "name": channel.name,
                "file": channel.path.name,
                "low": _rounded(channel.low),
                "high": _rounded(channel.high),
                "nonzero": channel.nonzero,
                "digest": channel.digest,
            }
            for channel in report.channels
        ],
        "volumes_ml": None
        if report.volumes_ml is None
        else {str(value): _rounded(volume) for value, volume in report.volumes_ml.items()},
    }
