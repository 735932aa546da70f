"""The arguments that all losses share: checks of shapes and options, and conversions to at least float32."""

import jax
import jax.numpy as jnp

from swinunetr_jax.errors import InputError
from swinunetr_jax.runtime.promotion import wide_dtype, with_rank

ACTIVATIONS = ("sigmoid", "softmax")
REDUCTIONS = ("mean", "sum", "none")


def check_targets(logits: jax.Array, targets: jax.Array) -> None:
    """Raises InputError unless the targets have the shape of the logits, [b, *grid, c]."""
    if targets.shape != logits.shape:
        raise InputError(f"`targets` has shape {targets.shape}, expected {logits.shape}, that of `logits`.")


def at_least_float32(x: jax.Array) -> jax.Array:
    """Returns the array in at least float32."""
    return x.astype(wide_dtype(x.dtype))


def channel_weights(weight: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns factors [1, ..., 1, c] in at least float32. Raises InputError unless there is one for each channel of the logits."""
    weight = jnp.asarray(weight, wide_dtype(logits.dtype))
    if weight.shape != logits.shape[-1:]:
        raise InputError(f"`weight` has shape {weight.shape}, expected {logits.shape[-1:]}, one for each channel.")
    return with_rank(weight, logits.ndim)


def channel_mask(mask: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns a mask [b, *grid] as 0 and 1 in [b, *grid, 1]. Raises InputError unless it has the shape of the logits without channels."""
    if mask.shape != logits.shape[:-1]:
        raise InputError(f"`mask` has shape {mask.shape}, expected {logits.shape[:-1]}, that of `logits` without channels.")
    return mask[..., None].astype(wide_dtype(logits.dtype))
