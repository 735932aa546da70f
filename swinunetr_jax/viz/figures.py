"""Figures of matplotlib: text from data drawn literally, legends that fit, and PNG files that are complete or absent."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from swinunetr_jax import console
from swinunetr_jax.errors import InputError
from swinunetr_jax.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

FONT = "DejaVu Sans"  # comes with matplotlib
MAX_TEXT = 60  # the largest number of characters of a name in a picture
MAX_LEGEND_ENTRIES = 30
MAX_LEGEND_ROWS = 8
FIGURE_CHARACTERS = 130  # the number of characters that fit side by side into a figure of 10 inches


@contextlib.contextmanager
def literal_text() -> Iterator[None]:
    """Draws and saves the figures of this block with literal text: "$" starts no formula, whatever the user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False, "text.usetex": False, "font.family": FONT}):
        yield


def drawable(text: str) -> str:
    """Returns text from data in a form that can be drawn.

    Control characters and characters that the font lacks become escapes such as \\u5e74, and long text is shortened.
    """
    text = console.literal(text)
    if len(text) > MAX_TEXT:
        text = f"{text[: MAX_TEXT - 1]}…"
    code_points = _characters()
    return "".join(
        character if ord(character) in code_points else character.encode("unicode_escape").decode() for character in text
    )


@cache
def _characters() -> frozenset[int]:
    """Returns the code points that the font has."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(FONT)).get_charmap())


def add_legend(owner: Any, handles: Sequence[Artist], labels: Sequence[str], *, ncols: int, **options: Any) -> Legend:
    """Adds a legend with labels from data to an axes or a figure, and returns it.

    Labels that start with an underscore are drawn too; matplotlib itself omits them. If there are too many labels, the last entry
    says how many are missing.

    Args:
        owner: the axes or figure.
        handles, labels: the artists that the legend explains, and their names.
        ncols: the largest number of columns; fewer are used if they do not fit into the figure.
        options: further arguments of matplotlib's `legend`.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    labels = list(map(drawable, labels))
    max_characters = FIGURE_CHARACTERS if isinstance(owner, Figure) else FIGURE_CHARACTERS // 2
    ncols = max(1, min(ncols, max_characters // (max(map(len, labels), default=0) + 8)))
    max_entries = min(MAX_LEGEND_ENTRIES, MAX_LEGEND_ROWS * ncols)
    if len(labels) > max_entries:
        labels = [*labels[: max_entries - 1], f"and {len(labels) - max_entries + 1} more"]
        handles = [*handles[: max_entries - 1], Patch(alpha=0)]
    legend = owner.legend(handles, list(map(str, range(len(handles)))), ncols=ncols, **options)
    for text, label in zip(legend.get_texts(), labels):
        text.set_text(label)
    return legend


def mark_sides(axes: Axes, view: str) -> None:
    """Marks the patient's sides at the left and right edges of a slice that is oriented as in `write_preview`.

    Args:
        axes: the axes with the picture.
        view: "axial" or "coronal" (right and left), or "sagittal" (posterior and anterior).
    """
    left, right = ("P", "A") if view == "sagittal" else ("R", "L")
    style = {"color": "white", "fontsize": 9, "verticalalignment": "center", "transform": axes.transAxes}
    axes.text(0.015, 0.5, left, horizontalalignment="left", **style)
    axes.text(0.985, 0.5, right, horizontalalignment="right", **style)


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure as PNG, complete or not at all. Raises InputError if the file cannot be written."""
    try:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110, facecolor=figure.get_facecolor())
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}).") from error
