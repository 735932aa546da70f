"""The preview of a prediction: three slices of a scan, without and with the outlines of the labels, and the volumes of the labels."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from swinunetr_jax import console
from swinunetr_jax.data.boxes import bounding_box, slices, whole_box
from swinunetr_jax.data.nifti import Volume, reorient
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task
from swinunetr_jax.viz.figures import add_legend, drawable, literal_text, mark_sides, save
from swinunetr_jax.viz.labels import label_colours, label_names, volumes_ml
from swinunetr_jax.viz.overlay import grey_levels, overlay_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VIEWS = (("axial", 2), ("coronal", 1), ("sagittal", 0))
_MARGIN = 4  # voxels around the patient


def write_preview(path: str | os.PathLike, image: np.ndarray, labels: np.ndarray, scan: Volume, task: Task, title: str) -> None:
    """Writes three slices of a scan, each without and with the outlines of the labels, as a PNG, with the volumes below.

    The slices are those with the most labelled voxels, or the middle ones if no voxel is labelled. They are shown as radiologists view
    them: axial slices from below, so that the patient's right is on the left, and anterior or superior at the top; letters mark the sides.
    If they cannot be drawn, for whatever reason, a warning says so and the picture shows that sentence: no prediction fails because of
    its preview.

    Args:
        image: [x, y, z] on the scan's grid.
        labels: uint8 [x, y, z] on the same grid.
        title: the text above the slices, drawn literally.

    Raises:
        InputError: the file cannot be written.
    """
    with literal_text():
        save_or_explain(lambda: preview_figure(image, labels, scan.affine, task, title), path, title)


def save_or_explain(draw: Callable[[], Figure], path: str | os.PathLike, title: str) -> None:
    """Writes the figure that `draw` returns. If it cannot be drawn, a warning says so and the picture shows that sentence.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    try:
        save(draw(), path)
    except InputError:
        raise
    except Exception as error:
        sentence = f"The preview could not be drawn ({console.literal(error) or type(error).__name__})."
        console.warn(f"{console.literal(title)}: {sentence[0].lower()}{sentence[1:]}")
        figure = Figure(figsize=(10.5, 1))
        figure.text(0.02, 0.5, drawable(sentence))
        save(figure, path)


def preview_figure(image: np.ndarray, labels: np.ndarray, affine: np.ndarray, task: Task, title: str) -> Figure:
    """Returns the figure of `write_preview`; draw and save it inside of `literal_text`."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    volumes = volumes_ml(labels, affine)
    labels = reorient(labels, affine, "LAS")[0]
    image, affine, _ = reorient(image, affine, "LAS")
    image, labels = _cropped(image, labels)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    grey = grey_levels(image)
    names = label_names(task)
    colours = label_colours({*names, *volumes})
    figure = Figure(figsize=(10.5, 7.4), facecolor="black", layout="constrained")
    axes = figure.subplots(2, 3)
    for column, (view, axis) in enumerate(VIEWS):
        index = _fullest(labels, axis)
        plane = np.repeat(np.take(grey, index, axis).T[::-1, :, None], 3, -1)
        label_plane = np.take(labels, index, axis).T[::-1]
        in_plane = [a for a in range(3) if a != axis]
        aspect = spacing[in_plane[1]] / spacing[in_plane[0]]
        for row, picture in enumerate((plane, overlay_labels(plane, label_plane, colours))):
            axes[row, column].imshow(picture, aspect=aspect, interpolation="nearest")
            axes[row, column].set_axis_off()
            mark_sides(axes[row, column], view)
        axes[0, column].set_title(view, color="white", fontsize=10)
    if volumes:
        handles = [Patch(color=colours[value]) for value in volumes]
        texts = [f"{names.get(value, 'label')} ({value}): {ml:.1f} ml" for value, ml in volumes.items()]
        style = {"facecolor": "black", "labelcolor": "white", "frameon": False}
        add_legend(figure, handles, texts, loc="outside lower center", ncols=min(len(handles), 6), **style)
    title = drawable(title)
    figure.suptitle(title if volumes else f"{title}: nothing was found", color="white", fontsize=12)
    return figure


def _cropped(image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both arrays cut to the patient with a margin. The value of air is that of the corner voxel."""
    air = image[0, 0, 0]
    box = slices(bounding_box((image != air) | (labels > 0), _MARGIN) or whole_box(image.shape))
    return image[box], labels[box]


def _fullest(labels: np.ndarray, axis: int) -> int:
    """Returns the index of the slice with the most labelled voxels, or the middle one if there are none."""
    counts = (labels > 0).sum(tuple(a for a in range(3) if a != axis))
    return int(counts.argmax()) if counts.any() else labels.shape[axis] // 2
