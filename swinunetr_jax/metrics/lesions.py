"""Scores of each lesion by itself, as BraTS has ranked since 2023.

Source: the challenge's scorer, github.com/rachitsaluja/BraTS-2023-Metrics, whose rules these are:

1. The reference is dilated `dilation` times by a voxel and its 18 neighbours. Its voxels within one 26-connected component of the
   dilated mask are one lesion, however many pieces they are.
2. The prediction falls into 26-connected components, which are not dilated. To a lesion belong all components that touch it
   dilated by itself; a component may belong to several lesions.
3. A lesion's Dice and HD95 (area-weighted) compare it to the union of its components, whole; a missed lesion has 0 and 374.
4. Lesions of `ignore_mm3` or less do not count, but a component that belongs to one is no false positive.
5. A component of any size that belongs to no lesion is a false positive, and counts as one lesion with Dice 0 and HD95 374.
6. Where there is nothing to count, Dice is 1 and HD95 is 0.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation, find_objects, generate_binary_structure, label

from swinunetr_jax.data.boxes import bounding_box, slices
from swinunetr_jax.metrics.surfaces import surfel_distances

WORST_HD95 = 374.0  # mm, about the diagonal of the 240 × 240 × 155 grid
DILATION = 3  # glioma, also Africa and paediatrics; 1 for meningioma and metastases
IGNORE_MM3 = 50.0  # 2 for metastases
_ALL_NEIGHBOURS = generate_binary_structure(3, 3)  # 26
_DILATING = generate_binary_structure(3, 2)  # 18


@dataclass(frozen=True)
class Lesion:
    """One lesion of the reference; `components` counts what was predicted of it, 0 where it was missed."""

    volume_mm3: float
    components: int
    dice: float
    hd95: float


@dataclass(frozen=True)
class LesionScores:
    """Lesions that count, in the order of their labels, how many there were too small to, and the false positives."""

    lesions: tuple[Lesion, ...]
    ignored: int
    false_positives: int

    @property
    def missed(self) -> int:
        return sum(lesion.components == 0 for lesion in self.lesions)

    @property
    def dice(self) -> float:
        """Mean over lesions and false positives."""
        count = len(self.lesions) + self.false_positives
        return sum(lesion.dice for lesion in self.lesions) / count if count else 1.0

    @property
    def hd95(self) -> float:
        """Mean over lesions and false positives, mm."""
        count = len(self.lesions) + self.false_positives
        return (sum(lesion.hd95 for lesion in self.lesions) + WORST_HD95 * self.false_positives) / count if count else 0.0


def lesion_scores(
    pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...], *, dilation: int = DILATION, ignore_mm3: float = IGNORE_MM3
) -> LesionScores:
    """Lesion-wise scores of two masks, boolean [x, y, z], on voxels of `spacing` mm. The rules are at the top of this file."""
    box = bounding_box(pred | ref, dilation)
    if box is None:
        return LesionScores((), 0, 0)
    pred, ref = pred[slices(box)], ref[slices(box)]
    components, count = label(pred, _ALL_NEIGHBOURS)
    merged, _ = label(binary_dilation(ref, _DILATING, dilation), _ALL_NEIGHBOURS)
    merged[~ref] = 0
    boxes = find_objects(components)
    lesions, ignored, belonging = [], 0, np.zeros(count + 1, bool)
    for number, place in enumerate(find_objects(merged), 1):
        near = tuple(slice(max(s.start - dilation, 0), s.stop + dilation) for s in place)
        around = binary_dilation(merged[near] == number, _DILATING, dilation)
        mine = np.zeros(count + 1, bool)
        mine[components[near][around]] = True
        mine[0] = False
        belonging |= mine
        whole = _hull([place, *(boxes[i - 1] for i in np.flatnonzero(mine))])
        lesion = _score(mine[components[whole]], merged[whole] == number, spacing, int(mine.sum()))
        if lesion.volume_mm3 > ignore_mm3:
            lesions.append(lesion)
        else:
            ignored += 1
    return LesionScores(tuple(lesions), ignored, count - int(belonging.sum()))


def _score(pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...], components: int) -> Lesion:
    voxels = int(np.count_nonzero(ref))
    volume = float(voxels * np.prod(spacing))
    if not components:
        return Lesion(volume, 0, 0.0, WORST_HD95)
    dice = 2 * int(np.count_nonzero(pred & ref)) / (int(np.count_nonzero(pred)) + voxels)
    return Lesion(volume, components, dice, surfel_distances(pred, ref, spacing).hausdorff(0.95))


def _hull(boxes: list[tuple[slice, ...]]) -> tuple[slice, ...]:
    return tuple(slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*boxes))
