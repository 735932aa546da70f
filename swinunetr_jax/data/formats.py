"""Data layouts, told apart by looking, to one list of cases.

    BraTS folders     BraTS2021_00000/BraTS2021_00000_flair.nii.gz; since 2023 BraTS-GLI-00000-000/BraTS-GLI-00000-000-t2f.nii.gz
    MONAI datalist    {"training": [{"fold": 0, "image": [...], "label": ...}], "validation": [...], "test": [...]}
    Decathlon         dataset.json with "modality" and lists of cases, one 3-D or 4-D file each
    nnU-Net v2 raw    dataset.json with "channel_names", imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz; also imagesTs alone
    case folders      any folders with a file per channel, named by it: FLAIR.nii.gz, patient_T1.nii.gz
    files             a file per case

Only names are looked at, no image is opened. One incomplete case does not stop the others: it says so in `Case.problem`.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from swinunetr_jax.data import dataset_json
from swinunetr_jax.data.cases import (
    Case,
    Dataset,
    brats_era,
    case_name,
    choose,
    complete,
    distinct,
    label_beside,
    split_by_label,
    told_channels,
)
from swinunetr_jax.data.channels import canonical_channel, channel_key, label_rank, match_channels, split_name, stem
from swinunetr_jax.errors import InputError

__all__ = ["Case", "Dataset", "brats_era", "canonical_channel", "case_from_files", "find_cases", "match_channels"]

BRATS_ORDER = ("FLAIR", "T1ce", "T1", "T2")  # of the published Swin UNETR weights
MAX_DEPTH = 3  # BraTS 2018 had data/HGG/case

_LISTS = {"training": "training", "train": "training", "validation": "validation", "val": "validation"}
_LISTS |= {"test": "test", "testing": "test"}
_NUMBERED = re.compile(r"(.+)_(\d{4})")


def find_cases(
    path: str | os.PathLike, *, channels: Sequence[str] | None = None, base: str | os.PathLike | None = None
) -> Dataset:
    """All cases under `path`: a data set's folder, one case's folder, a folder of images, a dataset.json or datalist, one image.

    With `channels` (a checkpoint's), images are chosen and ordered by those names wherever names are known. `base` is the folder
    from which a list's paths start, by default the list's own. Raises InputError if nothing is found, if a list is malformed, or
    if it names a path outside its folder.
    """
    path = Path(path)
    match_channels(channels or (), channels or ())  # no name twice
    try:
        if path.is_dir():
            dataset = _folder(path, channels, base)
        elif path.is_file() and path.suffix.lower() == ".json":
            dataset = _listed(path, channels, base)
        elif path.is_file():
            dataset = Dataset("files", path.parent, (choose(case_from_files([path]), None, channels),))
        else:
            raise InputError(f"{path}: does not exist, expected a folder, a .json list or a .nii.gz image; check the path.")
    except OSError as error:
        where = error.filename or path
        raise InputError(f"{where}: cannot be read ({error.strerror}); check the path and the permissions.") from error
    if not dataset.cases:
        raise InputError(f"{path}: no case was found, expected .nii or .nii.gz images in a known layout; check the folder.")
    cases = distinct(dataset.cases)
    named = {case.channels for case in cases if not case.problem}
    return replace(dataset, cases=cases, channels=dataset.channels or (named.pop() if len(named) == 1 else None))


def case_from_files(paths: Iterable[str | os.PathLike], channels: Sequence[str] | None = None) -> Case:
    """A case by hand: a file per channel or one with all. Without `channels`, files may tell their channels by their names."""
    images = tuple(Path(p) for p in paths)
    if not images:
        raise InputError("No image was given, expected a file per channel or one file with all; name at least one .nii.gz file.")
    for image in images:
        if not image.is_file() or not _is_image(image.name):
            raise InputError(f"{image}: not an existing .nii or .nii.gz file, expected an image; check the path.")
        if channels is None and split_name(stem(image.name))[1] == "label":
            raise InputError(f"{image}: a label by its name, expected an image; leave it out, or say which channel each file is.")
    if channels is not None and len(images) not in (1, len(channels)):
        raise InputError(f"{images[0]}: {len(images)} files for the channels {', '.join(channels)}; give one file for each.")
    names = told_channels(images) if channels is None else tuple(canonical_channel(c) for c in channels)
    if names and (twice := [n for n, times in Counter(map(channel_key, names)).items() if times > 1]):
        raise InputError(
            f"{images[0]}: the channel {twice[0]} comes more than once, expected each once; leave out what is too much."
        )
    return Case(case_name(images), images, names, split="test")


# Folders


def _folder(path: Path, channels: Sequence[str] | None, base: Any) -> Dataset:
    if (path / "dataset.json").is_file():
        return _listed(path / "dataset.json", channels, base)
    files, folders = _look(path)
    if {"imagesTr", "imagesTs"} & {folder.name for folder in folders}:
        return Dataset("nnunet", path, tuple(_nnunet(path, None, channels)))
    if not files:
        return _named(path, _case_folders(path, folders), channels)
    beside = path.absolute().parent / "dataset.json"
    info = dataset_json.load(beside) if path.absolute().name.startswith("images") and beside.is_file() else {}
    names = dataset_json.channel_names(info, beside)
    if "channel_names" in info or _is_numbered(files, channels):
        return _described(Dataset("nnunet", path, tuple(_numbered(files, names, channels))), info, beside)
    if info:
        cases = [choose(Case(stem(f.name), (f,), label=label_beside(f, stem(f.name))), names, channels) for f in files]
        return _described(Dataset("decathlon", path, tuple(map(split_by_label, cases))), info, beside)
    return _named(path, [(path, files)], channels)


def _case_folders(path: Path, level: list[Path]) -> list[tuple[Path, list[Path]]]:
    """The folders below `path` that hold images, with their images."""
    found = []
    for _ in range(MAX_DEPTH):
        deeper = []
        for folder in level:
            if (folder / "dataset.json").is_file():
                raise InputError(f"{path}: holds whole data sets, such as {folder.name}, expected cases; give one of them.")
            files, folders = _look(folder)
            if files:
                found.append((folder, files))
            else:
                deeper += folders
        level = deeper
    return sorted(found)


def _named(root: Path, folders: list[tuple[Path, list[Path]]], channels: Sequence[str] | None) -> Dataset:
    """Cases of files that are named by their channel; where no name tells one, every file is a case."""
    wanted = {channel_key(c): canonical_channel(c) for c in channels or ()}
    owns = [_own(folder, f) for folder, files in folders for f in files]
    silent = Counter(own for own in owns if split_name(own, wanted)[1] is None)
    common = [own for own, times in silent.items() if times > max(1, len(folders) / 2)]
    told = dict(wanted)
    if len(common) > 1 and all(split_name(own, wanted)[1] != "channel" for own in owns):
        # Names that say nothing but come back in most folders are channels: P1/ADC, P1/DWI, P2/ADC, P2/DWI.
        told |= {channel_key(own): own for own in common}
    cases = [case for folder, files in folders for case in _grouped(folder, files, told)]

    is_brats = any(brats_era(case) for case in cases)
    present = {name for case in cases for name in case.channels or ()} | set(BRATS_ORDER if is_brats else ())
    order = list(wanted.values()) or [*(c for c in BRATS_ORDER if c in present), *sorted(present - set(BRATS_ORDER))]
    cases = [choose(case, None, channels) if case.channels is None else complete(case, order) for case in cases]
    layout = "brats" if is_brats else "case-folder" if present else "files"
    return Dataset(layout, root, tuple(map(split_by_label, cases)), tuple(order) if present else None)


def _grouped(folder: Path, files: list[Path], told: Mapping[str, str]) -> list[Case]:
    """The cases of one folder, by what stands before the channel in the files' names, with all the channels there are."""
    images: dict[str, list[tuple[str, Path]]] = {}
    labels: dict[str, list[tuple[int, Path]]] = {}
    silent: dict[str, Path] = {}
    for file in files:
        prefix, role, word = split_name(stem(file.name), told)
        if role == "channel":
            images.setdefault(prefix, []).append((word, file))
        elif role == "label":
            labels.setdefault(prefix, []).append((label_rank(word), file))
        elif role is None:
            silent[prefix] = file
    prefixes = list(images or silent)
    if len(prefixes) == 1 and len(labels) == 1:
        # A folder with one case may call its label anything: BraTS20_Training_355 has W39_1998.09.19_Segm.
        labels = {prefixes[0]: next(iter(labels.values()))}
    best = {prefix: min(ranked)[1] for prefix, ranked in labels.items()}
    if not prefixes and best:
        return [Case(folder.absolute().name, (), (), next(iter(best.values())))]
    if not images:
        return [Case(name, (file,), label=best.get(name)) for name, file in silent.items()]
    return [
        Case(prefix or folder.absolute().name, tuple(f for _, f in found), tuple(w for w, _ in found), best.get(prefix))
        for prefix, found in images.items()
    ]


def _own(folder: Path, file: Path) -> str:
    """A file's name without its folder's in front."""
    return stem(file.name).removeprefix(folder.absolute().name).lstrip("-_. ") or stem(file.name)


# Lists


def _listed(path: Path, channels: Sequence[str] | None, base: Any) -> Dataset:
    """The cases of a dataset.json or a datalist."""
    info = dataset_json.load(path)
    names = dataset_json.channel_names(info, path)
    if "channel_names" in info:
        ending = info.get("file_ending", ".nii.gz")
        if ending not in (".nii", ".nii.gz"):
            raise InputError(f"{path}: file_ending is {ending!r}, expected .nii or .nii.gz; convert the images to NIfTI.")
        return _described(Dataset("nnunet", path.parent, tuple(_nnunet(path.parent, names, channels))), info, path)
    root = path.parent if base is None else Path(base)
    cases = []
    for key in [key for key in _LISTS if key in info]:
        entries = info[key]
        if not isinstance(entries, list):
            raise InputError(f"{path}: {key} is a {type(entries).__name__}, expected a list of cases; correct it.")
        listed = [_entry(entry, f"{path}: {key}[{i}]", root, _LISTS[key]) for i, entry in enumerate(entries)]
        # Names with ._ in front are what macOS leaves beside the images.
        cases += [choose(case, names, channels) for case in listed if not case.name.startswith("._")]
    return _described(Dataset("decathlon" if "modality" in info else "monai-datalist", root, tuple(cases)), info, path)


def _entry(entry: Any, where: str, root: Path, split: str) -> Case:
    entry = entry if isinstance(entry, dict) else {"image": entry}
    images, fold = dataset_json.paths(entry.get("image"), root, where), entry.get("fold")
    labels = dataset_json.paths(entry["label"], root, where) if entry.get("label") else ()
    if not images or len(labels) > 1 or not (fold is None or isinstance(fold, int)):
        raise InputError(f"{where}: malformed, expected image (one or several), label (one) and fold (a number); correct it.")
    missing = [image for image in images if not image.is_file()]
    problem = f"{where}: {', '.join(map(str, missing))} does not exist; correct the path or the base folder." if missing else None
    there = tuple(image for image in images if image not in missing)
    return Case(case_name(images), there, None, labels[0] if labels else None, fold, split, problem)


def _described(dataset: Dataset, info: dict[str, Any], path: Path) -> Dataset:
    labels, order = dataset_json.label_values(info, path), dataset_json.regions_class_order(info, path)
    return replace(dataset, labels=labels, regions_class_order=order)


# Numbered channels


def _nnunet(root: Path, names: Sequence[str] | None, channels: Sequence[str] | None) -> list[Case]:
    cases = []
    for folder, split in ((root / "imagesTr", "training"), (root / "imagesTs", "test")):
        if folder.is_dir():
            cases += [replace(case, split=split) for case in _numbered(_look(folder)[0], names, channels)]
    return cases


def _is_numbered(files: list[Path], channels: Sequence[str] | None) -> bool:
    """Whether most files are CASE_0000, CASE_0001, …: channels, counted from 0 in each case, and not counted cases."""
    numbers: dict[str, set[int]] = {}
    for match in filter(None, (_NUMBERED.fullmatch(stem(f.name)) for f in files)):
        numbers.setdefault(match[1], set()).add(int(match[2]))
    if channels and len(channels) == 1 < len(files) and len(numbers) == 1:
        return False
    return 2 * sum(map(len, numbers.values())) > len(files) and 2 * sum(0 in n for n in numbers.values()) >= len(numbers)


def _numbered(files: list[Path], names: Sequence[str] | None, channels: Sequence[str] | None) -> list[Case]:
    groups: dict[str, dict[int, Path]] = {}
    cases = []
    for file in files:
        if match := _NUMBERED.fullmatch(stem(file.name)):
            groups.setdefault(match[1], {})[int(match[2])] = file
        else:
            problem = f"{file}: the name does not end in a channel's number, expected one such as _0000; rename the file."
            cases.append(Case(stem(file.name), (file,), problem=problem))
    expected = range(len(names) if names else 1 + max((max(group) for group in groups.values()), default=0))
    for name, group in groups.items():
        first, there = next(iter(group.values())), [i for i in expected if i in group]
        case = Case(name, tuple(group[i] for i in there), label=label_beside(first, name))
        if list(group) == list(expected):
            case = choose(case, names, channels)
        else:
            has, wants = (", ".join(f"{i:04d}" for i in numbers) for numbers in (group, expected))
            problem = f"{first.parent}: case {name} has the channels {has}, expected {wants}; complete it."
            case = replace(case, channels=tuple(names[i] for i in there) if names else None, problem=problem)
        cases.append(case)
    return [split_by_label(case) for case in cases]


def _look(folder: Path) -> tuple[list[Path], list[Path]]:
    """(images, folders) in `folder` by name, without what is hidden."""
    with os.scandir(folder) as found:
        entries = sorted((e for e in found if not e.name.startswith((".", "__MACOSX"))), key=lambda entry: entry.name)
    images = [folder / e.name for e in entries if e.is_file() and _is_image(e.name)]
    return images, [folder / e.name for e in entries if e.is_dir()]


def _is_image(name: str) -> bool:
    return name.lower().endswith((".nii", ".nii.gz"))
