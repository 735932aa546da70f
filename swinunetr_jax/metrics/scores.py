"""Scores of a segmentation. Each score names its convention, because one prediction has different scores under different ones.

Masks are boolean [x, y, z]. The conventions differ in how they treat empty masks:

    dice             brats    empty reference: 1 if the prediction is empty too, else 0
                     monai    empty reference: NaN, so that the case is left out of the mean
                     nnunet   both empty: NaN; one empty: 0
    hd95             brats    weighted by surface area; one empty: 374 mm, both: 0
                     monai    every voxel of the surface counts once; one or both empty: NaN
    surface_dice     (surface-distance) weighted by surface area; one empty: 0, both: NaN
"""

import math
from typing import Any, Literal

import numpy as np

from swinunetr_jax.errors import InputError
from swinunetr_jax.metrics.lesions import WORST_HD95, lesion_scores
from swinunetr_jax.metrics.surfaces import SurfelDistances, edge_hausdorff, surfel_distances
from swinunetr_jax.task import Task

PERCENTILE = 0.95


def dice(pred: np.ndarray, ref: np.ndarray, *, empty: Literal["brats", "monai", "nnunet"] = "brats") -> float:
    """Returns the Dice score 2 |P ∩ R| / (|P| + |R|) of two masks; `empty` is the convention for empty masks."""
    _check(pred, ref)
    _check_choice("empty", empty, ("brats", "monai", "nnunet"))
    predicted, in_reference = int(np.count_nonzero(pred)), int(np.count_nonzero(ref))
    if not in_reference and empty == "monai":
        return math.nan
    if not in_reference and not predicted:
        return 1.0 if empty == "brats" else math.nan
    return 2 * int(np.count_nonzero(pred & ref)) / (predicted + in_reference)


def hd95(
    pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...], *, convention: Literal["brats", "monai"] = "brats"
) -> float:
    """Returns the 95th percentile of the distance between both surfaces in mm, the larger one of the two directions.

    Source: `surface_distance.compute_robust_hausdorff` for brats; `monai.metrics.compute_hausdorff_distance` for monai.

    Args:
        pred, ref: the masks.
        spacing: mm per voxel.
        convention: how surfaces are weighted and empty masks are treated.
    """
    _check(pred, ref, spacing)
    _check_choice("convention", convention, ("brats", "monai"))
    if convention == "brats":
        return _hd95_brats(_distances(pred, ref, spacing), bool(pred.any() or ref.any()))
    return edge_hausdorff(pred, ref, spacing, PERCENTILE) if pred.any() and ref.any() else math.nan


def surface_dice(pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...], tolerance_mm: float) -> float:
    """Returns the share of the area of both surfaces that is within `tolerance_mm` of the other surface.

    Source: `surface_distance.compute_surface_dice_at_tolerance`.
    """
    _check(pred, ref, spacing)
    _check_tolerance(tolerance_mm)
    return _surface_dice(_distances(pred, ref, spacing), bool(pred.any() or ref.any()), tolerance_mm)


def volume_ml(mask: np.ndarray, spacing: tuple[float, ...]) -> float:
    """Returns the volume of a mask in millilitres."""
    return float(np.count_nonzero(mask) * np.prod(spacing) / 1000)


def masks(labels: np.ndarray, task: Task) -> dict[str, np.ndarray]:
    """Returns the mask of each output in a label map [x, y, z] by name, without the background."""
    mask_of = {}
    for output in task.outputs:
        if output.value:
            first, *rest = task.labels_of(output)
            mask = labels == first
            for value in rest:
                mask |= labels == value
            mask_of[output.name] = mask
    return mask_of


def score_case(
    pred: np.ndarray,
    ref: np.ndarray,
    spacing: tuple[float, ...],
    task: Task,
    *,
    tolerance_mm: float = 1.0,
    lesion_wise: bool = False,
    ignore: int | None = None,
) -> dict[str, dict[str, float]]:
    """Returns all scores of a case under every convention. Labels that belong to no output count as background.

    Args:
        pred, ref: label maps [x, y, z] on one grid, in the label values of `task`.
        spacing: mm per voxel along x, y, z.
        task: the labels of each output; the background has no scores.
        tolerance_mm: the tolerance of the surface Dice.
        lesion_wise: whether to add lesion-wise scores, as BraTS has computed them for glioma since 2023, see `lesions`.
        ignore: the label of voxels in `ref` that were not annotated. They belong to no mask on either side, as in nnU-Net.

    Returns:
        output name → score name → value. The scores are dice_brats, dice_monai, dice_nnunet, hd95_brats, hd95_monai, surface_dice,
        volume_ml and reference_ml and, with `lesion_wise`, lesion_dice, lesion_hd95, lesions, missed and false_positives.

    Raises:
        InputError: the shapes differ, spacing or tolerance are out of range, or every voxel is ignored.
    """
    _check(pred, ref, spacing)
    _check_tolerance(tolerance_mm)
    ignored = None if ignore is None else ref == ignore
    if ignored is not None and ignored.all():
        raise InputError(f"every voxel of the reference has the label {ignore}, which is ignored: nothing can be scored.")
    scores: dict[str, dict[str, float]] = {}
    references = masks(ref, task)
    for name, predicted in masks(pred, task).items():
        reference = references[name]
        if ignored is not None:
            predicted, reference = predicted & ~ignored, reference & ~ignored
        distances, any_voxel = _distances(predicted, reference, spacing), bool(predicted.any() or reference.any())
        values: dict[str, Any] = {
            f"dice_{empty}": dice(predicted, reference, empty=empty) for empty in ("brats", "monai", "nnunet")
        }
        values["hd95_brats"] = _hd95_brats(distances, any_voxel)
        values["hd95_monai"] = math.nan if distances is None else edge_hausdorff(predicted, reference, spacing, PERCENTILE)
        values["surface_dice"] = _surface_dice(distances, any_voxel, tolerance_mm)
        values |= {"volume_ml": volume_ml(predicted, spacing), "reference_ml": volume_ml(reference, spacing)}
        if lesion_wise:
            lesions = lesion_scores(predicted, reference, spacing)
            values |= {"lesion_dice": lesions.dice, "lesion_hd95": lesions.hd95, "lesions": len(lesions.lesions)}
            values |= {"missed": lesions.missed, "false_positives": lesions.false_positives}
        scores[name] = values
    return scores


def _distances(pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...]) -> SurfelDistances | None:
    """Returns the distances between both surfaces, or None if a mask is empty."""
    return surfel_distances(pred, ref, spacing) if pred.any() and ref.any() else None


def _hd95_brats(distances: SurfelDistances | None, any_voxel: bool) -> float:
    return distances.hausdorff(PERCENTILE) if distances else WORST_HD95 if any_voxel else 0.0


def _surface_dice(distances: SurfelDistances | None, any_voxel: bool, tolerance_mm: float) -> float:
    return distances.dice(tolerance_mm) if distances else 0.0 if any_voxel else math.nan


def _check(pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...] | None = None) -> None:
    if pred.shape != ref.shape or pred.ndim != 3:
        raise InputError(f"`pred` and `ref` have shapes {pred.shape} and {ref.shape}, expected the same [x, y, z].")
    if spacing is not None and not (len(spacing) == 3 and all(0 < s < math.inf for s in spacing)):
        raise InputError(f"`spacing` is {spacing}, expected three numbers above 0, mm per voxel.")


def _check_tolerance(tolerance_mm: float) -> None:
    if not 0 <= tolerance_mm < math.inf:
        raise InputError(f"`tolerance_mm` is {tolerance_mm}, expected a number of mm, 0 or more.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")
