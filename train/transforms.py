"""Random changes of training samples on the host, and the axes along which samples are mirrored."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from swinunetr_jax import Task
from swinunetr_jax.console import literal, say, warn
from swinunetr_jax.data.augment import sides
from swinunetr_jax.data.augment.class_share import ClassShare
from swinunetr_jax.data.augment.transforms import Transform, brats_recipe, ct_recipe
from swinunetr_jax.training import processes
from swinunetr_jax.training.config import Augment
from swinunetr_jax.training.crop_size import crop_size
from swinunetr_jax.training.recipe import Recipe

# A run with fewer passes over the cases or fewer samples is not mirrored by default. Mirroring lowered the Dice in all runs that were
# measured, which had 400 to 800 samples and 2.5 to 37 passes, see docs/train.md; longer runs were not measured.
MIRRORING_PASSES, MIRRORING_SAMPLES = 25, 2000


def host_transforms(recipe: Recipe, task: Task, flips: tuple[int, ...]) -> tuple[Transform, ...]:
    """Returns the transforms of a sample on the host: those of the recipe, or the usual ones for the task's intensities.

    Args:
        recipe: the recipe of the run.
        task: the task, with the size of the crop.
        flips: the axes to mirror along.
    """
    if recipe.transforms is not None:
        return tuple(recipe.transforms(task))
    return _FOR_INTENSITY[task.intensity](task, recipe.host_augment, flips, class_share(recipe))


def class_share(recipe: Recipe) -> ClassShare | None:
    """Returns the share of the samples that is centred on a class, or None if the recipe centres none."""
    return ClassShare(recipe.class_share, recipe.batch) if recipe.class_share else None


def _normalized_transforms(
    task: Task, augment: Augment, flips: tuple[int, ...], by_class: ClassShare | None
) -> tuple[Transform, ...]:
    return brats_recipe(
        crop_size(task), augment.normalize_after_crop, flips, pad_foreground=augment.pad_foreground, by_class=by_class
    )


def _windowed_transforms(
    task: Task, augment: Augment, flips: tuple[int, ...], by_class: ClassShare | None
) -> tuple[Transform, ...]:
    assert task.window is not None  # `Task` requires a window for this intensity
    return ct_recipe(crop_size(task), window=task.window, flip_axes=flips, ignore=task.ignore, by_class=by_class)


_FOR_INTENSITY: dict[str, Callable[[Task, Augment, tuple[int, ...], ClassShare | None], tuple[Transform, ...]]] = {
    "zscore": _normalized_transforms,
    "window": _windowed_transforms,
    "none": _normalized_transforms,
}


def mirrored_axes(
    asked: tuple[int, ...] | None,
    task: Task,
    affines: Sequence[np.ndarray],
    passes: float,
    samples: float = math.inf,
    *,
    in_recipe: bool = False,
) -> tuple[int, ...]:
    """Returns the axes along which training samples are mirrored, and prints the reason if they are not all axes.

    Args:
        asked: the axes that the user chose. None means all axes except those along which labels name sides, and none in a
            run that is too short to benefit from mirroring.
        task: the task, with the names of the labels.
        affines: the affines of the prepared scans, [4, 4] each.
        passes: how often the run sees each training case.
        samples: the number of samples of the whole run, each pass and case counted.
        in_recipe: whether the axes are chosen by a `Mirror` of the recipe instead of an option.
    """
    option = "Mirror(axes=…) in the recipe" if in_recipe else "--augment.flips"
    sided = sides.sided_axes(task, affines)
    free = tuple(axis for axis in range(3) if axis not in sided)
    short = asked is None and bool(free) and (passes < MIRRORING_PASSES or samples < MIRRORING_SAMPLES)
    chosen = asked if asked is not None else () if short else free
    wrong = {axis: sided[axis] for axis in chosen if axis in sided}
    if processes.is_leader() and wrong:
        warn(
            f"samples are mirrored along {literal(sides.describe(wrong))}, as {option} asks: these labels name sides along it, "
            "which the network then cannot distinguish."
        )
    elif processes.is_leader() and short:
        chosen_all = f"Mirror(axes={free}) in the recipe" if in_recipe else f"--augment.flips {' '.join(map(str, free))}"
        say(
            f"samples are not mirrored, because mirroring lowered the score of short runs: this one has {samples:.4g} samples and "
            f"sees each case {passes:.3g} times, and from {MIRRORING_SAMPLES} samples and {MIRRORING_PASSES} times on they are "
            f"mirrored; {chosen_all} mirrors them nevertheless"
        )
    elif processes.is_leader() and asked is None and sided:
        say(
            f"samples are not mirrored along {literal(sides.describe(sided))}: these labels name sides along it; {option} chooses other "
            "axes"
        )
    return chosen
