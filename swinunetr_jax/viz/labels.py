"""What the values of label maps are: their names, colours and volumes, for pictures, legends and the viewer."""

import colorsys
from collections.abc import Iterable

import numpy as np

from swinunetr_jax.data import brats
from swinunetr_jax.output import Output
from swinunetr_jax.task import Task

# The colours of Okabe and Ito, which colour-blind readers can distinguish.
COLOURS = ("#56B4E9", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#F0E442", "#0072B2")
GOLDEN_RATIO = 0.618034  # successive multiples of it, modulo 1, are far from each other: hues for further labels


def label_names(task: Task) -> dict[int, str]:
    """Returns the name of each label value of a task except the background.

    A class has its own name. A label of overlapping regions is named after the smallest region that contains it: of the regions TC (1, 4)
    and ET (4), the label 4 is "ET", and 1 is "TC without ET". The labels of BraTS have the names that its publications give them.
    """
    outputs = [output for output in task.outputs if output.value]
    names = {}
    if task.kind == "regions":
        for value in sorted({value for output in outputs for value in (output.value, *task.labels_of(output))}):
            names[value] = _name_in_regions(value, outputs, task)
        for et_label in brats.ET_LABELS:
            if {output.name: task.labels_of(output) for output in outputs} == brats.regions(et_label):
                names = brats.label_names(et_label)
    else:
        names = {output.value: output.name for output in outputs}
    return names if task.ignore is None else names | {task.ignore: "ignored"}


def _name_in_regions(value: int, outputs: list[Output], task: Task) -> str:
    regions = {output.name: set(task.labels_of(output)) for output in outputs}
    name = min((name for name, labels in regions.items() if value in labels), key=lambda name: len(regions[name]))
    inner = [other for other, labels in regions.items() if labels < regions[name]]
    outermost = [other for other in inner if not any(regions[other] < regions[larger] for larger in inner)]
    return f"{name} without {' and '.join(outermost)}" if outermost else name


def colour(index: int) -> str:
    """Returns the colour of the label with this number, from 0: a fixed list, then hues that are far from each other."""
    if index < len(COLOURS):
        return COLOURS[index]
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN_RATIO % 1, 0.45 if index % 2 else 0.8, 1.0 if index % 3 else 0.75)
    return f"#{round(255 * red):02X}{round(255 * green):02X}{round(255 * blue):02X}"


def label_colours(values: Iterable[int]) -> dict[int, str]:
    """Returns a colour for each label value, in the order of the values."""
    return {value: colour(index) for index, value in enumerate(sorted(set(values)))}


def volumes_ml(labels: np.ndarray, affine: np.ndarray) -> dict[int, float]:
    """Returns the volume in ml of each label value in a label map [x, y, z] except the background."""
    values, counts = np.unique(labels[labels > 0], return_counts=True)
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    return {int(value): int(count) * voxel_ml for value, count in zip(values, counts)}
