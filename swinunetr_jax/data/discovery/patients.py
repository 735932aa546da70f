"""Finds the patient of each case, so that no patient has cases both in training and in validation.

Explicit statements take precedence: a pattern that the user gives, then names that contain the patient by a rule of their data set (BIDS,
BraTS), then words such as visit or week. If only the form of the names suggests patients and visits, cases are grouped as well, because
that cannot make validation less fair; a message then says that it is a guess.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from swinunetr_jax.console import name_list
from swinunetr_jax.data import brats
from swinunetr_jax.errors import InputError

_SUBJECT = re.compile(r"(?:^|.*_)sub-[A-Za-z0-9]+(?=_|$)")
_SESSION = re.compile(r"ses-[A-Za-z0-9]+_")
# The names of these data sets state the patient, which is the first group.
_STATED = (*brats.PATIENT_PATTERNS, re.compile(r"(.*UPENN-GBM-\d+)_\d+", re.IGNORECASE))
_LONG = (
    "session|ses|visit|vis|timepoint|time|tp|week|wk|month|mon|day|year|scan|follow-?up|fup|fu|frame|phase|run|repeat|rep|part"
)
_LONG += "|crop|copy|date"
# P001_visit2, patient001_frame01, Patient-001_week-044, P1_v2, P001_20190101. The patient's part must have a digit, because CT_scan_1
# names no patient.
_VISIT = re.compile(
    rf"(?P<patient>.*\d.*?)[-_. ](?:(?:{_LONG})[-_. ]?\d+|[vtwmdy]\d+|(?:19|20)\d\d[-_]?[01]\d[-_]?[0-3]\d)(?:[-_. ].*)?",
    re.IGNORECASE,
)
_NAMED_VISIT = re.compile(r"(?P<patient>.+?)[-_. ](?:session|ses|visit|timepoint|tp)[-_. ]?\w+", re.IGNORECASE)
_STATE = re.compile(
    r"(?P<patient>.*\d.*?)[-_. ](?:baseline|base|bl|followup|follow-up|fu|pre|post|preop|postop|pre-?treatment|post-?treatment|test|retest|"
    r"left|right|lh|rh)(?:[-_. ].*)?",
    re.IGNORECASE,
)
# P001_1 and P001_2, P01_A and P01_B: a name with a digit, followed by a short number or one letter.
_NUMBERED = re.compile(r"(?P<patient>.*\d[A-Za-z]?)[-_. ](?P<visit>\d{1,3}|[A-Za-z])")
_DIGITS = re.compile(r"(?P<text>.*?)(?P<digits>\d{3,6})")
# If there are few first parts, one with more numbers than this may be a site with patients instead of a patient with visits.
_MAX_VISITS = 4


@dataclass(frozen=True)
class Patients:
    """`patient_of` maps each case to its patient; `note` is a sentence on their number and how they were found."""

    patient_of: dict[str, str]
    note: str


def find_patients(names: Sequence[str], pattern: str | None = None) -> Patients:
    """Returns the patients of the cases with these names.

    Args:
        names: the names of the cases.
        pattern: a regular expression whose first group, or whole match if it has none, is the patient.

    Raises:
        InputError: the pattern is not a regular expression or does not match every name, or the names are ambiguous.
    """
    if pattern is not None:
        patient_of = _by_pattern(names, pattern)
        return Patients(patient_of, _note(patient_of, "by --patient"))
    stated = {name: patient for name in names if (patient := _stated(name))}
    rest = [name for name in names if name not in stated]
    guessed = _numbered_visits(rest)
    guessed |= _counted_visits([name for name in rest if name not in guessed])
    patient_of = {name: stated.get(name) or guessed.get(name) or name for name in names}
    if len(set(patient_of.values())) == len(patient_of):
        return Patients(
            patient_of,
            f"{len(patient_of)} cases count as {len(patient_of)} patients, because no name shows that two of them share a patient "
            "(see --patient)",
        )
    grouped = [name for name in guessed if patient_of[name] != name]
    how = "by the visits in their names"
    if grouped:
        how = f"guessed from names such as {name_list(grouped[:3])} (--patient '.+' makes each case a patient)"
    return Patients(patient_of, _note(patient_of, how))


def _note(patient_of: dict[str, str], how: str) -> str:
    count = len(set(patient_of.values()))
    return f"{len(patient_of)} cases of {count} patient{'s' * (count != 1)}, {how}; all cases of a patient are in one fold"


def _by_pattern(names: Sequence[str], pattern: str) -> dict[str, str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"--patient {pattern!r} is not a regular expression ({error}); correct it.") from error
    matches = {name: compiled.search(name) for name in names}
    patient_of = {name: (match[1] if compiled.groups else match[0]) for name, match in matches.items() if match}
    if missing := [name for name in names if not patient_of.get(name)]:
        raise InputError(
            f"--patient {pattern!r} finds no patient in {name_list(missing)}; give a pattern that matches every case."
        )
    return patient_of


def _stated(name: str) -> str | None:
    """Returns the patient if the name states it by a rule or a word, otherwise None."""
    if subject := _SUBJECT.match(name):
        return _SESSION.sub("", subject[0])
    for rule in _STATED:
        if match := rule.fullmatch(name):
            return match[1]
    for rule in (_VISIT, _NAMED_VISIT, _STATE):
        if match := rule.fullmatch(name):
            return match["patient"]
    return None


def _numbered_visits(names: Sequence[str]) -> dict[str, str]:
    """Returns the patients of names such as P001_1, P001_2 and P002_1: many first parts with few last numbers each.

    Few first parts with many numbers each are sites or series, in which every number is a patient. Cases in between are ambiguous.

    Raises:
        InputError: the names are ambiguous.
    """
    patient_of = {name: match["patient"] for name in names if (match := _NUMBERED.fullmatch(name))}
    sizes = Counter(patient_of.values())
    if not sizes or max(sizes.values()) == 1 or len(sizes) == 1:
        return {}
    most_visits, patients = max(sizes.values()), len(sizes)
    if most_visits <= max(_MAX_VISITS, patients):
        return patient_of
    if most_visits >= 10 * patients:
        return {}
    examples = [name for name in patient_of if sizes[patient_of[name]] > 1][:2]
    raise InputError(
        f"names such as {' and '.join(examples)} may be two visits of one patient or two patients, which decides the folds: give "
        r"--patient '(.+)_\w+' if the first part is the patient, or --patient '.+' if every case is one."
    )


def _counted_visits(names: Sequence[str]) -> dict[str, str]:
    """Returns the patients of names such as genius_0800, genius_0801 and genius_0900, whose last digits restart at 0 or 1."""
    series: dict[tuple[str, int], list[tuple[str, str]]] = defaultdict(list)
    for name in names:
        if match := _DIGITS.fullmatch(name):
            series[match["text"], len(match["digits"])].append((name, match["digits"]))
    counts = Counter(match["text"] for name in names if (match := re.fullmatch(r"(?P<text>.*?)\d+", name)))
    patient_of: dict[str, str] = {}
    for (text, width), members in series.items():
        if counts[text] > len(members):  # liver_9, liver_10, liver_100: numbered without leading zeros
            continue
        for visit_digits in (2, 1):
            if visit_digits >= width:
                continue
            groups: dict[str, list[int]] = defaultdict(list)
            for _, digits in members:
                groups[digits[:-visit_digits]].append(int(digits[-visit_digits:]))
            if _restarts(list(groups.items()), visit_digits, alone=len(members) == len(names)):
                patient_of |= {name: text + digits[:-visit_digits] for name, digits in members}
                break
    return patient_of


def _restarts(groups: Sequence[tuple[str, list[int]]], visit_digits: int, *, alone: bool) -> bool:
    """Returns whether every group counts from the same start without a gap, and none of them continues into the next."""
    if len(groups) == 1 and (alone or not int(groups[0][0])):
        return False  # one series that starts at 0 or at 800
    starts = {min(numbers) for _, numbers in groups}
    gapless = all(sorted(numbers) == list(range(min(numbers), min(numbers) + len(numbers))) for _, numbers in groups)
    full = any(max(numbers) == 10**visit_digits - 1 for _, numbers in groups)
    several = any(len(numbers) > 1 for _, numbers in groups)
    return len(starts) == 1 and starts <= {0, 1} and gapless and several and not full
