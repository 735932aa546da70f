"""What to score: predictions and references by case name, and what their labels mean."""

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
from swinunetr_jax.data.discovery.channels import split_name, stem
from swinunetr_jax.data.discovery.entries import is_image
from swinunetr_jax.data.discovery.formats import find_cases
from swinunetr_jax.data.nifti import read_labels
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import IGNORE, Output, Task


@dataclass(frozen=True)
class Reference:
    """A label map, and the images it was drawn on where the data set has them."""

    path: Path
    images: tuple[Path, ...] = ()


@dataclass(frozen=True)
class References:
    """References by case name, and what their data set says of the labels.

    `task` is what a dataset.json states, or BraTS's regions where file names alone say so (`stated` is False then); voxels with
    the label `ignore` take no part in any score. `refused` says why a case has no usable reference, and `warnings` are sentences on
    entries of the data set that were left out.
    """

    cases: dict[str, Reference]
    task: Task | None = None
    stated: bool = False
    ignore: int | None = None
    refused: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Predictions:
    """Label maps by case name; `refused` says why a case has none that can be scored."""

    cases: dict[str, Path]
    refused: dict[str, str] = field(default_factory=dict)


def find_predictions(path: str | os.PathLike) -> Predictions:
    """Label maps by case name: CASE.nii.gz in a folder, as `predict` writes them, or CASE_seg.nii.gz, or one file.

    Probabilities beside them are left out. InputError if there are none.
    """
    path = Path(path)
    found = _images(path)
    if not found:
        raise InputError(f"{path}: no label map was found, expected a folder with CASE.nii.gz files or one such file.")
    if all(split_name(stem(file.name))[1] == "label" for file in found):
        return Predictions(*_by_name(found, _label_name))
    names = {stem(file.name) for file in found}
    maps = [file for file in found if stem(file.name).removesuffix("_probabilities") not in names - {stem(file.name)}]
    return Predictions(*_by_name(maps, lambda file: stem(file.name)))


def find_references(path: str | os.PathLike, *, base: str | os.PathLike | None = None) -> References:
    """Labels of a data set in any known layout, or a folder of label maps, or one. InputError if there are none.

    Args:
        base: the folder from which the paths of a dataset.json or datalist start.
    """
    path = Path(path)
    found = _images(path)
    roles = {split_name(stem(file.name))[1] for file in found}
    if (
        found and files.is_folder(path) and files.exists(path / prediction_record.RECORD)
    ):  # results of predict, as references for others
        return _bare(find_predictions(path), path)
    if roles == {"label"}:
        return _bare(Predictions(*_by_name(found, _label_name)), path)
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
        return _bare(Predictions(*_by_name(found, lambda file: stem(file.name))), path)
    raise InputError(f"{path}: no label map was found among {len(dataset.cases)} cases; give a data set with labels.")


def _bare(found: Predictions, path: Path) -> References:
    """References that are label maps alone, in a folder or one file."""
    cases = {name: Reference(file) for name, file in found.cases.items()}
    return References(cases, **_meaning_beside(path), refused=found.refused)


def _by_name(found: Sequence[Path], name_of: Callable[[Path], str]) -> tuple[dict[str, Path], dict[str, str]]:
    """(file of each case, why a case has none): several files for one case are refused, for it is not certain which is meant."""
    groups: dict[str, list[Path]] = {}
    for file in found:
        groups.setdefault(name_of(file), []).append(file)
    refused = {
        name: f"{same[0].parent}: case {name} has several label maps ({', '.join(file.name for file in same)}); keep one of them."
        for name, same in groups.items()
        if len(same) > 1
    }
    return {name: same[0] for name, same in groups.items() if len(same) == 1}, refused


def read_record(predictions: str | os.PathLike) -> dict[str, Any]:
    """What `predict` recorded beside its label maps; {} without a record. InputError if it is damaged."""
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
    """What labels mean: as asked for, else as recorded by `predict`, else as the references' data set says.

    Args:
        option: "brats", "classes" or None. Classes without names are all values that occur in the references.

    Raises:
        InputError: nothing tells.
    """
    stored = record.get("settings", {}).get("task")
    recorded = Task.from_dict(stored) if stored else None
    told = recorded or references.task
    if option == "brats":
        return Task.brats()
    if option == "classes":
        named = [task for task in (recorded, references.task) if task is not None and task.kind == "classes"]
        return named[0] if named else _occurring(references)
    if told is None:
        raise InputError(
            "nothing tells what the labels mean, neither predict.json nor a dataset.json: give --task brats or classes."
        )
    return told


def _images(path: Path) -> list[Path]:
    """The .nii and .nii.gz files right in a folder, or the one that `path` is."""
    try:
        found = sorted(path.iterdir()) if files.is_folder(path) else [path] if files.is_file(path) else []
        # a link that leads nowhere is kept: reading it says so
        return [f for f in found if is_image(f.name) and f.name[0] != "." and not files.is_folder(f)]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and the permissions.") from error


def _label_name(file: Path) -> str:
    """The case of CASE_seg.nii.gz, or of CASE/seg.nii.gz."""
    return split_name(stem(file.name))[0] or file.absolute().parent.name


def _meaning_beside(path: Path) -> dict[str, Any]:
    """The fields `task`, `stated` and `ignore` of References, from the dataset.json beside a folder such as labelsTr."""
    folder = path.absolute() if files.is_folder(path) else path.absolute().parent
    beside = folder.parent / "dataset.json"
    if not folder.name.startswith("labels") or not files.is_file(beside):
        return {}
    info = dataset_json.load(beside)
    return _meaning(dataset_json.label_values(info, beside), dataset_json.regions_class_order(info, beside))


def _meaning(labels: Mapping[str, int | list[int]] | None, order: tuple[int, ...] | None) -> dict[str, Any]:
    """The fields `task`, `stated` and `ignore` of References, from the labels of a dataset.json."""
    task, ignore = Task.from_labels(labels, order), (labels or {}).get(IGNORE)
    if isinstance(ignore, list):
        if len(ignore) > 1:
            raise InputError(f"the label {IGNORE} of the data set's dataset.json is {ignore}, expected one value; merge them.")
        ignore = ignore[0]
    return {"task": task, "stated": task is not None, "ignore": ignore}


def _occurring(references: References) -> Task:
    values: set[int] = set()
    for case in references.cases.values():
        with contextlib.suppress(InputError):  # it is said when the case comes to be scored
            found = label_values(read_labels(case.path).array) - {references.ignore}
            if strange := sorted(value for value in found if value > dataset_json.MAX_LABEL):
                raise InputError(f"{case.path}: label {strange[0]} is above {dataset_json.MAX_LABEL}; renumber the labels.")
            values |= found
    if not values - {0}:
        raise InputError("the references hold no label but 0, so no classes are known; give references with labels.")
    named = (Output(name=f"class {value}", value=value) for value in sorted(values - {0}))
    return Task(kind="classes", outputs=(Output(name="background", value=0), *named))


def label_values(labels: np.ndarray) -> set[int]:
    """The values that occur in a label map."""
    # Counting is faster than sorting, but needs as many counters as the largest label.
    found = np.flatnonzero(np.bincount(labels.ravel("K"))) if labels.dtype == np.uint8 else np.unique(labels)
    return set(found.tolist())
