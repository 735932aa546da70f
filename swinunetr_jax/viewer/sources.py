"""Reads what `swinunetr view` shows: a scan with its channels, label maps, and the names of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swinunetr_jax import files
from swinunetr_jax.data.discovery import dataset_json
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.formats import case_from_files, find_cases
from swinunetr_jax.data.formats import read_labels, read_volume, stem
from swinunetr_jax.data.nifti import Volume, on_grid_of
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import IGNORE, Task
from swinunetr_jax.viewer.contents import LabelMap

RECORD = "predict.json"
MAX_VALUE = 255  # of a label that a task can name
EXPECTED = "brats, or a predict.json, run.json or dataset.json"


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan to show.

    `channels` are its images [x, y, z] by name; `volume` is its first file, whose grid all have; `reference` is the label map of the case,
    if it has one; `task` names the labels, if the data set of the scan states them.
    """

    name: str
    channels: dict[str, np.ndarray]
    volume: Volume
    reference: Path | None
    task: Task | None
    notes: tuple[str, ...] = ()


def read_case(path: Path, further: Sequence[Path] = ()) -> Scan:
    """Reads a scan file or the folder of one case.

    Raises:
        InputError: a file cannot be read, or the folder holds no case or several ones.
    """
    task, reference, notes = None, None, ()
    if files.is_folder(path):
        dataset = find_cases(path)
        if len(dataset.cases) != 1:
            raise InputError(f"{path} holds {len(dataset.cases)} cases, expected one: give the folder or the file of one case.")
        (case,) = dataset.cases
        if case.problem and not case.is_incomplete:
            raise InputError(case.problem)
        task = Task.from_labels(dataset.labels, dataset.regions_class_order)
        if task is None and case.et_label is not None:
            task = Task.brats(et_label=case.et_label)
        reference = case.label if case.label is not None and files.exists(case.label) else None
        notes = dataset.warnings
    else:
        case = Case(stem(path.name), (path,))
    if further:
        case = case_from_files((*case.images, *further))
    volumes = [read_volume(image) for image in case.images]
    volumes = [volumes[0], *(on_grid_of(volume, volumes[0]) for volume in volumes[1:])]
    return Scan(case.name, named_channels(volumes, case.channels), volumes[0], reference, task, notes)


def named_channels(volumes: Sequence[Volume], names: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Returns the images [x, y, z] of a scan by their names, or by their numbers if no names fit."""
    planes: list[np.ndarray] = []
    for volume in volumes:
        planes += [volume.array] if volume.array.ndim == 3 else list(np.moveaxis(volume.array, -1, 0))
    if names is None or len(set(names)) != len(planes):
        names = [f"channel {number}" for number in range(1, len(planes) + 1)] if len(planes) > 1 else ["scan"]
    return dict(zip(names, planes))


def read_label_maps(paths: Sequence[Path], names: Sequence[str], reference: Path | None) -> tuple[list[LabelMap], list[Volume]]:
    """Reads label maps, and the reference of the case after them. Returns them with their names, and as volumes.

    Args:
        paths: the label maps.
        names: their names, with or without one for the reference; by default those of their files.
        reference: the label map of the case, which is not read twice.

    Raises:
        InputError: a file is not a label map, or the numbers of names and label maps differ.
    """
    paths = list(paths)
    shown = list(names) or _distinct_names(paths)
    if reference is not None and files.real_path(reference) not in map(files.real_path, paths):
        shown += ["reference"] if len(shown) == len(paths) else []
        paths.append(reference)
    if len(shown) != len(paths) or len(set(shown)) != len(shown):
        raise InputError(f"--names gives {', '.join(names)} for {len(paths)} label maps: give a different name for each.")
    volumes = [read_labels(path, may_be_part=True) for path in paths]
    return [LabelMap(name, volume.array) for name, volume in zip(shown, volumes)], volumes


def _distinct_names(paths: Sequence[Path]) -> list[str]:
    """Returns the names of the files without endings; those of their folders if these are equal, or numbers if those are, too."""
    absolute = [path.absolute() for path in paths]
    options = ([stem(path.name) for path in absolute], [path.parent.name for path in absolute])
    for names in options:
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(options[0], 1)]


def task_of_labels(stated: str | None, label_maps: Sequence[Path], scan: Scan, names: Mapping[int, str]) -> Task | None:
    """Returns the task that names the labels, or None if none is known.

    It is the stated one, else that of the predict.json next to the first label map, else the names in the first label map (`names`, which
    only a DICOM-SEG states), else that of the scan's data set.

    Raises:
        InputError: `stated` is neither "brats" nor a file that states a task or labels.
    """
    if stated == "brats":
        return Task.brats() if scan.task is None or scan.task.et_label is None else scan.task
    if stated is not None:
        if not files.is_file(stated):
            raise InputError(f"--task {stated} is not an existing file, expected {EXPECTED}.")
        return _task_of_file(Path(stated))
    record = label_maps[0].parent / RECORD if label_maps else None
    if record is not None and files.is_file(record):
        return _task_of_file(record)
    return Task.from_labels(_numbered(names)) or scan.task


def _numbered(names: Mapping[int, str]) -> dict[str, int]:
    """Returns the value of each name. Names that are empty, that occur twice or that mean something else in a task get the value, too.

    A task has no labels above 255, which remain without a name.
    """
    counts, numbered = Counter(names.values()), dict[str, int]()
    for value, name in names.items():
        if value > MAX_VALUE:
            continue
        plain = name.strip()
        if not plain or counts[name] > 1 or plain.lower() in ("background", IGNORE):
            plain = f"{plain or 'segment'} ({value})"
        numbered[f"{plain} ({value})" if plain in numbered else plain] = value
    return numbered


def _task_of_file(path: Path) -> Task:
    """Returns the task that a predict.json, run.json or dataset.json states. Raises InputError if it states none."""
    content = files.read_json(path, dict[str, Any], f"give {EXPECTED} with --task")
    settings = content.get("settings")
    stated = content.get("task") or (settings.get("task") if isinstance(settings, dict) else None)
    task = Task.from_dict(stated) if isinstance(stated, dict) else Task.from_labels(dataset_json.label_values(content, path))
    if task is None:
        raise InputError(f"{path} states neither a task nor labels, expected {EXPECTED}.")
    return task
