"""Names of MRI sequences, and what a file's name says of its content.

Data sets call the same sequence T1ce, t1gd, T1POST or t1c. Here each has one canonical name, and names are compared without
regard to case and punctuation.
"""

import re
from collections.abc import Mapping, Sequence

from swinunetr_jax.errors import InputError

_ALIASES = {
    "FLAIR": "flair t2flair t2wflair flairt2 t2f",
    "T1": "t1 t1w t1n t1native t1pre t1weighted",
    "T1ce": "t1ce t1c t1gd t1wgd t1post t1wpost t1wce t1contrast t1wcontrast t1ca t1km cet1 cet1w gdt1 gdt1w cegdt1w",
    "T2": "t2 t2w t2weighted",
}
_KNOWN = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split()}
# The likeliest first.
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
_NEITHER = {"brainmask"}
_MOST_WORDS = 3  # ce-gd_T1w


def canonical_channel(name: str) -> str:
    """'FLAIR', 'T1', 'T1ce' or 'T2' for any of their usual names, otherwise the name itself, stripped."""
    return _KNOWN.get(_plain(name), name.strip())


def channel_key(name: str) -> str:
    """Equal for names of the same channel."""
    return _plain(canonical_channel(name))


def match_channels(have: Sequence[str], want: Sequence[str]) -> tuple[int, ...]:
    """For each name in `want` its position in `have`; names in `have` that nobody wants are left out.

    Raises InputError listing both if a wanted name is missing or fits twice.
    """
    keys, wanted = [channel_key(n) for n in have], [channel_key(n) for n in want]
    faults = [f"{n} is missing" for n, k in zip(want, wanted, strict=True) if k not in keys]
    faults += [f"{n} fits more than once" for n, k in zip(want, wanted, strict=True) if keys.count(k) > 1 or wanted.count(k) > 1]
    if faults:
        raise InputError(
            f"The channels are {', '.join(have)}, expected {', '.join(want)}: {', '.join(faults)}; name or give them all."
        )
    return tuple(keys.index(k) for k in wanted)


def stem(name: str) -> str:
    """A file's name without .nii or .nii.gz."""
    return re.sub(r"\.nii(\.gz)?$", "", name, flags=re.IGNORECASE)


def split_name(name: str, wanted: Mapping[str, str] | None = None) -> tuple[str, str | None, str]:
    """(prefix, role, word) of a file's name without ending: what its last words say it is.

    The role is 'channel' (its canonical name is then the word), 'label', 'neither' (a brain mask), None if the name tells none.
    `wanted` (channel_key → name) adds channels, and goes before labels: a network may take a mask as input.
    """
    wanted = wanted or {}
    pieces = re.split(r"([-_. ]+)", name)  # words at even places, what separates them at odd ones
    for count in range(_MOST_WORDS, 0, -1):  # the most words first: T2_FLAIR is no FLAIR of a case called T2
        start = len(pieces) - 2 * count + 1
        if start < 0:
            continue
        prefix, word = "".join(pieces[: max(start - 1, 0)]), "".join(pieces[start:])
        if (key := channel_key(word)) in wanted:
            return prefix, "channel", wanted[key]
        if _plain(word) in _KNOWN:
            return prefix, "channel", canonical_channel(word)
        if _plain(word) in _LABELS:
            return prefix, "label", word
        if _plain(word) in _NEITHER:
            return prefix, "neither", word
    return name, None, ""


def label_rank(word: str) -> int:
    """Lower for words that more surely mean the label to learn."""
    return _LABELS.index(_plain(word))


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
