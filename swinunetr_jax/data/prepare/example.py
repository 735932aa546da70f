"""The example, which the transforms of training receive from a prepared case.

An example is a dict with 'image' [x, y, z, c] and 'label' uint8 [x, y, z], often memory-mapped, and with values that the cache measured:
'foreground' {threshold: box}, 'statistics' (means, deviations) and 'class_voxels'. The pipeline adds 'sample', the sample's number, counted
from the start of the run. A transform returns a new dict and never writes into the arrays that it receives; the arrays that it returns may
be views of them.
"""

from typing import Any

import numpy as np

from swinunetr_jax.data.boxes import Box, bounding_box, whole_box

Example = dict[str, Any]


def foreground(image: np.ndarray, above: float = 0.0) -> Box:
    """Returns the box of voxels of [x, y, z, c] that are above the threshold in any channel; the whole grid if there are none."""
    return bounding_box(np.asarray((image > above).any(-1))) or whole_box(image.shape[:3])
