"""Finds the axes of a scan that must not be mirrored, because labels name sides along them.

A mirrored scan with "left kidney" and "right kidney" shows the left kidney where the right one belongs. A network that is trained on
such scans, or whose predictions are averaged over them, cannot distinguish the two. The names of the labels determine the directions of
the body for which this holds, and the orientation of a scan determines the axes of these directions.
"""

import re
from collections.abc import Collection, Sequence

import numpy as np

from swinunetr_jax.task import Task

LEFT_RIGHT, ANTERIOR_POSTERIOR, SUPERIOR_INFERIOR = DIRECTIONS = ("left-right", "anterior-posterior", "superior-inferior")
OPPOSITES = {"L": LEFT_RIGHT, "R": LEFT_RIGHT, "A": ANTERIOR_POSTERIOR, "P": ANTERIOR_POSTERIOR}
OPPOSITES |= {"S": SUPERIOR_INFERIOR, "I": SUPERIOR_INFERIOR}
OBLIQUE = 0.5  # the cosine of 60°; an axis at a larger angle to a direction is not along it

# Words that name a side both as whole words and at the start or end of a longer word ("leftkidney", "anteroinferior").
_CERTAIN = {
    "left": LEFT_RIGHT,
    "right": LEFT_RIGHT,
    "anterior": ANTERIOR_POSTERIOR,
    "posterior": ANTERIOR_POSTERIOR,
    "antero": ANTERIOR_POSTERIOR,
    "postero": ANTERIOR_POSTERIOR,
    "ventral": ANTERIOR_POSTERIOR,
    "ventro": ANTERIOR_POSTERIOR,
    "dorsal": ANTERIOR_POSTERIOR,
    "dorso": ANTERIOR_POSTERIOR,
    "superior": SUPERIOR_INFERIOR,
    "supero": SUPERIOR_INFERIOR,
    "inferior": SUPERIOR_INFERIOR,
    "infero": SUPERIOR_INFERIOR,
}
# Words that name a side only as whole words.
_WHOLE = {"lh": LEFT_RIGHT, "rh": LEFT_RIGHT, "lt": LEFT_RIGHT, "rt": LEFT_RIGHT, "lhs": LEFT_RIGHT, "rhs": LEFT_RIGHT}
_WHOLE |= {"upper": SUPERIOR_INFERIOR, "lower": SUPERIOR_INFERIOR}
# Words with other meanings ("back muscle", "post-operative"); they count only if another label has the opposite word.
_PAIRS = (
    ("front", "back", ANTERIOR_POSTERIOR),
    ("front", "rear", ANTERIOR_POSTERIOR),
    ("ant", "post", ANTERIOR_POSTERIOR),
    ("a", "p", ANTERIOR_POSTERIOR),
    ("rostral", "caudal", ANTERIOR_POSTERIOR),  # in the brain; in the trunk they mean superior and inferior
    ("rostral", "caudal", SUPERIOR_INFERIOR),
    ("cranial", "caudal", SUPERIOR_INFERIOR),
    ("cephalad", "caudad", SUPERIOR_INFERIOR),
    ("top", "bottom", SUPERIOR_INFERIOR),
    ("above", "below", SUPERIOR_INFERIOR),
    ("sup", "inf", SUPERIOR_INFERIOR),
    ("up", "down", SUPERIOR_INFERIOR),
    ("s", "i", SUPERIOR_INFERIOR),
)
_NO_SIDES = {"cleft", "bright", "upright", "fright", "leftover"}  # words that start or end with the name of a side
_VENA_CAVA = re.compile(r"(superior|inferior) ?vena ?cava")  # a vessel's name, which names a side only if both vessels are labels
_ABBREVIATED = re.compile(r"[lr](kid|kidney|lung|adrenal|femur|hip|eye|ear|breast|hippo\w*|amyg\w*)s?")
_WORD = re.compile(r"[A-Z]?[a-z]+\d*|[A-Z]+\d*(?![a-z])|\d+|[^\W\d_]+\d*")


def sided_directions(names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Returns the directions of the body along which labels name sides, each with the names of these labels.

    Known words are left/right, anterior/posterior, superior/inferior and their usual variants: "Left Kidney", "kidney_left", "lh-cortex",
    "lung L", "lkid" and "rkid", "LV" and "RV", "upper"/"lower", "ventral"/"dorsal", "front"/"back", "cranial"/"caudal". One name is
    enough: in a scan with only the label "left kidney", mirroring would turn the unlabelled right kidney into a left one.
    """
    words = {name: _words(name) for name in names}
    all_words = {word for name_words in words.values() for word in name_words}
    vessels = {name: _VENA_CAVA.search(" ".join(name_words)) for name, name_words in words.items()}
    both_vessels = len({vessel[1] for vessel in vessels.values() if vessel}) == 2
    labels: dict[str, list[str]] = {direction: [] for direction in DIRECTIONS}
    for name, name_words in words.items():
        directions = {direction for word in name_words for direction in _directions_of(word, all_words)}
        if LEFT_RIGHT not in directions and _letter_names_side(
            name_words, [other for key, other in words.items() if key != name]
        ):
            directions.add(LEFT_RIGHT)
        if vessels[name] and not both_vessels:
            directions.discard(SUPERIOR_INFERIOR)
        for direction in directions:
            labels[direction].append(name)
    return {direction: tuple(names) for direction, names in labels.items() if names}


def axes_of_orientation(codes: str) -> tuple[frozenset[str], ...]:
    """Returns the direction of each array axis of scans in an orientation such as "LPS"."""
    return tuple(frozenset([OPPOSITES[code]]) for code in codes.upper())


def axes_of_affine(affine: np.ndarray) -> tuple[frozenset[str], ...]:
    """Returns the directions of each array axis of a scan with this affine, [4, 4] in mm. An axis between two directions has both."""
    axes = np.asarray(affine, float)[:3, :3]
    cosines = np.abs(axes) / np.linalg.norm(axes, axis=0)
    return tuple(
        frozenset(direction for direction, cosine in zip(DIRECTIONS, column) if cosine > OBLIQUE) for column in cosines.T
    )


def sided_axes(task: Task, affines: Sequence[np.ndarray]) -> dict[int, dict[str, tuple[str, ...]]]:
    """Returns the array axes that must not be mirrored, as axis -> direction -> names of the labels that name its sides.

    Args:
        task: its outputs name the labels, and its orientation, if it has one, is that of all arrays.
        affines: the affines [4, 4] of the scans as the network sees them; needed if the task does not change the orientation of scans.
    """
    sided = sided_directions([output.name for output in task.outputs if output.value])
    grids = [axes_of_orientation(task.orientation)] if task.orientation else [axes_of_affine(affine) for affine in affines]
    axes: dict[int, dict[str, tuple[str, ...]]] = {}
    for axis in range(3):
        directions = {direction: sided[direction] for direction in sided if any(direction in grid[axis] for grid in grids)}
        if directions:
            axes[axis] = directions
    return axes


def describe(axes: dict[int, dict[str, tuple[str, ...]]]) -> str:
    """Returns the result of `sided_axes` as text, such as "axis 0 (left-right: kidney_left, kidney_right)"."""
    parts = []
    for axis, directions in axes.items():
        texts = [
            f"{direction}: {', '.join(names[:2])}{f' and {len(names) - 2} more' if len(names) > 2 else ''}"
            for direction, names in directions.items()
        ]
        parts.append(f"axis {axis} ({'; '.join(texts)})")
    return ", ".join(parts)


def _words(name: str) -> list[str]:
    """Returns the words of a name in lower case: "LeftKidney_2" gives left, kidney, 2."""
    return [word.lower() for word in _WORD.findall(name)]


def _directions_of(word: str, all_words: set[str]) -> set[str]:
    """Returns the directions along which a word names a side; `all_words` are the words of all labels."""
    if word in _WHOLE:
        return {_WHOLE[word]}
    directions = set()
    if word not in _NO_SIDES:
        directions = {direction for side, direction in _CERTAIN.items() if word.startswith(side) or word.endswith(side)}
    for first, second, direction in _PAIRS:
        if word in (first, second) and {first, second} <= all_words:
            directions.add(direction)
    return directions


def _letter_names_side(words: list[str], others: list[list[str]]) -> bool:
    """Returns whether a single letter means left or right: "kidney L", "lkid", or "LV" if another label is "RV"."""
    for position, word in enumerate(words):
        numbered = position + 1 < len(words) and words[position + 1].isdigit()  # a lumbar vertebra, "L 4"
        if word in ("l", "r") and len(words) > 1 and not numbered:
            return True
        if _ABBREVIATED.fullmatch(word):
            return True
        for end in (0, -1):
            if word[end] in "lr":
                swapped = list(word)
                swapped[end] = "r" if word[end] == "l" else "l"
                if [*words[:position], "".join(swapped), *words[position + 1 :]] in others:
                    return True
    return False
