"""From a recipe to the cases of a run: found, split, prepared once into a cache; what they are for; batches of them."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from swinunetr_jax import InputError, Task
from swinunetr_jax.config import SIZE_MULTIPLE
from swinunetr_jax.data.cache import PreparedCase, prepare_training_cases
from swinunetr_jax.data.cases import Case, Dataset
from swinunetr_jax.data.folds import fold_split, with_folds
from swinunetr_jax.data.formats import find_cases
from swinunetr_jax.data.nifti import read_geometry
from swinunetr_jax.data.phantom import write_phantom
from swinunetr_jax.data.pipeline import TrainingData
from swinunetr_jax.data.transforms import brats_recipe, ct_recipe
from swinunetr_jax.task import Output
from train.config import Recipe

LARGEST_FITTED_ROI = 96  # what a network of 48 features trains on in 16 GB


@dataclass(frozen=True)
class Cases:
    """The prepared cases of a run and the task that they teach."""

    task: Task
    in_channels: int
    train: tuple[PreparedCase, ...]
    validation: tuple[PreparedCase, ...]

    @property
    def names(self) -> dict[str, list[str]]:
        return {"train": [case.name for case in self.train], "validation": [case.name for case in self.validation]}


def gather(recipe: Recipe, run: Path) -> Cases:
    """Finds, splits and prepares the cases of a run; says what it does.

    Raises:
        InputError: there is no data set, it cannot be split so, or cases are faulty (all of them are named).
    """
    dataset = find_dataset(recipe, run)
    cases = dataset.cases if recipe.fold is None else with_folds(dataset.cases, folds=recipe.folds, seed=recipe.seed)
    train, validation = fold_split(cases, recipe.fold)
    channels, count = _channels(recipe, dataset, train)
    task = _task(recipe, dataset, channels)
    folder = recipe.cache or run / "cache"
    with _Told("preparing cases") as progress:
        try:
            prepared = prepare_training_cases(
                [*train, *validation], task, folder, in_channels=count, dtype=recipe.cache_dtype, progress=progress
            )
        except InputError as error:
            raise InputError(f"{error}\nAll that is wrong with the data set: swinunetr validate {dataset.root}") from error
    ready, looked_at = prepared[: len(train)], prepared[len(train) :][: recipe.validation.cases]
    if task.kind == "classes" and dataset.labels is None:
        values = sorted({0}.union(*(np.unique(case.label).tolist() for case in prepared)))
        task = replace(task, outputs=tuple(Output(name=f"class {v}" if v else "background", value=v) for v in values))
    task = replace(task, roi=recipe.roi or fitted_roi([case.shape for case in ready]))
    return Cases(task, count, tuple(ready), tuple(looked_at))


def find_dataset(recipe: Recipe, run: Path) -> Dataset:
    """The data set of a recipe; the phantom is made where it is not there yet."""
    if recipe.kind != "phantom":
        if recipe.data is None:
            raise InputError("no data set was given: name its folder or list with --data (the recipe `phantom` needs none).")
        return find_cases(recipe.data, channels=recipe.channels or None)
    folder = recipe.data or run / "data"
    with _Told("making phantom cases") as progress:
        write_phantom(folder, cases=recipe.phantom.cases, size=recipe.phantom.size, seed=recipe.seed, progress=progress)
    return find_cases(folder, channels=recipe.channels or None)


def batches(recipe: Recipe, cases: Cases) -> TrainingData:
    """Endless training batches, from the start; `set_state` takes up another place."""
    task = cases.task
    if recipe.augment.crops == "by-label":
        transforms = ct_recipe(task.roi)
    else:
        transforms = brats_recipe(task.roi, normalize_after_crop=recipe.augment.normalize_after_crop)
    return TrainingData(cases.train, transforms, batch=recipe.batch, seed=recipe.seed, workers=recipe.workers)


def fitted_roi(shapes: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    """A crop that holds the median scan, as far as 96 voxels a side allow; multiples of 32, and not the one size that is too small."""
    median = np.median(np.array([shape[:3] for shape in shapes]), axis=0)
    sizes = [min(math.ceil(size / SIZE_MULTIPLE) * SIZE_MULTIPLE, LARGEST_FITTED_ROI) for size in median]
    if all(size == SIZE_MULTIPLE for size in sizes):
        sizes[-1] *= 2
    return tuple(sizes)


def _channels(recipe: Recipe, dataset: Dataset, train: Sequence[Case]) -> tuple[tuple[str, ...], int]:
    """Names of the input channels, if there are any, and their number."""
    names = recipe.channels or dataset.channels or ()
    if names:
        return tuple(names), len(names)
    first = train[0]
    shape = read_geometry(first.images[0])[0]
    return (), len(first.images) if len(first.images) > 1 else shape[3] if len(shape) > 3 else 1


def _task(recipe: Recipe, dataset: Dataset, channels: tuple[str, ...]) -> Task:
    """What the network is to learn, and how scans are prepared for it."""
    fields: dict[str, Any] = {"channels": channels, "orientation": recipe.orientation, "spacing": recipe.spacing}
    if recipe.window is not None:
        fields |= {"intensity": "window", "window": recipe.window}
    if recipe.kind in ("brats", "phantom"):
        if dataset.et_label is None:
            raise InputError(
                f"{dataset.root}: the files are not named as BraTS names them, so the enhancing tumour may be label 3 or 4; take the "
                "recipe `msd`, which reads labels from a dataset.json."
            )
        return Task.brats(et_label=dataset.et_label, **fields)
    labels = dataset.labels or {}
    if any(isinstance(value, list) for value in labels.values()):
        return _regions(dataset, labels, fields)
    named = sorted((value, name) for name, value in labels.items())
    if labels and (len(named) < 2 or named[0][0] != 0):
        raise InputError(f"{dataset.root}: the labels are {labels}, expected 0 (the background) and at least one more.")
    outputs = tuple(Output(name=name, value=value) for value, name in named) or Task.classes(2).outputs
    return Task(kind="classes", outputs=outputs, **fields)


def _regions(dataset: Dataset, labels: dict[str, int | list[int]], fields: dict[str, Any]) -> Task:
    """nnU-Net's regions: overlapping, written as the values of `regions_class_order`, later over earlier."""
    wanted = {name: value for name, value in labels.items() if value not in (0, [0])}
    order = dataset.regions_class_order
    if order is None or len(order) != len(wanted):
        raise InputError(f"{dataset.root}: {len(wanted)} regions need as many values in regions_class_order, got {order}.")
    outputs = tuple(
        Output(name=name, value=value, members=tuple(members) if isinstance(members, list) else (members,))
        for value, (name, members) in zip(order, wanted.items())
    )
    return Task(kind="regions", outputs=outputs, paint=tuple(range(len(outputs))), **fields)


class _Told:
    """A bar on a terminal, a few lines elsewhere: `with _Told("preparing cases") as progress: progress(done, total)`."""

    def __init__(self, what: str):
        self.what, self.bar, self.share = what, None, 0.0

    def __enter__(self) -> Callable[[int, int], None]:
        return self._progress

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def _progress(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            if self.bar is None:
                self.bar = tqdm(desc=self.what, total=total, unit="case", leave=False)
            self.bar.update(done - self.bar.n)
        elif done == total or done / total >= self.share + 0.25:
            self.share = done / total
            print(f"{self.what}: {done} of {total}", flush=True)
