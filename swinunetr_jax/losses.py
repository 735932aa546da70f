"""Dice and cross-entropy losses with MONAI's options and numbers (`monai.losses.DiceLoss`, `DiceCELoss`).

Logits are [b, *grid, c], channels last, with any number of spatial axes. Label maps, [b, *grid] of integers, become targets,
[b, *grid, c] of 0 and 1, on the device and inside the loss: compilers fuse the comparison into the sums, no copy is kept.
Everything is summed in float32 or better, whatever the type of the logits.
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task

KINDS = ("dice", "dice_ce")
ACTIVATIONS = ("sigmoid", "softmax")
REDUCTIONS = ("mean", "sum", "none")
SMOOTH = 1e-5


def targets(labels: jax.Array, task: Task) -> jax.Array:
    """What each output should be: float32 [b, *grid, c] of 0 and 1 from a label map [b, *grid] of integers.

    A region is 1 where the label is one of its members, a class where the label is its value. A label that belongs to no output
    is 0 in all of them.
    """
    members = [output.members if task.kind == "regions" and output.members else (output.value,) for output in task.outputs]
    longest = max(map(len, members))
    # One row per comparison, short ones repeated: comparisons alone fuse where a table that is indexed would not.
    rows = np.array([values + values[:1] * (longest - len(values)) for values in members]).T
    labels = labels[..., None]
    inside = labels == rows[0]
    for row in rows[1:]:
        inside |= labels == row
    return inside.astype(jnp.float32)


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
) -> jax.Array:
    """1 - Dice, a number, or [b, c] for reduction "none". Source: `monai.losses.DiceLoss`.

    Args:
        logits: [b, *grid, c].
        targets: [b, *grid, c] of 0 and 1.
        activation: what makes probabilities of the logits; None where they are probabilities.
        include_background: count channel 0.
        squared: squares in the denominator, as in V-Net.
        jaccard: 1 - intersection over union instead.
        smooth_nr, smooth_dr: added to the numerator and the denominator; an absent class has the loss 1 - smooth_nr /
            (prediction + smooth_dr).
        batch: sum over the batch before dividing; "none" then gives [c].
        weight: [c], a factor for each channel's loss, not part of the mean's divisor; of no effect on a single channel.

    Raises:
        InputError: shapes differ, an option is unknown, or there is but one channel for what needs several.
    """
    if logits.shape != targets.shape:
        raise InputError(f"`targets` has shape {targets.shape}, expected {logits.shape}, that of `logits`.")
    if activation not in (*ACTIVATIONS, None):
        raise InputError(f"`activation` must be one of {', '.join(ACTIVATIONS)} or None, got {activation!r}.")
    if reduction not in REDUCTIONS:
        raise InputError(f"`reduction` must be one of {', '.join(REDUCTIONS)}, got {reduction!r}.")
    if logits.shape[-1] == 1 and (activation == "softmax" or not include_background):
        raise InputError("`logits` has one channel, expected two or more for a softmax or to leave out the background.")
    p, t = _wide(logits), _wide(targets)
    if activation is not None:
        p = jax.nn.sigmoid(p) if activation == "sigmoid" else jax.nn.softmax(p)
    first = 0 if include_background else 1
    p, t = p[..., first:], t[..., first:]
    axes = tuple(range(0 if batch else 1, p.ndim - 1))
    both = jnp.sum(p * t, axes)  # [b, c], or [c] of a batch
    either = jnp.sum(p * p, axes) + jnp.sum(t * t, axes) if squared else jnp.sum(p, axes) + jnp.sum(t, axes)
    if jaccard:
        either = 2 * (either - both)
    loss = 1 - (2 * both + smooth_nr) / (either + smooth_dr)
    if weight is not None and loss.shape[-1] > 1:
        loss = loss * _weights(weight, logits)[first:]
    return loss if reduction == "none" else loss.mean() if reduction == "mean" else loss.sum()


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    *,
    activation: Literal["sigmoid", "softmax"],
    reduction: Literal["mean", "sum"] = "mean",
    weight: jax.Array | None = None,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Cross-entropy, a number. Source: `torch.nn.CrossEntropyLoss` and `torch.nn.BCEWithLogitsLoss`.

    Args:
        logits: [b, *grid, c].
        targets: [b, *grid, c] of 0 and 1, or for a softmax a map of channel numbers, integers [b, *grid].
        activation: "softmax" compares channels and has the mean over voxels; "sigmoid" takes each channel by itself and has the
            mean over voxels and channels.
        weight: [c]; for a sigmoid a factor of what should be 1. The mean of a softmax is divided by the summed weights of the
            voxels' classes for a map of channel numbers, and by the number of voxels otherwise, as PyTorch does.
        label_smoothing: share of the target spread over all channels, for a softmax.
    """
    if activation not in ACTIVATIONS:
        raise InputError(f"`activation` must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
    if reduction not in ("mean", "sum"):
        raise InputError(f"`reduction` must be mean or sum for a cross-entropy, got {reduction!r}.")
    x, channels = _wide(logits), logits.shape[-1]
    numbered = targets.ndim == logits.ndim - 1 and activation == "softmax"
    if targets.shape != (logits.shape[:-1] if numbered else logits.shape):
        raise InputError(f"`targets` has shape {targets.shape}, expected {logits.shape}, that of `logits`.")
    t = targets[..., None] == np.arange(channels) if numbered else targets
    t = t.astype(x.dtype)
    weights = None if weight is None else _weights(weight, logits)
    if activation == "sigmoid":
        if label_smoothing:
            raise InputError(f"`label_smoothing` is for a softmax, got {label_smoothing} with a sigmoid.")
        # -log sigmoid(x) and -log(1 - sigmoid(x)), not one from the other, as their difference x may be much larger than both
        loss = (t if weights is None else weights * t) * jax.nn.softplus(-x) + (1 - t) * jax.nn.softplus(x)
        return loss.mean() if reduction == "mean" else loss.sum()
    if channels == 1:
        raise InputError("`logits` has one channel, expected two or more for a softmax.")
    count = math.prod(logits.shape[:-1])
    if weights is not None and numbered:
        count = jnp.sum(t * weights)
    t = t * (1 - label_smoothing) + label_smoothing / channels if label_smoothing else t
    t = t if weights is None else t * weights
    # Written out, so that no array of log-probabilities is kept for the backward pass; without the largest logit, which may be so large
    # that the difference of two logits is lost to rounding.
    x = x - jax.lax.stop_gradient(x.max(-1, keepdims=True))
    loss = jnp.sum(t * (jax.nn.logsumexp(x, -1, keepdims=True) - x))
    return loss / count if reduction == "mean" else loss


def dice_ce_loss(
    logits: jax.Array,
    targets: jax.Array,
    *,
    activation: Literal["sigmoid", "softmax"] = "softmax",
    include_background: bool = True,
    squared: bool = False,
    jaccard: bool = False,
    smooth_nr: float = SMOOTH,
    smooth_dr: float = SMOOTH,
    batch: bool = False,
    reduction: Literal["mean", "sum"] = "mean",
    lambda_dice: float = 1.0,
    lambda_ce: float = 1.0,
    weight: jax.Array | None = None,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """lambda_dice · `dice_loss` + lambda_ce · `cross_entropy`; options as there. Source: `monai.losses.DiceCELoss`.

    Targets may be a map of channel numbers for a softmax. Where there are several sigmoids, each has its own binary
    cross-entropy. MONAI 1.6.1 has that for a single channel only: of several, even overlapping ones, it takes the softmax.
    """
    numbered = targets.ndim == logits.ndim - 1 and activation == "softmax"
    hot = targets[..., None] == np.arange(logits.shape[-1]) if numbered else targets
    dice = dice_loss(
        logits,
        hot,
        activation=activation,
        include_background=include_background,
        squared=squared,
        jaccard=jaccard,
        smooth_nr=smooth_nr,
        smooth_dr=smooth_dr,
        batch=batch,
        reduction=reduction,
        weight=weight,
    )
    entropy = cross_entropy(
        logits, targets, activation=activation, reduction=reduction, weight=weight, label_smoothing=label_smoothing
    )
    return lambda_dice * dice + lambda_ce * entropy


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss of logits [b, *grid, c] against a label map [b, *grid], a number; the task tells sigmoid from softmax.

    `kind` is "dice" or "dice_ce", other fields are those of `dice_loss` and `dice_ce_loss`. The default is the recipe of BraTS.
    """

    kind: Literal["dice", "dice_ce"] = "dice"
    """dice, or dice_ce, which adds the cross-entropy."""
    include_background: bool = True
    """Count class 0, the background; regions have none."""
    squared: bool = False
    """Square the terms of the denominator, as in V-Net."""
    batch: bool = False
    """Take the Dice of the whole batch as of one volume, not of each sample."""
    smooth_nr: float = SMOOTH
    """Number that is added to the numerator."""
    smooth_dr: float = SMOOTH
    """Number that is added to the denominator."""
    lambda_dice: float = 1.0
    """Weight of the Dice part of dice_ce."""
    lambda_ce: float = 1.0
    """Weight of the cross-entropy."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"`kind` of the loss must be one of {', '.join(KINDS)}, got {self.kind!r}.")
        for name in ("smooth_nr", "smooth_dr", "lambda_dice", "lambda_ce"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"`{name}` of the loss must be a number of 0 or more, got {getattr(self, name)!r}.")

    def __call__(self, logits: jax.Array, labels: jax.Array, task: Task) -> jax.Array:
        if task.kind == "regions" and not self.include_background:
            raise InputError(
                f"`include_background` is off, but regions have no background: it would drop {task.outputs[0].name}."
            )
        fields = {name: getattr(self, name) for name in ("include_background", "squared", "batch", "smooth_nr", "smooth_dr")}
        fields["activation"] = "sigmoid" if task.kind == "regions" else "softmax"
        wanted = targets(labels, task)
        if self.kind == "dice":
            return dice_loss(logits, wanted, **fields)
        return dice_ce_loss(logits, wanted, lambda_dice=self.lambda_dice, lambda_ce=self.lambda_ce, **fields)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _weights(weight: jax.Array, logits: jax.Array) -> jax.Array:
    weight = jnp.asarray(weight, jnp.promote_types(logits.dtype, jnp.float32))
    if weight.shape != logits.shape[-1:]:
        raise InputError(f"`weight` has shape {weight.shape}, expected {logits.shape[-1:]}, one for each channel.")
    return weight
