"""Pictures of heat maps: slices of a scan through the peak of each map, with the map in colours over them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from swinunetr_jax.data.boxes import bounding_box, slices, whole_box
from swinunetr_jax.data.nifti import reorient
from swinunetr_jax.viz.figures import drawable, literal_text
from swinunetr_jax.viz.overlay import grey_levels
from swinunetr_jax.viz.preview import VIEWS, save_or_explain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = "inferno"
OPACITY = 0.7  # of the largest value; smaller values are more transparent
MARGIN = 4  # voxels around the patient
MAX_ROWS = 12  # maps in one picture


def write_heat_picture(
    path: str | os.PathLike, image: np.ndarray, maps: np.ndarray, names: Sequence[str], affine: np.ndarray, title: str
) -> None:
    """Writes a row of three slices for each map as a PNG, with the views of `write_preview`.

    The slices pass through the largest value of the map. A picture has at most 12 rows, and its title says if there are more maps.

    Args:
        path: the file.
        image: [x, y, z] on the scan's grid.
        maps: [x, y, z, n] in 0 … 1 on the same grid.
        names: the name of each map.
        affine: the affine of the grid.
        title: the text above the slices, drawn literally.

    Raises:
        InputError: the file cannot be written.
    """
    with literal_text():
        save_or_explain(lambda: _figure(image, maps, names, affine, title), path, title)


def _figure(image: np.ndarray, maps: np.ndarray, names: Sequence[str], affine: np.ndarray, title: str) -> Figure:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    maps = reorient(maps, affine, "LAS")[0]
    image, affine, _ = reorient(image, affine, "LAS")
    box = slices(bounding_box(image != image[0, 0, 0], MARGIN) or whole_box(image.shape))
    grey, maps = grey_levels(image[box]), maps[box]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    rows = min(len(names), MAX_ROWS)
    figure = Figure(figsize=(10.5, 3.5 * rows + 0.4), facecolor="black", layout="constrained")
    axes = figure.subplots(rows, len(VIEWS), squeeze=False)
    for row in range(rows):
        heat = maps[..., row]
        peak = np.unravel_index(int(heat.argmax()), heat.shape)
        for column, (view, axis) in enumerate(VIEWS):
            index = int(peak[axis]) if heat.any() else heat.shape[axis] // 2
            plane = np.repeat(np.take(grey, index, axis).T[::-1, :, None], 3, -1)
            values = np.take(heat, index, axis).T[::-1]
            share = OPACITY * values[..., None]
            picture = (1 - share) * plane + share * colormaps[COLOURS](values)[..., :3]
            in_plane = [other for other in range(3) if other != axis]
            aspect = spacing[in_plane[1]] / spacing[in_plane[0]]
            axes[row, column].imshow(picture, aspect=aspect, interpolation="nearest")
            axes[row, column].set_axis_off()
            label = f"{drawable(names[row])}, {view}" if heat.any() else f"{drawable(names[row])}: 0 everywhere"
            axes[row, column].set_title(label, color="white", fontsize=10)
    more = f" ({rows} of {len(names)} maps)" if len(names) > rows else ""
    figure.suptitle(f"{drawable(title)}{more}", color="white", fontsize=12)
    return figure
