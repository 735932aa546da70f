"""`swinunetr validate`."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from swinunetr_jax import console, files
from swinunetr_jax.console import literal
from swinunetr_jax.errors import InputError

if TYPE_CHECKING:
    from swinunetr_jax.data.check.check_dataset import DatasetReport
    from swinunetr_jax.data.check.findings import CaseReport, Finding
    from swinunetr_jax.data.discovery.cases import Dataset

EXIT_ERRORS, EXIT_INTERRUPTED = 1, 130
MAX_ROWS = 20  # if there are more findings, similar ones share a row
MAX_NAMES = 40  # one row names at most this number of cases
WIDTH = 100


@dataclass
class Validate:
    """Check a data set and list everything that is wrong with every case. The exit code is 1 if there are errors, otherwise 0."""

    dataset: Annotated[Positional[Path], arg(metavar="DATASET", help_behavior_hint="")]
    """A data set in any known layout, a case folder, a dataset.json or a datalist."""
    channels: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """The channels that every case must have, such as FLAIR T1ce T1 T2; by default those that the data set states."""
    label_values: Annotated[tuple[int, ...], arg(metavar="VALUE ...", help_behavior_hint="")] = ()
    """The values that may occur in label maps, such as 0 1 2 4; by default those that the data set states, for BraTS those of its
    year, and otherwise any."""
    unlabelled: bool = False
    """Check the scans for pre-training: label maps are not read, and each channel is a case of its own unless --channels names those of
    the network."""
    base: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """The folder that the paths of a dataset.json or datalist are relative to, by default the folder of that file."""
    json: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write all findings and the facts of each case to this file."""
    workers: Annotated[int, arg(metavar="N")] = min(4, os.cpu_count() or 1)
    """The number of cases that are read at the same time."""

    def run(self) -> int:
        from swinunetr_jax.data.check.check_dataset import DatasetReport, check_dataset
        from swinunetr_jax.data.discovery.formats import find_cases

        if self.json is not None and (files.is_folder(self.json) or not files.is_folder(self.json.absolute().parent)):
            raise InputError(f"{self.json} cannot be written: give the name of a file in an existing folder.")
        dataset = find_cases(self.dataset, channels=self.channels or None, base=self.base)
        if self.unlabelled:
            dataset = _without_labels(dataset, bool(self.label_values), one_channel=not self.channels)
        checked: list[CaseReport] = []
        faulty: list[CaseReport] = []
        started = time.perf_counter()
        try:
            with console.Progress("checking", "case", stream=sys.stderr) as progress:

                def add(case: CaseReport) -> None:
                    checked.append(case)
                    faulty.extend([case] * any(finding.severity == "error" for finding in case.findings))
                    progress(len(checked), len(dataset.cases), f"{len(faulty)} with errors" if faulty else "")

                report = check_dataset(
                    dataset, channels=self.channels or None, labels=self.label_values or None, progress=add, workers=self.workers
                )
        except KeyboardInterrupt:
            if checked:
                partial = DatasetReport(dataset, tuple(checked))
                _print(summary_lines(partial), finding_lines(partial))
            console.say(f"interrupted: {len(checked)} of {len(dataset.cases)} cases were checked", sys.stderr)
            return EXIT_INTERRUPTED
        _print(summary_lines(report), finding_lines(report))
        console.say(f"{verdict(report)} ({time.perf_counter() - started:.1f} s)")
        if self.json is not None:
            _write(self.json, report.to_dict())
        return EXIT_ERRORS if report.errors else 0


def _without_labels(dataset: Dataset, names_labels: bool, *, one_channel: bool) -> Dataset:
    """Returns the data set as pre-training reads it. Raises InputError if label values are given nevertheless."""
    from swinunetr_jax.data.discovery.unlabelled import one_channel_cases, without_labels

    if names_labels:
        raise InputError("--unlabelled reads no label maps, so --label-values has no effect: leave one of them out.")
    dataset, note = without_labels(dataset)
    if note:
        console.say(note)
    cases = one_channel_cases(dataset.cases) if one_channel else dataset.cases
    return replace(dataset, cases=cases, channels=None if one_channel else dataset.channels, labels=None)


# Output


def summary_lines(report: DatasetReport) -> Iterator[str]:
    """Yields a line for each fact about the data set."""
    from swinunetr_jax.data.check.check_dataset import join_sizes

    facts, dataset = report.summary(), report.dataset
    given = dataset.layout == "files" and len(dataset.cases) == 1 and bool(dataset.cases[0].images)
    name = ", ".join(map(str, dataset.cases[0].images)) if given else f"{dataset.root}: {dataset.layout}"
    yield literal(f"{name}{':' if given else ','} {_count(facts['cases'], 'case')}")
    if facts["cases"] == 1:
        yield from _fact("label map", "readable" if facts["with_label"] else "not readable" if dataset.cases[0].label else "none")
    else:
        splits = ", ".join(f"{count} {split}" for split, count in facts["splits"].items())
        labelled = "all" if facts["with_label"] == facts["cases"] else facts["with_label"] or "none"
        yield from _fact("cases", f"{splits}; {labelled} with a readable label map")
    if dataset.ignored:
        yield from _fact("ignored", literal(dataset.ignored).rstrip("."))
    if facts["folds"]:
        yield from _fact("folds", ", ".join(f"{count} in {fold}" for fold, count in facts["folds"].items()))
    ranges = {name: f": {span['low']:g} … {span['high']:g}" for name, span in facts["intensities"].items()}
    names = dict.fromkeys((*(dataset.channels or ()), *ranges))
    yield from _facts("channels", [f"{name}{ranges.get(name, '')}" for name in names])
    yield from _facts("labels", _labels(report, facts["labels"]))
    for name, unit in (("shape", "voxels"), ("spacing", "mm")):
        if spread := facts[name]:
            low, high = spread["min"], spread["max"]
            ends = " × ".join(f"{a:g}…{b:g}" if a != b else f"{a:g}" for a, b in zip(low, high))
            text = (
                f"{join_sizes(low)} {unit} in all cases"
                if low == high
                else f"median {join_sizes(spread['median'])} {unit}, {ends} in all"
            )
            yield from _fact(name, text)
    orientations = facts["orientations"]
    text = ", ".join(f"{codes} in {'all' if len(orientations) == 1 else count}" for codes, count in orientations.items())
    yield from _fact("orientation", f"{text} cases" if text else "")


def _labels(report: DatasetReport, present: dict[str, Any]) -> list[str]:
    """Returns a line for each label that the data set names or that occurs."""
    names = {str(value): name for name, value in (report.dataset.labels or {}).items() if isinstance(value, int)}
    lines = []
    for value in sorted({*names, *present} - {"0"}, key=int):
        head = f"{value} {names.get(value, '')}".strip()
        if value not in present:
            lines.append(f"{head}: in no case")
            continue
        label = present[value]
        ends = f", {_ml(label['min'])} … {_ml(label['max'])}" if label["cases"] > 1 else ""
        lines.append(f"{head}: in {_count(label['cases'], 'case')}, median {_ml(label['median'])} ml{ends}")
    return lines


def finding_lines(report: DatasetReport) -> Iterator[str]:
    """Yields a table of all findings, errors first: the case, the kind and the file, and below them the message."""
    for title, findings in (("errors", report.errors), ("warnings", report.warnings)):
        if not findings:
            continue
        yield ""
        yield f"{title}: {len(findings)}"
        grouped = len(report.findings) > MAX_ROWS
        groups: dict[Hashable, list[Finding]] = {}
        for number, finding in enumerate(findings):
            groups.setdefault(_key(finding) if grouped else number, []).append(finding)
        heads = [_row(group, report) for group in groups.values()]
        heads = [tuple(map(literal, head)) for head in heads]
        width = min(max(len(head[0]) for head in heads), 40)
        for group, (case, kind, path) in zip(groups.values(), heads):
            yield f"  {case:<{width}}  {kind:<13}  {path}".rstrip()
            example = ""
            if len(group) > 1:
                names = list(dict.fromkeys(finding.case for finding in group))
                more = f" and {len(names) - MAX_NAMES} more (--json lists all)" * (len(names) > MAX_NAMES)
                yield from _wrap(", ".join(names[:MAX_NAMES]) + more)
                example = f"such as {_shown_path(group[0], report)}: " if group[0].path else f"such as {group[0].case}: "
            yield from _wrap(example + group[0].message)


def verdict(report: DatasetReport) -> str:
    """Returns one line that says whether the data set has errors, and how many errors and warnings."""
    errors, warnings = report.errors, report.warnings
    text = f"sound: no error in {_count(len(report.cases), 'case')}"
    if errors:
        faulty = len({finding.case for finding in errors})
        share = f" in {faulty} of {len(report.cases)} cases" if len(report.cases) > 1 else ""
        text = f"not sound: {_count(len(errors), 'error')}{share}"
    return f"{text}, {_count(len(warnings), 'warning') if warnings else 'no warning'}"


def _key(finding: Finding) -> tuple[str, str]:
    """Returns a key that is equal for findings that differ only in the case and in numbers."""
    return finding.kind, re.sub(r"\d[\d.]*", "0", finding.message.replace(finding.case or "", ""))


def _row(group: Sequence[Finding], report: DatasetReport) -> tuple[str, str, str]:
    finding = group[0]
    case = finding.case or "all cases"
    if len(group) > 1:
        case = _count(len({finding.case for finding in group}), "case")
    return case, finding.kind.replace("-", " "), _shown_path(finding, report) if len(group) == 1 else ""


def _shown_path(finding: Finding, report: DatasetReport) -> str:
    if finding.path is None:
        return ""
    root = report.dataset.root
    return str(finding.path.relative_to(root) if finding.path.is_relative_to(root) else finding.path)


def _fact(name: str, text: str) -> Iterator[str]:
    yield from textwrap.wrap(literal(text), _width(), initial_indent=f"  {name:<13}", subsequent_indent=" " * 15)


def _facts(name: str, texts: Sequence[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        yield from _fact(name if number == 0 else "", text)


def _wrap(text: str) -> Iterator[str]:
    yield from textwrap.wrap(literal(text), _width(), initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False)


def _width() -> int:
    return max(60, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _ml(volume: float) -> str:
    return f"{volume:.1f}" if volume >= 10 else f"{volume:.3g}"


def _print(*parts: Iterator[str]) -> None:
    for lines in parts:
        for line in lines:
            console.say(line)
    console.say("")


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        files.write_json(path, content)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}).") from error
