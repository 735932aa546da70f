"""Operations on label maps: keep the largest component of an output, and replace an output that is too small.

Label maps are uint8 [x, y, z] in the label values of a task. Components are connected by 26 neighbours: two voxels belong together if they
share a face, an edge or a corner. No operation changes its argument. Source of the operations: nnU-Net's post-processing (largest
component), and the winners of BraTS (a small enhancing tumour becomes necrosis).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from scipy.ndimage import generate_binary_structure, label

from swinunetr_jax.data.boxes import bounding_box, slices
from swinunetr_jax.errors import InputError
from swinunetr_jax.output import Output
from swinunetr_jax.task import Task

NEIGHBOURS = generate_binary_structure(3, 3)  # 26


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operation of a post-processing.

    Attributes:
        operation: "largest_component" or "smallest_volume", see `keep_largest_component` and `replace_small`.
        output: the name of the output, or None for the whole foreground, which only "largest_component" can have.
        voxels: for "smallest_volume", the number of voxels below which the output is replaced.
    """

    operation: Literal["largest_component", "smallest_volume"]
    output: str | None = None
    voxels: int = 0

    def __str__(self) -> str:
        if self.operation == "largest_component":
            return f"keep the largest component of {self.output or 'the whole foreground'}"
        return f"replace {self.output} if it has fewer than {self.voxels} voxels"


def apply(steps: Iterable[Step], labels: np.ndarray, task: Task) -> np.ndarray:
    """Returns a label map after all steps, in their order.

    Raises:
        InputError: the task has no output of a step's name.
    """
    for step in steps:
        if step.operation == "largest_component":
            labels = keep_largest_component(labels, task, step.output)
        else:
            labels = replace_small(labels, task, _output(task, step.output).name, step.voxels)
    return labels


def keep_largest_component(labels: np.ndarray, task: Task, output: str | None = None) -> np.ndarray:
    """Returns a label map in which all components of an output but the largest one have the output's `fallback` label.

    If several components are the largest, all of them are kept, so that the result does not depend on the orientation of the array.

    Args:
        labels: uint8 [x, y, z].
        task: the meaning of the labels.
        output: the name of a class or region, or None for the whole foreground, which is every voxel that is not 0.

    Raises:
        InputError: the task has no such output.
    """
    mask = labels != 0 if output is None else _mask(labels, task, output)
    box = bounding_box(mask)
    if box is None:
        return labels
    # scipy declares no types; the result is a pair, because no output array is given
    components, count = cast("tuple[np.ndarray, int]", label(mask[slices(box)], NEIGHBOURS))
    if count == 1:
        return labels
    sizes = np.bincount(components.ravel())
    sizes[0] = 0  # the voxels outside of the mask
    removed = sizes < sizes.max()
    removed[0] = False
    result = labels.copy()
    result[slices(box)][removed[components]] = 0 if output is None else fallback(task, _output(task, output))
    return result


def replace_small(labels: np.ndarray, task: Task, output: str, voxels: int) -> np.ndarray:
    """Returns a label map in which an output that has fewer than `voxels` voxels in total is replaced by its `fallback` label.

    Args:
        labels: uint8 [x, y, z].
        task: the meaning of the labels.
        output: the name of a class or region.
        voxels: the smallest number of voxels that the output keeps.

    Raises:
        InputError: the task has no such output.
    """
    mask = _mask(labels, task, output)
    if not 0 < np.count_nonzero(mask) < voxels:
        return labels
    result = labels.copy()
    result[mask] = fallback(task, _output(task, output))
    return result


def fallback(task: Task, output: Output) -> int:
    """Returns the label of voxels that no longer belong to an output.

    It is the value of the smallest region that contains the output, and 0 for classes and if no region contains the output. For BraTS,
    enhancing tumour becomes the remaining label of the tumour core, 1, and the tumour core that of the whole tumour, 2.
    """
    inside = set(task.labels_of(output))
    around = [
        other
        for other in task.outputs
        if task.kind == "regions" and inside < set(task.labels_of(other)) and other.value not in inside
    ]
    return min(around, key=lambda other: len(task.labels_of(other))).value if around else 0


def _mask(labels: np.ndarray, task: Task, output: str) -> np.ndarray:
    return np.isin(labels, task.labels_of(_output(task, output)))


def _output(task: Task, name: str | None) -> Output:
    """Returns the output of a name that is not the background. Raises InputError if there is none."""
    match = next((output for output in task.outputs if output.name == name and output.value), None)
    if match is None:
        names = ", ".join(output.name for output in task.outputs if output.value)
        raise InputError(f"the post-processing needs an output {name!r}, and the task has {names}.")
    return match
