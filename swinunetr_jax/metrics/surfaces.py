"""Distances between the surfaces of two masks: weighted by area as in BraTS, or per voxel as in MONAI.

Masks are boolean [x, y, z], and neither is empty. A surfel is a corner that eight voxels share, of which some are inside and some are
outside of the mask. The table of the areas of surfels is that of DeepMind's `surface-distance`, which BraTS uses.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue] - a compiled module without types
from surface_distance import lookup_tables

from swinunetr_jax.data.boxes import bounding_box, slices, whole_box

_KERNEL = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
_INSIDE = int(_KERNEL.sum())  # the code of a corner whose eight voxels are all in the mask


@dataclass(frozen=True, eq=False)
class SurfelDistances:
    """The distance from each surfel to the closest one of the other surface in mm, and the areas of the surfels in mm²."""

    pred: np.ndarray
    pred_areas: np.ndarray
    ref: np.ndarray
    ref_areas: np.ndarray

    def hausdorff(self, share: float) -> float:
        """Returns the quantile of the distances in mm, weighted by area, for the fraction `share`: the larger one of the two directions."""
        return max(_quantile(self.pred, self.pred_areas, share), _quantile(self.ref, self.ref_areas, share))

    def dice(self, tolerance: float) -> float:
        """Returns the share of the area of both surfaces that is within `tolerance` mm of the other surface."""
        within = self.pred_areas[self.pred <= tolerance].sum() + self.ref_areas[self.ref <= tolerance].sum()
        return float(within / (self.pred_areas.sum() + self.ref_areas.sum()))


def surfel_distances(pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...]) -> SurfelDistances:
    """Returns the unsorted distances of `surface_distance.compute_surface_distances`."""
    pred, ref = _cropped(pred, ref)
    (pred_points, pred_areas), (ref_points, ref_areas) = _surfels(pred, spacing), _surfels(ref, spacing)
    from_pred, from_ref = _nearest(pred_points, ref_points, spacing), _nearest(ref_points, pred_points, spacing)
    return SurfelDistances(from_pred, pred_areas, from_ref, ref_areas)


def edge_hausdorff(pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...], share: float) -> float:
    """Returns a quantile of the distances in mm between the outer voxels of both masks: the larger one of the two directions.

    Each voxel counts once. Quantiles between two distances are interpolated. Source: `monai.metrics.compute_hausdorff_distance`.
    """
    pred, ref = (np.argwhere(mask & np.logical_not(binary_erosion(mask))) for mask in _cropped(pred, ref))
    return float(max(np.quantile(_nearest(pred, ref, spacing), share), np.quantile(_nearest(ref, pred, spacing), share)))


def _cropped(pred: np.ndarray, ref: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    box = slices(bounding_box(pred | ref) or whole_box(pred.shape))
    return pred[box], ref[box]


def _surfels(mask: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (indices [n, 3], areas [n] in mm²) of the surfels. Each axis has one corner more than voxels."""
    padded = np.pad(mask, 1).astype(np.uint8)
    corners = tuple(n + 1 for n in mask.shape)
    codes = np.zeros(corners, np.uint8)
    for offset in np.ndindex(_KERNEL.shape):
        codes += padded[tuple(slice(i, i + n) for i, n in zip(offset, corners))] * np.uint8(_KERNEL[offset])
    surfels = np.nonzero((codes != 0) & (codes != _INSIDE))
    return np.stack(surfels, -1), _areas(tuple(map(float, spacing)))[codes[surfels]]


@cache
def _areas(spacing: tuple[float, ...]) -> np.ndarray:
    return lookup_tables.create_table_neighbour_code_to_surface_area(spacing)


def _nearest(points: np.ndarray, others: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Returns the distance in mm from each of `points` to the closest of `others`, both indices [n, 3]."""
    # Points on a grid need no balanced tree, whose construction would take most of the time.
    _, closest = cKDTree(others * spacing, balanced_tree=False, compact_nodes=False).query(points * spacing)
    # Distances are computed from integer differences, because 3 · 1.3 - 1.3 is more than 2.6 and would exceed a tolerance of 2.6 mm.
    return np.sqrt((((points - others[closest]) * spacing) ** 2).sum(-1))


def _quantile(distances: np.ndarray, areas: np.ndarray, share: float) -> float:
    order = np.argsort(distances)
    reached = np.cumsum(areas[order])
    return float(distances[order][min(np.searchsorted(reached / reached[-1], share), len(order) - 1)])
