"""Finds the cases of a run, splits them into training and validation, prepares them in the cache, and makes batches of them."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from swinunetr_jax import InputError, Task
from swinunetr_jax.augment import SampleAugmentation
from swinunetr_jax.config import SIZE_MULTIPLE
from swinunetr_jax.console import literal, name_list, say, warn
from swinunetr_jax.data.augment import sides
from swinunetr_jax.data.check.problems import problem_lines
from swinunetr_jax.data.discovery.cases import Case, Dataset
from swinunetr_jax.data.discovery.folds import find_splits, fold_split, unlabelled, with_folds
from swinunetr_jax.data.pipeline import TrainingData
from swinunetr_jax.data.prepare.class_voxels import class_names
from swinunetr_jax.data.prepare.prepared_case import PreparedCase
from swinunetr_jax.data.scan_range import range_of, scan_facts
from swinunetr_jax.runtime.sharding import Share
from swinunetr_jax.training import processes, watchdog
from swinunetr_jax.training.augmentation import sample_augmentation, source_crop
from swinunetr_jax.training.cache import prepare_cases
from swinunetr_jax.training.places import cache_of
from swinunetr_jax.training.prepared import PreparedSource
from swinunetr_jax.training.recipe import Recipe
from swinunetr_jax.training.sources import source_of
from swinunetr_jax.training.transforms import class_share, host_transforms, mirrored_axes

MIXED_SPACING = 1.05  # scans whose voxel sizes differ by a larger factor are reported
PATCH_VOXELS = 2**3  # voxels of a patch of the patch embedding, which becomes one token
LARGEST_FITTED_ROI = 96  # a network of 48 features trains on crops of this size in 16 GB


@dataclass(frozen=True)
class Cases:
    """The prepared cases of a run, and their task."""

    task: Task
    in_channels: int
    train: tuple[PreparedCase, ...]
    validation: tuple[PreparedCase, ...]
    flips: tuple[int, ...] = ()  # axes along which training samples are mirrored on the host
    augmentation: SampleAugmentation | None = None  # the random changes on the device, if the recipe has an `Augmentation`

    @property
    def names(self) -> dict[str, list[str]]:
        return {"train": [case.name for case in self.train], "validation": [case.name for case in self.validation]}


@watchdog.phase(watchdog.PREPARING)
def collect_cases(recipe: Recipe, run: Path) -> Cases:
    """Finds, splits and prepares the cases of a run, and prints what it does.

    Raises:
        InputError: there is no data set, it cannot be split as the recipe states, or cases are faulty; the message names all faulty cases.
    """
    source = source_of(recipe)
    dataset = source.dataset(recipe, run)
    samples = source.samples(assign_folds(recipe, dataset), recipe)
    train, validation = fold_split(samples, None if recipe.fold is None else _fold_number(recipe))
    validation = validation[: recipe.validation.cases]
    chosen = [*train, *validation]
    if not source.is_synthetic:  # the run itself has written every entry of a synthetic data set
        for note in unused_notes(dataset):
            _print(note)
    if any(case.problem for case in chosen) and not any(case.images for case in chosen):
        lines = problem_lines([(case.name, case.problem or "") for case in chosen])
        raise InputError("no case can be used for training:", *lines)
    channels, count = source.channels(dataset, chosen, recipe)
    task = source.task(dataset, chosen, task_fields(recipe, channels, source.ct_window))
    if isinstance(source, PreparedSource):
        prepared = source.prepared(chosen)
    else:
        prepared = prepare_cases(recipe, chosen, task, cache_of(recipe, run), count, dataset.root)
    if recipe.roi is None:  # fit the crop to the scans of all folds, so that it is the same for all folds
        task = replace(task, roi=fitted_roi([case.shape for case in prepared]))
    if processes.is_leader():
        for note in grid_notes(task, [case.affine for case in prepared]):
            warn(note)
    if recipe.class_share and processes.is_leader():
        say(
            f"{100 * recipe.class_share:.3g} % of the samples are centred on a voxel of a class, which is drawn first from those of "
            f"{literal(', '.join(class_names(task)))} that occur in the case; --class-share chooses the share"
        )
    if processes.is_leader():
        for note in class_notes(task, prepared[: len(train)], prepared[len(train) :], sampled=recipe.class_share > 0):
            warn(note)
    flips: tuple[int, ...] = ()
    affines = [case.affine for case in prepared]
    samples = recipe.total_steps(len(train)) * recipe.batch
    passes = samples / len(train)
    augmentation = sample_augmentation(recipe, task, affines, passes, samples)
    if recipe.transforms is None and augmentation is None:  # otherwise the recipe decides what is mirrored
        flips = mirrored_axes(recipe.host_augment.flips, task, affines, passes, samples)
    if task.kind != "images":
        facts = [scan_facts(case.shape, case.affine, case.statistics) for case in prepared[: len(train)]]
        task = replace(task, scans=range_of(facts))
    return Cases(task, count, tuple(prepared[: len(train)]), tuple(prepared[len(train) :]), flips, augmentation)


def _fold_number(recipe: Recipe) -> int:
    if not isinstance(recipe.fold, int):
        raise InputError(f"`fold` is {recipe.fold!r}, expected the number of one fold: `train_folds` trains all of them.")
    return recipe.fold


def assign_folds(recipe: Recipe, dataset: Dataset) -> tuple[Case, ...]:
    """Returns the cases with their folds, or unchanged if the recipe uses the data set's validation list. Prints where folds come from."""
    if recipe.fold is None:
        return dataset.cases
    splits = recipe.splits or find_splits(dataset.root, _print)
    if splits is not recipe.splits and any(case.fold is not None for case in dataset.cases):
        _print(f"{splits} is not used, since the data set's list has folds (--splits {splits} uses it)")
        splits = None
    return with_folds(
        dataset.cases, folds=recipe.folds, seed=recipe.fold_seed, patient=recipe.patient, splits=splits, notify=_print
    )


def grid_notes(task: Task, affines: Sequence[np.ndarray]) -> list[str]:
    """Returns sentences on orientations or voxel sizes that differ among the scans as the network receives them.

    Args:
        task: the task; if it has an orientation or a spacing, all scans have been brought to it.
        affines: the affines of the prepared scans, [4, 4] each, in mm.
    """
    codes = Counter("".join(nib.aff2axcodes(affine)) for affine in affines)
    sizes = np.array([_size_by_direction(affine) for affine in affines])
    notes = []
    if len(codes) > 1:
        each = ", ".join(f"{code} ({count})" for code, count in codes.most_common())
        notes.append(
            f"the scans are stored in {len(codes)} orientations, {each}, and the network receives them as stored: --orientation RAS "
            "reorients all of them."
        )
    low, high = sizes.min(axis=0), sizes.max(axis=0)
    if task.spacing is None and (high > MIXED_SPACING * low).any():
        each = ", ".join(
            f"{name} {smallest:.3g} to {largest:.3g} mm"
            for name, smallest, largest in zip(sides.DIRECTIONS, low, high)
            if largest > MIXED_SPACING * smallest
        )
        median = " ".join(f"{size:.3g}" for size in np.median(sizes, axis=0))
        notes.append(
            f"the scans' voxel sizes differ ({each}), and the network does not know them: --orientation RAS --spacing {median} resamples "
            "all scans to the median."
        )
    return notes


def class_notes(task: Task, train: Sequence[PreparedCase], validation: Sequence[PreparedCase], *, sampled: bool) -> list[str]:
    """Returns sentences on classes that the network cannot learn, or that a validation cannot measure, because cases lack them.

    Args:
        task: the task.
        train: the prepared training cases.
        validation: the prepared validation cases.
        sampled: whether crops are centred on classes, which needs more than a few voxels.
    """
    notes = []
    for name, count, validated in zip(class_names(task), _largest_counts(train), _largest_counts(validation)):
        if validated == 0 and count:
            notes.append(
                f"{literal(name)} occurs in no validation case, so that its Dice there shows only whether voxels are wrongly predicted as "
                "this class: choose another fold, or fewer --folds."
            )
        if count == 0:
            notes.append(
                f"{literal(name)} occurs in no training case, so that the network cannot learn it: check the label's value, or choose "
                "another fold."
            )
        elif sampled and count is not None and count < PATCH_VOXELS:
            voxels = f"{count} voxel" if count == 1 else f"{count} voxels"
            notes.append(
                f"{literal(name)} has at most {voxels} in any training case, fewer than the {PATCH_VOXELS} of one patch that the network "
                "reads, so that crops are centred on the same few voxels again and again: check the label's value."
            )
    return notes


def _largest_counts(cases: Sequence[PreparedCase]) -> Iterator[int | None]:
    """Yields for each class its largest number of stored voxels in any case, or None if there are no cases."""
    counts = [case.class_voxels.counts for case in cases]
    return map(max, zip(*counts)) if counts else itertools.repeat(None)


def _size_by_direction(affine: np.ndarray) -> np.ndarray:
    """Returns the sizes of voxels in mm along the array axes nearest to left-right, anterior-posterior and superior-inferior."""
    order = nib.io_orientation(affine)[:, 0]  # array axis -> direction
    return np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(order)]


def unused_notes(dataset: Dataset) -> list[str]:
    """Returns sentences on the entries of a data set that are not used for training, and why."""
    notes = [text for text in (dataset.ignored, *dataset.warnings) if text]
    unused = [case for case in dataset.cases if case.problem and case.split == "test" and not case.images]
    lines = problem_lines([(case.name, case.problem or "") for case in unused])
    notes += [f"warning: not used for training: {text}" for text in lines]
    if unlabelled_cases := unlabelled(dataset):
        names = name_list(case.name for case in unlabelled_cases)
        scans = len([case for case in dataset.cases if case.images])
        notes.append(
            f"warning: {len(unlabelled_cases)} of {scans} scans have no label map and are not used for training: {names}"
        )
    return notes


def _print(text: str) -> None:
    if processes.is_leader():
        say(literal(text))


def batches(recipe: Recipe, cases: Cases, share: Share = Share(0, 1)) -> TrainingData:
    """Returns the endless iterator over a share of each training batch, by default all of it. It starts with the first batch."""
    augmentation = cases.augmentation if recipe.transforms is None else None
    return TrainingData(
        cases.train,
        host_transforms(recipe, cases.task, cases.flips)
        if augmentation is None
        else [source_crop(cases.task, augmentation, class_share(recipe))],
        batch=recipe.batch,
        seed=recipe.seed,
        workers=recipe.workers,
        process=share.number,
        processes=share.count,
        raw=augmentation is not None,
    )


def fitted_roi(shapes: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    """Returns a crop size close to the median scan's: multiples of 32, at most 96 voxels per axis, and not 32 along all axes.

    An axis is rounded down if this cuts off at most a quarter of the multiple, because padding costs more than it gains: on scans of
    36×50×36 voxels, training on crops of 32×64×32 progressed faster per step than on crops of 64³, and a step took a quarter of the time.
    """
    median = np.median(np.array([shape[:3] for shape in shapes]), axis=0)
    x, y, z = (min(_fitted_size(size), LARGEST_FITTED_ROI) for size in median)
    if x == y == z == SIZE_MULTIPLE:  # the network does not take this size, see `SwinUNETRConfig.check_spatial`
        longest = int(np.argmax(median))
        x, y, z = (size * 2 if axis == longest else size for axis, size in enumerate((x, y, z)))
    return x, y, z


def _fitted_size(size: float) -> int:
    below = math.floor(size / SIZE_MULTIPLE) * SIZE_MULTIPLE
    return below if below > 0 and size <= 1.25 * below else below + SIZE_MULTIPLE


def task_fields(recipe: Recipe, channels: tuple[str, ...], ct_window: tuple[float, float]) -> dict[str, Any]:
    """Returns the fields of the task that do not depend on the labels: how scans are prepared. Prints the window of a CT."""
    fields: dict[str, Any] = {
        "channels": channels,
        "orientation": recipe.orientation,
        "spacing": recipe.spacing,
        "roi": recipe.roi,
    }
    window = recipe.window
    if window is None and channels and all(name.upper() == "CT" for name in channels):
        window = ct_window
        _print(f"CT: intensities of {window[0]:g} to {window[1]:g} HU are scaled to 0 to 1; --window chooses another range")
    return fields if window is None else fields | {"intensity": "window", "window": window}
