"""Sliding-window inference: a function of patches becomes a function of whole volumes, with MONAI's numbers, in bounded memory.

Windows are taken in row-major order of their positions, so everything above the current position of the first axis is finished. The
device therefore holds one slab, as deep as a window: when the first axis moves on, the finished planes leave the device and the rest
moves up. A 512×512×600 CT with 14 classes needs 1.4 GB for windows of 96³ instead of 8.8 GB, and 14 full volumes exist nowhere.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from swinunetr_jax.errors import InputError

BLENDS = ("constant", "gaussian")
MIN_IMPORTANCE = 1e-3

Predictor = Callable[[jax.Array], jax.Array]
Finish = Callable[[jax.Array], tuple[jax.Array, ...]]
Progress = Callable[[int, int], None]


def sliding_window_inference(
    inputs: np.ndarray | jax.Array,
    roi_size: tuple[int, ...],
    sw_batch_size: int,
    predictor: Predictor,
    overlap: float | tuple[float, ...] = 0.25,
    mode: str = "constant",
    sigma_scale: float = 0.125,
) -> np.ndarray:
    """Logits of whole volumes: the average of the windows' logits. Arguments are MONAI's, axes are channels-last.

    Args:
        inputs: [b, *grid, c].
        roi_size: window size per axis. Where the volume is smaller, it is padded with zeros on both sides and the result is cropped.
        sw_batch_size: windows per call of `predictor`.
        predictor: [n, *roi, c] -> [n, *roi, c_out]; compile it (`jax.jit`) for speed, it only ever sees one shape.
        overlap: 0 to less than 1, of neighbouring windows, for all axes or each.
        mode: "constant" or "gaussian" weights within a window.
        sigma_scale: standard deviation of the gaussian, in windows.

    Returns:
        [b, *grid, c_out] float32, on the host.

    Raises:
        InputError: an argument out of range.
    """
    volumes = []
    for volume in inputs:
        plan = Plan.of(volume.shape[:-1], roi_size, overlap)
        slabs = [slab for (slab,) in predict_slabs(volume, plan, sw_batch_size, predictor, mode=mode, sigma_scale=sigma_scale)]
        volumes.append(plan.crop(np.concatenate(slabs)))
    return np.stack(volumes)


@dataclass(frozen=True)
class Plan:
    """Where the windows lie on a volume: its size, the padding that brings it to at least one window, positions per axis."""

    image: tuple[int, ...]
    roi: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    starts: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, image: tuple[int, ...], roi: tuple[int, ...], overlap: float | tuple[float, ...]) -> "Plan":
        """Windows a step of `int(roi * (1 - overlap))` apart, the last one moved back inside."""
        overlaps = _per_axis(overlap, image)
        if len(roi) != len(image) or min(roi) < 1:
            raise InputError(f"`roi_size` must hold {len(image)} positive sizes, one per axis, got {roi}.")
        if len(overlaps) != len(image) or not all(0 <= o < 1 for o in overlaps):
            raise InputError(f"`overlap` must be at least 0 and less than 1, got {overlap}.")
        if min(image) < 1:
            raise InputError(f"the volume is empty: its shape is {tuple(image)}.")
        lacks = [max(size - have, 0) for have, size in zip(image, roi)]
        pads = tuple((lack // 2, lack - lack // 2) for lack in lacks)
        padded = [have + lack for have, lack in zip(image, lacks)]
        starts = tuple(_starts(have, size, o) for have, size, o in zip(padded, roi, overlaps))
        return cls(tuple(image), tuple(roi), pads, starts)

    @property
    def windows(self) -> int:
        return math.prod(map(len, self.starts))

    def reach(self, overlap: float | tuple[float, ...]) -> tuple[int, ...]:
        """The size of the largest volume that takes as many windows along each axis, at the plan's own overlap."""
        steps = (_step(size, o) for size, o in zip(self.roi, _per_axis(overlap, self.image)))
        return tuple(size + (len(starts) - 1) * step for size, starts, step in zip(self.roi, self.starts, steps))

    def pad(self, volume: np.ndarray) -> np.ndarray:
        return np.pad(volume, [*self.pads, (0, 0)]) if any(map(sum, self.pads)) else np.asarray(volume)

    def crop(self, volume: np.ndarray) -> np.ndarray:
        """The padding taken off again, from an array on the padded grid."""
        return volume[tuple(slice(low, low + size) for (low, _), size in zip(self.pads, self.image))]


def predict_slabs(
    volume: np.ndarray,
    plan: Plan,
    batch: int,
    predictor: Predictor,
    *,
    mode: str,
    sigma_scale: float = 0.125,
    finish: Finish | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Finished planes of the padded volume, from the first axis' low end on.

    Args:
        volume: [*grid, c], on the host.
        finish: applied on the device to a slab's averaged logits [planes, …, c_out]; its results must keep the spatial axes, as an
            argmax does. Without it the logits come as they are.

        progress: called with windows done and windows in all, one call behind the device so that it never waits.

    Yields:
        The results of `finish` (or the logits alone), each [planes, …].
    """
    if batch < 1:
        raise InputError(f"`sw_batch_size` must be at least 1, got {batch}.")
    volume = plan.pad(volume)
    importance = jnp.asarray(importance_map(plan.roi, mode, sigma_scale))
    offsets = np.stack(np.meshgrid(*plan.starts[1:], indexing="ij"), -1).reshape(-1, len(plan.roi) - 1)
    offsets = np.concatenate([np.zeros((len(offsets), 1), offsets.dtype), offsets], 1).astype(np.int32)
    rows, depth = plan.starts[0], plan.roi[0]
    total = weight = None
    done, before = 0, None
    for index, row in enumerate(rows):
        slab = jnp.asarray(volume[row : row + depth])
        for first in range(0, len(offsets), batch):
            chosen = offsets[first : first + batch]
            live = len(chosen)
            if live < batch:  # the last batch is filled up with copies that then count nothing: one shape for the network
                chosen = np.concatenate([chosen, np.repeat(chosen[-1:], batch - live, 0)])
            logits = predictor(_cut(slab, chosen, plan.roi))
            if total is None:
                total = jnp.zeros((*slab.shape[:-1], logits.shape[-1]), jnp.promote_types(logits.dtype, jnp.float32))
                weight = jnp.zeros(slab.shape[:-1], total.dtype)
            total, weight = _add(total, weight, logits, importance, chosen, live)
            if progress and done:
                jax.block_until_ready(before)
                progress(done, plan.windows)
            before = logits
            done += live
        step = rows[index + 1] - row if index + 1 < len(rows) else depth
        averaged = _average(total, weight)
        results = (averaged,) if finish is None else finish(averaged)
        yield tuple(np.asarray(result[:step]) for result in results)
        total, weight = _move_up(total, step), _move_up(weight, step)
    if progress:
        progress(done, plan.windows)


@functools.lru_cache(maxsize=8)
def importance_map(roi: tuple[int, ...], mode: str, sigma_scale: float = 0.125) -> np.ndarray:
    """Weight of each voxel of a window, float32 [*roi]: ones, or a gaussian of peak 1 that is nowhere less than 0.001."""
    if mode not in BLENDS:
        raise InputError(f"`mode` must be one of {', '.join(BLENDS)}, got {mode!r}.")
    if mode == "constant":
        return np.ones(roi, np.float32)
    importance = np.ones((), np.float32)
    for size in roi:
        x = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
        importance = importance[..., None] * np.exp(x**2 / np.float32(-2 * (sigma_scale * size) ** 2))
    return np.maximum(importance, max(float(importance.min()), MIN_IMPORTANCE)).astype(np.float32)


def _per_axis(overlap: float | tuple[float, ...], image: tuple[int, ...]) -> tuple[float, ...]:
    return overlap if isinstance(overlap, tuple) else (overlap,) * len(image)


def _step(roi: int, overlap: float) -> int:
    return max(int(roi * (1 - overlap)), 1)


def _starts(image: int, roi: int, overlap: float) -> tuple[int, ...]:
    step = _step(roi, overlap)
    count = next(n for n in range(image) if n * step + roi >= image) + 1
    return tuple(min(n * step, image - roi) for n in range(count))


@functools.partial(jax.jit, static_argnames="roi")
def _cut(slab: jax.Array, offsets: np.ndarray, roi: tuple[int, ...]) -> jax.Array:
    sizes = (*roi, slab.shape[-1])
    return jax.vmap(lambda offset: jax.lax.dynamic_slice(slab, (*offset, 0), sizes))(offsets)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _add(
    total: jax.Array, weight: jax.Array, logits: jax.Array, importance: jax.Array, offsets: np.ndarray, live: int
) -> tuple[jax.Array, jax.Array]:
    def body(index: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        total, weight = state
        at = tuple(offsets[index])
        window = logits[index].astype(total.dtype) * importance[..., None]
        old = jax.lax.dynamic_slice(total, (*at, 0), window.shape)
        total = jax.lax.dynamic_update_slice(total, old + window, (*at, 0))
        old = jax.lax.dynamic_slice(weight, at, importance.shape)
        return total, jax.lax.dynamic_update_slice(weight, old + importance, at)

    return jax.lax.fori_loop(0, live, body, (total, weight))


@jax.jit
def _average(total: jax.Array, weight: jax.Array) -> jax.Array:
    # planes below the finished ones are not all covered yet: no division by zero there
    return total / jnp.maximum(weight, MIN_IMPORTANCE**2)[..., None]


@functools.partial(jax.jit, donate_argnums=0)
def _move_up(slab: jax.Array, step: int) -> jax.Array:
    kept = jnp.arange(slab.shape[0]).reshape(-1, *[1] * (slab.ndim - 1)) < slab.shape[0] - step
    return jnp.where(kept, jnp.roll(slab, -step, axis=0), 0)
