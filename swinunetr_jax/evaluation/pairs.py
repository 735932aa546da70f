"""Finds the predictions and references to score, by case name, and the meaning of their labels."""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from swinunetr_jax import files
from swinunetr_jax.data.check.problems import problem_lines
from swinunetr_jax.data.discovery import dataset_json, prediction_record
from swinunetr_jax.data.discovery.channels import split_name
from swinunetr_jax.data.discovery.formats import find_cases
from swinunetr_jax.data.formats import read_labels
from swinunetr_jax.data.formats.names import DICOM, is_image, stem
from swinunetr_jax.data.formats.read_dicom_seg import segmentation_header
from swinunetr_jax.errors import InputError
from swinunetr_jax.output import Output
from swinunetr_jax.task import Task, ignored_label

# The endings of the other maps that `predict` writes next to the label map of a case.
OTHER_MAPS = ("_probabilities", "_entropy", "_mutual_information", "_variance")


@dataclass(frozen=True)
class Reference:
    """A label map, and the images that it belongs to if the data set has them."""

    path: Path
    images: tuple[Path, ...] = ()


@dataclass(frozen=True)
class References:
    """References by case name, and what their data set states about the labels.

    `task` is the description in a dataset.json, or the regions of BraTS if only file names imply them (`stated` is then False). Voxels
    with the label `ignore` do not affect any score. `refused` maps a case to the reason why it has no usable reference, and `warnings` are
    sentences on entries of the data set that are not used.
    """

    cases: dict[str, Reference]
    task: Task | None = None
    stated: bool = False
    ignore: int | None = None
    refused: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Predictions:
    """Label maps by case name. `refused` maps a case to the reason why it has none that can be scored."""

    cases: dict[str, Path]
    refused: dict[str, str] = field(default_factory=dict)


def find_predictions(path: str | os.PathLike) -> Predictions:
    """Returns the label maps by case name: CASE.nii.gz, CASE.seg.nrrd or CASE.dcm in a folder of `predict`, CASE_seg.nii.gz, or one file.

    Files of probabilities and uncertainty are not included. Raises InputError if there is no label map, or if the folder holds the
    maps of `saliency`.
    """
    path = Path(path)
    if files.is_folder(path) and files.exists(path / prediction_record.SALIENCY_RECORD):
        raise InputError(f"{path} holds saliency maps, not label maps: give the folder of `swinunetr predict`.")
    images = _images(path, dicom=True)
    if not images:
        raise InputError(f"{path}: no label map was found, expected a folder with CASE.nii.gz files or one such file.")
    if all(split_name(_stem(file))[1] == "label" for file in images):
        return Predictions(*_by_name(images, _label_name))
    names = {_stem(file) for file in images}
    maps = [file for file in images if not any(_is_map_of(_stem(file), kind, names) for kind in OTHER_MAPS)]
    return Predictions(*_by_name(maps, _stem))


def _is_map_of(name: str, ending: str, names: set[str]) -> bool:
    """Returns whether a file has this ending after the name of another one."""
    return name.endswith(ending) and name.removesuffix(ending) in names


def find_references(path: str | os.PathLike, *, base: str | os.PathLike | None = None) -> References:
    """Returns the labels of a data set in any known layout, of a folder of label maps, or of one file.

    Args:
        path: the data set, folder or file.
        base: the folder that the paths of a dataset.json or datalist are relative to.

    Raises:
        InputError: there is no label map.
    """
    path = Path(path)
    images = _images(path)
    roles = {split_name(_stem(file))[1] for file in images}
    if images and files.is_folder(path) and files.exists(path / prediction_record.RECORD):  # results of predict as references
        return _without_images(find_predictions(path), path)
    if roles == {"label"}:
        return _without_images(Predictions(*_by_name(images, _label_name)), path)
    dataset = find_cases(path, base=base)
    cases = {case.name: Reference(case.label, case.images) for case in dataset.cases if case.label is not None}
    if cases:
        faulty = {case.name: case.problem for case in dataset.cases if case.problem and case.label is None}
        meaning = _meaning(dataset.labels, dataset.regions_class_order)
        if not meaning["stated"] and dataset.layout == "brats":
            meaning["task"] = Task.brats()
        texts = [*([dataset.ignored] if dataset.ignored else []), *dataset.warnings]
        texts += [f"no reference: {line}" for line in problem_lines(list(faulty.items()))]
        return References(cases, **meaning, refused=faulty, warnings=tuple(texts))
    if roles == {None}:
        return _without_images(Predictions(*_by_name(images, _stem)), path)
    raise InputError(f"{path}: none of its cases ({len(dataset.cases)}) has a label map; give a data set with labels.")


def _without_images(predictions: Predictions, path: Path) -> References:
    """Returns references that are only label maps, without the images of a data set."""
    cases = {name: Reference(file) for name, file in predictions.cases.items()}
    return References(cases, **_meaning_of_folder(path), refused=predictions.refused)


def _by_name(paths: Sequence[Path], name_of: Callable[[Path], str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Returns (file of each case, reasons by refused case). Several files for one case are refused, because any of them may be meant."""
    groups: dict[str, list[Path]] = {}
    for file in paths:
        groups.setdefault(name_of(file), []).append(file)
    refused = {
        name: f"{group[0].parent}: case {name} has several label maps ({', '.join(file.name for file in group)}); keep one of them."
        for name, group in groups.items()
        if len(group) > 1
    }
    return {name: group[0] for name, group in groups.items() if len(group) == 1}, refused


def read_record(predictions: str | os.PathLike) -> Mapping[str, Any]:
    """Returns the record that `predict` wrote next to its label maps, or {} if there is none. Raises InputError if it is damaged."""
    predictions = Path(predictions)
    path = (predictions if files.is_folder(predictions) else predictions.parent) / prediction_record.RECORD
    remedy = "run predict again, or move it away and give --task"
    try:
        content = prediction_record.read_record(path, remedy)
        if content["settings"].get("task"):
            Task.from_dict(content["settings"]["task"])
    except FileNotFoundError:
        return {}
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {str(error).rstrip('.')}; {remedy}.") from error
    return content


def choose_task(option: str | None, record: Mapping[str, Any], references: References) -> Task:
    """Returns the meaning of the labels: that of the option, otherwise of `predict`'s record, otherwise of the references' data set.

    Args:
        option: "brats", "classes" or None. If no source names the classes, they are all values that occur in the references.
        record: the result of `read_record`.
        references: the references.

    Raises:
        InputError: none of them states the meaning.
    """
    stored = record.get("settings", {}).get("task")
    recorded = Task.from_dict(stored) if stored else None
    if option == "brats":
        return Task.brats()
    if option == "classes":
        named = [task for task in (recorded, references.task) if task is not None and task.kind == "classes"]
        return named[0] if named else _occurring_classes(references)
    task = recorded or references.task
    if task is None:
        raise InputError(
            "the meaning of the labels is unknown, because neither predict.json nor a dataset.json states it: give --task brats or classes."
        )
    return task


def _images(path: Path, *, dicom: bool = False) -> list[Path]:
    """Returns the images directly in a folder that are files, also DICOM files if `dicom`, or `path` itself if it is one."""
    try:
        entries = sorted(path.iterdir()) if files.is_folder(path) else [path] if files.is_file(path) else []
        # A broken link is kept, so that reading it reports the fault.
        known = [entry for entry in entries if is_image(entry.name) or (dicom and _is_segmentation(entry))]
        return [entry for entry in known if entry.name[0] != "." and not files.is_folder(entry)]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and the permissions.") from error


def _is_segmentation(file: Path) -> bool:
    """Returns whether a file is a DICOM-SEG. A damaged DICOM file counts as one, so that reading it reports the fault."""
    if not file.name.lower().endswith(DICOM):
        return False
    try:
        return segmentation_header(file) is not None
    except InputError:
        return True


def _stem(file: Path) -> str:
    """Returns the name of a label map without its ending, such as .nii.gz or .seg.nrrd."""
    return stem(file.name).removesuffix(".seg")


def _label_name(file: Path) -> str:
    """Returns the case's name in CASE_seg.nii.gz or CASE/seg.nii.gz."""
    return split_name(_stem(file))[0] or file.absolute().parent.name


def _meaning_of_folder(path: Path) -> dict[str, Any]:
    """Returns the fields `task`, `stated` and `ignore` of References, from the dataset.json next to a folder such as labelsTr."""
    folder = path.absolute() if files.is_folder(path) else path.absolute().parent
    description = folder.parent / "dataset.json"
    if not folder.name.startswith("labels") or not files.is_file(description):
        return {}
    info = dataset_json.load(description)
    return _meaning(dataset_json.label_values(info, description), dataset_json.regions_class_order(info, description))


def _meaning(labels: Mapping[str, int | list[int]] | None, order: tuple[int, ...] | None) -> dict[str, Any]:
    """Returns the fields `task`, `stated` and `ignore` of References, from the labels of a dataset.json."""
    task = Task.from_labels(labels, order)
    return {"task": task, "stated": task is not None, "ignore": ignored_label(labels or {})}


def _occurring_classes(references: References) -> Task:
    """Returns a task whose classes are all values that occur in the references.

    Raises InputError if only 0 occurs, or a value that is too large for the label maps of this project.
    """
    values: set[int] = set()
    for case in references.cases.values():
        present: set[int] = set()
        with contextlib.suppress(InputError):  # the fault is reported when the case is scored
            present = label_values(read_labels(case.path).array) - {references.ignore}
        if large := sorted(value for value in present if value > dataset_json.MAX_LABEL):
            raise InputError(f"{case.path}: label {large[0]} is above {dataset_json.MAX_LABEL}; renumber the labels.")
        values |= present
    if not values - {0}:
        raise InputError("the references hold no label but 0, so no classes are known; give references with labels.")
    named = (Output(name=f"class {value}", value=value) for value in sorted(values - {0}))
    return Task(kind="classes", outputs=(Output(name="background", value=0), *named))


def label_values(labels: np.ndarray) -> set[int]:
    """Returns the values that occur in a label map."""
    # Counting is faster than sorting, but needs as many counters as the largest label.
    values = np.flatnonzero(np.bincount(labels.ravel("K"))) if labels.dtype == np.uint8 else np.unique(labels)
    return set(values.tolist())
