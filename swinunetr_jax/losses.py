"""Dice and cross-entropy losses with MONAI's options and numbers (`monai.losses.DiceLoss`, `DiceCELoss`).

Logits are [b, *grid, c], channels last, with any number of spatial axes. Label maps are integers [b, *grid]. They are turned into targets,
0 or 1 in [b, *grid, c], inside the loss, so that the compiler fuses the comparison into the sums instead of storing the targets. All sums
are computed in at least float32, whatever the type of the logits.
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
    """Returns the targets of a label map of integers [b, *grid]: 0 or 1 for each output, float32 [b, *grid, c].

    A region is 1 where the label is one of its members, and a class is 1 where the label is its value. Where the label belongs to no
    output, all outputs are 0.
    """
    members = [task.labels_of(output) for output in task.outputs]
    longest = max(map(len, members))
    # One row per comparison, with the first label repeated where an output has fewer labels. Comparisons fuse with the sums of the loss,
    # unlike a look-up in a table.
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

    Raises:
        InputError: the shapes differ, an option is unknown, or `logits` has one channel although an option needs several.
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
    intersection = jnp.sum(p * t, axes)  # [b, c], or [c] if `batch`
    total = jnp.sum(p * p, axes) + jnp.sum(t * t, axes) if squared else jnp.sum(p, axes) + jnp.sum(t, axes)
    if jaccard:
        total = 2 * (total - intersection)
    loss = 1 - (2 * intersection + smooth_nr) / (total + smooth_dr)
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
        # softplus(-x) is -log σ(x), and softplus(x) is -log(1 - σ(x)). Neither is computed from the other, because their difference x may
        # be much larger than both.
        loss = (t if weights is None else weights * t) * jax.nn.softplus(-x) + (1 - t) * jax.nn.softplus(x)
        return loss.mean() if reduction == "mean" else loss.sum()
    if channels == 1:
        raise InputError("`logits` has one channel, expected two or more for a softmax.")
    count = math.prod(logits.shape[:-1])
    if weights is not None and numbered:
        count = jnp.sum(t * weights)
    t = t * (1 - label_smoothing) + label_smoothing / channels if label_smoothing else t
    t = t if weights is None else t * weights
    # The log-probabilities are written out, so that no array of them is stored for the backward pass. The largest logit is subtracted
    # first, because it may be so large that the difference of two logits is lost to rounding.
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
    """Returns lambda_dice · `dice_loss` + lambda_ce · `cross_entropy`, with their options. Source: `monai.losses.DiceCELoss`.

    For a softmax, targets may be channel numbers. For sigmoids, each channel has its own binary cross-entropy; MONAI 1.6.1 does this for a
    single channel only, and applies a softmax to several channels even if they overlap.
    """
    numbered = targets.ndim == logits.ndim - 1 and activation == "softmax"
    one_hot = targets[..., None] == np.arange(logits.shape[-1]) if numbered else targets
    dice = dice_loss(
        logits,
        one_hot,
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
    """A loss of logits [b, *grid, c] and a label map [b, *grid]; it returns a number.

    The task decides between sigmoid and softmax. `kind` is "dice" or "dice_ce", and the other fields are options of `dice_loss` and
    `dice_ce_loss`. The defaults are those of the recipe for BraTS.
    """

    kind: Literal["dice", "dice_ce"] = "dice"
    """dice, or dice_ce, which adds the cross-entropy."""
    include_background: bool = True
    """Count class 0, the background; regions have none."""
    squared: bool = False
    """Square the terms of the denominator, as in V-Net."""
    batch: bool = False
    """Compute the Dice over the whole batch instead of each sample."""
    smooth_nr: float = SMOOTH
    """The number added to the numerator."""
    smooth_dr: float = SMOOTH
    """The number added to the denominator."""
    lambda_dice: float = 1.0
    """The weight of the Dice loss in dice_ce."""
    lambda_ce: float = 1.0
    """The weight of the cross-entropy in dice_ce."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"`kind` of the loss must be one of {', '.join(KINDS)}, got {self.kind!r}.")
        for name in ("smooth_nr", "smooth_dr", "lambda_dice", "lambda_ce"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"`{name}` of the loss must be a number of at least 0, got {getattr(self, name)!r}.")

    def __call__(self, logits: jax.Array, labels: jax.Array, task: Task) -> jax.Array:
        if task.kind == "regions" and not self.include_background:
            raise InputError(
                f"`include_background` is False, but regions have no background: it would exclude {task.outputs[0].name}."
            )
        fields = {name: getattr(self, name) for name in ("include_background", "squared", "batch", "smooth_nr", "smooth_dr")}
        fields["activation"] = "sigmoid" if task.kind == "regions" else "softmax"
        wanted = targets(labels, task)
        if self.kind == "dice":
            return dice_loss(logits, wanted, **fields)
        return dice_ce_loss(logits, wanted, lambda_dice=self.lambda_dice, lambda_ce=self.lambda_ce, **fields)


def _wide(x: jax.Array) -> jax.Array:
    """Returns the array in at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _weights(weight: jax.Array, logits: jax.Array) -> jax.Array:
    weight = jnp.asarray(weight, jnp.promote_types(logits.dtype, jnp.float32))
    if weight.shape != logits.shape[-1:]:
        raise InputError(f"`weight` has shape {weight.shape}, expected {logits.shape[-1:]}, one for each channel.")
    return weight
