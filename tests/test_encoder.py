"""The encoder alone, and the attention maps of its blocks, against MONAI."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from swinunetr_jax import InputError, SwinTransformer, SwinUNETRConfig, attention_maps
from swinunetr_jax.weights.find_network import Source
from swinunetr_jax.weights.fit import fit
from swinunetr_jax.weights.params import build
from tools import golden_weights, reference

# A window of 4 on a grid of 9 × 17 × 5 is padded along all axes; the grid of stage 1, 5 × 9 × 3, is clipped along the last axis.
OPTIONS = {"in_channels": 2, "out_channels": 3, "feature_size": 12, "depths": (2, 2, 1, 1), "window_size": 4}
SIZE = (17, 33, 10)
ATTENTION = ((0, 0), (0, 1), (1, 1))  # stage and block
# In stage 2, the window of 7 is clipped to 5 along the first axis and shifted along the second one.
PLANE = {
    **OPTIONS,
    "spatial_dims": 2,
    "use_v2": True,
    "depths": (1, 1, 2, 1),
    "window_size": 7,
    "dtype": "float64",
    "param_dtype": "float64",
}


def pair(options):
    """Returns our network and MONAI's encoder with the same weights."""
    net = reference.network(options)
    reference.fill(net, 0)
    tensors = {name: value.numpy() for name, value in net.state_dict().items() if not name.endswith(golden_weights.COMPUTED)}
    config = SwinUNETRConfig(**options)
    weights, _ = fit(Source("random", tensors), config, encoder_only=False, adapt_channels=False, new_outputs=False, seed=0)
    return build(config, weights), net.swinViT


def their_attention(encoder, blocks, call):
    """Returns the result of `call()`, and the attention weights of some blocks of MONAI's encoder in this call."""
    weights, handles = {}, []
    for stage, block in blocks:
        softmax = getattr(encoder, f"layers{stage + 1}")[0].blocks[block].attn.softmax

        def keep(module, inputs, output, name=(stage, block)):
            weights[name] = output.numpy()

        handles.append(softmax.register_forward_hook(keep))
    with torch.no_grad():
        result = call()
    for handle in handles:
        handle.remove()
    return result, weights


@pytest.fixture(scope="module")
def networks():
    """Returns our network, MONAI's encoder with the same weights, and an input."""
    return *pair(OPTIONS), golden_weights.volume((2, *SIZE, 2), 0)


@pytest.fixture(scope="module")
def results(networks):
    """Returns our features, not normalised and normalised, the embedding, and the maps of some blocks, from one compiled program."""
    ours, _, x = networks

    @nnx.jit
    def run(encoder, x):
        maps = {at: attention_maps(encoder, x, *at) for at in ATTENTION}
        return [encoder.features(x, normalize=normalize) for normalize in (False, True)], encoder.embedding(x), maps

    return run(ours.swin, x)


@pytest.fixture(scope="module")
def theirs(networks):
    """Returns MONAI's features, normalised and not, and the attention weights of some blocks."""
    _, encoder, x = networks
    normalizations = (False, True)
    features, weights = their_attention(
        encoder, ATTENTION, lambda: [encoder(reference.channels_first(x), normalize) for normalize in normalizations]
    )
    return [[reference.channels_last(grid) for grid in grids] for grids in features], weights


@pytest.mark.parametrize("normalize", [False, True])
def test_features_of_a_volume_of_any_size_equal_those_of_monai(results, theirs, normalize):
    features = results[0][normalize]
    assert [grid.shape for grid in features] == [
        (2, 9, 17, 5, 12),
        (2, 5, 9, 3, 24),
        (2, 3, 5, 2, 48),
        (2, 2, 3, 1, 96),
        (2, 1, 2, 1, 192),
    ]
    for grid, their_grid in zip(features, theirs[0][normalize]):
        np.testing.assert_allclose(grid, their_grid, atol=1e-5 * np.abs(their_grid).max())


def test_features_and_weights_in_float64_with_residual_blocks_and_a_clipped_and_shifted_window():
    blocks, x = ((0, 0), (2, 1)), golden_weights.volume((1, 37, 70, 2), 0).astype(np.float64)
    with jax.enable_x64(True):
        ours, encoder = pair(PLANE)
        encoder = encoder.double()
        run = nnx.jit(lambda model, x: (model.features(x), [attention_maps(model, x, *at).weights for at in blocks]))
        features, weights = run(ours.swin, x)
    expected, their_weights = their_attention(encoder, blocks, lambda: encoder(reference.channels_first(x, torch.float64), True))
    for grid, their_grid in zip(features, expected):
        np.testing.assert_allclose(grid, reference.channels_last(their_grid), atol=1e-10)
    for at, values in zip(blocks, weights):
        np.testing.assert_allclose(np.reshape(values, their_weights[at].shape), their_weights[at], atol=1e-10)


def test_an_embedding_is_the_mean_of_the_last_features(results, theirs):
    expected = theirs[0][True][-1].mean((1, 2, 3))
    np.testing.assert_allclose(results[1], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("stage", "block"), ATTENTION)
def test_attention_weights_equal_those_of_monai(results, theirs, stage, block):
    weights = results[2][stage, block].weights
    expected = theirs[1][stage, block]
    np.testing.assert_allclose(np.reshape(weights, expected.shape), expected, atol=1e-5)


def test_the_map_of_a_voxel(results):
    maps = results[2][0, 1]
    assert maps.grid == (9, 17, 5) and maps.padded == (12, 20, 8)
    grid = np.asarray(maps.at((5, 3, 4)))
    assert grid.shape == (2, 9, 17, 5, 3)
    # windows of 4 that are shifted by 2: the voxel is in that of 2 to 5, 2 to 5 and 2 to 5, of which 5 is padding along the last axis
    inside = np.zeros((9, 17, 5), bool)
    inside[2:6, 2:6, 2:6] = True
    assert (grid[:, inside] > 0).all() and not grid[:, ~inside].any()
    assert (grid.sum((1, 2, 3)) < 1).all()
    # in window 0 this voxel is token 3 × 16 + 1 × 4 + 2, and the voxel before it along the first axis is token 2 × 16 + 1 × 4 + 2
    np.testing.assert_allclose(grid[:, 4, 3, 4], maps.weights[:, 0, :, 54, 38], atol=1e-7)
    # at the end of the grid, the window holds tokens of both ends, which do not attend to one another
    last = np.asarray(maps.at((0, 16, 0)))
    assert last[:, :2].any() and last[:, 2:].max() < 1e-30


def test_wrong_uses(networks, results):
    ours, _, x = networks
    with pytest.raises(InputError, match="no block 1 in stage 2"):
        attention_maps(ours, x, 2, 1)
    with pytest.raises(InputError, match=r"multiple of 32"):
        attention_maps(ours, x, 0, 0)
    with pytest.raises(InputError, match=r"the voxel \(9, 0, 0\) is not in the block's grid of \(9, 17, 5\)"):
        results[2][0, 0].at((9, 0, 0))
    with pytest.raises(InputError, match="2 input channels, got 1"):
        ours.swin.features(x[..., :1])
    config = SwinUNETRConfig(
        in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1), spatial_dims=2, hyena_stages="HAAA"
    )
    with pytest.raises(InputError, match="stage 0 is a Hyena stage"):
        attention_maps(SwinTransformer(config, rngs=nnx.Rngs(0)), x[:, 0, ..., :1], 0, 0)
