"""The segments of a label map: for each label its value, name, colour and code, as 3D Slicer and DICOM state them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from swinunetr_jax.data.formats.segment_codes import SegmentCode, codes_of
from swinunetr_jax.task import Task

PROGRAM = "swinunetr_jax"  # the manufacturer's model name in each DICOM-SEG of this program
_VALUE = re.compile(r"Label (\d{1,5}) of the label map\.")


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


def segments_of(task: Task, names: Mapping[int, str], colours: Mapping[int, str]) -> tuple[Segment, ...]:
    """Returns the segments of a task's label maps by ascending value, without the background.

    Args:
        task: the meaning of the labels.
        names: the name of each value, which says what its voxels are.
        colours: the colour of each value, such as "#56B4E9".
    """
    return tuple(Segment(value, names[value], _rgb(colours[value]), code) for value, code in sorted(codes_of(task).items()))


def value_text(value: int) -> str:
    """Returns the sentence that states the value of a segment in a DICOM-SEG, which has only numbers from 1 otherwise."""
    return f"Label {value} of the label map."


def value_in(description: str) -> int | None:
    """Returns the value that the description of a segment states, or None if it states none."""
    stated = _VALUE.match(description)
    return int(stated[1]) if stated else None


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
