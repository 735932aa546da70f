"""Describes the faults of many cases in few lines: a fault that many cases share is one line, with their number and first names."""

import re
from collections.abc import Sequence

from swinunetr_jax.console import name_list

ONE_BY_ONE = 4  # cases with the same fault that still have a line each


def problem_key(case: str, text: str) -> str:
    """Returns a key that is equal for faults that differ only in the case, in paths and in numbers."""
    text = text.replace(case, "") if case else text
    text = re.sub(r"(?<![\w])/?[^\s,;:()]*/[^\s,;:()]*", "", text)  # paths
    text = re.sub(r"[^\s,;:()]*\.(nii(\.gz)?|nrrd|nhdr|mh[ad]|hdr|img|dcm|zip)\b", "", text)
    return re.sub(r"\d[\d.]*", "0", text)


def problem_groups(faults: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Returns the (case, text) pairs grouped by fault, in the order of each group's first pair."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for case, text in faults:
        groups.setdefault(problem_key(case, text), []).append((case, text))
    return list(groups.values())


def problem_lines(faults: Sequence[tuple[str, str]], word: str = "") -> list[str]:
    """Returns a line for each (case, text); a fault that more than `ONE_BY_ONE` cases share is one line with their number.

    Args:
        faults: (case, text) pairs.
        word: a word that follows the case, such as "FAILED".
    """
    word, lines = f" {word}" if word else "", []
    for group in problem_groups(faults):
        if len(group) > ONE_BY_ONE:
            names = name_list(case for case, _ in group)
            lines.append(f"{len(group)} cases{word} for the same reason ({names}), such as {group[0][0]}: {group[0][1]}")
        else:
            lines += [f"{case}:{word + ':' if word else ''} {text}" for case, text in group]
    return lines
