"""Sliding-window inference as one function of JAX, which can be compiled, differentiated and mapped.

The windows are those of `sliding_window_inference`, in the same order and with the same weights. A loop over calls of the predictor adds
its outputs to the sum over the whole volume. The predictor's intermediates are computed again in the backward pass, so that those of only
one call are in memory at a time.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from swinunetr_jax.inference.plan import MIN_IMPORTANCE, PADDINGS, Plan
from swinunetr_jax.inference.window_outputs import output_weights
from swinunetr_jax.runtime.manual_axes import vary_like
from swinunetr_jax.runtime.promotion import wide_dtype

Outputs = tuple[Array, ...]


def predict_traced(
    volume: Array,
    plan: Plan,
    batch: int,
    predictor: Callable[[Array], Outputs],
    weights: np.ndarray,
    padding_mode: str,
    cval: float,
) -> Outputs:
    """Returns the averaged outputs of a volume [*grid, c], each [*grid, c_out] in at least float32.

    Args:
        volume: the volume.
        plan: the positions of the windows.
        batch: the number of windows per call of the predictor.
        predictor: [n, *roi, c] -> a tuple of outputs.
        weights: the weight of each voxel of a window.
        padding_mode, cval: those of `sliding_window_inference`.
    """
    padded = _pad(volume, plan, padding_mode, cval)
    starts = np.stack(np.meshgrid(*plan.starts, indexing="ij"), -1).reshape(-1, len(plan.roi)).astype(np.int32)
    batch = min(batch, len(starts))
    calls = -(-len(starts) // batch)
    # The last call is filled with copies of the last window, which are not added.
    filled = np.concatenate([starts, np.repeat(starts[-1:], calls * batch - len(starts), 0)]).reshape(calls, batch, -1)
    is_added = (np.arange(calls * batch) < len(starts)).reshape(calls, batch)

    def windows(positions: Array) -> Array:
        sizes = (*plan.roi, padded.shape[-1])
        return jax.vmap(lambda start: lax.dynamic_slice(padded, (*start, jnp.zeros_like(start[0])), sizes))(positions)

    shapes = jax.eval_shape(lambda: predictor(windows(jnp.asarray(filled[0]))))
    by_output = output_weights(shapes, plan, batch, weights)
    scales = [tuple(Fraction(size, window) for size, window in zip(shape.shape[1:-1], plan.roi)) for shape in shapes]
    totals = tuple(vary_like(_zeros(plan, shape, scale), volume, *shapes) for shape, scale in zip(shapes, scales))
    compute = jax.checkpoint(lambda positions: predictor(windows(positions)))

    def call(totals: Outputs, part: tuple[Array, Array]) -> tuple[Outputs, None]:
        positions, added = part
        outputs = compute(positions)
        return tuple(
            map(_added, totals, outputs, by_output, [_scaled(positions, scale) for scale in scales], [added] * len(scales))
        ), None

    totals = lax.scan(call, totals, (jnp.asarray(filled), jnp.asarray(is_added)))[0]
    return tuple(
        (total / jnp.asarray(_total_weight(plan, starts, voxels, scale), total.dtype)[..., None])[plan.unpadded_box(scale)]
        for total, voxels, scale in zip(totals, by_output, scales, strict=True)
    )


def _pad(volume: Array, plan: Plan, mode: str, cval: float) -> Array:
    """Returns the volume with the plan's padding."""
    pads = [*plan.pads, (0, 0)]
    if mode == "constant":
        return jnp.pad(volume, pads, constant_values=jnp.asarray(cval, volume.dtype))
    return jnp.pad(volume, pads, PADDINGS[mode])


def _zeros(plan: Plan, output: Any, scale: tuple[Fraction, ...]) -> Array:
    """Returns zeros [*grid, c_out] on the grid of an output, which has a shape and a type."""
    return jnp.zeros((*_grid(plan, scale), output.shape[-1]), wide_dtype(output.dtype))


def _grid(plan: Plan, scale: tuple[Fraction, ...]) -> tuple[int, ...]:
    return tuple(int(size * factor) for size, factor in zip(plan.padded, scale))


def _scaled(positions: Any, scale: tuple[Fraction, ...]) -> Any:
    """Returns positions [n, axes] of windows, on the grid of an output. A window that starts between two voxels gets the lower one."""
    if all(factor == 1 for factor in scale):
        return positions
    numerators, denominators = (np.array([part], np.int32) for part in zip(*((f.numerator, f.denominator) for f in scale)))
    return positions * numerators // denominators


def _added(total: Array, output: Array, weights: np.ndarray, positions: Array, added: Array) -> Array:
    """Returns the sum after the windows of a call, [n, *grid, c_out], were added to it, except those that are not to be added."""
    factors = jnp.asarray(weights, total.dtype)[..., None]
    for index in range(len(output)):
        start = (*positions[index], jnp.zeros_like(positions[index, 0]))
        window = jnp.where(added[index], output[index].astype(total.dtype) * factors, 0)
        total = lax.dynamic_update_slice(total, lax.dynamic_slice(total, start, window.shape) + window, start)
    return total


def _total_weight(plan: Plan, starts: np.ndarray, weights: np.ndarray, scale: tuple[Fraction, ...]) -> np.ndarray:
    """Returns the sum of the windows' weights in each voxel of an output's grid, summed in the order of the windows."""
    total = np.zeros(_grid(plan, scale), np.float32)
    for position in _scaled(starts, scale):
        total[tuple(slice(start, start + size) for start, size in zip(position, weights.shape))] += weights
    return np.maximum(total, MIN_IMPORTANCE**2)
