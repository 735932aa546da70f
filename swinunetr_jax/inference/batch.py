"""Segments many cases one after the other, skips finished cases, continues after a case with a fault, and records every result.

OUT/CASE.nii.gz                  the label map
OUT/CASE_probabilities.nii.gz    the probabilities, if requested
OUT/CASE_entropy.nii.gz          with uncertainty: the predictive entropy, and also the mutual information in
                                 OUT/CASE_mutual_information.nii.gz and the variance in OUT/CASE_variance.nii.gz
OUT/CASE.png                     the preview, if requested
OUT/predict.json                 versions, the digest of the weights, settings, and for each case its inputs, outputs, seconds and volumes,
                                 or its error
"""

import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from swinunetr_jax import console, files
from swinunetr_jax.console import literal, name_list
from swinunetr_jax.data.check.problems import ONE_BY_ONE, problem_key
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.prediction_record import (
    SALIENCY_RECORD,
    AlreadyDone,
    CaseEntry,
    InputFile,
    Record,
    input_files,
)
from swinunetr_jax.data.nifti import write_volume
from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.case_files import recorded, replace_case_files
from swinunetr_jax.inference.passes import Uncertainty
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.inference.segment_case import segment_case
from swinunetr_jax.inference.segmentation import Segmentation
from swinunetr_jax.postprocess import Step
from swinunetr_jax.uncertainty import MEASURES
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
    uncertainty: bool = False,
    overwrite: bool = False,
    et_label: int | None = None,
    postprocess: Sequence[Step] = (),
) -> list[str]:
    """Segments every case into the folder `out` and returns the names of those that failed.

    Args:
        segmenter: the networks.
        cases: the cases.
        out: the folder, which is created if necessary.
        identity: everything that determines the results: the digests of the weights, and the settings. A case is skipped if its outputs
            are recorded with the same identity and inputs, and exist unchanged.
        probabilities: also write the probability of each output.
        preview: also write a picture of each case.
        uncertainty: also write the maps of the uncertainty, which the segmenter must measure, and record its numbers.
        overwrite: segment finished cases again, and replace files that are not recorded.
        et_label: the label of the enhancing tumour that the data set states, 3 or 4; by default, the names of BraTS files determine it.
        postprocess: operations on the label maps, which are recorded as a setting. The probabilities remain those of the network.

    Raises:
        InputError: `out` cannot be written, holds saliency maps, or its predict.json is damaged.
    """
    out = Path(out)
    if files.exists(out / SALIENCY_RECORD):
        raise InputError(f"{out} holds saliency maps, which `evaluate` would take for label maps: give another folder.")
    if postprocess:  # otherwise the settings are those of earlier versions, so that their finished cases are skipped
        identity = identity | {"postprocess": [asdict(step) for step in postprocess]}
    record = Record(out, identity | {"probabilities": probabilities, "preview": preview}, environment())
    failed: list[str] = []
    cases_by_fault: dict[str, list[str]] = {}  # a fault that hundreds of cases share is not printed for each of them
    seconds: list[float] = []  # the time of each case that was segmented
    owners: dict[Path, str] = {}
    for case in cases:
        for path in _outputs(out, case, probabilities, preview, uncertainty).values():
            owners.setdefault(path, case.name)
    for number, case in enumerate(cases, 1):
        title = f"[{number}/{len(cases)}] {literal(case.name)}"
        outputs = _outputs(out, case, probabilities, preview, uncertainty)
        record.begin(case)
        if not overwrite and record.is_done(case, outputs):
            console.say(f"{title}: done already, skipped")
            continue
        started, inputs = time.perf_counter(), input_files(case)
        try:
            _check_distinct(case, outputs, owners)
            record.check_free(case, outputs, overwrite)
            with console.Progress(title, unit="window") as progress:
                result = segment_case(
                    segmenter, case, probabilities=probabilities, et_label=et_label, postprocess=postprocess, progress=progress
                )
            for note in result.notes:
                console.say(f"{title}: note: {literal(note)}")
            case_seconds, volumes_ml = _write(record, result, case, inputs, outputs, overwrite, started)
        except AlreadyDone:
            console.say(f"{title}: another run has finished it in the meantime with the same settings, and its result is kept")
            continue
        except InputError as error:
            stale = record.fail(case, str(error))
            older_note = f" (an older result is kept: {', '.join(o['path'] for o in stale.values())})" if stale else ""
            names = cases_by_fault.setdefault(problem_key(case.name, str(error)), [])
            names.append(case.name)
            if len(names) <= ONE_BY_ONE or older_note:
                console.say(f"{title}: FAILED: {literal(error)}{literal(older_note)}", sys.stderr)
            failed.append(case.name)
            continue
        seconds.append(case_seconds)
        volumes = ", ".join(f"{literal(name)} {ml:.1f} ml" for name, ml in volumes_ml.items())
        path = literal(outputs["labels"])
        remaining = _remaining_time(seconds, len(cases) - number)
        console.say(
            f"{title}: {result.windows} window{'s' * (result.windows != 1)}, {case_seconds:.1f} s, {volumes} → {path}{remaining}"
        )
        if result.uncertainty is not None:
            console.say(f"{title}: {literal(agreement_text(result.uncertainty))}")
        if older := [output["path"] for output in record.cases[case.name].get("older", {}).values()]:
            console.say(
                f"{title}: note: {literal(', '.join(older))} of an earlier run is kept, but does not belong to this result"
            )
    for names in cases_by_fault.values():
        if len(names) > ONE_BY_ONE:
            console.say(
                f"{len(names)} cases FAILED for the same reason as {literal(names[0])}: {literal(name_list(names))}", sys.stderr
            )
    return failed


def environment() -> dict[str, Any]:
    """Returns the versions and devices that a record states."""
    return {
        "swinunetr_jax": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "devices": [device.device_kind for device in jax.devices()],
    }


def agreement_text(uncertainty: Uncertainty) -> str:
    """Returns a sentence on the agreement of the members."""
    dice = ((name, numbers["pairwise_dice"]) for name, numbers in uncertainty.summary["outputs"].items())
    listed = ", ".join(f"{name} {'none' if value is None else f'{value:.4f}'}" for name, value in dice)
    return f"{uncertainty.summary['members']} members, whose mean Dice among each other is: {listed}"


def _outputs(out: Path, case: Case, probabilities: bool, preview: bool, uncertainty: bool) -> dict[str, Path]:
    """Returns the path of each output of a case by its kind."""
    paths = {"labels": out / f"{case.name}.nii.gz"}
    if probabilities:
        paths["probabilities"] = out / f"{case.name}_probabilities.nii.gz"
    if uncertainty:
        paths |= {measure: out / f"{case.name}_{measure}.nii.gz" for measure in MEASURES}
    if preview:
        paths["preview"] = out / f"{case.name}.png"
    return paths


def _check_distinct(case: Case, outputs: dict[str, Path], owners: dict[Path, str]) -> None:
    """Raises InputError if an earlier case of this run writes the same file, for example the cases `a` and `a_probabilities`."""
    for path in outputs.values():
        if owners[path] != case.name:
            raise InputError(f"{path} is also a result of the case {owners[path]}; rename one, or predict them into two folders.")


def _write(
    record: Record,
    result: Segmentation,
    case: Case,
    inputs: list[InputFile],
    outputs: dict[str, Path],
    overwrite: bool,
    started: float,
) -> tuple[float, dict[str, float]]:
    """Writes and records all outputs of a case, or none of them.

    Returns the seconds that the case took and the volume of each output in ml.
    """

    def write(paths: Mapping[str, Path]) -> None:
        if result.probabilities is not None:
            write_volume(paths["probabilities"], result.probabilities, result.scan, np.float32)
        if result.uncertainty is not None:
            for measure in MEASURES:
                write_volume(paths[measure], getattr(result.uncertainty.maps, measure), result.scan, np.float32)
        if "preview" in outputs:
            image = result.scan.array if result.scan.array.ndim == 3 else result.scan.array[..., 0]
            write_preview(paths["preview"], image, result.labels, result.scan, result.task, literal(case.name))
        write_volume(paths["labels"], result.labels, result.scan)

    with replace_case_files(record, case, outputs, overwrite, write) as finish:
        volumes_ml, seconds = result.volumes_ml, round(time.perf_counter() - started, 2)
        entry = CaseEntry(
            inputs=inputs,
            outputs=recorded(outputs),
            windows=result.windows,
            volumes_ml=volumes_ml,
            notes=list(result.notes),
            seconds=seconds,
        )
        if result.uncertainty is not None:
            entry["uncertainty"] = result.uncertainty.summary
        if result.task.et_label in (3, 4):
            entry["et_label"] = result.task.et_label
        finish(entry)
    return seconds, volumes_ml


def _remaining_time(seconds: Sequence[float], cases: int) -> str:
    """Returns text with the estimated time of the remaining cases.

    The time of the first case includes compilation, so it is used only as long as there is no other.
    """
    if not cases:
        return ""
    counted = seconds[1:] or seconds
    return f"; {cases} case{'s' * (cases != 1)} remaining, about {console.duration(cases * sum(counted) / len(counted))}"
