"""The Tversky and the focal loss equal MONAI's.

Class weights, masks and ignored labels affect exactly the voxels and classes that they name.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.loss_references import class_map, compare, sample

from swinunetr_jax import InputError, Task
from swinunetr_jax.losses import Loss, cross_entropy, dice_loss, focal_loss, tversky_loss
from swinunetr_jax.output import Output

IGNORE = 9
WEIGHTS = (0.5, 2.0, 3.0)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_tversky_equals_monai(double, activation):
    losses = pytest.importorskip("monai.losses")
    logits, wanted = sample((5, 3, 7), 3)
    kinds = itertools.cycle((("mean", 1e-5), ("sum", 0.1), ("none", 1.0)))
    pairs = itertools.cycle(((0.5, 0.5), (0.3, 0.7), (1.0, 0.0)))
    for (background, batch), (reduction, smooth), (alpha, beta) in zip(itertools.product((True, False), repeat=2), kinds, pairs):
        common = {"include_background": background, "batch": batch, "reduction": reduction, "alpha": alpha, "beta": beta}
        common |= {"smooth_nr": smooth, "smooth_dr": smooth}
        compare(
            partial(tversky_loss, activation=activation, **common),
            losses.TverskyLoss(**common, **{activation: True}),
            logits,
            wanted,
        )


def test_tversky_with_equal_weights_is_dice():
    logits, wanted = map(jnp.asarray, sample((4, 5, 6), 3))
    dice, tversky = dice_loss(logits, wanted, smooth_nr=0), tversky_loss(logits, wanted, alpha=0.5, beta=0.5, smooth_nr=0)
    assert float(tversky) == pytest.approx(float(dice), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_focal_equals_monai(activation, gamma):
    """MONAI computes the focal loss in float32 whatever the type of the logits, so the comparison is in float32."""
    losses = pytest.importorskip("monai.losses")
    logits, wanted = sample((5, 3, 7), 3)
    wanted = wanted if activation == "sigmoid" else np.eye(3)[class_map((5, 3, 7), 3)]
    for weight in (None, WEIGHTS):
        theirs = losses.FocalLoss(gamma=gamma, weight=weight, use_softmax=activation == "softmax")
        ours = partial(focal_loss, activation=activation, gamma=gamma, weight=weight)
        compare(ours, theirs, logits.astype(np.float32), wanted.astype(np.float32))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_focal_with_exponent_0_is_the_cross_entropy_and_extreme_logits_stay_finite(activation):
    logits = jnp.array([[[1e4, -1e4, 3e4], [0.0, 1.0, 2.0]]])
    wanted = jnp.array([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
    entropy = cross_entropy(logits, wanted, activation=activation) / (3 if activation == "softmax" else 1)
    assert float(focal_loss(logits, wanted, activation=activation, gamma=0.0)) == pytest.approx(float(entropy), rel=1e-6)
    for gamma in (0.5, 2.0):
        loss, gradient = jax.value_and_grad(partial(focal_loss, activation=activation, gamma=gamma))(logits, wanted)
        assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_losses_in_float32_equal_monai_for_the_options_of_a_run():
    torch = pytest.importorskip("torch")
    losses = pytest.importorskip("monai.losses")
    logits, _ = sample((5, 3, 7), 3)
    labels = class_map((5, 3, 7), 3)
    task = Task.classes(3)
    x, t = torch.tensor(np.moveaxis(logits, -1, 1), dtype=torch.float32), torch.tensor(labels[:, None])
    dice, focal = losses.DiceLoss(softmax=True, to_onehot_y=True), losses.FocalLoss(use_softmax=True, to_onehot_y=True)
    references = {
        Loss(kind="dice_ce", batch=True, include_background=False): losses.DiceCELoss(
            softmax=True, to_onehot_y=True, batch=True, include_background=False
        ),
        Loss(kind="dice_ce", class_weights=WEIGHTS): losses.DiceCELoss(
            softmax=True, to_onehot_y=True, weight=torch.tensor(WEIGHTS)
        ),
        Loss(kind="dice_focal", lambda_focal=0.5): lambda x, t: dice(x, t) + 0.5 * focal(x, t),
        Loss(kind="tversky"): losses.TverskyLoss(softmax=True, to_onehot_y=True, alpha=0.3, beta=0.7),
    }
    for ours, theirs in references.items():
        value = ours(jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.uint8), task)
        assert float(value) == pytest.approx(theirs(x, t).item(), rel=1e-6), ours


def tasks() -> list[Task]:
    regions = (Output(name="all", value=1, members=(1, 2)), Output(name="one", value=2, members=(2,)))
    return [Task.classes(3, ignore=IGNORE), Task(kind="regions", outputs=regions, paint=(0, 1), ignore=IGNORE)]


@pytest.mark.parametrize("kind", ["dice_ce", "tversky_focal"])  # all four terms
@pytest.mark.parametrize("task", tasks(), ids=["classes", "regions"])
def test_ignored_voxels_count_in_no_term(task, kind):
    """The loss is that of the other voxels alone, and the gradient at ignored voxels is 0."""
    rng = np.random.default_rng(0)
    outputs = len(task.outputs)
    logits = jnp.asarray(rng.normal(size=(2, 4, 5, outputs)) * 2, jnp.float32)
    labels = rng.choice([0, 1, 2, IGNORE], (2, 4, 5)).astype(np.uint8)
    kept = labels != IGNORE
    loss = Loss(kind=kind, batch=True, class_weights=WEIGHTS[:outputs])
    run = jax.jit(jax.value_and_grad(lambda x, labels: loss(x, labels, task)))
    value, gradient = run(logits, labels)
    without_ignored = jax.jit(loss, static_argnums=2)(np.asarray(logits)[kept][None], labels[kept][None], task)
    assert float(value) == pytest.approx(float(without_ignored), rel=1e-6)
    assert not np.any(np.asarray(gradient)[~kept]) and np.all(np.any(np.asarray(gradient)[kept], axis=-1))
    all_ignored = run(logits, np.full_like(labels, IGNORE))
    assert all(np.isfinite(values).all() for values in all_ignored) and not np.any(all_ignored[1])


def test_a_label_that_equals_a_class_cannot_be_ignored():
    with pytest.raises(InputError, match="`ignore` is 2, which is a label of class 2: use a separate label"):
        Task.classes(3, ignore=2)
    with pytest.raises(InputError, match="`ignore` is 4, which is a label of TC"):
        Task.brats().from_dict({**Task.brats(et_label=3).to_dict(), "outputs": Task.brats().to_dict()["outputs"], "ignore": 4})
    with pytest.raises(InputError, match="`ignore` must be a label in 1 … 255, because 0 is the background, got 0"):
        Task.classes(3, ignore=0)
    with pytest.raises(InputError, match="expected one value; merge them"):
        Task.from_labels({"a": 1, "ignore": [2, 3]})


def test_a_task_stores_the_ignored_label_only_if_there_is_one():
    assert "ignore" not in Task.classes(3).to_dict()
    task = Task.from_labels({"background": 0, "a": 1, "ignore": 2})
    assert task.ignore == 2 and len(task.outputs) == 2
    assert Task.from_dict(task.to_dict()) == task


def test_errors_of_the_terms_are_one_sentence():
    logits, labels = jnp.zeros((1, 4, 5, 3)), jnp.zeros((1, 4, 5), jnp.uint8)
    faults = {
        "`alpha` and `beta` of the Tversky loss must be between 0 and 1": lambda: Loss(alpha=1.5),
        "not both 0, got 0 and 0": lambda: tversky_loss(logits, logits, alpha=0, beta=0),
        "`gamma` of the focal loss must be a number of at least 0, got -1": lambda: Loss(gamma=-1),
        "`gamma` of the focal loss": lambda: focal_loss(logits, logits, activation="sigmoid", gamma=-0.5),
        "mean or sum for a focal loss": lambda: focal_loss(logits, logits, activation="sigmoid", reduction="none"),
        "`logits` has one channel": lambda: focal_loss(logits[..., :1], logits[..., :1], activation="softmax"),
        "`squared` is an option of the Dice loss": lambda: Loss(kind="tversky", squared=True),
        "`class_weights` must be a sequence of numbers of at least 0, got (-1.0, 1.0)": lambda: Loss(class_weights=(-1.0, 1.0)),
        "`class_weights` of the loss must not all be 0": lambda: Loss(class_weights=(0.0, 0.0)),
        "holds 2 numbers, expected 3, one for each of background, class 1, class 2": lambda: Loss(class_weights=(1.0, 2.0))(
            logits, labels, Task.classes(3)
        ),
        "`mask` has shape (1, 4), expected (1, 4, 5)": lambda: dice_loss(logits, logits, mask=labels[..., 0]),
        "`lambda_focal`": lambda: Loss(lambda_focal=-1),
    }
    for text, fault in faults.items():
        with pytest.raises(InputError) as caught:
            fault()
        assert text in str(caught.value) and str(caught.value).count("\n") == 0
