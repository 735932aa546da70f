"""What flows through transforms, and how a transform acts on it.

An example is a dict: 'image' [x, y, z, c] and 'label' uint8 [x, y, z], often memory-mapped, and what the cache measured of them:
'foreground' {threshold: box} and 'statistics' (means, deviations). A transform returns a new dict and never writes into the
arrays it was given, though they may be views of one another.
"""

from typing import Any

import numpy as np

Example = dict[str, Any]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # (start, stop) along each axis


class RandomTransform:
    """Draws parameters, then applies them: the two halves can be used apart, to compare with another implementation."""

    def draw(self, rng: np.random.Generator, example: Example) -> Any:
        raise NotImplementedError

    def apply(self, example: Example, parameters: Any) -> Example:
        raise NotImplementedError

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return self.apply(example, self.draw(rng, example))


def bounding_box(mask: np.ndarray) -> Box:
    """The smallest box that holds every True voxel of [x, y, z]; the whole grid where there is none."""
    box = []
    for axis in range(mask.ndim):
        along = np.flatnonzero(mask.any(tuple(other for other in range(mask.ndim) if other != axis)))
        box.append((int(along[0]), int(along[-1]) + 1) if len(along) else (0, mask.shape[axis]))
    return tuple(box)


def foreground(image: np.ndarray, above: float = 0.0) -> Box:
    """The box of voxels of [x, y, z, c] that are above the threshold in any channel."""
    return bounding_box((image > above).any(-1))


def slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)
