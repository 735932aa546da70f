"""Deep supervision: the weights of the resolutions, the labels of the coarse grids, and heads that fit the decoder of Swin UNETR."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swinunetr_jax import InputError, SwinUNETR, SwinUNETRConfig, Task
from swinunetr_jax.losses import Loss
from swinunetr_jax.model.custom import CustomNetwork
from swinunetr_jax.training.deep_supervision import (
    GRIDS,
    DeepSupervision,
    DeepSupervisionFactory,
    coarse_labels,
    resolution_weights,
)

CONFIG = SwinUNETRConfig(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1))


def test_each_coarser_resolution_has_half_the_weight_and_all_weights_add_up_to_1():
    """For the five resolutions of a decoder, nnU-Net uses the weights 1, 1/2, 1/4, 1/8 and 0, divided by their sum."""
    nnunet = np.array([1, 1 / 2, 1 / 4, 1 / 8, 0])
    np.testing.assert_allclose([*resolution_weights(1 + len(GRIDS)), 0], nnunet / nnunet.sum(), rtol=1e-12)


def test_labels_of_a_coarse_grid_are_those_nearest_to_the_centres_of_its_voxels():
    labels = jnp.arange(16)[None, :, None, None] + jnp.zeros((1, 16, 8, 24), jnp.int32)
    assert coarse_labels(labels, 2)[0, :, 0, 0].tolist() == [1, 3, 5, 7, 9, 11, 13, 15]
    assert coarse_labels(labels, 4)[0, :, 0, 0].tolist() == [2, 6, 10, 14]
    assert coarse_labels(labels, 8).shape == (1, 2, 1, 3)


def test_the_loss_is_the_weighted_sum_over_the_resolutions():
    class Fixed:
        """A network whose outputs are constants."""

        def forward(self, image, *, key, train):
            grids = {name: jnp.full((1, *[16 // 2**level] * 3, 12 * width), 0.1 * level) for level, (name, width) in levels}
            return logits, grids

        def update_batch_stats(self, intermediates):
            pass

    def loss(logits, labels, task):
        return (logits[..., 0] * labels).sum()

    levels, task = list(enumerate(GRIDS.items(), start=1)), Task.classes(2)
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.random((1, 16, 16, 16, 2)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 2, (1, 16, 16, 16)), jnp.uint8)
    objective = DeepSupervision(loss, task, CONFIG, nnx.Rngs(0))
    total, metrics = objective(Fixed(), {"image": labels[..., None], "label": labels}, jax.random.key(0))
    grids = Fixed().forward(None, key=None, train=True)[1]
    terms = [loss(logits, labels, task)]
    for head, step, grid in zip(objective.heads, (2, 4, 8), grids.values()):
        terms.append(
            loss(grid @ head.kernel[...] + head.bias[...], labels[(slice(None), *[slice(step // 2, None, step)] * 3)], task)
        )
    assert float(total) == pytest.approx(sum(8 / 2**level * float(term) for level, term in enumerate(terms)) / 15, rel=1e-5)
    assert float(metrics["full_resolution_loss"]) == float(terms[0])


def test_heads_fit_the_decoder_of_swin_unetr():
    """Only the shapes of the results are computed."""
    task = Task.classes(2)
    batch = {
        "image": jax.ShapeDtypeStruct((1, 32, 32, 64, 1), jnp.float32),
        "label": jax.ShapeDtypeStruct((1, 32, 32, 64), jnp.uint8),
    }

    def run(batch):
        return DeepSupervision(Loss(), task, CONFIG, nnx.Rngs(0))(SwinUNETR(CONFIG, rngs=nnx.Rngs(0)), batch, None)

    total, metrics = jax.eval_shape(run, batch)
    assert total.shape == () and set(metrics) == {"full_resolution_loss"}


def test_folds_share_one_program_and_another_network_is_refused():
    assert DeepSupervisionFactory(Loss()) == DeepSupervisionFactory(Loss()) != DeepSupervisionFactory(Loss(kind="dice_ce"))

    def unet(in_channels, out_channels, *, rngs):
        pytest.fail("the network was constructed, although it is refused")

    with pytest.raises(InputError, match="deep supervision needs the decoder of a Swin UNETR, but the network is unet"):
        DeepSupervisionFactory(Loss())(Task.classes(2), CustomNetwork.of(unet).config(1, 2), nnx.Rngs(0))
