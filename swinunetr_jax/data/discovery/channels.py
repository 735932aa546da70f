"""Names of MRI sequences, and what a file's name says about its content.

Data sets call the same sequence T1ce, t1gd, T1POST or t1c. Here each sequence has one canonical name; punctuation and upper or lower
case do not matter. A name that mentions a contrast agent never means the sequence without one.
"""

import re
from collections.abc import Mapping, Sequence

from swinunetr_jax.errors import InputError

# A name is parsed as MODIFIERS SEQUENCE MODIFIERS, in lower case without punctuation. Longer words come first, because a regular
# expression takes the first alternative that matches.
_AGENT = "gadolinium|gadobutrol|gadovist|gadoterate|gadoteridol|dotarem|magnevist|prohance|omniscan|gado|gad|gd"
_AGENT = f"(?:{_AGENT}|contrastagent|contrast|kontrast)"
_NATIVE = rf"(?:pre|non|no|without|wo|un)(?:{_AGENT}|enhanced|ce)(?:enhanced|enhancement)?"
_NATIVE += "|nonenhanced|unenhanced|noncontrasted|native|nativ|plain"
_WITH_AGENT = rf"(?:post|with|w)?{_AGENT}(?:enhanced|enhancement|ed|agent)?"
_CONTRAST = rf"{_WITH_AGENT}|{_AGENT}?(?:enhanced|enhancement)|postinjection|post|ce|km"
_NO_TIME = rf"{_NATIVE}|{_WITH_AGENT}|ce"  # "post" may also mean after a treatment
_SEQUENCES = {
    "T1": (rf"{_NATIVE}|{_CONTRAST}", r"t1(?:weighted|wi|w)?", rf"{_NATIVE}|{_CONTRAST}|pre|ca|cm|c|n"),
    "FLAIR": (_NO_TIME, r"(?:t2(?:weighted|wi|w)?)?flair(?:t2(?:weighted|wi|w)?)?|t2f", _NO_TIME),
    "T2": (_NO_TIME, r"t2(?:weighted|wi|w)?", _NO_TIME),
}
_NOISE = r"(?:mri|mr|image|scan)?"
_NAMES = {
    name: re.compile(rf"{_NOISE}(?P<before>(?:{before})*)(?:{core})(?P<after>(?:{after})*){_NOISE}")
    for name, (before, core, after) in _SEQUENCES.items()
}
_MODIFIER = re.compile(rf"(?P<native>{_NATIVE}|pre)|(?P<contrast>{_CONTRAST}|ca|cm|c)|(?P<plain>n)")
# Words before the sequence that mean contrast without another word.
_CONTRAST_WORD = re.compile(rf"{_WITH_AGENT}|postinjection|enhanced|ce|post")
_AFTER_TREATMENT = re.compile(
    r"op|operative|operation|surg.*|rt|radi.*|treat.*|therap.*|chemo.*|resect.*|biops.*|mortem|natal|ictal|\d+"
)
# The most likely words come first.
_LABELS = (
    "seg",
    "segm",
    "segmentation",
    "label",
    "labels",
    "groundtruth",
    "gt",
    "truth",
    "consensus",
    "lesion",
    "lesions",
    "mask",
)
_NEITHER = {"brainmask"}  # neither an image nor a label map
_MAX_WORDS = 5  # the names of channels have up to five words, as in contrast_enhanced_T1_weighted or T1_without_contrast_agent
# In BIDS two entities name the subject and the session, and all others describe the image: sub-01_ses-2_acq-3d_ce-gadolinium_T1w.
_BIDS_CASE = ("sub", "ses")
_BIDS_HOW = (
    "ce",
    "acq",
    "rec",
    "desc",
    "mod",
    "label",
    "space",
    "res",
    "run",
    "dir",
    "echo",
    "part",
    "inv",
    "flip",
    "hemi",
    "den",
)
_BIDS = re.compile(r"(?:.*_)?sub-[a-zA-Z0-9]+(?:_.*)?|(?:ce|acq|rec|desc|run|space)-[a-zA-Z0-9]+_.*")


def canonical_channel(name: str) -> str:
    """Returns 'FLAIR', 'T1', 'T1ce' or 'T2' for any of their usual names, otherwise the name itself without surrounding spaces.

    Contrast-enhanced T2 and FLAIR become 'T2ce' and 'FLAIRce', which do not match a network's T2 and FLAIR.
    """
    sequence = _sequence(_plain(name))
    return sequence[0] if sequence else name.strip()


def channel_key(name: str) -> str:
    """Returns a key that is equal for all names of the same channel."""
    return _plain(canonical_channel(name))


def match_channels(have: Sequence[str], want: Sequence[str]) -> tuple[int, ...]:
    """Returns the position in `have` of each name in `want`.

    Raises:
        InputError: a wanted name is missing or matches more than once.
    """
    keys, wanted = [channel_key(name) for name in have], [channel_key(name) for name in want]
    faults = [f"{name} is missing" for name, key in zip(want, wanted, strict=True) if key not in keys]
    faults += [
        f"{name} matches more than once"
        for name, key in zip(want, wanted, strict=True)
        if keys.count(key) > 1 or wanted.count(key) > 1
    ]
    if faults:
        raise InputError(
            f"The channels are {', '.join(have)}, expected {', '.join(want)}: {', '.join(faults)}; give each of them once."
        )
    return tuple(keys.index(key) for key in wanted)


def split_name(name: str, wanted: Mapping[str, str] | None = None) -> tuple[str, str | None, str]:
    """Returns (prefix, role, word) of a file's name: the name of the case, and the content that the last words of the name state.

    Args:
        name: a file's name without its ending.
        wanted: channels beyond the known ones, as {channel_key: name}. They take precedence over labels, because a network may take a
            mask as input.

    Returns:
        The prefix names the case; in a BIDS name it is the subject and the session. The role is 'channel' (the word is then the channel's
        canonical name), 'label', 'neither' for a brain mask, or None if the name says none of these.
    """
    wanted = wanted or {}
    head, tail = _bids_parts(name)
    pieces = re.split(r"([-_. ]+)", tail)  # words at even positions, separators at odd ones
    for count in range(_MAX_WORDS, 0, -1):  # the most words first, so that T2_FLAIR is not the FLAIR of a case called T2
        start = len(pieces) - 2 * count + 1
        if start < 0:
            continue
        before, word = "".join(pieces[: max(start - 1, 0)]), "".join(pieces[start:])
        prefix = _case_prefix(head) if head else before
        key, parsed = channel_key(word), _sequence(_plain(word))
        if parsed:
            sequence, mentions_contrast = parsed
            if sequence == "FLAIR" and re.fullmatch(r"(.*[-_. ])?t1w?", before, re.IGNORECASE):
                return name, None, ""  # T1_FLAIR is T1-weighted, unlike the FLAIR that networks know
            if not mentions_contrast and _contrast_before(head, before, time=sequence != "T1"):
                sequence += "ce"
            return prefix, "channel", wanted.get(_plain(sequence), sequence)
        if key in wanted:
            return prefix, "channel", wanted[key]
        if _plain(word) in _LABELS:
            return prefix, "label", word
        if _plain(word) in _NEITHER:
            return prefix, "neither", word
    return name, None, ""


def label_rank(word: str) -> int:
    """Returns a rank, which is lower for words that are more likely to name the label map to learn."""
    return _LABELS.index(_plain(word))


def _sequence(plain: str) -> tuple[str, bool] | None:
    """Returns (canonical name, whether the name mentions contrast), or None for an unknown sequence or a contradiction.

    Args:
        plain: a name in lower case without punctuation.
    """
    for name, pattern in _NAMES.items():
        if match := pattern.fullmatch(plain):
            kinds = {modifier.lastgroup for part in ("before", "after") for modifier in _MODIFIER.finditer(match[part])}
            if {"native", "contrast"} <= kinds:
                return None
            return f"{name}ce" if "contrast" in kinds else name, bool(kinds)
    return None


def _bids_parts(name: str) -> tuple[str, str]:
    """Returns (entities, suffix) of a BIDS name, such as ('sub-01_ce-gd', 'T1w'), and ('', name) for any other name."""
    if not _BIDS.fullmatch(name):
        return "", name
    parts = name.split("_")
    last = max(
        position for position, part in enumerate(parts) if part.partition("-")[0] in _BIDS_CASE + _BIDS_HOW and "-" in part
    )
    return "_".join(parts[: last + 1]), "_".join(parts[last + 1 :])


def _case_prefix(head: str) -> str:
    """Returns the part of a BIDS name's entities that names the case: the subject, the session, and any text before them."""
    parts = head.split("_")
    subject = next((position for position, part in enumerate(parts) if part.startswith("sub-")), None)
    if subject is None:
        return ""
    return "_".join([*parts[: subject + 1], *(part for part in parts[subject + 1 :] if part.startswith("ses-"))])


def _contrast_before(head: str, before: str, *, time: bool) -> bool:
    """Returns whether the words before the sequence mention contrast, as in sub-01_ce-gd_run-1_T1w and P1_gad_axial_T1.

    Args:
        time: whether "post" alone means a point in time; before a T1 it means contrast.
    """
    kinds: set[str] = set()
    for entity in head.split("_"):
        key, _, value = entity.partition("-")
        if key == "ce":
            excluded = value.casefold() in ("", "none", "no", "without", "pre", "0", "false") or re.fullmatch(
                _NATIVE, _plain(value)
            )
            kinds.add("native" if excluded else "contrast")
        elif key in _BIDS_HOW:
            kinds |= {_contrast_kind(word) for word in _bids_words(value)}
    words = [word for word in re.split(r"[^a-z0-9]+", before.casefold()) if word]
    for position, word in enumerate(words):
        following = words[position + 1] if position + 1 < len(words) else ""
        if not _CONTRAST_WORD.fullmatch(word) or (position == 0 and not head and re.search(r"\d", following)):
            continue  # gad_001_T1 belongs to a patient of a study called gad
        if word == "post" and (time or _AFTER_TREATMENT.fullmatch(following)):
            continue
        kinds.add("native" if position and words[position - 1] in ("pre", "non", "no", "without", "wo") else "contrast")
    return "contrast" in kinds and "native" not in kinds


def _bids_words(value: str) -> list[str]:
    """Returns the words of a BIDS value such as postContrast or 3DGd, which has no separators, and the whole value."""
    return [_plain(value), *(_plain(word) for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", value))]


def _contrast_kind(word: str) -> str:
    """Returns 'contrast', 'native' or '', depending on what the word says about contrast."""
    for pattern, kind in ((_NATIVE, "native"), (_CONTRAST, "contrast")):
        if re.fullmatch(pattern, word):
            return kind
    if not re.search(_AGENT, word) or len(word) < 4:
        return ""
    return "native" if re.search(rf"(?:pre|non|no|without){_AGENT}", word) else "contrast"


def _plain(name: str) -> str:
    """Returns the name in lower case without punctuation. The star of T2* becomes a word, because T2* is another sequence than T2."""
    return re.sub(r"[\W_]+", "", name.casefold().replace("*", "star"))
