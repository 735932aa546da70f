"""Reads every labelled case of a data set once and measures it, for the fingerprint."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swinunetr_jax import InputError, Task
from swinunetr_jax.data.check.problems import problem_lines
from swinunetr_jax.data.discovery.cases import Case, Dataset
from swinunetr_jax.data.formats import scan_files
from swinunetr_jax.data.prepare.read_case import read_case, read_case_label
from swinunetr_jax.training.plan.fingerprint import Fingerprint, MeasuredCase, combine, measure_case
from swinunetr_jax.training.sources import channel_names

THREADS = 4  # as for the cache: threads suffice, and each holds a whole case in memory
Sources = dict[str, list[tuple[str, int, int]]]
"""The files of each case by its name: path, size in bytes and time of change in ns."""


@dataclass(frozen=True)
class Measured:
    """A fingerprint and the files that it was measured from."""

    fingerprint: Fingerprint
    sources: Sources


def labelled_cases(dataset: Dataset) -> list[Case]:
    """Returns the cases that a training run can use: those with a label map.

    Raises:
        InputError: there are fewer than two.
    """
    cases = [case for case in dataset.cases if case.split != "test" and (case.label is not None or case.problem)]
    if len(cases) < 2:
        count = "one labelled case" if cases else "no labelled case"
        raise InputError(
            f"{dataset.root}: there is {count}, expected at least two, one to train on and one to validate on: add cases with label maps."
        )
    return cases


def measure(
    dataset: Dataset,
    *,
    channels: Sequence[str] = (),
    orientation: str = "RAS",
    known: Measured | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Returns the fingerprint of a data set. Every file is read once.

    Args:
        dataset: the data set.
        channels: the names of the input channels, by default those of the data set.
        orientation: the orientation in which the cases are measured.
        known: an earlier result, which is returned if no file has changed since.
        progress: called with the numbers of cases done and of all cases.

    Raises:
        InputError: there are fewer than two labelled cases; or some cases cannot be used, and the message names all of them.
    """
    cases = labelled_cases(dataset)
    names, count = channel_names(dataset, cases, channels)
    shown_names = names or tuple(str(index) for index in range(count))
    sources = {case.name: _sources(case) for case in cases}
    if known is not None and _same(known, sources, shown_names, orientation):
        return known
    task = Task.classes(2, channels=names, orientation=orientation)  # reading needs the channels and the orientation only

    def measured(number: int) -> MeasuredCase:
        case = cases[number]
        read = read_case(case, task, count)
        label = read_case_label(case, read)
        spacing = np.linalg.norm(read.affine[:3, :3], axis=0)
        return measure_case(case.name, read.array, label, spacing, number=number, cases=len(cases))

    done: dict[int, MeasuredCase] = {}
    faults: dict[int, str] = {}
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        futures = {pool.submit(measured, number): number for number in range(len(cases))}
        try:
            for finished, future in enumerate(as_completed(futures), 1):
                try:
                    done[futures[future]] = future.result()
                except InputError as error:
                    faults[futures[future]] = str(error)
                if progress:
                    progress(finished, len(cases))
        finally:
            pool.shutdown(cancel_futures=True)
    if faults:
        lines = problem_lines([(cases[number].name, faults[number]) for number in sorted(faults)])
        raise InputError(
            f"{len(faults)} of {len(cases)} cases cannot be used for training:",
            *lines,
            f"All faults of the data set: swinunetr validate {dataset.root}",
        )
    fingerprint = combine([done[number] for number in range(len(cases))], shown_names, orientation)
    if not any(case.voxels for case in fingerprint.cases):
        raise InputError(
            f"{dataset.root}: the label maps hold only background, expected labels to learn; check the data set with `swinunetr validate`."
        )
    return Measured(fingerprint, sources)


def _same(
    known: Measured, sources: Mapping[str, Sequence[tuple[str, int, int]]], channels: Sequence[str], orientation: str
) -> bool:
    """Returns whether an earlier result was measured from the same files in the same way."""
    before = known.fingerprint
    return (
        {name: [tuple(file) for file in listed] for name, listed in known.sources.items()} == sources
        and tuple(channel.name for channel in before.channels) == tuple(channels)
        and before.orientation == orientation
    )


def _sources(case: Case) -> list[tuple[str, int, int]]:
    """Returns the path, the size and the time of change of each file of a case; 0 and 0 for a file that cannot be read."""
    sources = []
    for path in (*case.images, *([case.label] if case.label else [])):
        try:
            stats = [(file, file.stat()) for file in scan_files(path)]
            sources += [(str(file.absolute()), status.st_size, status.st_mtime_ns) for file, status in stats]
        except (OSError, ValueError, InputError):  # reading the case reports it
            sources.append((str(Path(path).absolute()), 0, 0))
    return sources
