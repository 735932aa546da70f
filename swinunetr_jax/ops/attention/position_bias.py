"""The bias of window attention for each pair of tokens, from the table of relative positions, without a gather.

A row of the bias, which is added to the logits of one token, is a box of the mirrored table that has the size of the window. So the bias is
stacked from slices that are contiguous in memory, one axis after another, and its gradient is a sum of slices in a fixed order. A gather
of 117,649 rows of a few numbers would run row by row on a TPU, and its gradient would be a scatter.
"""

import jax.numpy as jnp
from jax import Array, lax


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
        lines = bias.reshape(*bias.shape[:-2], -1)
        starts = [(size - 1 - row) * step for row in range(size)]
        bias = jnp.stack([lax.slice_in_dim(lines, start, start + size * step, axis=-1) for start in starts], axis=1)
        bias = bias.reshape(heads, -1, *bias.shape[3:])
    return bias
