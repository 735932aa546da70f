"""Checks of a case's label map: whether its voxels are integers, and whether these are labels of the data set."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from swinunetr_jax.data import brats
from swinunetr_jax.data.check.findings import Findings
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.dataset_json import MAX_LABEL
from swinunetr_jax.data.formats import read_geometry, read_labels, read_volume
from swinunetr_jax.data.nifti import Volume
from swinunetr_jax.data.nifti.volume import LABEL_TOLERANCE
from swinunetr_jax.errors import InputError

_CAVITY = f", or give --label-values 0 1 2 3 4 where {brats.CAVITY_LABEL} is the resection cavity, as in BraTS 2024"


def read_counts(path: Path, findings: Findings) -> tuple[Volume, dict[int, int]] | None:
    """Returns (volume without voxels, number of voxels of each integer value) of a label map, or None if it cannot be read as one."""
    try:
        volume = read_labels(path)
        return volume.without_voxels(), _count(volume.array)
    except InputError as error:
        first_error = error  # it describes only the first fault; all faults are searched for below
    count_before = len(findings.all)
    try:
        if len(read_geometry(path)[0]) > 3:
            findings.add_error("label-shape", path, first_error)
            return None
        volume = read_volume(path, require_finite=False)
    except InputError as error:
        findings.add_error("unreadable", path, error)
        return None
    finite = np.isfinite(volume.array)
    if bad := int((~finite).sum()):
        findings.add("not-finite", path, f"{bad} of {finite.size} voxels are NaN or Inf; replace them with a label.")
    values = volume.array[finite].astype(np.float64)
    integral = np.abs(values - np.rint(values)) <= LABEL_TOLERANCE
    if bad := int((~integral).sum()):
        example = values[~integral][0]
        text = f"{bad} of {finite.size} voxels are not integers, such as {example:g}; resample labels by nearest neighbour."
        findings.add("label-values", path, text)
    values = np.rint(values[integral])
    inside = (values >= 0) & (values < 2**31)
    if bad := int((~inside).sum()):
        text = f"{bad} of {finite.size} voxels are outside 0 … 2147483647, such as {values[~inside][0]:.0f}; renumber the labels."
        findings.add("label-values", path, text)
    if len(findings.all) == count_before:
        findings.add_error("unreadable", path, first_error)
    return volume.without_voxels(), _count(values[inside].astype(np.int64))


def _count(array: np.ndarray) -> dict[int, int]:
    """Returns the number of voxels of each value."""
    if array.dtype == np.uint8:  # several times faster than sorting
        counts = np.bincount(array.ravel(order="K"))
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, counts = np.unique(array, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts)}


def check_values(case: Case, counts: dict[int, int], labels: Collection[int] | None, findings: Findings) -> None:
    """Adds findings on an empty label map, unknown labels, and BraTS labels of other years.

    Args:
        case: the case.
        counts: the number of voxels of each value.
        labels: the values that may occur besides 0; None means those of BraTS if the files are named as in BraTS, otherwise any.
        findings: the findings of the case.
    """
    if not counts.keys() - {0} and not any(finding.path == case.label for finding in findings.all):
        findings.add("empty-label", case.label, "the label map is empty: it holds only background.", "warning")
    et_label = case.et_label if labels is None else None
    known = {0, *labels} if labels is not None else None if et_label is None else {0, *brats.regions(et_label)["WT"]}
    unknown = sorted(counts.keys() - known) if known is not None else []
    cavity = _CAVITY if et_label == 3 and brats.CAVITY_LABEL in unknown else ""
    if et_label and unknown == [brats.other_et_label(et_label)] and et_label not in counts:
        text = (
            f"the enhancing tumour is label {unknown[0]}, but in files named as in BraTS {brats.NAMING[et_label].years} it is {et_label}; "
            f"renumber it to {et_label}{cavity}."
        )
        findings.add("et-label", case.label, text)
    elif known is not None and unknown:  # labels above 255 may be among them, and are then not reported again below
        values = ", ".join(f"{value} ({counts[value]} voxels)" for value in unknown[:8]) + f" and {len(unknown) - 8} more" * (
            len(unknown) > 8
        )
        text = f"label {values} is not one of {', '.join(map(str, sorted(known)))}; renumber it{cavity}."
        findings.add("unknown-label", case.label, text)
    large = [value for value in counts if value > MAX_LABEL and value not in unknown]
    if large:
        text = f"label {large[0]} ({counts[large[0]]} voxels) is above {MAX_LABEL}, the largest label supported; renumber the labels."
        findings.add("label-values", case.label, text)
