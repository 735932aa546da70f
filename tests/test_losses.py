"""Losses equal those of MONAI in double precision: values, gradients, every option, odd sizes, absent classes.

Some expected values are computed by hand.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.loss_references import class_map, compare, sample

from swinunetr_jax import InputError, Task
from swinunetr_jax.losses import Loss, cross_entropy, dice_ce_loss, dice_loss, targets
from swinunetr_jax.output import Output

GRIDS = [(5, 3, 7), (4, 9)]
BOOLS = (False, True)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("activation", ["sigmoid", "softmax", None])
def test_dice_equals_monai(double, grid, activation):
    losses = pytest.importorskip("monai.losses")
    logits, wanted = sample(grid, 3)
    logits = logits if activation else 1 / (1 + np.exp(-logits))
    kinds = itertools.cycle((("mean", (1e-5, 1e-5)), ("sum", (0.0, 1e-6)), ("none", (1.0, 2.0))))
    for (background, squared, jaccard, batch), (reduction, smooth) in zip(itertools.product(BOOLS, repeat=4), kinds):
        common = {"include_background": background, "jaccard": jaccard, "batch": batch, "reduction": reduction}
        common |= dict(zip(("smooth_nr", "smooth_dr"), smooth))
        theirs = losses.DiceLoss(**common, squared_pred=squared, **({activation: True} if activation else {}))
        compare(partial(dice_loss, activation=activation, squared=squared, **common), theirs, logits, wanted)


@pytest.mark.parametrize("grid", GRIDS)
def test_dice_and_cross_entropy_of_classes_equal_monai(double, grid):
    """The targets are one-hot or channel numbers.

    Only with channel numbers is the weighted mean divided by the sum of the weights.
    """
    torch = pytest.importorskip("torch")
    losses = pytest.importorskip("monai.losses")
    logits, _ = sample(grid, 4)
    labels = class_map(grid, 4)
    hot = np.eye(4)[labels]
    weight = np.array([0.5, 2.0, 3.0, 0.25])
    for background, reduction, weights, smoothing, numbered in itertools.product(
        BOOLS, ("mean", "sum"), (None, weight), (0.0, 0.1), BOOLS
    ):
        common = {"include_background": background, "reduction": reduction, "label_smoothing": smoothing}
        common |= {"lambda_dice": 0.7, "lambda_ce": 1.3}
        theirs = losses.DiceCELoss(
            **common, softmax=True, to_onehot_y=numbered, weight=None if weights is None else torch.tensor(weights)
        )
        compare(partial(dice_ce_loss, weight=weights, **common), theirs, logits, labels if numbered else hot)


@pytest.mark.parametrize("grid", GRIDS)
def test_sigmoid_losses_equal_monai_for_one_channel_and_binary_losses_for_several(double, grid):
    torch = pytest.importorskip("torch")
    losses = pytest.importorskip("monai.losses")
    for channels, weight in itertools.product((1, 3), (None, np.array([2.0, 0.5, 3.0]))):
        logits, wanted = sample(grid, channels)
        weight = None if weight is None else weight[:channels]
        pos = None if weight is None else torch.tensor(weight).reshape(channels, *[1] * len(grid))
        for reduction in ("mean", "sum"):
            if channels == 1:
                theirs = losses.DiceCELoss(
                    sigmoid=True, reduction=reduction, weight=None if weight is None else torch.tensor(weight)
                )
            else:
                dice = losses.DiceLoss(sigmoid=True, reduction=reduction, weight=weight)
                entropy = torch.nn.BCEWithLogitsLoss(pos_weight=pos, reduction=reduction)
                theirs = lambda x, t, dice=dice, entropy=entropy: dice(x, t) + entropy(x, t)  # noqa: E731
            options = {"activation": "sigmoid", "reduction": reduction, "weight": weight}
            compare(partial(dice_ce_loss, **options), theirs, logits, wanted)


def test_sums_over_bfloat16_logits_are_computed_in_float32():
    """A bfloat16 sum of 40³ probabilities would stop growing at 256."""
    rng = np.random.default_rng(0)
    logits, wanted = rng.normal(size=(1, 40, 40, 40, 2)).astype(np.float32), rng.random((1, 40, 40, 40, 2)) < 0.5
    half = jnp.asarray(logits, jnp.bfloat16)
    exact = np.asarray(half.astype(jnp.float32), np.float64)
    p, t = 1 / (1 + np.exp(-exact)), wanted.astype(np.float64)
    dice = 1 - 2 * (p * t).sum((1, 2, 3)) / (p.sum((1, 2, 3)) + t.sum((1, 2, 3)))
    entropy = np.mean(t * np.log1p(np.exp(-exact)) + (1 - t) * np.log1p(np.exp(exact)))
    loss, gradient = jax.value_and_grad(lambda x: dice_ce_loss(x, jnp.asarray(t, jnp.float32), activation="sigmoid"))(half)
    assert loss.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    assert float(loss) == pytest.approx(dice.mean() + entropy, abs=1e-6)


def test_extreme_logits_stay_finite():
    logits = jnp.array([[[1e4, -1e4, 3e4]]])
    for activation in ("sigmoid", "softmax"):
        wanted = jnp.array([[[0.0, 1.0, 0.0]]])
        loss, gradient = jax.value_and_grad(lambda x: dice_ce_loss(x, wanted, activation=activation))(logits)  # noqa: B023
        assert np.isfinite(loss)
        assert np.isfinite(gradient).all()


def test_targets_of_regions_and_classes():
    labels = np.array([[[0, 1, 2, 4, 3]]], np.uint8)
    regions = targets(jnp.asarray(labels), Task.brats())
    assert regions.dtype == jnp.float32
    assert regions[0, 0].tolist() == [[0, 0, 0], [1, 1, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0]]  # TC, WT, ET
    assert targets(jnp.asarray(labels), Task.brats(et_label=3))[0, 0, 3:].tolist() == [[0, 0, 0], [1, 1, 1]]
    sparse = Task(kind="classes", outputs=(Output(name="background", value=0), Output(name="liver", value=200)))
    assert targets(jnp.array([[0, 200, 7]], jnp.uint8), sparse)[0].tolist() == [[1, 0], [0, 1], [0, 0]]
    # An output without members has its own value.
    single_region = Task(kind="regions", outputs=(Output(name="lesion", value=5),), paint=(0,))
    assert targets(jnp.array([[5, 0]], jnp.int32), single_region)[0].tolist() == [[1], [0]]


def test_losses_computed_by_hand():
    """The probabilities 1, 0, 1, 0 and the targets 1, 1, 0, 0 share half of each and a third of their union."""
    p, t = jnp.array([[[1.0], [0], [1], [0]]]), jnp.array([[[1.0], [1], [0], [0]]])
    options = {"activation": None, "smooth_nr": 0, "smooth_dr": 0}
    assert float(dice_loss(p, t, **options)) == 0.5
    assert float(dice_loss(p, t, jaccard=True, **options)) == pytest.approx(2 / 3)
    assert dice_loss(p, t, reduction="none", **options).shape == (1, 1)
    zeros = jnp.zeros((1, 4, 2))
    assert float(cross_entropy(zeros, jnp.array([[0, 1, 1, 0]]), activation="softmax")) == pytest.approx(np.log(2))
    assert float(cross_entropy(zeros[..., :1], t, activation="sigmoid")) == pytest.approx(np.log(2))


def test_loss_follows_the_task():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(1, 4, 5, 6, 3)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, (1, 4, 5, 6)), jnp.uint8)
    brats, classes = Task.brats(), Task.classes(3)
    assert Loss()(logits, labels, brats) == dice_loss(logits, targets(labels, brats), activation="sigmoid")
    mixed = Loss(kind="dice_ce", include_background=False, squared=True, batch=True, smooth_nr=0.0, smooth_dr=1e-6, lambda_ce=0.5)
    options = {"include_background": False, "squared": True, "batch": True, "smooth_nr": 0.0, "smooth_dr": 1e-6}
    expected = dice_loss(logits, targets(labels, classes), activation="softmax", **options)
    expected += 0.5 * cross_entropy(logits, labels, activation="softmax")
    assert jax.jit(mixed, static_argnums=2)(logits, labels, classes) == pytest.approx(float(expected), abs=1e-6)


def test_errors_name_the_wrong_argument():
    logits, wanted, one = jnp.zeros((1, 4, 5, 3)), jnp.zeros((1, 4, 5, 3)), jnp.zeros((1, 4, 5, 1))
    faults = {
        "`targets` has shape": lambda: dice_loss(logits, wanted[..., :2]),
        "`targets` has shape (1, 4, 5)": lambda: cross_entropy(logits, wanted[..., 0], activation="sigmoid"),
        "`activation`": lambda: dice_loss(logits, wanted, activation="tanh"),
        "`reduction`": lambda: dice_loss(logits, wanted, reduction="max"),
        "mean or sum": lambda: dice_ce_loss(logits, wanted, reduction="none"),
        "one channel": lambda: dice_loss(one, one, activation="softmax"),
        "leave out the background": lambda: dice_loss(one, one, include_background=False),
        "`weight` has shape (2,)": lambda: dice_ce_loss(logits, wanted, weight=jnp.ones(2)),
        "`label_smoothing`": lambda: dice_ce_loss(logits, wanted, activation="sigmoid", label_smoothing=0.1),
        "`kind`": lambda: Loss(kind="focal"),
        "`smooth_dr`": lambda: Loss(smooth_dr=-1),
        "exclude TC": lambda: Loss(include_background=False)(logits, jnp.zeros((1, 4, 5), jnp.uint8), Task.brats()),
    }
    for text, fault in faults.items():
        with pytest.raises(InputError) as caught:
            fault()
        assert text in str(caught.value)
