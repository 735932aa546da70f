"""Scores each lesion separately, as in the ranking of BraTS since 2023.

Source: the challenge's program, github.com/rachitsaluja/BraTS-2023-Metrics, which has these rules:

1. The reference is dilated `dilation` times by a voxel and its 18 neighbours. Those of its voxels that are within one
   26-connected component of the dilated mask are one lesion, even if they are not connected.
2. The prediction is divided into 26-connected components, which are not dilated. A component belongs to every lesion that it touches
   when that lesion alone is dilated.
3. A lesion's Dice and HD95 (area-weighted) compare it with the union of the components that belong to it; a missed
   lesion has 0 and 374.
4. Lesions of at most `ignore_mm3` do not count, but a component that belongs to one is not a false positive.
5. A component of any size that belongs to no lesion is a false positive, and counts as one lesion with Dice 0 and HD95 374.
6. If there is nothing to count, Dice is 1 and HD95 is 0.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy.ndimage import binary_dilation, find_objects, generate_binary_structure, label

from swinunetr_jax.data.boxes import bounding_box, slices
from swinunetr_jax.metrics.surfaces import surfel_distances

WORST_HD95 = 374.0  # mm, about the diagonal of the 240 × 240 × 155 grid
DILATION = 3  # for glioma, including the African and the paediatric data sets; 1 for meningioma and metastases
IGNORE_MM3 = 50.0  # for glioma; 2 for metastases
_ALL_NEIGHBOURS = generate_binary_structure(3, 3)  # 26
_DILATING = generate_binary_structure(3, 2)  # 18


@dataclass(frozen=True)
class Lesion:
    """One lesion of the reference. `components` is the number of predicted components that belong to it, 0 if it was missed."""

    volume_mm3: float
    components: int
    dice: float
    hd95: float


@dataclass(frozen=True)
class LesionScores:
    """The lesions that count, in the order of their labels, the number of ignored small lesions, and that of false positives."""

    lesions: tuple[Lesion, ...]
    ignored: int
    false_positives: int

    @property
    def missed(self) -> int:
        return sum(lesion.components == 0 for lesion in self.lesions)

    @property
    def dice(self) -> float:
        """The mean over lesions and false positives."""
        count = len(self.lesions) + self.false_positives
        return sum(lesion.dice for lesion in self.lesions) / count if count else 1.0

    @property
    def hd95(self) -> float:
        """The mean over lesions and false positives, mm."""
        count = len(self.lesions) + self.false_positives
        return (sum(lesion.hd95 for lesion in self.lesions) + WORST_HD95 * self.false_positives) / count if count else 0.0


def lesion_scores(
    pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...], *, dilation: int = DILATION, ignore_mm3: float = IGNORE_MM3
) -> LesionScores:
    """Returns the lesion-wise scores of two masks by the rules at the top of this file.

    Args:
        pred, ref: bool [x, y, z].
        spacing: mm per voxel.
        dilation: the number of dilations that merge lesions.
        ignore_mm3: the largest volume of a lesion that does not count.
    """
    box = bounding_box(pred | ref, dilation)
    if box is None:
        return LesionScores((), 0, 0)
    pred, ref = pred[slices(box)], ref[slices(box)]
    components, count = _label(pred)
    merged, _ = _label(np.asarray(binary_dilation(ref, _DILATING, dilation)))
    merged[~ref] = 0
    boxes = find_objects(components)
    lesions, ignored, used = [], 0, np.zeros(count + 1, bool)  # used: components that belong to a lesion
    for number, lesion_box in enumerate(find_objects(merged), 1):
        dilated_box = tuple(slice(max(s.start - dilation, 0), s.stop + dilation) for s in lesion_box)
        dilated = np.asarray(binary_dilation(merged[dilated_box] == number, _DILATING, dilation), bool)
        touching = np.zeros(count + 1, bool)
        touching[components[dilated_box][dilated]] = True
        touching[0] = False
        used |= touching
        joint_box = _hull([lesion_box, *(boxes[i - 1] for i in np.flatnonzero(touching))])
        lesion = _score(touching[components[joint_box]], merged[joint_box] == number, spacing, int(touching.sum()))
        if lesion.volume_mm3 > ignore_mm3:
            lesions.append(lesion)
        else:
            ignored += 1
    return LesionScores(tuple(lesions), ignored, count - int(used.sum()))


def _score(pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...], components: int) -> Lesion:
    voxels = int(np.count_nonzero(ref))
    volume = float(voxels * np.prod(spacing))
    if not components:
        return Lesion(volume, 0, 0.0, WORST_HD95)
    dice = 2 * int(np.count_nonzero(pred & ref)) / (int(np.count_nonzero(pred)) + voxels)
    return Lesion(volume, components, dice, surfel_distances(pred, ref, spacing).hausdorff(0.95))


def _label(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns the number of the component of each voxel, from 1, and the number of components."""
    # scipy declares no types; the result is a pair, because no output array is given
    return cast("tuple[np.ndarray, int]", label(mask, _ALL_NEIGHBOURS))


def _hull(boxes: list[tuple[slice, ...]]) -> tuple[slice, ...]:
    """Returns the smallest box that contains all boxes."""
    return tuple(slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*boxes))
