"""Faults of many cases in few lines: one that is common to hundreds is said once, with a count and the first names."""

import re
from collections.abc import Sequence

from swinunetr_jax.console import name_list

ONE_BY_ONE = 4  # equal faults that still get a line each


def problem_key(case: str, text: str) -> str:
    """Equal for faults that differ in the case, in paths and in numbers alone."""
    text = text.replace(case, "") if case else text
    text = re.sub(r"(?<![\w])/?[^\s,;:()]*/[^\s,;:()]*", "", text)  # paths
    text = re.sub(r"[^\s,;:()]*\.nii(\.gz)?", "", text)
    return re.sub(r"\d[\d.]*", "0", text)


def problem_groups(faults: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """(case, text) pairs of the same fault together, in the order of their first ones."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for case, text in faults:
        groups.setdefault(problem_key(case, text), []).append((case, text))
    return list(groups.values())


def problem_lines(faults: Sequence[tuple[str, str]], word: str = "") -> list[str]:
    """A line for each (case, text), but for a fault that more than `ONE_BY_ONE` cases have: that is one line with their number.

    Args:
        word: stands after the case, such as "FAILED".
    """
    word, lines = f" {word}" if word else "", []
    for group in problem_groups(faults):
        if len(group) > ONE_BY_ONE:
            names = name_list(case for case, _ in group)
            lines.append(f"{len(group)} cases{word} for the same reason ({names}), such as {group[0][0]}: {group[0][1]}")
        else:
            lines += [f"{case}:{word + ':' if word else ''} {text}" for case, text in group]
    return lines
