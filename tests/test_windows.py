"""Windows on a grid, compared with literal arrays and with MONAI's tables."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swinunetr_jax.model import windows
from swinunetr_jax.ops.attention.position_bias import position_bias
from swinunetr_jax.runtime.dispatch import for_device


def test_clip_window_axis_by_axis():
    assert windows.clip_window((6, 7, 8), (7, 7, 7), (3, 3, 3)) == ((6, 7, 7), (0, 0, 3))
    assert windows.clip_window((24, 24), (7, 5), (3, 2)) == ((7, 5), (3, 2))


def test_padding_is_zeros_at_the_high_end():
    x = jnp.ones((1, 3, 4, 1))
    padded = np.asarray(windows.pad_to_windows(x, (2, 4)))
    assert padded.shape == (1, 4, 4, 1)
    assert padded[0, 3].sum() == 0
    assert windows.pad_to_windows(x, (3, 2)) is x


def test_partition_by_hand():
    grid = np.arange(16).reshape(1, 4, 4, 1)
    parts = np.asarray(windows.partition(grid, (2, 2)))[..., 0]
    np.testing.assert_array_equal(parts, [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])


@pytest.mark.parametrize(("grid", "window"), [((4, 6), (2, 3)), ((4, 6, 10), (2, 3, 5)), ((7, 7, 7), (7, 7, 7))])
def test_reverse_undoes_partition(grid, window):
    x = np.random.default_rng(0).normal(size=(2, *grid, 3)).astype(np.float32)
    np.testing.assert_array_equal(windows.reverse(windows.partition(x, window), window, grid), x)


def test_valid_tokens_by_hand():
    np.testing.assert_array_equal(windows.valid_tokens((3, 2), (2, 2))[..., 0], [[[1, 1], [1, 1]], [[1, 1], [0, 0]]])
    assert windows.valid_tokens((4, 2), (2, 2)) is None


def test_region_ids_by_hand():
    ids = windows.region_ids((4, 4), (2, 2), (1, 1))
    np.testing.assert_array_equal(ids, [[0, 0, 0, 0], [1, 2, 1, 2], [3, 3, 6, 6], [4, 5, 7, 8]])
    assert windows.region_ids((4, 4), (2, 2), (0, 0)) is None


def test_relative_index_by_hand():
    np.testing.assert_array_equal(windows.relative_index((2, 1)), [[1, 0], [2, 1]])
    index = windows.relative_index((2, 2))
    np.testing.assert_array_equal(index, [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]])


GRIDS = [
    ((14, 14), (7, 7), (3, 3)),
    ((14, 7, 21), (7, 7, 7), (3, 3, 3)),
    ((14, 14, 6), (7, 7, 6), (3, 3, 0)),  # clipped on an axis
    ((6, 14, 6), (6, 7, 6), (0, 3, 0)),
    ((8, 12, 10), (4, 4, 5), (2, 2, 2)),
]


@pytest.mark.parametrize(("grid", "window", "shift"), GRIDS)
def test_masks_equal_monais(grid, window, shift):
    nets = pytest.importorskip("monai.networks.nets.swin_unetr")
    ids = windows.region_ids(grid, window, shift)
    mask = np.where(ids[:, :, None] == ids[:, None, :], 0.0, -100.0)
    np.testing.assert_array_equal(mask, nets.compute_mask(list(grid), window, shift, "cpu").numpy())


@pytest.mark.parametrize("window", [(7, 7), (7, 5), (4, 4, 4), (7, 7, 5), (3, 5, 2)])
def test_index_equals_monais(window):
    nets = pytest.importorskip("monai.networks.nets.swin_unetr")
    theirs = nets.WindowAttention(12, 3, window).relative_position_index.numpy()
    np.testing.assert_array_equal(windows.relative_index(window), theirs)


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("window", [(7, 7), (4, 4, 4), (7, 7, 7), (3, 5, 2), (1, 2)])
def test_position_bias_has_the_rows_of_the_table(window, platform):
    """The values are equal, and the gradient sums the entries of a row."""
    rng, index = np.random.default_rng(0), windows.relative_index(window)
    table, weight = rng.normal(size=(index.max() + 1, 3)), rng.normal(size=(3, *index.shape))
    with jax.enable_x64(True):
        function = for_device(SimpleNamespace(platform=platform), lambda table: position_bias(table, window))
        bias, pullback = jax.vjp(function, jnp.asarray(table))
        (gradient,) = pullback(jnp.asarray(weight))
    np.testing.assert_array_equal(bias, np.moveaxis(table[index], -1, 0))
    expected = np.zeros_like(table)
    np.add.at(expected, index, np.moveaxis(weight, 0, -1))
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)


def test_the_gradient_of_a_roll_is_the_opposite_roll():
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 1, 5, 6, 4, 3)).astype(np.float32)
    y, pullback = jax.vjp(lambda x: windows.roll(x, (2, -1, 0)), x)
    np.testing.assert_array_equal(y, np.roll(x, (2, -1, 0), (1, 2, 3)))
    np.testing.assert_array_equal(pullback(weight)[0], np.roll(weight, (-2, 1, 0), (1, 2, 3)))
