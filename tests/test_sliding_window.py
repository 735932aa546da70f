"""Sliding windows: positions, blending and averaging as MONAI has them; one slab at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.sliding_window import Plan, importance_map, predict_slabs, sliding_window_inference

CASES = [
    ((30, 20, 17), (16, 16, 16), 0.5),
    ((20, 40, 33), (32, 32, 32), 0.25),  # smaller than the window on one axis
    ((7, 5, 9), (16, 16, 16), 0.5),  # on all, by odd numbers
    ((30, 26, 9), (16, 24, 8), 0.7),
    ((16, 21, 16), (16, 16, 16), 0.9),
    ((30, 41), (16, 16), 0.6),
]


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("shape", "roi", "overlap"), CASES)
def test_equals_monai(shape, roi, overlap, batch, mode):
    torch = pytest.importorskip("torch")
    inferers = pytest.importorskip("monai.inferers")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *shape, 3)).astype(np.float32)
    mix = rng.normal(size=(3, 2)).astype(np.float32)
    ramp = np.arange(roi[-1], dtype=np.float32)  # a predictor that knows where in the window it is

    def theirs(patch):
        return torch.einsum("bc...,co->bo...", torch.sin(patch) * torch.tensor(ramp), torch.tensor(mix))

    @jax.jit
    def ours(patch):
        return jnp.sin(patch) * ramp[:, None] @ mix

    expected = inferers.sliding_window_inference(
        torch.tensor(np.moveaxis(x, -1, 1)), roi, batch, theirs, overlap=overlap, mode=mode
    )
    got = sliding_window_inference(x, roi, batch, ours, overlap=overlap, mode=mode)
    expected = np.moveaxis(expected.numpy(), 1, -1)
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_positions():
    plan = Plan.of((10, 4, 7), (4, 4, 4), 0.5)
    assert plan.starts == ((0, 2, 4, 6), (0,), (0, 2, 3))
    assert plan.windows == 12
    assert Plan.of((3, 8, 8), (8, 8, 8), 0.5).pads == ((2, 3), (0, 0), (0, 0))


@pytest.mark.parametrize(("overlap", "windows"), [(0.25, 18), (0.5, 18), (0.6, 32), (0.7, 32)])
def test_window_count_of_a_brats_case(overlap, windows):
    assert Plan.of((240, 240, 155), (128, 128, 128), overlap).windows == windows


def test_importance():
    gaussian = importance_map((5, 5), "gaussian")
    assert gaussian[2, 2] == 1
    assert gaussian.min() == pytest.approx(1e-3)
    assert np.all(importance_map((3, 4), "constant") == 1)


def test_the_device_holds_one_slab():
    seen = []

    def finish(logits):
        seen.append(logits.shape)
        return (jnp.argmax(logits, -1).astype(jnp.uint8),)

    volume = np.random.default_rng(0).normal(size=(40, 12, 9, 2)).astype(np.float32)
    plan = Plan.of(volume.shape[:3], (8, 8, 8), 0.5)
    slabs = [slab for (slab,) in predict_slabs(volume, plan, 2, lambda p: p, mode="gaussian", finish=finish)]
    assert set(seen) == {(8, 12, 9, 2)}
    labels = np.concatenate(slabs)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, volume.argmax(-1))


def test_progress_counts_every_window():
    told = []
    plan = Plan.of((20, 20, 20), (16, 16, 16), 0.5)
    list(
        predict_slabs(
            np.zeros((20, 20, 20, 1), np.float32), plan, 3, lambda p: p, mode="constant", progress=lambda *a: told.append(a)
        )
    )
    assert told[-1] == (8, 8)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"overlap": 1.0}, "overlap"),
        ({"overlap": -0.1}, "overlap"),
        ({"mode": "linear"}, "mode"),
        ({"roi_size": (8, 8)}, "roi_size"),
        ({"sw_batch_size": 0}, "sw_batch_size"),
    ],
)
def test_bad_arguments(change, text):
    arguments = {"roi_size": (8, 8, 8), "sw_batch_size": 1, "overlap": 0.5, "mode": "constant"} | change
    with pytest.raises(InputError, match=text):
        sliding_window_inference(np.zeros((1, 9, 9, 9, 1), np.float32), predictor=lambda p: p, **arguments)
