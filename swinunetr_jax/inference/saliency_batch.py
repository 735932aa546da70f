"""Computes saliency maps of many cases one after the other, skips finished cases, and continues after a case with a fault.

OUT/CASE_saliency_OUTPUT.nii.gz    the map of an output, float32 on the scan's grid, scaled so that its maximum is 1
OUT/CASE_saliency.png              the maps over three slices of the scan
OUT/saliency.json                  versions, the digest of the weights, settings, and for each case its inputs, outputs, seconds, and the
                                   maximum and the peak of each map, or its error
"""

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swinunetr_jax import console, files
from swinunetr_jax.console import literal
from swinunetr_jax.data.discovery import prediction_record
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.prediction_record import (
    AlreadyDone,
    CaseEntry,
    InputFile,
    MapEntry,
    Record,
    input_files,
)
from swinunetr_jax.data.nifti import write_volume
from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.batch import environment
from swinunetr_jax.inference.case_files import recorded, replace_case_files
from swinunetr_jax.inference.saliency import SaliencyMapper, SaliencyMaps
from swinunetr_jax.viz.heat import write_heat_picture

REMEDY = "move it away, and run the command again with --overwrite"
PICTURE = "picture"


def explain_cases(
    mapper: SaliencyMapper, cases: Sequence[Case], out: str | os.PathLike, *, identity: dict[str, Any], overwrite: bool = False
) -> list[str]:
    """Computes the maps of every case into the folder `out` and returns the names of the cases that failed.

    Args:
        mapper: the network, its layer and its outputs.
        cases: the cases.
        out: the folder, which is created if necessary.
        identity: everything that determines the results. A case is skipped if its outputs are recorded with the same identity and inputs,
            and exist unchanged.
        overwrite: compute finished cases again, and replace files that are not recorded.

    Raises:
        InputError: `out` cannot be written, holds predictions, or its saliency.json is damaged.
    """
    out = Path(out)
    if files.exists(out / prediction_record.RECORD):
        raise InputError(f"{out} holds predictions, and `evaluate` would take the maps for label maps: give another folder.")
    record = Record(out, identity, environment(), name=prediction_record.SALIENCY_RECORD, remedy=REMEDY)
    failed: list[str] = []
    owners: dict[Path, str] = {}
    for number, case in enumerate(cases, 1):
        title = f"[{number}/{len(cases)}] {literal(case.name)}"
        outputs = output_paths(out, case.name, mapper.outputs)
        record.begin(case)
        if not overwrite and record.is_done(case, outputs):
            console.say(f"{title}: done already, skipped")
            continue
        started, inputs = time.perf_counter(), input_files(case)
        try:
            for path in outputs.values():
                if owners.setdefault(path, case.name) != case.name:
                    raise InputError(
                        f"{path} is also a result of the case {owners[path]}; write one of them into another folder."
                    )
            record.check_free(case, outputs, overwrite)
            with console.Progress(title, unit="step") as progress:
                result = mapper.explain(case, progress)
            for note in result.notes:
                console.say(f"{title}: note: {literal(note)}")
            seconds = _write(record, mapper, result, case, inputs, outputs, overwrite, started)
        except AlreadyDone:
            console.say(f"{title}: another run has finished it in the meantime with the same settings, and its result is kept")
            continue
        except InputError as error:
            stale = record.fail(case, str(error))
            kept = f" (an older result is kept: {', '.join(o['path'] for o in stale.values())})" if stale else ""
            console.say(f"{title}: FAILED: {literal(error)}{literal(kept)}", sys.stderr)
            failed.append(case.name)
            continue
        paths = ", ".join(literal(path) for path in outputs.values())
        console.say(f"{title}: {result.windows} window{'s' * (result.windows != 1)}, {seconds:.1f} s → {paths}")
        if older := [output["path"] for output in record.cases[case.name].get("older", {}).values()]:
            console.say(
                f"{title}: note: {literal(', '.join(older))} of an earlier run is kept, but does not belong to this result"
            )
    return failed


def output_paths(out: Path, case: str, outputs: Sequence[str]) -> dict[str, Path]:
    """Returns the path of each file of a case by its kind, such as "map of ET" or "picture".

    Characters of an output's name that are not letters, digits or one of ._- become underscores, and a number distinguishes equal names.
    """
    paths: dict[str, Path] = {}
    for name in outputs:
        word = re.sub(r"[^\w.-]", "_", name)[:80]
        path, count = out / f"{case}_saliency_{word}.nii.gz", 1
        while path in paths.values():
            count += 1
            path = out / f"{case}_saliency_{word}_{count}.nii.gz"
        paths[f"map of {name}"] = path
    return {**paths, PICTURE: out / f"{case}_saliency.png"}


def _write(
    record: Record,
    mapper: SaliencyMapper,
    result: SaliencyMaps,
    case: Case,
    inputs: list[InputFile],
    outputs: dict[str, Path],
    overwrite: bool,
    started: float,
) -> float:
    """Writes and records all files of a case, or none of them, and returns the seconds that the case took."""
    entries = {name: _entry(result, index) for index, name in enumerate(mapper.outputs)}
    scaled = result.maps / np.maximum(result.maps.max((0, 1, 2)), np.finfo(np.float32).tiny)

    def write(paths: Mapping[str, Path]) -> None:
        for index, name in enumerate(mapper.outputs):
            write_volume(paths[f"map of {name}"], scaled[..., index], result.scan, np.float32)
        image = result.scan.array if result.scan.array.ndim == 3 else result.scan.array[..., 0]
        title = f"{case.name}: Grad-CAM of {mapper.layer}"
        write_heat_picture(paths[PICTURE], image, scaled, mapper.outputs, result.scan.affine, title)

    with replace_case_files(record, case, outputs, overwrite, write) as finish:
        seconds = round(time.perf_counter() - started, 2)
        finish(
            CaseEntry(
                inputs=inputs,
                outputs=recorded(outputs),
                windows=result.windows,
                maps=entries,
                notes=list(result.notes),
                seconds=seconds,
            )
        )
    return seconds


def _entry(result: SaliencyMaps, index: int) -> MapEntry:
    """Returns the record of a map. The peak is its first largest voxel, as an index of the scan's array and in mm of the scan's affine."""
    array = result.maps[..., index]
    peak = [int(at) for at in np.unravel_index(int(array.argmax()), array.shape)]
    position = result.scan.affine @ [*peak, 1]
    return MapEntry(
        voxels=result.voxels[index],
        maximum=float(array.max()),
        peak_voxel=peak,
        peak_mm=[round(float(value), 3) for value in position[:3]],
    )
