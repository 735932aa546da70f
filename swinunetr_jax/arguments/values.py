"""The values that an option of a type takes: how many, whether they are valid, how they are described, and examples."""

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
EXAMPLES = {int: ("96", "96", "96"), float: ("1.5", "1.5", "2"), Path: ("FOLDER",) * 3, str: ("NAME",) * 3}


def taken_values(hint: Any, values: list[str]) -> tuple[list[str], list[str]]:
    """Splits the values that follow an option of this type into those that belong to it and the remaining ones."""
    if hint is bool:
        return [], values
    counts = [_count(part) for part in alternatives(hint)]
    limits = [count for count in counts if count is not None]
    if len(limits) < len(counts):
        return values, []
    fitting = [n for n in sorted(limits, reverse=True) if n <= len(values)]
    count = fitting[0] if fitting else max(limits)
    return values[:count], values[count:]


def fits(hint: Any, values: list[str]) -> bool:
    """Returns whether the values can be parsed as this type."""
    return any(_fits_one(part, values) for part in alternatives(hint))


def description(hint: Any) -> str:
    """Returns a description of the values of a type, such as "three integers or None"."""
    words: list[str] = []
    for part in alternatives(hint):
        if get_origin(part) is tuple:
            inner = get_args(part)
            plural = {int: "integers", float: "numbers", str: "names", Path: "paths"}[inner[0]]
            words.append(f"one or more {plural}" if inner[-1] is Ellipsis else f"{NUMBERS[len(inner)]} {plural}")
        elif get_origin(part) is Literal:
            words += map(str, get_args(part))
        elif part is bool:
            words += ["True", "False"]
        else:
            words.append({int: "an integer", float: "a number", str: "text", Path: "a path", type(None): "None"}[part])
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def example_values(part: Any) -> Sequence[str]:
    """Returns valid values of a type, for a message."""
    if get_origin(part) is not tuple:
        return EXAMPLES.get(part, ("True",))[:1]
    inner = get_args(part)
    if inner == (float, float):  # a range of intensities
        return ("-175", "250")
    return EXAMPLES[inner[0]][: 2 if inner[-1] is Ellipsis else len(inner)] if inner != (int, Ellipsis) else ("1", "2")


def alternatives(hint: Any) -> list[Any]:
    """Returns the types of a union, with None last."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [part for part in parts if part is not type(None)] + [part for part in parts if part is type(None)]


def _count(part: Any) -> int | None:
    """Returns the number of values that a type takes, or None for any number."""
    if get_origin(part) is not tuple:
        return 1
    return None if get_args(part)[-1] is Ellipsis else len(get_args(part))


def _fits_one(part: Any, values: list[str]) -> bool:
    """Returns whether the values can be parsed as this type, which is not a union."""
    if get_origin(part) is tuple:
        inner = get_args(part)
        if inner[-1] is Ellipsis:
            return all(_fits_one(inner[0], [value]) for value in values)
        return len(values) == len(inner) and all(_fits_one(kind, [value]) for kind, value in zip(inner, values))
    if len(values) != 1:
        return False
    if get_origin(part) is Literal:
        return values[0] in map(str, get_args(part))
    if part in (bool, type(None)):
        return values[0] in (("True", "False") if part is bool else ("None",))
    if part in (int, float):
        try:
            part(values[0])
        except ValueError:
            return False
    return True
