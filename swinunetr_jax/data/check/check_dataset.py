"""A data set examined before anything is trained on it: every case, what differs between cases, and the facts to know of it.

What can be found, kind by kind, is listed in check_case.py.
"""

import platform
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any

import numpy as np

from swinunetr_jax.data import brats
from swinunetr_jax.data.check.check_case import CaseReport, Channel, Finding, check_case
from swinunetr_jax.data.discovery.cases import Dataset
from swinunetr_jax.errors import InputError
from swinunetr_jax.version import __version__

__all__ = ["CaseReport", "Channel", "DatasetReport", "Finding", "check_case", "check_dataset"]


@dataclass(frozen=True)
class DatasetReport:
    """`cases` are those that were examined, in the data set's order."""

    dataset: Dataset
    cases: tuple[CaseReport, ...]

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """All of them: case by case, then those of the data set as a whole."""
        across = _across(self.dataset, self.cases)
        own = [f for report in self.cases for f in (*report.findings, *(a for a in across if a.case == report.case.name))]
        whole = [Finding(None, "warning", "left-out", None, text) for text in self.dataset.warnings]
        return (*own, *whole, *(finding for finding in across if finding.case is None))

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    def summary(self) -> dict[str, Any]:
        """Counts and distributions over the cases, plain values only; shapes in voxels, spacing in mm, volumes in ml."""
        cases = [report.case for report in self.cases]
        folds = Counter(case.fold for case in cases if case.fold is not None)
        present: dict[int, list[float]] = {}
        for report in self.cases:
            for value, volume in (report.volumes_ml or {}).items():
                present.setdefault(value, []).append(volume)
        ranges: dict[str, list[Channel]] = {}
        for channel in (channel for report in self.cases for channel in report.channels if channel.low is not None):
            ranges.setdefault(channel.name, []).append(channel)
        return {
            "cases": len(cases),
            "splits": dict(Counter(case.split for case in cases)),
            "with_label": sum(report.volumes_ml is not None for report in self.cases),
            "folds": {str(fold): folds[fold] for fold in sorted(folds)},
            "shape": _spread([report.shape for report in self.cases if report.shape]),
            "spacing": _spread([report.spacing for report in self.cases if report.spacing]),
            "orientations": dict(Counter(report.orientation for report in self.cases if report.orientation).most_common()),
            "intensities": {
                name: {"low": _short(min(c.low for c in found)), "high": _short(max(c.high for c in found))}
                for name, found in ranges.items()
            },
            "labels": {
                str(value): {"cases": len(ml), **_spread([(v,) for v in ml], single=True)}
                for value, ml in sorted(present.items())
            },
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values: versions, layout, summary, every case's facts, every finding."""
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
                {"case": f.case, "severity": f.severity, "kind": f.kind, "path": f.path and str(f.path), "message": f.message}
                for f in self.findings
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
    """Reads every file of every case once and reports all that is wrong.

    Args:
        channels: names of the channels that a network takes; by default every case must have as many as the others.
        labels: values that may occur beside 0; by default the data set's own, where it names them.
        progress: called after each case, in order, in the calling thread.
        workers: threads that read. Memory is a few times the largest file, for each of them.
    """
    if workers < 1:
        raise InputError(f"`workers` must be at least 1, got {workers}.")
    examine = partial(check_case, channels=channels, labels=labels if labels is not None else _label_values(dataset))
    reports = []
    for report in _each(examine, dataset.cases, workers):
        reports.append(report)
        if progress:
            progress(report)
    return DatasetReport(dataset, tuple(reports))


def _each(examine: Callable, cases: Sequence, workers: int) -> Iterator[CaseReport]:
    """In order; threads, because decompression and most of numpy run outside Python's lock."""
    if workers == 1:
        yield from map(examine, cases)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(examine, cases)
    finally:  # after an interruption the cases in hand are finished, no new one begins
        pool.shutdown(cancel_futures=True)


def _label_values(dataset: Dataset) -> set[int] | None:
    if dataset.labels is None:
        return None
    return {v for value in dataset.labels.values() for v in (value if isinstance(value, list) else [value])}


# Between cases


def _across(dataset: Dataset, reports: Sequence[CaseReport]) -> list[Finding]:
    found = [
        *_odd(
            reports,
            "orientation",
            lambda report: report.orientation,
            lambda here, most, share: f"the axes point to {here}, {share} to {most}; train in one orientation or turn the file.",
        ),
        *_odd(
            reports,
            "spacing",
            lambda report: report.spacing and tuple(round(s, 2) for s in report.spacing),
            lambda here, most, share: f"voxels of {by(here)} mm, {share} {by(most)} mm; resample it.",
        ),
        *_odd(
            [r for r in reports if not {f.kind for f in r.findings} & {"incomplete", "unreadable", "channel-count"}],
            "channel-count",
            lambda report: len(report.channels),
            lambda here, most, share: f"{here} channel{'s' * (here != 1)}, {share} {most}; complete it or leave it out.",
            "error",
        ),
        *_copies(reports),
    ]
    unlabelled = [report.case for report in reports if report.case.label is None and report.case.images]
    implicit = dataset.layout in ("brats", "case-folder", "files") or dataset.root.name.startswith("imagesTr")
    if implicit and 2 * len(unlabelled) < len(reports):
        # these layouts have no list to say what is for training; a few cases without a label are more likely a mistake
        text = "no label map, though most cases have one, so it counts as a test case; add the label if it is for training."
        found += [Finding(case.name, "warning", "missing-label", None, text) for case in unlabelled]
    return found if dataset.labels else found + _conventions(reports)  # a dataset.json says what 3 and 4 mean


def _odd(
    reports: Sequence[CaseReport], kind: str, of: Callable, tell: Callable[[Any, Any, str], str], severity: str = "warning"
) -> list[Finding]:
    """A finding for each case that differs from the majority, or one for the data set where there is none."""
    values = [(report, of(report)) for report in reports]
    values = [(report, value) for report, value in values if value]
    counts = Counter(value for _, value in values).most_common()
    if len(counts) < 2:
        return []
    most, times = counts[0]
    if severity == "warning" and 2 * times <= len(values):
        text = f"{len(counts)} different {kind}s and none of them in most cases; bring the cases to one."
        return [Finding(None, severity, kind, None, text)]
    share = f"in {times} of {len(values)} cases"
    return [Finding(r.case.name, severity, kind, None, tell(value, most, share)) for r, value in values if value != most]


def _copies(reports: Sequence[CaseReport]) -> list[Finding]:
    """The same image in two cases: scores are too good if one is trained on and the other validated on."""
    seen: dict[str, tuple[str, str]] = {}
    found: dict[tuple[str, str], Finding] = {}
    for report in reports:
        for channel in report.channels:
            name = report.case.name
            first, file = seen.setdefault(channel.digest, (name, channel.path.name))
            if first != name and channel.low != channel.high:
                text = f"the same voxels as {file} of case {first}; leave one out, a copy in training and validation is no test."
                found.setdefault((name, first), Finding(name, "warning", "duplicate", channel.path, text))
    return list(found.values())


def _conventions(reports: Sequence[CaseReport]) -> list[Finding]:
    """Labels 0 to 4 of which no case has both 3 and 4, as in a mixture of BraTS's eras under names that do not tell them."""
    using = {label: [r.case.name for r in reports if label in (r.volumes_ml or {})] for label in brats.ET_LABELS}
    values = {value for report in reports for value in report.volumes_ml or {}}
    told = any(finding.kind in ("et-label", "unknown-label") for report in reports for finding in report.findings)
    if told or not values <= set(range(5)) or set(using[3]) & set(using[4]) or not (using[3] and using[4]):
        return []
    text = (
        f"{len(using[3])} cases have label 3 and {len(using[4])} others label 4, none both: is it the enhancing tumour of BraTS "
        f"{brats.NAMING[3].years} and {brats.NAMING[4].years}? Then renumber one."
    )
    return [Finding(None, "warning", "et-label", None, text)]


# Numbers and texts


def by(values: Sequence[float]) -> str:
    """'1 × 1 × 2.5'."""
    return " × ".join(f"{value:g}" for value in values)


def _spread(rows: list[tuple[float, ...]], single: bool = False) -> dict[str, Any]:
    """Median, least and greatest of each column."""
    if not rows:
        return {}
    table = np.array(rows, np.float64)
    values = {"median": np.median(table, 0), "min": table.min(0), "max": table.max(0)}
    plain = {name: [_short(v) for v in value] for name, value in values.items()}
    return {name: value[0] for name, value in plain.items()} if single else plain


def _short(value: float | None) -> float | None:
    """Six digits, which is what float32 holds."""
    return None if value is None else float(f"{value:.6g}")


def _facts(report: CaseReport) -> dict[str, Any]:
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
                "name": c.name,
                "file": c.path.name,
                "low": _short(c.low),
                "high": _short(c.high),
                "nonzero": c.nonzero,
                "digest": c.digest,
            }
            for c in report.channels
        ],
        "volumes_ml": None if report.volumes_ml is None else {str(v): _short(ml) for v, ml in report.volumes_ml.items()},
    }
