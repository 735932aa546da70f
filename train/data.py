"""From a recipe to the cases of a run: found, split, prepared once into a cache; what they are for; batches of them."""

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import nibabel as nib
import numpy as np

from swinunetr_jax import InputError, Task
from swinunetr_jax.config import SIZE_MULTIPLE
from swinunetr_jax.console import Progress, literal, name_list, say, warn
from swinunetr_jax.data.augment import sides
from swinunetr_jax.data.augment.transforms import brats_recipe, ct_recipe
from swinunetr_jax.data.check.problems import problem_lines
from swinunetr_jax.data.discovery.cases import Case, Dataset
from swinunetr_jax.data.discovery.dataset_json import MAX_LABEL
from swinunetr_jax.data.discovery.folds import find_splits, fold_split, unlabelled, with_folds
from swinunetr_jax.data.discovery.formats import find_cases
from swinunetr_jax.data.nifti import read_geometry, read_labels
from swinunetr_jax.data.phantom.dataset import write_phantom
from swinunetr_jax.data.pipeline import TrainingData
from swinunetr_jax.data.prepare.cache import PreparedCase, prepare_training_cases
from swinunetr_jax.training import processes
from swinunetr_jax.training.recipe import Recipe

ABDOMINAL_WINDOW = (-175.0, 250.0)  # HU; of a CT for which no other is asked
MIXED_SPACING = 1.05  # scans whose voxel sizes differ by more than this factor are said to be mixed
MIRRORING_PASSES = 25  # passes over the cases from which on samples are mirrored; after 5 passes it costs Dice, see the README
LARGEST_FITTED_ROI = 96  # what a network of 48 features trains on in 16 GB


@dataclass(frozen=True)
class Cases:
    """The prepared cases of a run and the task that they teach."""

    task: Task
    in_channels: int
    train: tuple[PreparedCase, ...]
    validation: tuple[PreparedCase, ...]
    flips: tuple[int, ...] = ()  # axes along which training samples are mirrored

    @property
    def names(self) -> dict[str, list[str]]:
        return {"train": [case.name for case in self.train], "validation": [case.name for case in self.validation]}


def gather(recipe: Recipe, run: Path) -> Cases:
    """Finds, splits and prepares the cases of a run; says what it does.

    Raises:
        InputError: there is no data set, it cannot be split so, or cases are faulty (all of them are named).
    """
    dataset = find_dataset(recipe, run)
    train, validation = fold_split(folded(recipe, dataset), recipe.fold)
    validation = validation[: recipe.validation.cases]
    chosen = [*train, *validation]
    _say_unused(dataset)
    if any(case.problem for case in chosen) and not any(case.images for case in chosen):
        lines = problem_lines([(case.name, case.problem) for case in chosen])
        raise InputError("no case can be used for training:", *lines)
    channels, count = _channels(recipe, dataset, chosen)
    task = _task(recipe, dataset, chosen, channels)
    cache, form = recipe.cache or run / "cache", {"in_channels": count, "dtype": recipe.cache_dtype}
    with Progress("preparing cases", "case", silent=not processes.is_leader()) as progress:
        if processes.is_distributed():  # each its share; what is wrong with it comes to light below, where all look at all
            with contextlib.suppress(InputError):
                own = chosen[jax.process_index() :: jax.process_count()]
                prepare_training_cases(own, task, cache, **form, progress=progress)
            processes.barrier("cases are prepared")
        try:
            alone = not processes.is_distributed()  # else each case was verified above, by one of them
            prepared = prepare_training_cases(chosen, task, cache, **form, verify=alone, progress=progress)
        except InputError as error:
            raise InputError(*error.args, f"All that is wrong with the data set: swinunetr validate {dataset.root}") from error
    if recipe.roi is None:  # by all scans, not this fold's: the networks of all folds are to fit together
        task = replace(task, roi=fitted_roi([case.shape for case in prepared]))
    if processes.is_leader():
        for note in grid_notes(task, [case.affine for case in prepared]):
            warn(note)
    flips: tuple[int, ...] = ()
    if recipe.transforms is None:  # otherwise the recipe decides what is mirrored
        passes = recipe.total_steps(len(train)) * recipe.batch / len(train)
        flips = mirrored_axes(recipe.host_augment.flips, task, [case.affine for case in prepared], passes)
    return Cases(task, count, tuple(prepared[: len(train)]), tuple(prepared[len(train) :]), flips)


def mirrored_axes(asked: tuple[int, ...] | None, task: Task, affines: Sequence[np.ndarray], passes: float) -> tuple[int, ...]:
    """Axes along which training samples are mirrored; it says what names of labels and the length of the run have to do with it.

    Args:
        asked: the axes that a user chose, which are taken; None takes all but those along which names of labels tell sides, and none
            in a run that is too short for mirroring to be of use.
        task, affines: the labels and the grids of the prepared scans, [4, 4] each.
        passes: how often the run sees each training case.
    """
    sided = sides.sided_axes(task, affines)
    free = tuple(axis for axis in range(3) if axis not in sided)
    short = asked is None and bool(free) and passes < MIRRORING_PASSES
    chosen = asked if asked is not None else () if short else free
    wrong = {axis: sided[axis] for axis in chosen if axis in sided}
    if processes.is_leader() and wrong:
        warn(
            f"samples are mirrored along {literal(sides.describe(wrong))}, as --augment.flips asks: these labels name sides along it, "
            "which the network then cannot tell from each other."
        )
    elif processes.is_leader() and short:
        axes = " ".join(map(str, free))
        say(
            f"samples are not mirrored: the run sees each case {passes:.3g} times, and below {MIRRORING_PASSES} times mirroring costs more "
            f"than it gives; --augment.flips {axes} mirrors all the same"
        )
    elif processes.is_leader() and asked is None and sided:
        say(
            f"samples are not mirrored along {literal(sides.describe(sided))}: these labels name sides along it; --augment.flips chooses "
            "other axes"
        )
    return chosen


def grid_notes(task: Task, affines: Sequence[np.ndarray]) -> list[str]:
    """Sentences that say where the scans' orientations or voxel sizes are mixed, as the network gets them.

    Args:
        task: scans are brought to its orientation and spacing, where it has them.
        affines: of the prepared scans, [4, 4] each, in mm.
    """
    codes = Counter("".join(nib.aff2axcodes(affine)) for affine in affines)
    sizes = np.array([_size_by_direction(affine) for affine in affines])
    notes = []
    if len(codes) > 1:
        each = ", ".join(f"{code} ({count})" for code, count in codes.most_common())
        notes.append(
            f"the scans are stored in {len(codes)} orientations, {each}, and the network sees them as stored: --orientation RAS brings all "
            "of them to one."
        )
    low, high = sizes.min(axis=0), sizes.max(axis=0)
    if task.spacing is None and (high > MIXED_SPACING * low).any():
        each = ", ".join(
            f"{name} {a:.3g} to {b:.3g} mm" for name, a, b in zip(sides.DIRECTIONS, low, high) if b > MIXED_SPACING * a
        )
        median = " ".join(f"{size:.3g}" for size in np.median(sizes, axis=0))
        notes.append(
            f"the scans' voxel sizes differ ({each}), and the network sees voxels, not mm: --orientation RAS --spacing {median} brings all "
            "of them to the median."
        )
    return notes


def _size_by_direction(affine: np.ndarray) -> np.ndarray:
    """Voxel sizes in mm, left-right, anterior-posterior and superior-inferior, of the axes nearest to these directions."""
    order = nib.io_orientation(affine)[:, 0]  # array axis -> direction
    return np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(order)]


def find_dataset(recipe: Recipe, run: Path) -> Dataset:
    """The data set of a recipe; the phantom is made where it is not there yet."""
    if recipe.kind != "phantom":
        if recipe.data is None:
            raise InputError("no data set was given: name its folder or list with --data (the recipe `phantom` needs none).")
        return find_cases(recipe.data, channels=recipe.channels or None, base=recipe.base)
    folder = recipe.data or run / "data"
    if processes.is_leader():  # the others would look while it is being made
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "phantom.json").exists():
            raise InputError(
                f"{folder} holds other data, and this recipe makes its own: to train on yours take the recipe `msd` or `brats21`."
            )
        with Progress("making phantom cases", "case") as progress:
            phantom = recipe.phantom
            write_phantom(folder, cases=phantom.cases, size=phantom.size, seed=phantom.seed, progress=progress)
    processes.barrier("the phantom is made")
    return find_cases(folder, channels=recipe.channels or None)


def folded(recipe: Recipe, dataset: Dataset) -> tuple[Case, ...]:
    """The cases with their folds; as they are where the data set's own validation list is asked for. Says where folds come from."""
    if recipe.fold is None:
        return dataset.cases
    splits = recipe.splits or find_splits(dataset.root, _tell)
    if splits is not recipe.splits and any(case.fold is not None for case in dataset.cases):
        _tell(f"{splits} is not used, since the data set's list has folds (--splits {splits} takes it)")
        splits = None
    options = {"folds": recipe.folds, "seed": recipe.fold_seed, "patient": recipe.patient, "splits": splits}
    return with_folds(dataset.cases, **options, notify=_tell)


def _say_unused(dataset: Dataset) -> None:
    """Says which entries of the data set are not trained on, and why."""
    for text in (dataset.ignored, *dataset.warnings):
        if text:
            _tell(text)
    unused = [case for case in dataset.cases if case.problem and case.split == "test" and not case.images]
    for text in problem_lines([(case.name, case.problem) for case in unused]):
        _tell(f"warning: not trained on: {text}")
    if without := unlabelled(dataset):
        names = name_list(case.name for case in without)
        of = len([case for case in dataset.cases if case.images])
        _tell(f"warning: {len(without)} of {of} scans have no label map and are not trained on: {names}")


def _tell(text: str) -> None:
    if processes.is_leader():
        say(literal(text))


def batches(recipe: Recipe, cases: Cases) -> TrainingData:
    """Endless training batches, this process's share, from the start; `set_state` takes up another place."""
    task, augment = cases.task, recipe.host_augment
    if recipe.transforms is not None:
        transforms = tuple(recipe.transforms(task))
    elif task.intensity == "window":
        transforms = ct_recipe(task.roi, window=task.window, flip_axes=cases.flips)
    else:
        transforms = brats_recipe(task.roi, augment.normalize_after_crop, cases.flips, pad_foreground=augment.pad_foreground)
    share = {"process": jax.process_index(), "processes": jax.process_count()}
    return TrainingData(cases.train, transforms, batch=recipe.batch, seed=recipe.seed, workers=recipe.workers, **share)


def fitted_roi(shapes: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
    """A crop about as large as the median scan, as far as 96 voxels a side allow: multiples of 32, and not 32 along all axes.

    An axis is rounded down where at most a quarter of its multiple is cut off, for padding costs more than it gives: on scans of
    36×50×36 voxels crops of 32×64×32 learned faster than those of 64³ by each step, and a step took a quarter of the time.
    """
    median = np.median(np.array([shape[:3] for shape in shapes]), axis=0)
    sizes = [min(_fitted_size(size), LARGEST_FITTED_ROI) for size in median]
    if all(size == SIZE_MULTIPLE for size in sizes):  # the one size that the network does not take
        sizes[int(np.argmax(median))] *= 2
    return tuple(sizes)


def _fitted_size(size: float) -> int:
    below = math.floor(size / SIZE_MULTIPLE) * SIZE_MULTIPLE
    return below if below > 0 and size <= 1.25 * below else below + SIZE_MULTIPLE


def _channels(recipe: Recipe, dataset: Dataset, cases: Sequence[Case]) -> tuple[tuple[str, ...], int]:
    """Names of the input channels, if there are any, and their number."""
    names = recipe.channels or dataset.channels or ()
    if names:
        return tuple(names), len(names)
    first = next(case for case in cases if case.images)
    shape = read_geometry(first.images[0])[0]
    return (), len(first.images) if len(first.images) > 1 else shape[3] if len(shape) > 3 else 1


def _task(recipe: Recipe, dataset: Dataset, cases: Sequence[Case], channels: tuple[str, ...]) -> Task:
    """What the network is to learn, and how scans are prepared for it."""
    fields: dict[str, Any] = {
        "channels": channels,
        "orientation": recipe.orientation,
        "spacing": recipe.spacing,
        "roi": recipe.roi,
    }
    window = recipe.window
    if window is None and channels and all(name.upper() == "CT" for name in channels):
        window = ABDOMINAL_WINDOW
        if processes.is_leader():
            say(f"CT: {window[0]:g} … {window[1]:g} HU become 0 to 1; --window chooses others")
    if window is not None:
        fields |= {"intensity": "window", "window": window}
    if recipe.kind in ("brats", "phantom"):
        if dataset.et_label is None:
            raise InputError(
                f"{dataset.root}: the files are not named as BraTS names them, so the enhancing tumour may be label 3 or 4; take the "
                "recipe `msd`, which reads labels from a dataset.json."
            )
        return Task.brats(et_label=dataset.et_label, **fields)
    if "ignore" in (dataset.labels or {}):
        raise InputError(
            f"{dataset.root}: voxels to ignore are not supported in training; give them a label, or the background's."
        )
    told = Task.from_labels(dataset.labels, dataset.regions_class_order, **fields)
    if told is not None and told.kind == "regions" and len(dataset.regions_class_order or ()) != len(told.outputs):
        raise InputError(
            f"{dataset.root}: {len(told.outputs)} regions need as many values in regions_class_order, got "
            f"{dataset.regions_class_order}."
        )
    return told or Task.from_labels({f"label {value}": value for value in _values(cases)}, **fields)


def _values(cases: Sequence[Case]) -> list[int]:
    """All labels that occur, where no dataset.json names them. Raises InputError if there is none but the background."""
    values: set[int] = set()
    large: list[str] = []
    for case in cases:
        try:
            found = np.unique(read_labels(case.label).array)
        except InputError:
            continue  # it is named with all other faults when the cases are prepared
        values.update(found[found <= MAX_LABEL].tolist())  # a larger one is named then, too
        large += [f"{case.label} ({found[-1]})"] * bool(found[-1] > MAX_LABEL)
    if not values - {0} and large:
        raise InputError(f"{name_list(large)}: the labels are above {MAX_LABEL}, the largest that is learned; renumber them.")
    if not values - {0}:
        raise InputError(
            "the label maps hold nothing but background, expected labels to learn; check them with `swinunetr validate`."
        )
    return sorted(values - {0})
