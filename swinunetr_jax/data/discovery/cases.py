"""Cases and data sets of every layout: their files, channels, labels and problems.

Swapped channels cannot be detected later, so channels are matched by name wherever a name is known.
"""

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from swinunetr_jax.data import brats
from swinunetr_jax.data.discovery.channels import channel_key, match_channels, split_name
from swinunetr_jax.data.formats.names import SINGLE, stem
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import IGNORE


@dataclass(frozen=True)
class Case:
    """The files of one case.

    `images` holds a file per channel or one file with all channels; `channels` names them in that order, or is None if no name is known.
    `label` is the path that the label map should have; a list may name a file that does not exist. `problem` is a sentence on why the
    case cannot be used; `images` then holds the files that exist. `plane` is the number of the only channel that the case consists of, if
    its file holds several. `needs_label` is false for a case that is used without a label map. `is_incomplete` is true if the only problem
    is that channels are missing.
    """

    name: str
    images: tuple[Path, ...]
    channels: tuple[str, ...] | None = None
    label: Path | None = None
    fold: int | None = None
    split: str = "training"  # 'training', 'validation' or 'test'
    problem: str | None = None
    plane: int | None = None
    needs_label: bool = True
    is_incomplete: bool = False

    @property
    def can_train(self) -> bool:
        """True if the case has a label map or does not need one, so that a network can be trained with it."""
        return self.label is not None or not self.needs_label

    @property
    def et_label(self) -> int | None:
        """The enhancing tumour's label, 4 or 3, if the images are named as in BraTS, otherwise None."""
        return brats.et_label_of_names([stem(image.name) for image in self.images])


@dataclass(frozen=True)
class Dataset:
    """The cases of a folder or a list.

    `layout` is 'brats', 'monai-datalist', 'decathlon', 'nnunet', 'case-folder' or 'files'. `labels` maps each name to its value, or to
    the values of a region. `ignored` is a sentence on entries that are not scans; `warnings` are sentences on scans that are not used and
    on guesses, such as which of several label maps to use.
    """

    layout: str
    root: Path
    cases: tuple[Case, ...]
    channels: tuple[str, ...] | None = None
    labels: dict[str, int | list[int]] | None = None
    regions_class_order: tuple[int, ...] | None = None
    ignored: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def et_label(self) -> int | None:
        """The enhancing tumour's label, 4 or 3, if the names of all cases imply the same one, otherwise None."""
        et_labels = {case.et_label for case in self.cases if case.images}
        return et_labels.pop() if len(et_labels) == 1 else None

    @property
    def stated_et_label(self) -> int | None:
        """The enhancing tumour's label, 3 or 4, if the data set's labels state it, otherwise None.

        They state it if a label is called ET, or if 3 or 4 is the label to ignore: the enhancing tumour then has the other of the two.
        """
        labels = self.labels or {}
        if (ignore := labels.get(IGNORE)) in brats.ET_LABELS:
            return brats.other_et_label(ignore)
        value = labels.get("ET")
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        return value if value in brats.ET_LABELS else None


def channels_of_names(images: Sequence[Path]) -> tuple[str, ...] | None:
    """Returns the channels of `images` if the name of every file states one, otherwise None."""
    parts = [split_name(stem(image.name)) for image in images]
    return tuple(word for *_, word in parts) if parts and all(role == "channel" for _, role, _ in parts) else None


def case_name(images: Sequence[Path]) -> str:
    """Returns the name of the case that these images make up: their name without the channel, or the name of their folder."""
    first = stem(images[0].name)
    prefix, role, _ = split_name(first)
    if role == "channel":
        return prefix or images[0].absolute().parent.name or "case"
    return first.removesuffix("_0000") if len(images) > 1 else first


def order_channels(case: Case, names: Sequence[str] | None, channels: Sequence[str] | None) -> Case:
    """Returns the case with its channels named and its images in the order of `channels`.

    Args:
        case: the case.
        names: the channels that the data set's description names, for files whose own names do not state them.
        channels: the channels wanted, in order; None keeps the images as they are.
    """
    count, known = len(case.images), channels_of_names(case.images)
    if names and (count == 1 or (known is None and count == len(names))):
        known = tuple(names)
    if known and len({channel_key(name) for name in known}) < len(known):  # for example, all four channels are called "MRI"
        known = None
    case = replace(case, channels=known)
    if not channels or case.problem or not case.images:
        return case
    where = f"{case.images[0].parent}: case {case.name}"
    if known is None:
        fits = count in (1, len(channels))
        problem = None if fits else f"{where} has {count} images, expected one each of {', '.join(channels)}; complete it."
        return replace(case, problem=problem)
    try:
        order = match_channels(known, channels)
    except InputError as error:
        return replace(case, problem=f"{where} has other channels than expected: {error}")
    if count < len(known):  # one file, whose channels are selected when it is read
        return case
    return replace(case, images=tuple(case.images[i] for i in order), channels=tuple(known[i] for i in order))


def require_channels(case: Case, order: Sequence[str]) -> Case:
    """Returns the case with its images in the order of these channels; a missing or repeated channel becomes its problem."""
    positions = {
        channel: [i for i, name in enumerate(case.channels or ()) if channel_key(name) == channel_key(channel)]
        for channel in order
    }
    faults = [f"has no {channel} image" for channel in order if not positions[channel]]
    faults += [
        f"has several {channel} images ({', '.join(case.images[i].name for i in positions[channel])})"
        for channel in order
        if len(positions[channel]) > 1
    ]
    if not case.images and not faults:
        faults = ["has no image"]
    problem = None
    if faults:
        where = next(path for path in (*case.images, case.label) if path).parent
        problem = f"{where}: case {case.name} {' and '.join(faults)}, expected one each of {', '.join(order)}; complete it."
    kept = [(channel, case.images[positions[channel][0]]) for channel in order if positions[channel]]
    return replace(
        case,
        images=tuple(image for _, image in kept),
        channels=tuple(channel for channel, _ in kept),
        problem=problem,
        is_incomplete=bool(kept) and all(len(found) <= 1 for found in positions.values()) and problem is not None,
    )


def name_with_folders(name: str, folder: Path, root: Path) -> str:
    """Returns the name of a case in `folder`: the folders below `root` and then `name`, unless the name already contains one of them.

    The name depends on the position of the case and not on the other cases: P002/CT/image becomes P002_CT_image, and
    HGG/Brats18_2013_0_1/Brats18_2013_0_1_flair becomes Brats18_2013_0_1.
    """
    parts = _parts_below(folder, root)
    if not name:
        return "_".join(parts) or folder.absolute().name or "case"
    # "ct" in A/ct/ct_scan does not name a patient, so a word without a digit counts only if it is the outermost folder
    stated = any(_contains(name, part) and (depth == 0 or re.search(r"\d", part)) for depth, part in enumerate(parts))
    return name if stated else "_".join([*parts, name])


def unique_names(cases: Sequence[Case], root: Path) -> tuple[Case, ...]:
    """Returns the cases with unique names, because results are named after them.

    Equal names are prefixed with as many of their parent folders as are needed to distinguish them.

    Raises:
        InputError: two cases have the same name even with all of their folders.
    """
    folders_above = [_folders_above(case, root) for case in cases]
    levels, names = [0] * len(cases), [case.name for case in cases]
    while True:
        by_name: dict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(names):
            by_name[name].append(index)
        clashing = [index for group in by_name.values() if len(group) > 1 for index in group]
        longer = [index for index in clashing if levels[index] < len(folders_above[index])]
        if not longer:
            break
        for index in longer:
            levels[index] += 1
            names[index] = "_".join([*reversed(folders_above[index][: levels[index]]), cases[index].name])
    if clashing:
        first, second = (_path_of(cases[index]) for index in clashing[:2])
        raise InputError(
            f"{root}: two cases would both be called {names[clashing[0]]} ({first} and {second}), and one result would replace the other; "
            "rename one of them."
        )
    return tuple(replace(case, name=name) for case, name in zip(cases, names))


def _folders_above(case: Case, root: Path) -> list[str]:
    """Returns the names of the folders between a case and `root`, nearest first, without those that the case's name already contains."""
    paths = [*case.images, *([case.label] if case.label else [])]
    if not paths:
        return []
    return [part for part in reversed(_parts_below(paths[0].parent, root)) if not _contains(case.name, part)]


def _parts_below(folder: Path, root: Path) -> tuple[str, ...]:
    folder, root = Path(os.path.abspath(folder)), Path(os.path.abspath(root))
    parts = folder.relative_to(root).parts if folder.is_relative_to(root) else folder.parts[1:]
    return tuple(map(stem, parts))  # some programs unpack a.nii.gz into a folder a.nii


def _contains(name: str, part: str) -> bool:
    """Returns whether `part` is one or several whole words of the name."""
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(part)}(?![A-Za-z0-9])", name) is not None


def _path_of(case: Case) -> str:
    """Returns the path of the case's first file, or its name if it has none."""
    return str(next((path for path in (*case.images, case.label) if path), case.name))


def matching_label(image: Path, name: str) -> Path | None:
    """Returns labelsTr/NAME.nii.gz, or a label map with another ending, for an image in imagesTr, or None. A broken link counts."""
    folder, ending = image.parent, image.name[len(stem(image.name)) :]
    if not folder.name.startswith("images"):
        return None
    labels = folder.with_name(folder.name.replace("images", "labels", 1))
    endings = dict.fromkeys((ending, ".nii.gz", *SINGLE))
    return next((labels / f"{name}{end}" for end in endings if os.path.lexists(labels / f"{name}{end}")), None)


def split_by_label(case: Case) -> Case:
    """Returns the case as a training case if it has a label, otherwise as a test case, for layouts without lists."""
    return replace(case, split="training" if case.label else "test")
