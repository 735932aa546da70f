"""Finds the cases of a data set in any of these layouts, which are recognised by their files and names.

    BraTS folders     BraTS2021_00000/BraTS2021_00000_flair.nii.gz; since 2023 BraTS-GLI-00000-000/BraTS-GLI-00000-000-t2f.nii.gz
    MONAI datalist    {"training": [{"fold": 0, "image": [...], "label": ...}], "validation": [...], "test": [...]}
    Decathlon         dataset.json with "modality" and lists of cases, one 3-D or 4-D file each
    nnU-Net raw       dataset.json with "channel_names" (v2) or "modality" (v1), imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz; also
                      imagesTs alone
    case folders      any folders with a file per channel, named after the channel: FLAIR.nii.gz, patient_T1.nii.gz
    files             a file per case

An image is a file, a folder with one DICOM series, or a zip of one. Only names are examined; no image is opened, except for the
headers of DICOM files. An incomplete case does not stop the others: `Case.problem` says what is wrong with it.
Every entry of the folder becomes a case, or is named in a problem or a warning, or is counted in `Dataset.ignored`.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from swinunetr_jax import files
from swinunetr_jax.data import brats
from swinunetr_jax.data.discovery import dataset_json
from swinunetr_jax.data.discovery.cases import (
    Case,
    Dataset,
    case_name,
    channels_of_names,
    order_channels,
    require_channels,
    split_by_label,
    unique_names,
)
from swinunetr_jax.data.discovery.channels import canonical_channel, channel_key, match_channels, split_name
from swinunetr_jax.data.discovery.dicom_folders import dicom_kind, is_scan_path
from swinunetr_jax.data.discovery.entries import Survey, link_fault
from swinunetr_jax.data.discovery.groups import attach_labels, group_files, own_name
from swinunetr_jax.data.discovery.lists import described, is_numbered, listed, numbered, numbered_folders, one_file_each
from swinunetr_jax.data.formats.dicom_files import zip_of
from swinunetr_jax.data.formats.names import EXPECTED, is_image, stem
from swinunetr_jax.data.formats.read_dicom import is_dicom_scan
from swinunetr_jax.errors import InputError

# Levels of folders that are searched. Known layouts have three: sub-01/ses-1/anat in BIDS, data/HGG/case in BraTS 2018.
MAX_DEPTH = 5
PREPARED = "prepared.json"  # a folder with this file holds a data set that `swinunetr prepare` has prepared


def find_cases(
    path: str | os.PathLike, *, channels: Sequence[str] | None = None, base: str | os.PathLike | None = None
) -> Dataset:
    """Returns all cases under `path`.

    Args:
        path: a data set's folder, one case's folder, a folder of images, a dataset.json, a datalist, or one image.
        channels: the channels of a checkpoint. Images are selected and ordered by these names wherever names are known.
        base: the folder that a list's paths are relative to, by default the folder of the list.

    Raises:
        InputError: nothing is found, a list is malformed or names a path outside its folder, or two cases would have the same name.
    """
    path, base = Path(path), None if base is None else Path(base)
    match_channels(channels or (), channels or ())  # raises for a repeated name
    is_list = path.name if path.suffix.lower() == ".json" and files.is_file(path) else None
    if base is not None:
        if not files.is_folder(base):
            raise InputError(f"{base}: is not a folder, expected the base folder of a list's paths; correct --base.")
        if not is_list and not files.is_file(path / "dataset.json"):
            raise InputError(
                f"{path}: is not a list of cases, and only the paths of a list have a base folder; leave --base out."
            )
    if files.is_file(path / PREPARED):
        raise InputError(
            f"{path}: holds prepared cases, which only `swinunetr train --data` reads, expected scans; give the data set that they were "
            "prepared from."
        )
    survey = Survey(path.parent if is_list else path, read=(path,))
    try:
        if files.is_folder(path):
            dataset = _folder(path, channels, base, survey)
        elif is_list:
            dataset = listed(path, channels, base, survey)
        elif zip_of(path) == path and _holds_several(path, survey):
            dataset = _folder(path, channels, base, survey)
        elif files.is_file(path) or is_scan_path(path):
            dataset = Dataset("files", path.parent, (order_channels(case_from_files([path]), None, channels),))
        else:
            raise InputError(f"{path}: does not exist, expected a folder, a .json list or an image; check the path.")
    except OSError as error:
        where = error.filename or path
        raise InputError(f"{where}: cannot be read ({error.strerror}); check the path and the permissions.") from error
    if not dataset.cases:
        reason = survey.problems[0].problem if survey.problems else survey.ignored
        why = f" ({reason[:-1]})" if reason else ""
        raise InputError(f"{path}: no case was found{why}, {EXPECTED}, in a known layout; check the folder.")
    cases = [*dataset.cases, *survey.problems]
    cases = [case if case.problem else replace(case, problem=_link_problem(case)) for case in unique_names(cases, dataset.root)]
    named = {case.channels for case in cases if not case.problem}
    names = dataset.channels or (named.pop() if len(named) == 1 else None)
    return replace(dataset, cases=tuple(cases), channels=names, ignored=survey.ignored, warnings=survey.all_warnings)


def case_from_files(paths: Iterable[str | os.PathLike], channels: Sequence[str] | None = None) -> Case:
    """Returns a case that consists of these files, one per channel or one with all channels.

    Args:
        paths: the files.
        channels: their channels; by default those that the names of the files state, if they do.
    """
    images = tuple(Path(path) for path in paths)
    if not images:
        raise InputError("No image was given, expected a file per channel or one file with all; give at least one.")
    for image in images:
        if not is_scan_path(image) and not (files.is_file(image) and (is_image(image.name) or is_dicom_scan(image))):
            raise InputError(f"{image}: is not an existing image, {EXPECTED}; check the path.")
        if channels is None and split_name(stem(image.name))[1] == "label":
            raise InputError(
                f"{image}: is a label by its name, expected an image; leave it out, or name the channel of each file (--channels)."
            )
    if channels is not None and len(images) not in (1, len(channels)):
        raise InputError(f"{images[0]}: {len(images)} files for the channels {', '.join(channels)}; give one file for each.")
    names = channels_of_names(images) if channels is None else tuple(canonical_channel(channel) for channel in channels)
    if names and (repeated := [name for name, times in Counter(map(channel_key, names)).items() if times > 1]):
        raise InputError(
            f"{images[0]}: the channel {repeated[0]} occurs more than once, expected each once; leave out the surplus files."
        )
    return Case(case_name(images), images, names, split="test")


def _link_problem(case: Case) -> str | None:
    """Returns the problem of the first image that is not a file, such as a broken link; None if all are files."""
    return next((fault for fault in map(link_fault, case.images) if fault), None)


# Folders


def _folder(path: Path, channels: Sequence[str] | None, base: Path | None, survey: Survey) -> Dataset:
    images, folders = survey.list_folder(path)
    if not images and zip_of(path) is None and (kind := dicom_kind(path)) is not None:
        survey.skip(folders)
        if kind == "localizer":
            raise InputError(f"{path}: is a localizer, expected a scan; give the folder of another series.")
        if kind == "series":
            return Dataset("files", path.parent, (order_channels(case_from_files([path]), None, channels),))
        return _named(path, [(path, survey.multi_frame_files(path))], channels, survey)
    if files.is_file(path / "dataset.json"):
        dataset = listed(path / "dataset.json", channels, base, survey)
        if dataset.layout != "nnunet":
            survey.skip(
                folder
                for folder in folders
                if not any(folder in image.parents for case in dataset.cases for image in _paths(case))
            )
        return dataset
    if {"imagesTr", "imagesTs"} & {folder.name for folder in folders}:
        return Dataset("nnunet", path, tuple(numbered_folders(path, None, channels, survey)))
    if all(map(is_scan_path, images)):  # DICOM series are folders, so other folders may be next to them
        found = _case_folders(path, folders, survey)
        return _named(path, [(path, images), *found] if images else found, channels, survey)
    description = path.absolute().parent / "dataset.json"
    info = dataset_json.load(description) if path.absolute().name.startswith("images") and files.is_file(description) else {}
    names = dataset_json.channel_names(info, description)
    survey.skip(folders)
    survey.add_foreign(path)
    if "channel_names" in info or is_numbered(images, channels):
        return described(Dataset("nnunet", path, tuple(numbered(images, names, channels, survey))), info, description)
    if info:
        return described(Dataset("decathlon", path, tuple(one_file_each(images, names, channels))), info, description)
    return _named(path, [(path, images)], channels, survey)


def _holds_several(path: Path, survey: Survey) -> bool:
    """Returns whether a zip holds several scans, or none."""
    images, folders = survey.list_folder(path)
    return bool(images or folders)


def _paths(case: Case) -> tuple[Path, ...]:
    return (*case.images, case.label) if case.label else case.images


def _case_folders(path: Path, level: Sequence[Path], survey: Survey) -> list[tuple[Path, list[Path]]]:
    """Returns the folders below `path` that hold images, with their images. A folder without images becomes a problem."""
    with_images: list[tuple[Path, list[Path]]] = []
    top = list(level)
    for _ in range(MAX_DEPTH):
        deeper = []
        for folder in level:
            if files.is_file(folder / "dataset.json"):
                raise InputError(f"{path}: holds several data sets, such as {folder.name}, expected cases; give one of them.")
            images, folders = survey.list_folder(folder)
            if images:
                with_images.append((folder, images))
            if images and not all(map(is_scan_path, images)):
                survey.skip(folders)
            else:
                deeper += folders
        level = deeper
    survey.unread += [folder for folder in level if survey.holds_images(folder)]
    for folder in top:
        if not any(other.is_relative_to(folder) for other in (*(other for other, _ in with_images), *survey.unread)):
            _add_empty(folder, survey)
    survey.add_foreign(path)
    return sorted(with_images)


def _add_empty(folder: Path, survey: Survey) -> None:
    """Records a folder without images: an empty folder or scans in other formats are problems, other files are counted."""
    before = len(survey.problems)
    if any(problem.name == folder.name for problem in survey.problems):  # the folder could not be read
        return
    subfolders = [Path(subfolder) for subfolder, _, _ in os.walk(folder)]
    for subfolder in subfolders:
        survey.list_folder(subfolder)
        survey.add_foreign(subfolder)
    if len(survey.problems) > before:
        return
    if any(names for _, _, names in os.walk(folder)):
        survey.ignore("folders without images", folder)
    else:
        survey.add_problem(folder.name, f"{folder}: is empty, expected images; complete it or remove it.")


def _named(root: Path, folders: list[tuple[Path, list[Path]]], channels: Sequence[str] | None, survey: Survey) -> Dataset:
    """Returns the cases of files that are named after their channels. If no name states a channel, every file is a case."""
    wanted = {channel_key(channel): canonical_channel(channel) for channel in channels or ()}
    own_names = [own_name(folder, file) for folder, images in folders for file in images]
    without_role = Counter(name for name in own_names if split_name(name, wanted)[1] is None)
    common = [name for name, count in without_role.items() if count > max(1, len(folders) / 2)]
    known = dict(wanted)
    if len(common) > 1 and all(split_name(name, wanted)[1] != "channel" for name in own_names):
        # Unknown names that occur in most folders are those of channels: P1/ADC, P1/DWI, P2/ADC, P2/DWI.
        known |= {channel_key(name): name for name in common}
    cases = [case for folder, images in folders for case in group_files(root, folder, images, known, survey)]
    cases = attach_labels(cases)

    is_brats = any(case.et_label for case in cases)
    present = {name for case in cases for name in case.channels or ()} | set(brats.CHANNELS if is_brats else ())
    order = list(wanted.values()) or [
        *(channel for channel in brats.CHANNELS if channel in present),
        *sorted(present - set(brats.CHANNELS)),
    ]
    cases = [_with_ordered_channels(case, order, channels) for case in cases]
    layout = "brats" if is_brats else "case-folder" if present else "files"
    return Dataset(layout, root, tuple(map(split_by_label, cases)), tuple(order) if present else None)


def _with_ordered_channels(case: Case, order: Sequence[str], channels: Sequence[str] | None) -> Case:
    """Returns the case with its channels in order, which are `channels` if the case has no names for them, otherwise `order`."""
    if case.problem:
        return case
    return order_channels(case, None, channels) if case.channels is None else require_channels(case, order)
