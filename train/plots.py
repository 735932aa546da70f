"""Pictures of a run: its curves, and validation scans next to the reference and the prediction.

matplotlib is imported when the first picture is drawn.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from swinunetr_jax import Task
from swinunetr_jax.data.nifti import reorient
from swinunetr_jax.data.prepare.intensity import scale_window
from swinunetr_jax.training.log import DICE, PSEUDO_DICE, best_validation, metric_of
from swinunetr_jax.training.validation import CaseScore, ScanGrid
from swinunetr_jax.viz.figures import add_legend, drawable, literal_text, mark_sides, save
from swinunetr_jax.viz.labels import label_colours, label_names, volumes_ml
from swinunetr_jax.viz.overlay import grey_levels, overlay_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMOOTHING = 0.9
MAX_SCORES = 8  # the title of a case lists at most this number of scores
MAX_VOLUMES = 4  # and at most this number of volumes


def write_progress(path: Path, rows: Sequence[dict[str, Any]], total: int) -> None:
    """Draws loss and learning rate over the steps so far, and the scores of each validation. Raises InputError if it cannot be written."""
    with literal_text():
        save(_progress(rows, total), path)


def _progress(rows: Sequence[dict[str, Any]], total: int) -> Figure:
    from matplotlib.figure import Figure

    steps = [row for row in rows if row["kind"] == "step"]
    validations = [row for row in rows if row["kind"] == "validation"]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    step_numbers, loss = [row["step"] for row in steps], [row["loss"] for row in steps]
    left.plot(step_numbers, loss, color="#56B4E9", alpha=0.4, linewidth=0.8, label="each step")
    left.plot(step_numbers, _smooth(loss), color="#0072B2", label="smoothed")
    left.set(xlabel="step", ylabel="training loss", xlim=(0, total))
    left.legend(loc="upper right", frameon=False)
    rates = [(row["step"], row["lr"]) for row in steps if "lr" in row]
    if rates:
        rate = left.twinx()
        rate.plot(*zip(*rates), color="0.6", linestyle=":", linewidth=1)
        rate.set_ylabel("learning rate (dotted)", color="0.5")
        rate.set_ylim(bottom=0)
    metric = DICE
    pseudo = [(row["step"], _number(row["average"])) for row in rows if row["kind"] == PSEUDO_DICE]
    if pseudo:
        right.plot(*zip(*pseudo), color="0.5", linestyle="--", linewidth=1)
        right.text(0.02, 0.02, "dashed: moving average of the pseudo-Dice of patches", transform=right.transAxes, fontsize=8)
    if validations:
        validation_steps, names, lines = [row["step"] for row in validations], list(validations[0]["dice"]), []
        for name, colour in zip(names, itertools.cycle(("#E69F00", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442"))):
            lines += right.plot(validation_steps, [_number(row["dice"][name]) for row in validations], ".-", color=colour)
        lines += right.plot(validation_steps, [_number(row["score"]) for row in validations], "k.-", linewidth=2)
        best = best_validation(validations)
        metric = metric_of(best)
        right.plot(best["step"], _number(best["score"]), "k*", markersize=14)
        right.set_title(f"best {_number(best['score']):.4f} at step {best['step']}", fontsize=10)
        add_legend(right, lines, [*names, "mean"], loc="best", frameon=False, fontsize=8, ncols=1 + len(names) // 8)
    right.set(xlabel="step", ylabel=f"validation {metric}", xlim=(0, total))
    if metric == DICE:
        right.set_ylim(0, 1)
    for axis in (left, right):
        axis.grid(alpha=0.25)
    return figure


def write_comparison(path: Path, scores: Sequence[CaseScore], task: Task) -> None:
    """Draws a row per case: the axial slice with the most labelled voxels, first without labels, then with outlines and volumes.

    The outlines are those of the reference, then those of the prediction. The patient's right is on the left and anterior on top, as
    radiologists view it. Raises InputError if the file cannot be written.
    """
    with literal_text():
        save(_comparison(scores, task), path)


def _comparison(scores: Sequence[CaseScore], task: Task) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(9.6, 3.5 * len(scores)), facecolor="black", layout="constrained")
    axes = figure.subplots(len(scores), 3, squeeze=False)
    names = label_names(task)
    colours = label_colours(names)
    for row, score in zip(axes, scores):
        assert score.prediction is not None  # the scores of cases that are drawn hold their predictions
        case = score.case
        grid = ScanGrid.of(case, task)
        image = grid.image(case) if task.window is None else scale_window(grid.image(case), *task.window)
        image, affine, _ = reorient(image, grid.affine, "LAS")
        reference = reorient(grid.reference(case), grid.affine, "LAS")[0]
        prediction = reorient(score.prediction, grid.affine, "LAS")[0]
        counts = ((reference > 0) | (prediction > 0)).sum((0, 1))
        slice_index = int(counts.argmax()) if counts.any() else image.shape[2] // 2
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        grey = grey_levels(image)[..., slice_index].T[::-1]
        dice_text = ", ".join(f"{drawable(name)} {value:.2f}" for name, value in list(score.dice.items())[:MAX_SCORES])
        dice_text += f" and {len(score.dice) - MAX_SCORES} more" * (len(score.dice) > MAX_SCORES)
        titles = (
            drawable(case.name),
            f"reference: {_volumes_text(reference, affine, names)}",
            f"prediction: {dice_text}; {_volumes_text(prediction, affine, names)}",
        )
        for axis, labels, title in zip(row, (None, reference, prediction), titles):
            picture = np.repeat(grey[..., None], 3, -1)
            if labels is not None:
                picture = overlay_labels(picture, labels[..., slice_index].T[::-1], colours)
            axis.imshow(picture, aspect=spacing[1] / spacing[0], interpolation="nearest")
            axis.set_title("\n".join(textwrap.wrap(title, 45)), color="white", fontsize=8.5)
            axis.set_axis_off()
            mark_sides(axis, "axial")
    handles, labels = [Patch(color=colour) for colour in colours.values()], [f"{names[value]} ({value})" for value in colours]
    add_legend(figure, handles, labels, loc="outside lower center", ncols=6, frameon=False, labelcolor="white", fontsize=9)
    return figure


def _volumes_text(labels: np.ndarray, affine: np.ndarray, names: Mapping[int, str]) -> str:
    """Returns the volume of each label in a label map as text, or of all labels together if there are more than `MAX_VOLUMES`."""
    volumes = {names.get(value, f"label {value}"): ml for value, ml in volumes_ml(labels, affine).items()}
    if not 0 < len(volumes) <= MAX_VOLUMES:
        return f"{sum(volumes.values()):.1f} ml"
    return ", ".join(f"{drawable(name)} {ml:.1f} ml" for name, ml in volumes.items())


def write_examples(path: Path, examples: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Draws a row per case with its slices [x, y], all in the grey levels of the first one. NaN is drawn in blue.

    Raises InputError if the file cannot be written.
    """
    with literal_text():
        save(_examples(examples), path)


def _examples(examples: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    captions = list(next(iter(examples.values())))
    figure = Figure(figsize=(3.2 * len(captions), 3.5 * len(examples)), facecolor="black", layout="constrained")
    axes = figure.subplots(len(examples), len(captions), squeeze=False)
    grey = colormaps["gray"].with_extremes(bad="#35608D")
    for row, (name, slices) in zip(axes, examples.items()):
        low, high = np.nanpercentile(slices[captions[0]], (0.5, 99.5))
        for axis, caption in zip(row, captions):
            axis.imshow(slices[caption].T[::-1], cmap=grey, vmin=low, vmax=high, interpolation="nearest")
            axis.set_title(f"{drawable(name)}: {caption}" if caption == captions[0] else caption, color="white", fontsize=8.5)
            axis.set_axis_off()
    return figure


def _number(value: float | None) -> float:
    """Returns a score of the log, where null stands for NaN."""
    return np.nan if value is None else value


def _smooth(values: Sequence[float]) -> list[float]:
    """Returns the exponential moving average of the values, corrected for the bias of its start."""
    total = weight = 0.0
    smooth = []
    for value in values:
        total, weight = SMOOTHING * total + value, SMOOTHING * weight + 1
        smooth.append(total / weight)
    return smooth
