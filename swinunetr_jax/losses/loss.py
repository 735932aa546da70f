"""The loss of a run: the terms that its options choose, for the regions or the classes of a task."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from swinunetr_jax.errors import InputError
from swinunetr_jax.fields import is_number, set_tuple
from swinunetr_jax.losses.overlap import ALPHA, BETA, SMOOTH, check_tversky, dice_loss, tversky_loss
from swinunetr_jax.losses.voxelwise import GAMMA, check_gamma, cross_entropy, focal_loss
from swinunetr_jax.task import Task

KINDS = ("dice", "dice_ce", "dice_focal", "tversky", "tversky_ce", "tversky_focal")


def targets(labels: jax.Array, task: Task) -> jax.Array:
    """Returns the targets of a label map of integers [b, *grid]: 0 or 1 for each output, float32 [b, *grid, c].

    A region is 1 where the label is one of its members, and a class is 1 where the label is its value. Where the label belongs to no
    output, all outputs are 0.
    """
    members = [task.labels_of(output) for output in task.outputs]
    longest = max(map(len, members))
    # Each row is one comparison. Outputs with fewer labels repeat their first one. Comparisons fuse with the sums of the loss,
    # unlike a look-up in a table.
    rows = np.array([values + values[:1] * (longest - len(values)) for values in members]).T
    dtype = jax.dtypes.canonicalize_dtype(np.promote_types(labels.dtype, np.int32))  # large enough for labels and rows
    labels, rows = labels[..., None].astype(dtype), rows.astype(dtype)
    rows = rows.reshape(longest, *[1] * (labels.ndim - 1), -1)
    inside = labels == rows[0]
    for row in rows[1:]:
        inside |= labels == row
    return inside.astype(jnp.float32)


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
    mask: jax.Array | None = None,
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
        mask=mask,
    )
    entropy = cross_entropy(
        logits,
        targets,
        activation=activation,
        reduction=reduction,
        weight=weight,
        label_smoothing=label_smoothing,
        mask=mask,
    )
    return lambda_dice * dice + lambda_ce * entropy


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss of logits [b, *grid, c] and a label map [b, *grid]; it returns a number.

    The task decides between sigmoid (regions) and softmax (classes). `kind` names an overlap term, `dice_loss` or `tversky_loss`, and
    possibly a voxelwise term that is added to it, `cross_entropy` or `focal_loss`. For regions, the cross-entropy is the binary one of
    each region. The other fields are options of these terms. Voxels that have the task's label `ignore` count in no term. The defaults are
    those of the recipe for BraTS.

    Means over voxels are means over the voxels of the batch that are not ignored. With class weights, the softmax cross-entropy is a
    weighted mean, divided by the sum of the weights of these voxels' classes, as in PyTorch.
    """

    kind: Literal["dice", "dice_ce", "dice_focal", "tversky", "tversky_ce", "tversky_focal"] = "dice"
    """Dice or Tversky loss, alone, with the cross-entropy (ce) or with the focal loss."""
    include_background: bool = True
    """Count class 0, the background, in the Dice or Tversky loss; regions have none."""
    squared: bool = False
    """Square the terms of the denominator of the Dice loss, as in V-Net."""
    batch: bool = False
    """Compute the Dice or Tversky loss over the whole batch instead of each sample."""
    smooth_nr: float = SMOOTH
    """The number added to the numerator."""
    smooth_dr: float = SMOOTH
    """The number added to the denominator."""
    lambda_dice: float = 1.0
    """The weight of the Dice or Tversky loss, if another term is added."""
    lambda_ce: float = 1.0
    """The weight of the cross-entropy in dice_ce and tversky_ce."""
    lambda_focal: float = 1.0
    """The weight of the focal loss in dice_focal and tversky_focal."""
    alpha: float = ALPHA
    """The weight of false positives in the Tversky loss."""
    beta: float = BETA
    """The weight of false negatives in the Tversky loss."""
    gamma: float = GAMMA
    """The exponent of the focal loss."""
    class_weights: tuple[float, ...] | None = None
    """A factor for each output of the task in all terms, the background first; by default 1."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"`kind` of the loss must be one of {', '.join(KINDS)}, got {self.kind!r}.")
        for name in ("smooth_nr", "smooth_dr", "lambda_dice", "lambda_ce", "lambda_focal"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"`{name}` of the loss must be a number of at least 0, got {getattr(self, name)!r}.")
        check_tversky(self.alpha, self.beta)
        check_gamma(self.gamma)
        if self.squared and self.kind.startswith("tversky"):
            raise InputError(f"`squared` is an option of the Dice loss, but the loss is {self.kind}: leave one of them out.")
        if self.class_weights is not None:
            set_tuple(self, "class_weights", "numbers of at least 0", lambda value: is_number(value) and 0 <= value < math.inf)
            if not any(self.class_weights):
                raise InputError(f"`class_weights` of the loss must not all be 0, got {self.class_weights}.")

    def check(self, task: Task) -> None:
        """Raises InputError if the options do not fit a task."""
        if task.kind == "regions" and not self.include_background:
            raise InputError(
                f"`include_background` is False, but regions have no background: it would exclude {task.outputs[0].name}."
            )
        if self.class_weights is not None and len(self.class_weights) != len(task.outputs):
            raise InputError(
                f"`class_weights` of the loss holds {len(self.class_weights)} numbers, expected {len(task.outputs)}, one for each of "
                f"{', '.join(output.name for output in task.outputs)}."
            )

    def __call__(self, logits: jax.Array, labels: jax.Array, task: Task) -> jax.Array:
        self.check(task)
        activation: Literal["sigmoid", "softmax"] = "sigmoid" if task.kind == "regions" else "softmax"
        weight = None if self.class_weights is None else jnp.asarray(self.class_weights, jnp.float32)
        mask = None if task.ignore is None else labels != task.ignore
        shared: dict[str, Any] = {"activation": activation, "weight": weight, "mask": mask}  # options that all terms have
        fields = {name: getattr(self, name) for name in ("include_background", "batch", "smooth_nr", "smooth_dr")}
        overlap, _, voxelwise = self.kind.partition("_")
        one_hot = targets(labels, task)
        if overlap == "dice":
            loss = dice_loss(logits, one_hot, squared=self.squared, **fields, **shared)
        else:
            loss = tversky_loss(logits, one_hot, alpha=self.alpha, beta=self.beta, **fields, **shared)
        if voxelwise == "ce":
            # The sum is divided by the weights of the voxels' classes only if the targets are channel numbers.
            classes = one_hot if weight is None or activation == "sigmoid" else jnp.argmax(one_hot, -1)
            return self.lambda_dice * loss + self.lambda_ce * cross_entropy(logits, classes, **shared)
        if voxelwise == "focal":
            return self.lambda_dice * loss + self.lambda_focal * focal_loss(logits, one_hot, gamma=self.gamma, **shared)
        return loss
