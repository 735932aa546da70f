"""The segments of a label map: for each label its value, name, colour and code, as 3D Slicer and DICOM state them."""

from collections.abc import Mapping
from dataclasses import dataclass

from swinunetr_jax.data.formats.segment_codes import SegmentCode, codes_of
from swinunetr_jax.task import Output, Task


@dataclass(frozen=True)
class Segment:
    """One label of a label map.

    Attributes:
        value: its value in the label map.
        name: its name, which says what the voxels of this value are.
        colour: red, green and blue in 0 … 255.
        code: what it is in the terms of SNOMED CT.
    """

    value: int
    name: str
    colour: tuple[int, int, int]
    code: SegmentCode


def segments_of(task: Task, colours: Mapping[int, str]) -> tuple[Segment, ...]:
    """Returns the segments of a task's label maps by ascending value, without the background.

    Args:
        task: the meaning of the labels.
        colours: the colour of each value, such as "#56B4E9".
    """
    names, codes = value_names(task), codes_of(task)
    return tuple(
        Segment(value, name, _rgb(colours[value]), codes[value]) for value, name in sorted(names.items()) if value in colours
    )


def value_names(task: Task) -> dict[int, str]:
    """Returns a name for each value of a task's label maps except the background.

    The name says what the voxels of this value are. Where a region is written over another one, only the rest of the other has its
    value: for BraTS the names are "TC without ET", "WT without TC" and "ET".
    """
    return {output.value: _value_name(task, output) for output in task.outputs if output.value}


def _value_name(task: Task, output: Output) -> str:
    if task.kind != "regions":
        return output.name
    later = [task.outputs[index] for index in task.paint[task.paint.index(task.outputs.index(output)) + 1 :]]
    inside = [other for other in later if set(task.labels_of(other)) < set(task.labels_of(output))]
    largest = [
        other.name for other in inside if not any(set(task.labels_of(other)) < set(task.labels_of(more)) for more in inside)
    ]
    return f"{output.name} without {' and '.join(largest)}" if largest else output.name


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
