"""The bias of window attention for each pair of tokens, from the table of relative positions, without a gather.

A row of the bias, which is added to the logits of one token, is a box of the mirrored table that has the size of the window. So the bias is
stacked from slices that are contiguous in memory, one axis after another, and its gradient is a sum of slices in a fixed order. A gather
of 117,649 rows of a few numbers would run row by row on a TPU, and its gradient would be a scatter.

On a CPU all slices of an axis are one slice of a repeated array. XLA would compile each slice, and each of its gradients, by itself, which
would be a tenth of the code of a training step.
"""

import functools

import jax.numpy as jnp
from jax import Array, lax

from swinunetr_jax.runtime.dispatch import Implementation, Table, platform_dispatch


def position_bias(table: Array, window: tuple[int, ...]) -> Array:
    """Returns table[relative_index(window)] with the heads as first axis.

    Args:
        table: [rows, heads], a row for each difference of two positions in the window; prod(2 * window - 1) rows, first axis slowest.
        window: tokens along each axis.

    Returns:
        [heads, t, t] with t = prod(window), in the dtype of the table.
    """
    heads = table.shape[-1]
    table = table.T.reshape(heads, *(2 * size - 1 for size in window))
    # [heads, finished rows, remaining axes, finished columns]
    bias = jnp.flip(table, range(1, table.ndim))[:, None, ..., None]
    for size in reversed(window):
        step = bias.shape[-1]
        lines = platform_dispatch(_lines(size, step), bias.reshape(*bias.shape[:-2], -1))
        bias = lines.reshape(heads, -1, *bias.shape[2:-2], size * step)
    return bias


@functools.lru_cache(maxsize=64)
def _lines(size: int, step: int) -> Table:
    slices, repeated = (functools.partial(function, size, step) for function in (_slices, _one_slice_of_repetitions))
    return Table("lines of position_bias", Implementation(slices), {"cpu": (Implementation(repeated),)})


def _slices(size: int, step: int, line: Array) -> Array:
    """Returns a line [heads, ..., (2 size - 1) step] from each of `size` starts, the last one first: [heads, size, ..., size step]."""
    starts = [(size - 1 - row) * step for row in range(size)]
    return jnp.stack([lax.slice_in_dim(line, start, start + size * step, axis=-1) for start in starts], axis=1)


def _one_slice_of_repetitions(size: int, step: int, line: Array) -> Array:
    """Returns the same. In repetitions of the line, the starts of rows are one length of the line minus one step apart."""
    if size == 1:
        return line[:, None]
    length = line.shape[-1]
    repeated = jnp.broadcast_to(line[:, None], (line.shape[0], size, *line.shape[1:]))
    flat = jnp.moveaxis(repeated, 1, -2).reshape(*line.shape[:-1], size * length)
    rows = lax.slice_in_dim(flat, (size - 1) * step, size * length - step, axis=-1)
    rows = rows.reshape(*line.shape[:-1], size, length - step)
    return jnp.moveaxis(rows[..., : size * step], -2, 1)
