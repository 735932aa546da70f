"""Computes saliency maps of many cases into one folder, skips finished cases, and continues after a case with a fault.

OUT/CASE_saliency_OUTPUT.nii.gz    the map of an output, float32 on the scan's grid, scaled so that its maximum is 1
OUT/CASE_saliency.png              the maps over three slices of the scan
OUT/saliency.json                  versions, the digest of the weights, settings, and for each case its inputs, outputs, seconds, and the
                                   maximum and the peak of each map, or its error
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swinunetr_jax import console, files
from swinunetr_jax.console import literal
from swinunetr_jax.data.discovery import prediction_record
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.prediction_record import CaseEntry, MapEntry, Record
from swinunetr_jax.data.nifti import write_volume
from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.batch import environment
from swinunetr_jax.inference.case_loop import run_cases
from swinunetr_jax.inference.prepare import Prepared
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
    return run_cases(_Explanation(mapper, out), record, cases, overwrite=overwrite)


@dataclass(frozen=True)
class _Explanation:
    """The work on each case, with the arguments of `explain_cases`."""

    mapper: SaliencyMapper
    out: Path
    unit: str = "step"

    def outputs(self, case: Case) -> dict[str, Path]:
        return output_paths(self.out, case.name, self.mapper.outputs)

    def read(self, case: Case) -> Prepared:
        return self.mapper.segmenter.prepare(case)

    def memory(self, content: Prepared) -> int:
        return content.memory

    def compute(self, case: Case, content: Prepared, progress: console.Progress) -> SaliencyMaps:
        return self.mapper.explain_prepared(content, progress)

    def notes(self, result: SaliencyMaps) -> Sequence[str]:
        return result.notes

    def warnings(self, result: SaliencyMaps) -> Sequence[str]:
        return ()

    def write(self, case: Case, result: SaliencyMaps, paths: Mapping[str, Path]) -> None:
        scaled = result.maps / np.maximum(result.maps.max((0, 1, 2)), np.finfo(np.float32).tiny)
        for index, name in enumerate(self.mapper.outputs):
            write_volume(paths[f"map of {name}"], scaled[..., index], result.scan, np.float32)
        image = result.scan.array if result.scan.array.ndim == 3 else result.scan.array[..., 0]
        title = f"{case.name}: Grad-CAM of {self.mapper.layer}"
        write_heat_picture(paths[PICTURE], image, scaled, self.mapper.outputs, result.scan.affine, title)

    def entry(self, result: SaliencyMaps) -> CaseEntry:
        maps = {name: _entry(result, index) for index, name in enumerate(self.mapper.outputs)}
        return CaseEntry(windows=result.windows, maps=maps)

    def summary(self, result: SaliencyMaps, outputs: Mapping[str, Path], seconds: float) -> list[str]:
        paths = ", ".join(literal(path) for path in outputs.values())
        return [f"{result.windows} window{'s' * (result.windows != 1)}, {seconds:.1f} s → {paths}"]


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
