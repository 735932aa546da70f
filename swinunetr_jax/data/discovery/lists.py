"""Data sets that a file describes (dataset.json of the Decathlon and nnU-Net, MONAI's datalists), and files with numbered channels."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from swinunetr_jax import files
from swinunetr_jax.console import name_list
from swinunetr_jax.data.discovery import dataset_json
from swinunetr_jax.data.discovery.cases import Case, Dataset, case_name, matching_label, order_channels, split_by_label
from swinunetr_jax.data.discovery.dicom_folders import is_scan_path
from swinunetr_jax.data.discovery.entries import Survey
from swinunetr_jax.data.formats.names import SINGLE, stem
from swinunetr_jax.errors import InputError

_LISTS = {"training": "training", "train": "training", "validation": "validation", "val": "validation"}
_LISTS |= {"test": "test", "testing": "test"}
_NUMBERED = re.compile(r"(.+)_(\d{4})")
_FOLDERS = {"imagesTr": "training", "imagesTs": "test"}
_LABEL_FOLDERS = ("labelsTr", "labelsTs")

Numbered = dict[str, dict[int, list[Path]]]  # case → channel number → its file, or several files of that number


def listed(path: Path, channels: Sequence[str] | None, base: Path | None, survey: Survey) -> Dataset:
    """Returns the cases of a dataset.json or a datalist.

    Raises:
        InputError: the list is malformed, or names a path outside its base folder.
    """
    info = dataset_json.load(path)
    names = dataset_json.channel_names(info, path)
    root = path.parent if base is None else base
    keys = [key for key in _LISTS if key in info]
    if "channel_names" in info and "dataset" not in info:
        ending = info.get("file_ending", ".nii.gz")
        if ending not in SINGLE:
            raise InputError(f"{path}: file_ending is {ending!r}, expected one of {', '.join(SINGLE)}; convert the images.")
        return described(Dataset("nnunet", root, tuple(numbered_folders(root, names, channels, survey))), info, path)
    entries: list[tuple[str, Any, str]] = []  # where, entry, split
    if isinstance(info.get("dataset"), dict):  # nnU-Net's list of cases whose files may be in any folder
        for name, entry in info["dataset"].items():
            if not isinstance(entry, dict):
                raise InputError(f"{path}: dataset[{name!r}] is {entry!r}, expected images and label; correct it.")
            entries.append((f"{path}: dataset[{name!r}]", {**entry, "image": entry.get("images"), "name": name}, "training"))
    for key in keys:
        if not isinstance(info[key], list):
            raise InputError(f"{path}: {key} is a {type(info[key]).__name__}, expected a list of cases; correct it.")
        entries += [(f"{path}: {key}[{i}]", entry, _LISTS[key]) for i, entry in enumerate(info[key])]
    if not entries and any(files.is_folder(root / folder) for folder in _FOLDERS):
        cases = _folders(root, names, channels, survey)
        return described(Dataset("nnunet", root, tuple(cases)), info, path)
    cases, has_numbers = [], False
    for where, entry, split in entries:
        case = _entry(entry, where, root, split, len(names or ()), survey)
        if case.name.startswith("._"):  # macOS writes such files next to images
            survey.ignore("files of macOS (._…)", Path(case.name))
            continue
        has_numbers |= not case.problem and stem(case.images[0].name) == f"{case.name}_0000"
        cases.append(order_channels(case, names, channels))
    cases = _without_repetitions(cases, path, survey)
    _report_unlisted(root, cases, survey)
    layout = "nnunet" if has_numbers or "dataset" in info else "decathlon" if "modality" in info else "monai-datalist"
    return described(Dataset(layout, root, tuple(cases)), info, path)


def described(dataset: Dataset, info: dict[str, Any], path: Path) -> Dataset:
    """Returns the data set with the labels that its dataset.json describes."""
    labels, order = dataset_json.label_values(info, path), dataset_json.regions_class_order(info, path)
    return replace(dataset, labels=labels, regions_class_order=order)


def _entry(entry: Any, where: str, root: Path, split: str, channels: int, survey: Survey) -> Case:
    entry = entry if isinstance(entry, dict) else {"image": entry}
    images, fold = dataset_json.paths(entry.get("image"), root, where), entry.get("fold")
    labels = dataset_json.paths(entry["label"], root, where) if entry.get("label") else ()
    valid_fold = fold is None or (isinstance(fold, int) and not isinstance(fold, bool) and fold >= 0)
    if not images or len(labels) > 1 or not valid_fold:
        raise InputError(f"{where}: is malformed, expected image (one or several), label (one) and fold (a number); correct it.")
    label = labels[0] if labels else None
    missing = [image for image in images if not files.is_file(image) and not is_scan_path(image)]
    if len(images) == 1 and missing and files.is_folder(images[0].parent):
        # nnU-Net v1 lists imagesTr/CASE.nii.gz, while each channel is a file: imagesTr/CASE_0000.nii.gz, …
        name = stem(images[0].name)
        if group := numbered_files(survey.list_folder(images[0].parent)[0]).get(name):
            case = _numbered_case(name, group, range(channels or 1 + max(group)), None, None)
            return replace(case, label=label, fold=fold, split=split)
    problem = None
    if missing:
        verb = "does" if len(missing) == 1 else "do"
        problem = f"{where}: {name_list(missing)} {verb} not exist; correct the path or give the base folder (--base)."
    existing = tuple(image for image in images if image not in missing)
    return Case(entry.get("name") or case_name(images), existing, None, label, fold, split, problem)


def _without_repetitions(cases: Sequence[Case], path: Path, survey: Survey) -> list[Case]:
    """Returns the cases without repeated entries, which have the same images, label, fold and split."""
    kept: dict[tuple[Path, ...] | int, Case] = {}
    repeated = []
    for number, case in enumerate(cases):
        key = case.images if case.images else number
        first = kept.setdefault(key, case)
        if first is case:
            continue
        if (first.label, first.fold, first.split) != (case.label, case.fold, case.split):
            roles = " and ".join(
                f"{entry.split}{'' if entry.fold is None else f' fold {entry.fold}'} with {entry.label}"
                for entry in (first, case)
            )
            raise InputError(
                f"{path}: {case.images[0]} is listed twice with different labels, folds or splits ({roles}); list it once."
            )
        repeated.append(case.name)
    if names := list(dict.fromkeys(repeated)):
        survey.warnings.append(
            f"{path}: {name_list(names)} {'is' if len(names) == 1 else 'are'} listed more than once and used once."
        )
    return list(kept.values())


def _report_unlisted(root: Path, cases: Sequence[Case], survey: Survey) -> None:
    """Adds a warning about images that are in the same folders as listed ones but are not listed themselves."""
    used = {path for case in cases for path in (*case.images, case.label) if path}
    for folder in dict.fromkeys(path.parent for case in cases for path in case.images):
        if folder.name in _FOLDERS and folder.parent == root:
            unlisted = [image.name for image in survey.list_folder(folder)[0] if image not in used]
            if unlisted:
                survey.warnings.append(f"{folder}: {len(unlisted)} images are not listed and not used: {name_list(unlisted)}.")


# Channels by number


def numbered_files(images: Sequence[Path]) -> Numbered:
    """Returns the files that are named CASE_0000, CASE_0001, …, by case and number."""
    groups: Numbered = {}
    for file in images:
        if match := _NUMBERED.fullmatch(stem(file.name)):
            groups.setdefault(match[1], {}).setdefault(int(match[2]), []).append(file)
    return groups


def is_numbered(images: Sequence[Path], channels: Sequence[str] | None) -> bool:
    """Returns whether the numbers at the end of most names are channels (CASE_0000, CASE_0001, … in each case), and not cases."""
    numbers = numbered_files(images)
    if channels and len(channels) == 1 < len(images) and len(numbers) == 1:
        return False
    return 2 * sum(map(len, numbers.values())) > len(images) and 2 * sum(0 in group for group in numbers.values()) >= len(numbers)


def numbered_folders(root: Path, names: Sequence[str] | None, channels: Sequence[str] | None, survey: Survey) -> list[Case]:
    """Returns the cases of nnU-Net's folders imagesTr and imagesTs."""
    cases = []
    for folder, split in _FOLDERS.items():
        if files.is_folder(root / folder):
            cases += [
                replace(case, split=split) for case in numbered(survey.list_folder(root / folder)[0], names, channels, survey)
            ]
    _report_other_folders(root, survey)
    return cases


def _folders(root: Path, names: Sequence[str] | None, channels: Sequence[str] | None, survey: Survey) -> list[Case]:
    """Returns the cases of imagesTr and imagesTs for a dataset.json without lists: numbered channels, or a file per case."""
    images = [image for folder in _FOLDERS if files.is_folder(root / folder) for image in survey.list_folder(root / folder)[0]]
    if is_numbered(images, channels):
        return numbered_folders(root, names, channels, survey)
    cases = [replace(case, split=_FOLDERS[case.images[0].parent.name]) for case in one_file_each(images, names, channels)]
    _report_other_folders(root, survey)
    return cases


def _report_other_folders(root: Path, survey: Survey) -> None:
    _, folders = survey.list_folder(root)
    survey.skip(folder for folder in folders if folder.name not in (*_FOLDERS, *_LABEL_FOLDERS))
    for folder in (root / name for name in _FOLDERS):
        if files.is_folder(folder):
            survey.add_foreign(folder)


def one_file_each(images: Sequence[Path], names: Sequence[str] | None, channels: Sequence[str] | None) -> list[Case]:
    """Returns a case for each name. Two files of one name, CASE.nii and CASE.nii.gz, become the problem of that case."""
    cases = []
    for name, same in by_stem(images).items():
        case = Case(name, tuple(same[:1]), label=matching_label(same[0], name))
        if len(same) > 1:
            case = replace(case, problem=same_name_problem(name, same))
        cases.append(split_by_label(order_channels(case, names, channels)))
    return cases


def by_stem(images: Sequence[Path]) -> dict[str, list[Path]]:
    """Returns the files by their names without endings, which are equal for CASE.nii and CASE.nii.gz."""
    groups: dict[str, list[Path]] = {}
    for image in images:
        groups.setdefault(stem(image.name), []).append(image)
    return groups


def same_name_problem(name: str, same: Sequence[Path]) -> str:
    """Returns a sentence about several files of one name."""
    names = ", ".join(path.name for path in same)
    return f"{same[0].parent}: case {name} has several files of the same name ({names}); keep one of them."


def numbered(images: Sequence[Path], names: Sequence[str] | None, channels: Sequence[str] | None, survey: Survey) -> list[Case]:
    """Returns the cases of a folder of files CASE_0000, CASE_0001, …, and warns of labels without images."""
    groups = numbered_files(images)
    cases = []
    for file in images:
        if not _NUMBERED.fullmatch(stem(file.name)):
            problem = f"{file}: the name does not end in a channel's number, expected one such as _0000; rename the file."
            cases.append(Case(stem(file.name), (file,), problem=problem))
    expected = range(len(names) if names else 1 + max((max(group) for group in groups.values()), default=0))
    cases += [_numbered_case(name, group, expected, names, channels) for name, group in groups.items()]
    if images and images[0].parent.name.startswith("images"):
        labels = images[0].parent.with_name(images[0].parent.name.replace("images", "labels", 1))
        if files.is_folder(labels):
            unused = sorted(by_stem(survey.list_folder(labels)[0]).keys() - groups.keys() - {case.name for case in cases})
            if unused:
                survey.warnings.append(
                    f"{labels}: label maps without an image are not used ({len(unused)}): {name_list(unused)}."
                )
    return [split_by_label(case) for case in cases]


def _numbered_case(
    name: str,
    group: dict[int, list[Path]],
    expected: range,
    names: Sequence[str] | None,
    channels: Sequence[str] | None,
) -> Case:
    first, present = next(iter(group.values()))[0], [i for i in expected if i in group]
    case = Case(name, tuple(group[i][0] for i in present), label=matching_label(first, name))
    if repeated := [same for same in group.values() if len(same) > 1]:
        return replace(case, problem=same_name_problem(name, repeated[0]))
    if sorted(group) == list(expected):
        return order_channels(case, names, channels)
    present_numbers, expected_numbers = (", ".join(f"{i:04d}" for i in sorted(numbers)) for numbers in (group, expected))
    problem = f"{first.parent}: case {name} has the channels {present_numbers}, expected {expected_numbers}; complete it."
    return replace(case, channels=tuple(names[i] for i in present) if names else None, problem=problem)
