"""Many cases, one after the other: skips what is done, goes on past a bad case, and records every step in one report file.

OUT/CASE.nii.gz                  the label map
OUT/CASE_probabilities.nii.gz    where asked for
OUT/CASE.png                     the preview, where asked for
OUT/predict.json                 versions, weights' digest, settings; per case inputs, outputs, seconds, volumes or the error
"""

import contextlib
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from swinunetr_jax import console, files
from swinunetr_jax.console import literal, name_list
from swinunetr_jax.data.check.problems import ONE_BY_ONE, problem_key
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.prediction_record import AlreadyDone, CaseEntry, InputFile, Record, input_files, output_file
from swinunetr_jax.data.nifti import write_volume
from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.predict import Segmentation, Segmenter
from swinunetr_jax.task import Task
from swinunetr_jax.version import __version__
from swinunetr_jax.viz.preview import write_preview

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "nibabel")


def predict_cases(
    segmenter: Segmenter,
    cases: Sequence[Case],
    out: str | os.PathLike,
    *,
    identity: dict[str, Any],
    probabilities: bool = False,
    preview: bool = False,
    overwrite: bool = False,
    et_label: int | None = None,
) -> list[str]:
    """Segments every case into the folder `out` and returns the names of those that failed.

    Args:
        identity: what makes results what they are (weights' digests, settings). A case is skipped where the report says that the
            same identity made its outputs from the same inputs, and they are still there unchanged.
        probabilities: write each output's probability too.
        preview: write a picture of each case.
        overwrite: do everything again, and replace files that no report knows.
        et_label: what the data set says its enhancing tumour is labelled, 3 or 4; else the names of BraTS files say it.

    Raises:
        InputError: `out` cannot be written, or its predict.json is damaged.
    """
    out = Path(out)
    head = {
        "swinunetr_jax": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "devices": [device.device_kind for device in jax.devices()],
    }
    record = Record(out, identity | {"probabilities": probabilities, "preview": preview}, head)
    failed: list[str] = []
    alike: dict[str, list[str]] = {}  # cases by what failed, for a fault of hundreds is said once
    seconds: list[float] = []  # of the cases that were segmented
    owners: dict[Path, str] = {}
    for case in cases:
        for path in _outputs(out, case, probabilities, preview).values():
            owners.setdefault(path, case.name)
    for number, case in enumerate(cases, 1):
        title = f"[{number}/{len(cases)}] {literal(case.name)}"
        outputs = _outputs(out, case, probabilities, preview)
        task = _task(segmenter.task, case, et_label)
        record.begin(case)
        if not overwrite and record.is_done(case, outputs):
            console.say(f"{title}: done already, skipped")
            continue
        started, inputs = time.perf_counter(), input_files(case)
        try:
            _check_distinct(case, outputs, owners)
            record.check_free(case, outputs, overwrite)
            with console.Progress(title, unit="window") as progress:
                result = segmenter.segment(case, probabilities=probabilities, et_label=task.et_label, progress=progress)
            for note in (*_et_note(segmenter.task, task), *result.notes):
                console.say(f"{title}: note: {literal(note)}")
            entry = _write(record, result, case, inputs, outputs, task, overwrite, started)
        except AlreadyDone:
            console.say(f"{title}: another run has finished it in the meantime with the same settings, its result stays")
            continue
        except InputError as error:
            stale = record.fail(case, str(error))
            stays = f" (an older result stays: {', '.join(o['path'] for o in stale.values())})" if stale else ""
            same = alike.setdefault(problem_key(case.name, str(error)), [])
            same.append(case.name)
            if len(same) <= ONE_BY_ONE or stays:
                console.say(f"{title}: FAILED: {literal(error)}{literal(stays)}", sys.stderr)
            failed.append(case.name)
            continue
        seconds.append(entry["seconds"])
        volumes = ", ".join(f"{literal(name)} {ml:.1f} ml" for name, ml in entry["volumes_ml"].items())
        path = literal(outputs["labels"])
        left = _time_left(seconds, len(cases) - number)
        console.say(f"{title}: {entry['windows']} windows, {entry['seconds']:.1f} s, {volumes} → {path}{left}")
        if older := [output["path"] for output in record.cases[case.name].get("older", {}).values()]:
            console.say(f"{title}: note: {literal(', '.join(older))} of an earlier run stays, and does not belong to this result")
    for same in alike.values():
        if len(same) > ONE_BY_ONE:
            console.say(
                f"{len(same)} cases FAILED for the same reason as {literal(same[0])}: {literal(name_list(same))}", sys.stderr
            )
    return failed


def _outputs(out: Path, case: Case, probabilities: bool, preview: bool) -> dict[str, Path]:
    paths = {"labels": out / f"{case.name}.nii.gz"}
    if probabilities:
        paths["probabilities"] = out / f"{case.name}_probabilities.nii.gz"
    if preview:
        paths["preview"] = out / f"{case.name}.png"
    return paths


def _check_distinct(case: Case, outputs: dict[str, Path], owners: dict[Path, str]) -> None:
    """Raises InputError where an earlier case of this run writes the same file, as `a` and `a_probabilities` would."""
    for path in outputs.values():
        if owners[path] != case.name:
            raise InputError(f"{path} is also a result of the case {owners[path]}; rename one, or predict them into two folders.")


def _task(task: Task, case: Case, et_label: int | None) -> Task:
    """The task with the enhancing tumour's label of the case's data set, where it may be 3 or 4."""
    label = et_label or case.et_label
    return task if label is None or task.et_label is None else task.with_et_label(label)


def _et_note(own: Task, written: Task) -> list[str]:
    if own.et_label == written.et_label:
        return []
    return [
        f"the enhancing tumour is written as label {written.et_label}, as in this data set, not as the network's {own.et_label}"
    ]


def _write(
    record: Record,
    result: Segmentation,
    case: Case,
    inputs: list[InputFile],
    outputs: dict[str, Path],
    task: Task,
    overwrite: bool,
    started: float,
) -> CaseEntry:
    """Writes all outputs of a case, or none: they get their names in one step, which also records them."""
    with contextlib.ExitStack() as unfinished:
        # Left in reverse order, so that the label map gets its name last: where it exists, the case is complete.
        temporary = {kind: unfinished.enter_context(files.atomic_path(path, _ending(path))) for kind, path in outputs.items()}
        try:
            if result.probabilities is not None:
                write_volume(temporary["probabilities"], result.probabilities, result.scan, np.float32)
            if "preview" in outputs:
                image = result.scan.array if result.scan.array.ndim == 3 else result.scan.array[..., 0]
                write_preview(temporary["preview"], image, result.labels, result.scan, task, literal(case.name))
            write_volume(temporary["labels"], result.labels, result.scan)
        except InputError as error:
            text = str(error)
            for kind, path in outputs.items():
                text = text.replace(str(temporary[kind]), str(path))
            raise InputError(text) from error
        with record.replacing(case, outputs, overwrite) as finish:
            try:
                unfinished.close()
            except OSError as error:
                for kind in outputs.keys() - {"labels"}:  # nothing new without its label map
                    outputs[kind].unlink(missing_ok=True)
                where = error.filename or outputs["labels"]
                raise InputError(
                    f"{where} cannot be written ({files.reason(error)}): check the folder and its free space."
                ) from error
            entry = CaseEntry(
                inputs=inputs,
                outputs={kind: output_file(path) for kind, path in outputs.items()},
                windows=result.windows,
                volumes_ml=_volumes_ml(result, task),
                notes=list(result.notes),
                seconds=round(time.perf_counter() - started, 2),
            )
            if task.et_label is not None:
                entry["et_label"] = task.et_label
            finish(entry)
    return entry


def _ending(path: Path) -> str:
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix


def _volumes_ml(result: Segmentation, task: Task) -> dict[str, float]:
    """Millilitres of each output but the background in the label map, counted as `evaluate` counts them."""
    voxel_ml = abs(np.linalg.det(result.scan.affine[:3, :3])) / 1000
    counts = np.bincount(result.labels.ravel("K"), minlength=256)
    return {
        output.name: round(float(sum(counts[value] for value in task.labels_of(output)) * voxel_ml), 3)
        for output in task.outputs
        if output.value
    }


def _time_left(seconds: Sequence[float], cases: int) -> str:
    """How long the remaining cases will take; the first case compiles, so it is not counted where there are others."""
    if not cases:
        return ""
    counted = seconds[1:] or seconds
    return f"; {cases} case{'s' * (cases != 1)} to do, {console.duration(cases * sum(counted) / len(counted))} left"
