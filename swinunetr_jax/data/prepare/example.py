"""The example: what a prepared case gives to the transforms of training.

An example is a dict: 'image' [x, y, z, c] and 'label' uint8 [x, y, z], often memory-mapped, and what the cache measured of them:
'foreground' {threshold: box} and 'statistics' (means, deviations). A transform returns a new dict and never writes into the
arrays it was given, though they may be views of one another.
"""

from typing import Any

import numpy as np

from swinunetr_jax.data.boxes import Box, bounding_box, whole_box

Example = dict[str, Any]


def foreground(image: np.ndarray, above: float = 0.0) -> Box:
    """Returns the box of voxels of [x, y, z, c] that are above the threshold in any channel; the whole grid if there are none."""
    return bounding_box(np.asarray((image > above).any(-1))) or whole_box(image.shape[:3])
