"""Label maps drawn in colours over grey images. Pictures are numpy arrays of red, green and blue in 0 … 1."""

from collections.abc import Mapping

import numpy as np
from scipy import ndimage

FILLED_SHARE = 0.55  # of the colour in a filled label; the rest is the image


def grey_range(image: np.ndarray) -> tuple[float, float]:
    """Returns the intensities that are drawn black and white: the ends of all non-zero voxels but half a per cent on either side."""
    inside = image[image != 0]
    low, high = np.percentile(inside, (0.5, 99.5)) if inside.size else (0.0, 1.0)
    return float(low), float(high)


def grey_levels(image: np.ndarray) -> np.ndarray:
    """Returns the image scaled to 0 … 1, with the darkest and brightest half per cent of its non-zero voxels clipped."""
    low, high = grey_range(image)
    return np.clip((image - low) / max(high - low, 1e-12), 0, 1)


def overlay_labels(picture: np.ndarray, labels: np.ndarray, colours: Mapping[int, str], *, filled: bool = False) -> np.ndarray:
    """Returns a picture [x, y, 3] with the outlines of the labels [x, y] in their colours over it, or with filled labels.

    An outline consists of the voxels of a label that touch, along an axis of the picture, a voxel outside of it.
    """
    from matplotlib.colors import to_rgb

    picture = picture.copy()
    for value, colour in colours.items():
        mask = labels == value
        if filled:
            picture[mask] = (1 - FILLED_SHARE) * picture[mask] + FILLED_SHARE * np.array(to_rgb(colour))
        else:
            inside = np.asarray(ndimage.binary_erosion(mask, border_value=1), bool)
            picture[mask & ~inside] = to_rgb(colour)
    return picture
