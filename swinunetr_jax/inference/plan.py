"""The positions of the windows of sliding-window inference and the weights of their voxels, computed with NumPy.

Source: `monai.inferers.sliding_window_inference` and `monai.data.utils.compute_importance_map`, with the same arguments and results.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from swinunetr_jax.errors import InputError

BLENDS = ("constant", "gaussian")
# NumPy's name of each padding mode of torch.
PADDINGS: dict[str, Literal["constant", "reflect", "edge", "wrap"]] = {
    "constant": "constant",
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
}
MIN_IMPORTANCE = 1e-3

PerAxis = float | Sequence[float]
RoiSize = int | None | Sequence[int | None]


@dataclass(frozen=True)
class Plan:
    """The positions of the windows on a volume.

    Attributes:
        image: the size of the volume.
        roi: the size of a window.
        pads: the padding before and after each axis, which makes the volume at least as large as a window.
        starts: the first index of the windows along each axis of the padded volume.
    """

    image: tuple[int, ...]
    roi: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    starts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, image: Sequence[int], roi: RoiSize, overlap: PerAxis) -> "Plan":
        """Returns a plan of windows at intervals of `int(roi * (1 - overlap))`, where the last window is moved back into the volume.

        Args:
            image: the size of the volume along each axis.
            roi: the size of a window, for all axes or for each. None, 0 and negative numbers stand for the size of the volume.
            overlap: the fraction by which windows overlap, at least 0 and less than 1, for all axes or for each.

        Raises:
            InputError: a size or an overlap is out of range, or the number of them does not fit the number of axes.
        """
        image = tuple(int(size) for size in image)
        if not image or min(image) < 1:
            raise InputError(f"the volume is empty: its shape is {image}.")
        roi = _window_size(roi, image)
        overlaps = per_axis("overlap", overlap, len(image))
        if not all(0 <= share < 1 for share in overlaps):
            raise InputError(f"`overlap` must be at least 0 and less than 1, got {overlap}.")
        padding = [max(window - size, 0) for size, window in zip(image, roi)]
        pads = tuple((count // 2, count - count // 2) for count in padding)
        padded = [size + count for size, count in zip(image, padding)]
        starts = tuple(_starts(size, window, share) for size, window, share in zip(padded, roi, overlaps))
        return cls(image, roi, pads, starts)

    @property
    def padded(self) -> tuple[int, ...]:
        """The size of the volume with its padding."""
        return tuple(size + low + high for size, (low, high) in zip(self.image, self.pads))

    @property
    def windows(self) -> int:
        """The number of windows."""
        return math.prod(map(len, self.starts))

    def max_extent(self, overlap: PerAxis) -> tuple[int, ...]:
        """Returns the size of the largest volume with the same number of windows along each axis. `overlap` must be the plan's own."""
        steps = (_step(size, share) for size, share in zip(self.roi, per_axis("overlap", overlap, len(self.roi))))
        return tuple(size + (len(starts) - 1) * step for size, starts, step in zip(self.roi, self.starts, steps))

    def pad(self, planes: np.ndarray, mode: str = "constant", cval: float = 0.0) -> np.ndarray:
        """Returns planes [k, *rest, c] of the volume with their padding.

        If the volume is thinner than a window along the first axis, `planes` must be the whole volume, which is padded along this axis too.
        """
        if not any(map(sum, self.pads)):
            return planes
        pads = [*self.pads, (0, 0)]
        return np.pad(planes, pads, constant_values=cval) if mode == "constant" else np.pad(planes, pads, PADDINGS[mode])

    def unpadded_box(self, scale: Sequence[Fraction]) -> tuple[slice, ...]:
        """Returns the part of an output's grid without the padding. The grid is `scale` times as fine as the volume's."""
        parts = []
        for size, (low, high), padded_size, factor in zip(self.image, self.pads, self.padded, scale):
            stop = round((low + size) * factor) if low + high else int(padded_size * factor)
            parts.append(slice(round(low * factor), stop))
        return tuple(parts)


@functools.lru_cache(maxsize=8)
def importance_map(roi: tuple[int, ...], mode: str, sigma_scale: float | tuple[float, ...] = 0.125) -> np.ndarray:
    """Returns the weight of each voxel of a window, float32 [*roi].

    Args:
        roi: the size of the window.
        mode: "constant" for ones, or "gaussian" for a Gaussian with the maximum 1, whose values below 0.001 are raised to 0.001.
        sigma_scale: the standard deviation of the Gaussian as a fraction of the window, for all axes or for each.

    Raises:
        InputError: the mode is unknown or `sigma_scale` is not positive.
    """
    if mode not in BLENDS:
        raise InputError(f"`mode` must be one of {', '.join(BLENDS)}, got {mode!r}.")
    if mode == "constant":
        return np.ones(roi, np.float32)
    sigmas = per_axis("sigma_scale", sigma_scale, len(roi))
    if not all(0 < sigma < math.inf for sigma in sigmas):
        raise InputError(f"`sigma_scale` must be above 0, got {sigma_scale}.")
    importance = np.ones((), np.float32)
    for size, sigma in zip(roi, sigmas):
        x = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
        importance = importance[..., None] * np.exp(x**2 / np.float32(-2 * (sigma * size) ** 2))
    return np.maximum(importance, max(float(importance.min()), MIN_IMPORTANCE)).astype(np.float32)


def resize_nearest(importance: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a weight map resized with nearest-neighbour interpolation. Source: torch's mode "nearest-exact"."""
    for axis, (size, new_size) in enumerate(zip(importance.shape, shape)):
        importance = np.take(importance, ((np.arange(new_size) + 0.5) * size / new_size).astype(int), axis)
    return importance


def per_axis(name: str, value: PerAxis, axes: int) -> tuple[float, ...]:
    """Returns the value of an argument for each axis. Raises InputError unless it is one number for all axes or one for each."""
    try:
        array = np.asarray(value)
        values = tuple(map(float, array.tolist() if array.ndim else [array.item()] * axes))
    except (TypeError, ValueError):
        values = ()
    if len(values) != axes:
        raise InputError(f"`{name}` must be one number or {axes}, one per axis, got {value}.")
    return values


def _window_size(roi: RoiSize, image: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the size of a window along each axis. Raises InputError unless the sizes are integers, for all axes or for each."""
    array = np.asarray(roi, dtype=object)
    sizes: list[Any] = array.tolist() if array.ndim else [roi] * len(image)
    if len(sizes) != len(image):
        raise InputError(f"`roi_size` must be one size or {len(image)}, one per axis of the volume, got {roi}.")
    if not all(size is None or (isinstance(size, (int, np.integer)) and not isinstance(size, bool)) for size in sizes):
        raise InputError(f"`roi_size` must contain integers, or None for the volume's own size, got {roi}.")
    return tuple(int(size) if size is not None and size > 0 else image_size for size, image_size in zip(sizes, image))


def _step(roi: int, overlap: float) -> int:
    """Returns the distance between neighbouring windows along an axis."""
    return max(int(roi * (1 - overlap)), 1)


def _starts(image: int, roi: int, overlap: float) -> tuple[int, ...]:
    """Returns the first indices of the windows along an axis."""
    if roi == image:
        return (0,)
    step = _step(roi, overlap)
    count = -(-(image - roi) // step) + 1
    return tuple(min(n * step, image - roi) for n in range(count))
