"""The ways in which windows are mirrored: along all combinations of axes, except axes along which labels name sides."""

import itertools

import numpy as np

from swinunetr_jax.data.augment import sides
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task


def sided_axes(task: Task, affine: np.ndarray | None) -> dict[int, dict[str, tuple[str, ...]]]:
    """Returns the axes of a scan along which its windows are not mirrored, as `data.augment.sides.sided_axes` does.

    Args:
        task: the task, whose labels may name sides.
        affine: the affine [4, 4] of the array that the network receives. It is needed if labels name sides and the task does not change
            the orientation of scans, because only the affine then states which axis a side belongs to.

    Raises:
        InputError: it is needed and None.
    """
    names = [output.name for output in task.outputs if output.value]
    if affine is None and not task.orientation and sides.sided_directions(names):
        raise InputError(
            "labels of this task name sides, and without the scan's affine it is not known along which axes windows must not be "
            "mirrored: give `affine`."
        )
    return sides.sided_axes(task, [] if affine is None else [affine])


def mirrored_axes(task: Task, affine: np.ndarray | None) -> list[tuple[int, ...]]:
    """Returns the combinations of axes of windows [n, x, y, z, c] along which a scan is mirrored, with the arguments of `sided_axes`."""
    sided = sided_axes(task, affine)
    axes = [axis + 1 for axis in range(3) if axis not in sided]
    return [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]
