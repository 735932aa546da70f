"""Pictures that people look at."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.legend import Legend
from matplotlib.patches import Patch

from swinunetr_jax import console
from swinunetr_jax.data.boxes import bounding_box, slices, whole_box
from swinunetr_jax.data.nifti import Volume, reorient
from swinunetr_jax.errors import InputError
from swinunetr_jax.files import atomic_path
from swinunetr_jax.task import Task

# Okabe and Ito's colours, told apart by colour-blind readers too; beyond them the order repeats.
COLOURS = ("#56B4E9", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#F0E442", "#0072B2")
_VIEWS = (("axial", 2), ("coronal", 1), ("sagittal", 0))
FONT = "DejaVu Sans"  # comes with matplotlib
LONGEST_TEXT = 60  # characters of a name in a picture
LONGEST_LEGEND = 30
MOST_ROWS = 8  # of a legend
FIGURE_CHARACTERS = 130  # side by side, in a figure of 10 inches


@contextlib.contextmanager
def plain_text() -> Iterator[None]:
    """Pictures that are made and saved in this block draw text as it is: "$" begins no formula, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False, "font.family": FONT}):
        yield


def drawable(text: str) -> str:
    """Text from data for a picture: literal, shortened, and with escapes such as \\u5e74 for what the font does not have."""
    text = console.literal(text)
    if len(text) > LONGEST_TEXT:
        text = f"{text[: LONGEST_TEXT - 1]}…"
    known = _characters()
    return "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in text)


@cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FONT)).get_charmap())


def add_legend(owner: Any, handles: Sequence[Artist], labels: Sequence[str], *, ncols: int, **options: Any) -> Legend:
    """A legend of an axes or a figure with labels from data, in at most `ncols` columns and as many as fit side by side.

    Labels that begin with an underscore are drawn too, which matplotlib itself leaves out. Of many labels the last ones are counted.
    """
    labels = list(map(drawable, labels))
    room = FIGURE_CHARACTERS if isinstance(owner, Figure) else FIGURE_CHARACTERS // 2
    ncols = max(1, min(ncols, room // (max(map(len, labels), default=0) + 8)))
    most = min(LONGEST_LEGEND, MOST_ROWS * ncols)
    if len(labels) > most:
        labels = [*labels[: most - 1], f"and {len(labels) - most + 1} more"]
        handles = [*handles[: most - 1], Patch(alpha=0)]
    legend = owner.legend(handles, list(map(str, range(len(handles)))), ncols=ncols, **options)
    for text, label in zip(legend.get_texts(), labels):
        text.set_text(label)
    return legend


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a picture as PNG, whole or not at all. Raises InputError if the file cannot be written."""
    try:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110, facecolor=figure.get_facecolor())
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}).") from error


def write_preview(path: str | os.PathLike, image: np.ndarray, labels: np.ndarray, scan: Volume, task: Task, title: str) -> None:
    """Writes three slices of a scan, plain and with the labels over it, as a PNG.

    Slices are those with the most labelled voxels, else the middle ones, seen as radiologists do: axial from below, so that the
    patient's right is on the left, and anterior or superior on top. Where they cannot be drawn, whatever the reason, a warning says so,
    and the picture holds that sentence: no prediction fails because of its preview.

    Args:
        image: [x, y, z] on the scan's grid.
        labels: uint8 [x, y, z] on the same grid.
        title: drawn above, as it is.

    Raises:
        InputError: the file cannot be written.
    """
    with plain_text():
        try:
            save(_preview(image, labels, scan.affine, task, title), path)
        except InputError:
            raise
        except Exception as error:
            sentence = f"The preview could not be drawn ({console.literal(error) or type(error).__name__})."
            console.warn(f"{console.literal(title)}: {sentence[0].lower()}{sentence[1:]}")
            figure = Figure(figsize=(10.5, 1))
            figure.text(0.02, 0.5, drawable(sentence))
            save(figure, path)


def _preview(image: np.ndarray, labels: np.ndarray, affine: np.ndarray, task: Task, title: str) -> Figure:
    """The figure of `write_preview`."""
    labels = reorient(labels, affine, "LAS")[0]
    image, affine, _ = reorient(image, affine, "LAS")
    image, labels = _cropped(image, labels)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    grey = grey_levels(image)
    present = [output for output in task.outputs if output.value and np.any(labels == output.value)]
    colours = colours_of(task)
    figure = Figure(figsize=(10.5, 7.4), facecolor="black", layout="constrained")
    axes = figure.subplots(2, 3)
    for column, (view, axis) in enumerate(_VIEWS):
        at = _fullest(labels, axis)
        plane = np.take(grey, at, axis).T[::-1]
        marks = np.take(labels, at, axis).T[::-1]
        rest = [a for a in range(3) if a != axis]
        aspect = spacing[rest[1]] / spacing[rest[0]]
        plain = np.repeat(plane[..., None], 3, -1)
        for row, picture in enumerate((plain, painted(plain, marks, colours))):
            axes[row, column].imshow(picture, aspect=aspect, interpolation="nearest")
            axes[row, column].set_axis_off()
        axes[0, column].set_title(view, color="white", fontsize=10)
    handles = [Patch(color=colours[output.value]) for output in present]
    names = [f"{output.name} ({output.value})" for output in present]
    if handles:
        look = {"facecolor": "black", "labelcolor": "white", "frameon": False}
        add_legend(figure, handles, names, loc="outside lower center", ncols=min(len(handles), 6), **look)
    title = drawable(title)
    figure.suptitle(title if present else f"{title}: nothing was found", color="white", fontsize=12)
    return figure


def grey_levels(image: np.ndarray) -> np.ndarray:
    """0 to 1 for all but the darkest and brightest half per cent of what is not zero."""
    inside = image[image != 0]
    low, high = np.percentile(inside, (0.5, 99.5)) if inside.size else (0.0, 1.0)
    return np.clip((image - low) / max(high - low, 1e-12), 0, 1)


def colours_of(task: Task) -> dict[int, str]:
    """A colour for each label value that is written, the background left out."""
    values = [output.value for output in task.outputs if output.value]
    return {value: COLOURS[index % len(COLOURS)] for index, value in enumerate(values)}


def painted(picture: np.ndarray, labels: np.ndarray, colours: dict[int, str]) -> np.ndarray:
    """A picture [..., 3] with labels [...] laid over it."""
    picture = picture.copy()
    for value, colour in colours.items():
        where = labels == value
        picture[where] = 0.45 * picture[where] + 0.55 * np.array(to_rgb(colour))
    return picture


def _cropped(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both cut to the box of what is not background air, with a margin; the corner voxel tells what air is."""
    air = image[0, 0, 0]
    box = slices(bounding_box((image != air) | (labels > 0), margin=4) or whole_box(image.shape))
    return image[box], labels[box]


def _fullest(labels: np.ndarray, axis: int) -> int:
    counts = (labels > 0).sum(tuple(a for a in range(3) if a != axis))
    return int(counts.argmax()) if counts.any() else labels.shape[axis] // 2
