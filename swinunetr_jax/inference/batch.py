"""Segments many cases into one folder, skips finished cases, continues after a case with a fault, and records every result.

OUT/CASE.nii.gz                  the label map; CASE.seg.nrrd or CASE.dcm in another format
OUT/CASE_probabilities.nii.gz    the probabilities, if requested
OUT/CASE_entropy.nii.gz          with uncertainty: the predictive entropy, and also the mutual information in
                                 OUT/CASE_mutual_information.nii.gz and the variance in OUT/CASE_variance.nii.gz
OUT/CASE.png                     the preview, if requested
OUT/CASE_statistics.json         with statistics: the numbers of each label; OUT/statistics.csv has those of all cases
OUT/CASE.html                    the page of the viewer, if requested
OUT/predict.json                 versions, the digest of the weights, settings, and for each case its inputs, outputs, seconds and volumes,
                                 or its error
"""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from swinunetr_jax import console, files
from swinunetr_jax.console import literal
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.prediction_record import SALIENCY_RECORD, CaseEntry, Record
from swinunetr_jax.data.nifti import write_volume
from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.case_loop import run_cases
from swinunetr_jax.inference.label_files import ENDINGS, LabelFormat, check_source, write_labels
from swinunetr_jax.inference.passes import Uncertainty
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.inference.prepare import Prepared
from swinunetr_jax.inference.segment_case import segment_case
from swinunetr_jax.inference.segmentation import Segmentation
from swinunetr_jax.postprocess import Step
from swinunetr_jax.statistics import CaseStatistics, check_table_free, write_case, write_table
from swinunetr_jax.uncertainty import MEASURES
from swinunetr_jax.version import __version__
from swinunetr_jax.viewer import write_page, write_sentence
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
    label_format: LabelFormat = "nifti",
    statistics: bool = False,
    viewer: bool = False,
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
        label_format: the format of the label maps.
        statistics: also write the statistics of each label, and a table of all cases in the folder.
        viewer: also write a page that shows the scan and the label map in a browser.

    Raises:
        InputError: `out` cannot be written, holds saliency maps or another statistics.csv, or its predict.json is damaged.
    """
    out = Path(out)
    if files.exists(out / SALIENCY_RECORD):
        raise InputError(f"{out} holds saliency maps, which `evaluate` would take for label maps: give another folder.")
    if postprocess:  # otherwise the settings are those of earlier versions, so that their finished cases are skipped
        identity = identity | {"postprocess": [asdict(step) for step in postprocess]}
    if label_format != "nifti":
        identity = identity | {"format": label_format}
    if viewer:
        identity = identity | {"viewer": True}
    record = Record(out, identity | {"probabilities": probabilities, "preview": preview}, environment())
    work = _Prediction(
        segmenter, out, probabilities, preview, uncertainty, et_label, tuple(postprocess), label_format, statistics, viewer
    )
    if not statistics:
        return run_cases(work, record, cases, overwrite=overwrite)
    check_table_free(out, overwrite)
    try:
        return run_cases(work, record, cases, overwrite=overwrite)
    finally:  # also of an interrupted run
        with files.locked(out):
            path = write_table(out, record.finished("statistics"))
        console.say(f"statistics of all cases → {literal(path)}")


@dataclass(frozen=True)
class _Prediction:
    """The work on each case, with the arguments of `predict_cases`."""

    segmenter: Segmenter
    out: Path
    probabilities: bool
    preview: bool
    uncertainty: bool
    et_label: int | None
    postprocess: tuple[Step, ...]
    label_format: LabelFormat
    statistics: bool
    viewer: bool
    unit: str = "window"

    def outputs(self, case: Case) -> dict[str, Path]:
        paths = {"labels": self.out / f"{case.name}{ENDINGS[self.label_format]}"}
        if self.probabilities:
            paths["probabilities"] = self.out / f"{case.name}_probabilities.nii.gz"
        if self.uncertainty:
            paths |= {measure: self.out / f"{case.name}_{measure}.nii.gz" for measure in MEASURES}
        if self.statistics:
            paths["statistics"] = self.out / f"{case.name}_statistics.json"
        if self.preview:
            paths["preview"] = self.out / f"{case.name}.png"
        if self.viewer:
            paths["viewer"] = self.out / f"{case.name}.html"
        return paths

    def read(self, case: Case) -> Prepared:
        check_source(ENDINGS[self.label_format], case)
        return self.segmenter.prepare(case)

    def memory(self, content: Prepared) -> int:
        return content.memory

    def compute(self, case: Case, content: Prepared, progress: console.Progress) -> Segmentation:
        return segment_case(
            self.segmenter,
            case,
            content,
            probabilities=self.probabilities,
            et_label=self.et_label,
            postprocess=self.postprocess,
            progress=progress,
        )

    def notes(self, result: Segmentation) -> Sequence[str]:
        return result.notes

    def warnings(self, result: Segmentation) -> Sequence[str]:
        return result.warnings

    def write(self, case: Case, result: Segmentation, paths: Mapping[str, Path]) -> None:
        if result.probabilities is not None:
            write_volume(paths["probabilities"], result.probabilities, result.scan, np.float32)
        if result.uncertainty is not None:
            for measure in MEASURES:
                write_volume(paths[measure], getattr(result.uncertainty.maps, measure), result.scan, np.float32)
        if "statistics" in paths:
            scan = result.scan
            statistics = CaseStatistics(case.name, scan.spacing, scan.orientation, result.statistics(), result.warnings)
            write_case(paths["statistics"], statistics)
        if "preview" in paths:
            image = result.scan.array if result.scan.array.ndim == 3 else result.scan.array[..., 0]
            write_preview(paths["preview"], image, result.labels, result.scan, result.task, literal(case.name))
        if "viewer" in paths:
            self._write_viewer(case, result, paths["viewer"])
        write_labels(paths["labels"], result.labels, result.scan, result.task)

    def _write_viewer(self, case: Case, result: Segmentation, path: Path) -> None:
        """Writes the page of a case. No prediction fails because a browser could not show it: the page then says why."""
        try:
            contents = result.viewer_page(case.name)
        except InputError as error:
            console.warn(f"{literal(case.name)}: there is no viewer page: {literal(error)}")
            write_sentence(path, case.name, str(error))
        else:
            write_page(path, contents)

    def entry(self, result: Segmentation) -> CaseEntry:
        entry = CaseEntry(windows=result.windows, background_windows=result.background_windows, volumes_ml=result.volumes_ml)
        if result.warnings:
            entry["warnings"] = list(result.warnings)
        if result.uncertainty is not None:
            entry["uncertainty"] = result.uncertainty.summary
        if result.task.et_label in (3, 4):
            entry["et_label"] = result.task.et_label
        return entry

    def summary(self, result: Segmentation, outputs: Mapping[str, Path], seconds: float) -> list[str]:
        windows = f"{result.windows} window{'s' * (result.windows != 1)}"
        if result.background_windows > 1:
            windows += f" ({result.background_windows} of background, computed once)"
        volumes = ", ".join(f"{literal(name)} {ml:.1f} ml" for name, ml in result.volumes_ml.items())
        others = [literal(path.name) for kind, path in outputs.items() if kind != "labels"]
        written = literal(outputs["labels"]) + (f", with {', '.join(others)}" if others else "")
        line = f"{windows}, {seconds:.1f} s, {volumes} → {written}"
        return [line] if result.uncertainty is None else [line, literal(agreement_text(result.uncertainty))]


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
