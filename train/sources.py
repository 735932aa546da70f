"""The sources of a run's cases, one for each value of the option `kind`: they find the data set, and the task that its labels define."""

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from swinunetr_jax import InputError, Task, files
from swinunetr_jax.buckets import address_of, shown
from swinunetr_jax.console import Progress, name_list
from swinunetr_jax.data.discovery.cases import Case, Dataset
from swinunetr_jax.data.discovery.dataset_json import MAX_LABEL
from swinunetr_jax.data.discovery.formats import find_cases
from swinunetr_jax.data.discovery.unlabelled import one_channel_cases, without_labels
from swinunetr_jax.data.formats import read_geometry, read_labels
from swinunetr_jax.data.phantom.dataset import RECORD, write_phantom
from swinunetr_jax.training import processes
from swinunetr_jax.training.config import Phantom
from swinunetr_jax.training.options import Kind, Options
from swinunetr_jax.training.places import makes_scans, phantom_of
from swinunetr_jax.training.prepared import PreparedSource, is_prepared

ABDOMINAL_WINDOW = (-175.0, 250.0)  # HU
WIDE_WINDOW = (-1000.0, 1000.0)  # HU, from air to bone; that of the paper's pre-training


class Source(Protocol):
    """A source of cases."""

    @property
    def is_synthetic(self) -> bool:
        """True if the run makes its data, so that no data set has to be given."""
        ...

    def dataset(self, options: Options, run: Path) -> Dataset:
        """Returns the data set of a run in the folder `run`. Raises InputError if there is none."""
        ...

    def task(self, dataset: Dataset, cases: Sequence[Case], fields: Mapping[str, Any]) -> Task:
        """Returns the task of the run.

        Args:
            dataset: the data set.
            cases: the cases of the run.
            fields: the task's other fields.

        Raises:
            InputError: the labels define no task, or one that cannot be trained.
        """
        ...

    def samples(self, cases: Sequence[Case], options: Options) -> tuple[Case, ...]:
        """Returns the cases that samples are taken from, given the cases with their folds."""
        ...

    def channels(self, dataset: Dataset, cases: Sequence[Case], options: Options) -> tuple[tuple[str, ...], int]:
        """Returns the names of the input channels, empty if they are unknown, and their number."""
        ...

    @property
    def ct_window(self) -> tuple[float, float]:
        """The default of the option `window` for CT, in HU."""
        ...


@dataclass(frozen=True)
class Given:
    """A data set that the user gives."""

    is_synthetic: bool = False
    ct_window: tuple[float, float] = ABDOMINAL_WINDOW

    def samples(self, cases: Sequence[Case], options: Options) -> tuple[Case, ...]:
        return tuple(cases)

    def channels(self, dataset: Dataset, cases: Sequence[Case], options: Options) -> tuple[tuple[str, ...], int]:
        return channel_names(dataset, cases, options.channels)

    def dataset(self, options: Options, run: Path) -> Dataset:
        if options.data is None:
            raise InputError("no data set was given: name its folder or list with --data (the recipe `phantom` needs none).")
        return find_cases(options.data, channels=options.channels or None, base=options.base)


class Labels(Given):
    """A data set whose labels are named by its dataset.json or, if it names none, are all values of its label maps."""

    def task(self, dataset: Dataset, cases: Sequence[Case], fields: Mapping[str, Any]) -> Task:
        task = Task.from_labels(dataset.labels, dataset.regions_class_order, **fields)
        if task is None:
            task = Task.from_labels({f"label {value}": value for value in _stored_labels(cases)}, **fields)
            assert task is not None  # there is at least one label
        elif task.kind == "regions" and len(dataset.regions_class_order or ()) != len(task.outputs):
            raise InputError(
                f"{dataset.root}: {len(task.outputs)} regions need as many values in regions_class_order, got "
                f"{dataset.regions_class_order}."
            )
        return task


class Brats(Given):
    """A data set of BraTS, whose tumour regions overlap."""

    def task(self, dataset: Dataset, cases: Sequence[Case], fields: Mapping[str, Any]) -> Task:
        if dataset.et_label is None:
            raise InputError(
                f"{dataset.root}: the files are not named as in BraTS, so the enhancing tumour may be label 3 or 4; use the recipe "
                "`msd`, which reads labels from a dataset.json."
            )
        return Task.brats(et_label=dataset.et_label, **fields)


@dataclass(frozen=True)
class Scans(Given):
    """A data set whose label maps are not used, if it has any. Each channel is a case of its own, unless channels are named."""

    ct_window: tuple[float, float] = WIDE_WINDOW

    def dataset(self, options: Options, run: Path) -> Dataset:
        dataset, note = without_labels(super().dataset(options, run), keep_validation=options.fold is None)
        return dataset if note is None else replace(dataset, warnings=(*dataset.warnings, note))

    def samples(self, cases: Sequence[Case], options: Options) -> tuple[Case, ...]:
        return tuple(cases) if options.channels else one_channel_cases(cases)

    def channels(self, dataset: Dataset, cases: Sequence[Case], options: Options) -> tuple[tuple[str, ...], int]:
        if options.channels:
            return channel_names(dataset, cases, options.channels)
        return ("CT",) if all([name.upper() for name in case.channels or ()] == ["CT"] for case in cases) else (), 1

    def task(self, dataset: Dataset, cases: Sequence[Case], fields: Mapping[str, Any]) -> Task:
        return Task.images(fields["channels"] or ("image",), **fields)


@dataclass(frozen=True)
class PhantomHeads(Brats):
    """Synthetic heads with the labels of BraTS, which the run makes unless they exist."""

    is_synthetic: bool = True

    def dataset(self, options: Options, run: Path) -> Dataset:
        folder = phantom_of(options, run)
        # The lock prevents the processes of a machine from writing its folder at the same time.
        with files.locked(folder) if address_of(folder) else nullcontext():
            if makes_scans(folder):  # the other processes would search the folder while it is being written
                self._make(folder, options.phantom)
        processes.barrier("the phantom is made")
        return find_cases(folder, channels=options.channels or None)

    def _make(self, folder: Path, phantom: Phantom) -> None:
        """Makes the heads unless they exist. Raises InputError if the folder holds other files."""
        if _holds_other_files(folder):
            raise InputError(
                f"{folder} holds other data, and this recipe makes its own data: use the recipe `msd` or `brats21` to train on yours."
            )
        with Progress("making phantom cases", "case", silent=not processes.is_leader()) as progress:
            write_phantom(folder, cases=phantom.cases, size=phantom.size, seed=phantom.seed, progress=progress)


SOURCES: dict[Kind, Source] = {"phantom": PhantomHeads(), "brats": Brats(), "labels": Labels(), "scans": Scans()}


def source_of(options: Options) -> Source:
    """Returns the source that the options choose: a prepared data set if `data` names one, and otherwise that of the kind.

    Raises:
        InputError: a recipe file gives another `kind`.
    """
    source = SOURCES.get(options.kind)
    if source is None:
        raise InputError(f"`kind` must be one of {', '.join(SOURCES)}, got {options.kind!r}.")
    if options.data is not None and is_prepared(options.data):
        prepared = PreparedSource(options.data, source)
        # The phantom of a run in a bucket has the address RUN/data: its scans are made on each machine and are not in the bucket.
        out = Path(shown(options.out))
        is_own = source.is_synthetic and Path(shown(options.data)) in (
            Path(shown(out / "data")),
            Path(shown(out.parent / "data")),
        )
        return source if is_own and not prepared.exists else prepared
    return source


def _holds_other_files(folder: Path) -> bool:
    """Returns whether a folder holds files, but not a phantom. Raises InputError if it cannot be read."""
    try:
        return files.is_folder(folder) and bool(os.listdir(folder)) and not files.exists(folder / RECORD)
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({files.reason(error)}); give another folder with --data.") from error


def _stored_labels(cases: Sequence[Case]) -> list[int]:
    """Returns all labels in the label maps except 0, in order. Raises InputError if there is none."""
    values: set[int] = set()
    large: list[str] = []
    for case in cases:
        if case.label is None:
            continue
        try:
            labels = np.unique(read_labels(case.label).array)
        except InputError:
            continue  # preparing the cases reports this fault together with all others
        values.update(labels[labels <= MAX_LABEL].tolist())
        if labels[-1] > MAX_LABEL:  # preparing the cases reports this fault, too
            large.append(f"{case.label} ({labels[-1]})")
    if not values - {0} and large:
        raise InputError(f"{name_list(large)}: the labels are above {MAX_LABEL}, the largest that is supported; renumber them.")
    if not values - {0}:
        raise InputError(
            "the label maps hold only background, expected labels to learn; check the data set with `swinunetr validate`."
        )
    return sorted(values - {0})


def channel_names(dataset: Dataset, cases: Sequence[Case], asked: Sequence[str] = ()) -> tuple[tuple[str, ...], int]:
    """Returns the names of the input channels, empty if they are unknown, and their number.

    Args:
        dataset: the data set.
        cases: its cases.
        asked: the names that the user gives, by default those of the data set.
    """
    names = tuple(asked or dataset.channels or ())
    if names:
        return names, len(names)
    first = next(case for case in cases if case.images)
    shape = read_geometry(first.images[0])[0]
    return (), len(first.images) if len(first.images) > 1 else shape[3] if len(shape) > 3 else 1
