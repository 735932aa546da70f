"""The weighted sum of windows over a slab of a volume on the device. Windows are added to it, and finished planes are removed."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from swinunetr_jax.inference.plan import MIN_IMPORTANCE, Plan
from swinunetr_jax.runtime.promotion import wide_dtype

# The size of the planes that are averaged at a time. It limits the memory of the averages and of the results that are computed from them.
PIECE_BYTES = 64 << 20


@dataclass(frozen=True)
class Planes:
    """Finished planes of the average of one output, on the device.

    The finished planes are `array[skip : skip + count]`, and the other planes of `array` must be ignored. They start at the plane `first`
    of the padded volume on the output's grid.

    Attributes:
        output: the number of the output.
        first: the first finished plane.
        skip: the number of planes to ignore at the start of `array`.
        count: the number of finished planes.
        array: [k, *rest, c].
        scale: the resolution of the output's grid relative to the input's, for each axis.
    """

    output: int
    first: int
    skip: int
    count: int
    array: jax.Array
    scale: tuple[Fraction, ...]

    def write(self, part: jax.Array, result: np.ndarray, box: tuple[slice, ...]) -> None:
        """Writes `part`, which was computed from `array` plane by plane, into `result`, which is the `box` of the padded volume."""
        low, high = max(self.first, box[0].start), min(self.first + self.count, box[0].stop)
        if low < high:
            planes = slice(low - self.first + self.skip, high - self.first + self.skip)
            result[low - box[0].start : high - box[0].start] = jax.device_get(part)[(planes, *box[1:])]


class SlabSum:
    """The weighted sum of one output and the sum of the weights, over a slab that is as deep as a window.

    Args:
        output: the first output of the predictor [n, *grid, c], for its shape and type.
        plan: the positions of the windows.
        importance: the weight of each voxel of a window on the output's grid.
    """

    def __init__(self, output: jax.Array, plan: Plan, importance: np.ndarray):
        self.shape = output.shape
        self.scale = tuple(Fraction(size, window) for size, window in zip(output.shape[1:-1], plan.roi))
        self.importance = jax.device_put(importance)
        rest = tuple(int(size * factor) for size, factor in zip(plan.padded[1:], self.scale[1:]))
        shape = (output.shape[1], *rest, output.shape[-1])
        self.total, self.weight = _zeros(shape, wide_dtype(output.dtype))
        fitting = max(PIECE_BYTES // (self.total.nbytes // shape[0]), 1)
        steps = [self.row(b) - self.row(a) for a, b in zip(plan.starts[0], plan.starts[0][1:])]
        self.planes = min(fitting, max(steps, default=shape[0]), shape[0])

    def row(self, start: int) -> int:
        """Returns the first plane on the output's grid of windows that start at the plane `start` of the padded volume."""
        return int(start * self.scale[0])

    def add(self, output: jax.Array, starts: np.ndarray, count: int) -> None:
        """Adds the first `count` windows of an output, which start at the positions `starts` [n, axes] of the slab."""
        starts = starts.copy()
        for axis, factor in enumerate(self.scale):
            if factor != 1:
                starts[:, axis] = starts[:, axis] * factor.numerator // factor.denominator
        self.total, self.weight = _add(self.total, self.weight, output, self.importance, *jax.device_put((starts, count)))

    def pop_finished(self, number: int, row: int, next_row: int | None) -> Iterator[Planes]:
        """Yields the averages of all planes before the next row of windows, and then moves the slab to this row.

        Args:
            number: the number of the output.
            row: the first plane of the windows that were added last.
            next_row: the first plane of the next windows, or None after the last ones.
        """
        depth, base = self.shape[1], self.row(row)
        step = depth if next_row is None else self.row(next_row) - base
        for first in range(0, step, self.planes):
            count, begin = min(self.planes, step - first), min(first, depth - self.planes)
            averages = _averages(self.total, self.weight, jax.device_put(begin), self.planes)
            yield Planes(number, base + first, first - begin, count, averages, self.scale)
        if next_row is not None:  # also if no plane remains, because the sums of the next windows start from zero
            distance = jax.device_put(step)
            self.total, self.weight = _move_up(self.total, distance), _move_up(self.weight, distance)


# Numbers and positions are put on the device explicitly, so that `jax.transfer_guard("disallow")` finds no implicit transfer.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros(shape, dtype), jnp.zeros(shape[:-1], dtype)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _add(
    total: jax.Array, weight: jax.Array, logits: jax.Array, importance: jax.Array, offsets: jax.Array, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
    def body(index: int, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        total, weight = state
        start, zero = tuple(offsets[index]), jnp.zeros_like(offsets[0, 0])  # of one type, also if JAX's default is int64
        window = logits[index].astype(total.dtype) * importance[..., None]
        old = jax.lax.dynamic_slice(total, (*start, zero), window.shape)
        total = jax.lax.dynamic_update_slice(total, old + window, (*start, zero))
        old = jax.lax.dynamic_slice(weight, start, importance.shape)
        return total, jax.lax.dynamic_update_slice(weight, old + importance, start)

    return jax.lax.fori_loop(0, count, body, (total, weight))


@functools.partial(jax.jit, static_argnames="count")
def _averages(total: jax.Array, weight: jax.Array, first: jax.Array, count: int) -> jax.Array:
    total, weight = (jax.lax.dynamic_slice_in_dim(array, first, count) for array in (total, weight))
    # Some of the planes after the finished ones have no windows yet, so that their weight may be zero.
    return total / jnp.maximum(weight, MIN_IMPORTANCE**2)[..., None]


@functools.partial(jax.jit, donate_argnums=0)
def _move_up(slab: jax.Array, step: jax.Array) -> jax.Array:
    """Shifts the planes in place, one by one, because a shifted copy would take the memory of a second slab."""
    depth = len(slab)

    def body(plane: int, slab: jax.Array) -> jax.Array:
        source = jax.lax.dynamic_index_in_dim(slab, jnp.minimum(plane + step, depth - 1), keepdims=False)
        return jax.lax.dynamic_update_index_in_dim(slab, jnp.where(plane + step < depth, source, 0), plane, 0)

    return jax.lax.fori_loop(0, depth, body, slab)
