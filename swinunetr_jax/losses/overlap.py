"""Losses of the overlap between probabilities and targets, computed from sums over the grid: Dice, Jaccard and Tversky."""

from typing import Literal

import jax
import jax.numpy as jnp

from swinunetr_jax.errors import InputError
from swinunetr_jax.losses.inputs import (
    ACTIVATIONS,
    REDUCTIONS,
    at_least_float32,
    channel_mask,
    channel_weights,
    check_targets,
)
from swinunetr_jax.runtime.promotion import with_rank

SMOOTH = 1e-5
ALPHA, BETA = 0.3, 0.7  # the values that Salehi et al. recommend


def dice_loss(
    logits: jax.Array,
    targets: jax.Array,
    *,
    activation: Literal["sigmoid", "softmax"] | None = "sigmoid",
    include_background: bool = True,
    squared: bool = False,
    jaccard: bool = False,
    smooth_nr: float = SMOOTH,
    smooth_dr: float = SMOOTH,
    batch: bool = False,
    reduction: Literal["mean", "sum", "none"] = "mean",
    weight: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Returns the soft Dice loss: a scalar, or [b, c] for the reduction "none".

    For probabilities p and targets t of one sample and channel, summed over the grid, the loss is

        1 - (2 Σ p t + smooth_nr) / (Σ p + Σ t + smooth_dr).

    Milletari et al. 2016 (https://arxiv.org/abs/1606.04797) introduced it with p² and t² in the denominator (`squared`). Source:
    `monai.losses.DiceLoss`.

    Args:
        logits: [b, *grid, c].
        targets: 0 and 1 in [b, *grid, c].
        activation: the function that turns logits into probabilities; None if `logits` are probabilities.
        include_background: whether channel 0 counts.
        squared: whether the denominator has squares, as in V-Net.
        jaccard: whether to return 1 - intersection over union instead.
        smooth_nr, smooth_dr: the terms added to the numerator and the denominator. A class without voxels has the loss
            1 - smooth_nr / (Σ p + smooth_dr).
        batch: whether to sum over the batch before dividing; reduction "none" then returns [c].
        reduction: how the losses of samples and channels are combined.
        weight: [c], a factor for the loss of each channel. The mean is not divided by the factors, and a single channel has no factor.
        mask: [b, *grid], 1 for the voxels that count and 0 for the others; None counts all.

    Raises:
        InputError: the shapes differ, an option is unknown, or `logits` has one channel although an option needs several.
    """
    p, t = _probabilities(logits, targets, activation, include_background, mask)
    _check_reduction(reduction)
    axes = _summed_axes(p, batch)
    intersection = jnp.sum(p * t, axes)  # [b, c], or [c] if `batch`
    total = jnp.sum(p * p, axes) + jnp.sum(t * t, axes) if squared else jnp.sum(p, axes) + jnp.sum(t, axes)
    if jaccard:
        total = 2 * (total - intersection)
    loss = 1 - (2 * intersection + smooth_nr) / (total + smooth_dr)
    return _reduced(loss, logits, include_background, weight, reduction)


def tversky_loss(
    logits: jax.Array,
    targets: jax.Array,
    *,
    activation: Literal["sigmoid", "softmax"] | None = "sigmoid",
    alpha: float = ALPHA,
    beta: float = BETA,
    include_background: bool = True,
    smooth_nr: float = SMOOTH,
    smooth_dr: float = SMOOTH,
    batch: bool = False,
    reduction: Literal["mean", "sum", "none"] = "mean",
    weight: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Returns the Tversky loss, in which false positives and false negatives have different weights: a scalar, or [b, c] for "none".

    For probabilities p and targets t of one sample and channel, summed over the grid, the loss is

        1 - (Σ p t + smooth_nr) / (Σ p t + alpha Σ p (1 - t) + beta Σ (1 - p) t + smooth_dr).

    For alpha = beta = 0.5 it is the Dice loss. A beta above alpha finds more of small structures, at the price of more false positives.
    Salehi et al. 2017 (https://arxiv.org/abs/1706.05721) introduced it. Source: `monai.losses.TverskyLoss`, whose defaults are 0.5 and 0.5.

    Args:
        logits: [b, *grid, c].
        targets: 0 and 1 in [b, *grid, c].
        activation: the function that turns logits into probabilities; None if `logits` are probabilities.
        alpha: the weight of false positives, between 0 and 1.
        beta: the weight of false negatives, between 0 and 1.
        include_background, smooth_nr, smooth_dr, batch, reduction, weight, mask: as in `dice_loss`.

    Raises:
        InputError: as for `dice_loss`, or alpha or beta are out of range, or both are 0.
    """
    check_tversky(alpha, beta)
    p, t = _probabilities(logits, targets, activation, include_background, mask)
    _check_reduction(reduction)
    axes = _summed_axes(p, batch)
    intersection = jnp.sum(p * t, axes)  # [b, c], or [c] if `batch`
    # A masked voxel has p = t = 0, so it is neither a false positive nor a false negative.
    errors = alpha * jnp.sum(p * (1 - t), axes) + beta * jnp.sum((1 - p) * t, axes)
    loss = 1 - (intersection + smooth_nr) / (intersection + errors + smooth_dr)
    return _reduced(loss, logits, include_background, weight, reduction)


def check_tversky(alpha: float, beta: float) -> None:
    """Raises InputError unless both weights of the Tversky loss are between 0 and 1 and one of them is above 0."""
    if not (0 <= alpha <= 1 and 0 <= beta <= 1 and alpha + beta > 0):
        raise InputError(
            f"`alpha` and `beta` of the Tversky loss must be between 0 and 1 and not both 0, got {alpha:g} and {beta:g}: "
            "their sum is usually 1."
        )


def _probabilities(
    logits: jax.Array, targets: jax.Array, activation: str | None, include_background: bool, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Returns probabilities and targets of the channels that count, both 0 where the mask is 0."""
    check_targets(logits, targets)
    if activation not in (*ACTIVATIONS, None):
        raise InputError(f"`activation` must be one of {', '.join(ACTIVATIONS)} or None, got {activation!r}.")
    if logits.shape[-1] == 1 and (activation == "softmax" or not include_background):
        raise InputError("`logits` has one channel, expected two or more for a softmax or to leave out the background.")
    p, t = at_least_float32(logits), at_least_float32(targets)
    if activation is not None:
        p = jax.nn.sigmoid(p) if activation == "sigmoid" else jax.nn.softmax(p)
    if mask is not None:
        counted = channel_mask(mask, logits)
        p, t = p * counted, t * counted
    first = 0 if include_background else 1
    return p[..., first:], t[..., first:]


def _check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise InputError(f"`reduction` must be one of {', '.join(REDUCTIONS)}, got {reduction!r}.")


def _summed_axes(p: jax.Array, batch: bool) -> tuple[int, ...]:
    """Returns the axes of the grid and, for a loss of the whole batch, that of the samples."""
    return tuple(range(0 if batch else 1, p.ndim - 1))


def _reduced(loss: jax.Array, logits: jax.Array, include_background: bool, weight: jax.Array | None, reduction: str) -> jax.Array:
    """Returns the losses of samples and channels, weighted and combined."""
    if weight is not None and loss.shape[-1] > 1:
        factors = channel_weights(weight, logits).reshape(-1)[0 if include_background else 1 :]
        loss = loss * with_rank(factors, loss.ndim)
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()
