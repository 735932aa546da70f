"""Losses that are sums over voxels: the cross-entropy and the focal loss."""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from swinunetr_jax.errors import InputError
from swinunetr_jax.losses.inputs import ACTIVATIONS, at_least_float32, channel_mask, channel_weights, check_targets
from swinunetr_jax.runtime.promotion import with_rank

GAMMA = 2.0  # the value that Lin et al. recommend


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    *,
    activation: Literal["sigmoid", "softmax"],
    reduction: Literal["mean", "sum"] = "mean",
    weight: jax.Array | None = None,
    label_smoothing: float = 0.0,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Returns the cross-entropy, a number.

    For logits x and targets t of one voxel the loss is

        softmax: -Σ_c t_c log softmax(x)_c
        sigmoid: -t log σ(x) - (1 - t) log(1 - σ(x)) for each channel

    Source: `torch.nn.CrossEntropyLoss` and `torch.nn.BCEWithLogitsLoss`.

    Args:
        logits: [b, *grid, c].
        targets: 0 and 1 in [b, *grid, c], or for a softmax the channel number of each voxel, integers [b, *grid].
        activation: "softmax", with the mean over voxels, or "sigmoid", with the mean over voxels and channels.
        reduction: how the losses of all voxels are combined.
        weight: [c]; for a sigmoid, the factor of the term in t. As in PyTorch, the mean of a softmax is divided by the sum of the weights
            of the voxels' classes if targets are channel numbers, and by the number of voxels otherwise.
        label_smoothing: for a softmax, the share of the target that is distributed over all channels.
        mask: [b, *grid], 1 for the voxels that count and 0 for the others; None counts all. Means are over the voxels that count, and 0 if
            there are none.
    """
    _check_options(activation, reduction, "a cross-entropy")
    x, channels = at_least_float32(logits), logits.shape[-1]
    numbered = targets.ndim == logits.ndim - 1 and activation == "softmax"
    if not numbered or targets.shape != logits.shape[:-1]:
        check_targets(logits, targets)
    t = targets[..., None] == with_rank(jnp.arange(channels, dtype=targets.dtype), x.ndim) if numbered else targets
    t = t.astype(x.dtype)
    weights = None if weight is None else channel_weights(weight, logits)
    counted = None if mask is None else channel_mask(mask, logits)
    if activation == "sigmoid":
        if label_smoothing:
            raise InputError(f"`label_smoothing` is for a softmax, got {label_smoothing} with a sigmoid.")
        # softplus(-x) is -log σ(x), and softplus(x) is -log(1 - σ(x)). Neither is computed from the other, because their difference x may
        # be much larger than both.
        loss = (t if weights is None else weights * t) * jax.nn.softplus(-x) + (1 - t) * jax.nn.softplus(x)
        return _combined(loss, counted, reduction)
    if channels == 1:
        raise InputError("`logits` has one channel, expected two or more for a softmax.")
    count = math.prod(logits.shape[:-1]) if counted is None else jnp.sum(counted)
    if weights is not None and numbered:
        count = jnp.sum(t * weights if counted is None else t * weights * counted)
    t = t * (1 - label_smoothing) + label_smoothing / channels if label_smoothing else t
    t = t if weights is None else t * weights
    t = t if counted is None else t * counted
    # The log-probabilities are written out, so that no array of them is stored for the backward pass. The largest logit is subtracted
    # first, because it may be so large that the difference of two logits is lost to rounding.
    x = x - jax.lax.stop_gradient(x.max(-1, keepdims=True))
    loss = jnp.sum(t * (jax.nn.logsumexp(x, -1, keepdims=True) - x))
    if reduction == "sum":
        return loss
    return loss / count if counted is None else _ratio(loss, jnp.asarray(count))


def focal_loss(
    logits: jax.Array,
    targets: jax.Array,
    *,
    activation: Literal["sigmoid", "softmax"],
    gamma: float = GAMMA,
    reduction: Literal["mean", "sum"] = "mean",
    weight: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Returns the focal loss, a number: the cross-entropy with less weight for voxels that are already classified well.

    For the probability p of the true class of a voxel, or for a sigmoid p = σ(x) where the target is 1 and 1 - σ(x) where it is 0, the loss
    is

        -(1 - p)^gamma log p.

    Lin et al. 2017 (https://arxiv.org/abs/1708.02002) introduced it. Source: `monai.losses.FocalLoss`.

    Args:
        logits: [b, *grid, c].
        targets: 0 and 1 in [b, *grid, c], for a softmax at most one 1 in each voxel.
        activation: "softmax" or "sigmoid". As in MONAI, both have the mean over voxels and channels, although for a softmax only the
            channel of the true class has a term, so that gamma = 0 returns the cross-entropy divided by the number of channels.
        gamma: the exponent, at least 0.
        reduction: how the losses of all voxels and channels are combined.
        weight: [c], a factor for each channel. The mean is not divided by the factors.
        mask: as in `cross_entropy`.

    Raises:
        InputError: the shapes differ, an option is unknown, gamma is negative, or a softmax has one channel.
    """
    _check_options(activation, reduction, "a focal loss")
    check_gamma(gamma)
    check_targets(logits, targets)
    x, t = at_least_float32(logits), at_least_float32(targets)
    # 1 - p is computed from its logarithm, which loses no digits for p near 1 and whose gradient is finite for every gamma.
    if activation == "sigmoid":
        z = jnp.where(t > 0, x, -x)
        loss = jax.nn.softplus(-z) * jnp.exp(-gamma * jax.nn.softplus(z))
    elif logits.shape[-1] == 1:
        raise InputError("`logits` has one channel, expected two or more for a softmax.")
    else:
        x = x - jax.lax.stop_gradient(x.max(-1, keepdims=True))
        total = jax.nn.logsumexp(x, -1, keepdims=True)
        others = jax.nn.logsumexp(jnp.where(t > 0, -jnp.inf, x), -1, keepdims=True)
        loss = t * (total - x) * jnp.exp(gamma * (others - total))
    loss = loss if weight is None else loss * channel_weights(weight, logits)
    return _combined(loss, None if mask is None else channel_mask(mask, logits), reduction)


def check_gamma(gamma: float) -> None:
    """Raises InputError unless the exponent of the focal loss is a number of at least 0."""
    if not 0 <= gamma < math.inf:
        raise InputError(f"`gamma` of the focal loss must be a number of at least 0, got {gamma:g}: 2 is the usual value.")


def _check_options(activation: str, reduction: str, name: str) -> None:
    if activation not in ACTIVATIONS:
        raise InputError(f"`activation` must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
    if reduction not in ("mean", "sum"):
        raise InputError(f"`reduction` must be mean or sum for {name}, got {reduction!r}.")


def _combined(loss: jax.Array, counted: jax.Array | None, reduction: str) -> jax.Array:
    """Returns the mean or the sum of losses [b, *grid, c] over channels and over the voxels that count, [b, *grid, 1]."""
    if counted is None:
        return loss.mean() if reduction == "mean" else loss.sum()
    total = jnp.sum(loss * counted)
    return total if reduction == "sum" else _ratio(total, jnp.sum(counted) * loss.shape[-1])


def _ratio(total: jax.Array, count: jax.Array) -> jax.Array:
    """Returns total / count, and 0 if the count is 0, as in a crop without an annotated voxel."""
    return total / jnp.where(count > 0, count, 1)
