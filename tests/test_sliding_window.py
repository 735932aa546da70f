"""Sliding-window inference has the positions, weights and averages of MONAI, and holds one slab of sums in memory at a time."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.plan import Plan, importance_map
from swinunetr_jax.inference.slab_sum import _averages, _move_up
from swinunetr_jax.inference.sliding_window import predict_slabs, sliding_window_inference

CASES = [
    ((30, 20, 17), (16, 16, 16), 0.5),
    ((20, 40, 33), (32, 32, 32), 0.25),  # smaller than the window on one axis
    ((7, 5, 9), (16, 16, 16), 0.5),  # smaller on all axes, by odd numbers
    ((30, 26, 9), (16, 24, 8), 0.7),
    ((16, 21, 16), (16, 16, 16), 0.9),
    ((30, 41), (16, 16), 0.6),
    ((20,), (6,), 0.25),
    ((36, 20, 17), (16, 16, 16), 0.0),  # no plane belongs to windows of two rows
]


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("shape", "roi", "overlap"), CASES)
def test_the_result_equals_monais(shape, roi, overlap, batch, mode):
    torch = pytest.importorskip("torch")
    inferers = pytest.importorskip("monai.inferers")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *shape, 3)).astype(np.float32)
    mix = rng.normal(size=(3, 2)).astype(np.float32)
    ramp = np.arange(roi[-1], dtype=np.float32)  # makes the output depend on the position within the window

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


def test_positions_and_padding_of_windows():
    plan = Plan.of((10, 4, 7), (4, 4, 4), 0.5)
    assert plan.starts == ((0, 2, 4, 6), (0,), (0, 2, 3))
    assert plan.windows == 12
    assert Plan.of((3, 8, 8), (8, 8, 8), 0.5).pads == ((2, 3), (0, 0), (0, 0))


@pytest.mark.parametrize(("overlap", "windows"), [(0.25, 18), (0.5, 18), (0.6, 32), (0.7, 32)])
def test_the_number_of_windows_of_a_brats_scan(overlap, windows):
    assert Plan.of((240, 240, 155), (128, 128, 128), overlap).windows == windows


def test_the_weights_within_a_window():
    gaussian = importance_map((5, 5), "gaussian")
    assert gaussian[2, 2] == 1
    assert gaussian.min() == pytest.approx(1e-3)
    assert np.all(importance_map((3, 4), "constant") == 1)


def test_progress_counts_every_window():
    calls = []
    plan = Plan.of((20, 20, 20), (16, 16, 16), 0.5)
    volume, weights = np.zeros((20, 20, 20, 1), np.float32), np.ones(plan.roi, np.float32)
    list(predict_slabs(volume, plan, 3, lambda p: (p,), weights, progress=lambda *a: calls.append(a)))
    assert calls[-1] == (8, 8)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


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
def test_values_out_of_range_are_refused(change, text):
    arguments = {"roi_size": (8, 8, 8), "sw_batch_size": 1, "overlap": 0.5, "mode": "constant"} | change
    with pytest.raises(InputError, match=text):
        sliding_window_inference(np.zeros((1, 9, 9, 9, 1), np.float32), predictor=lambda p: p, **arguments)


# Forms of arguments, several outputs, and outputs with another resolution


def channels_first(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def channels_last(x):
    return np.moveaxis(x.numpy(), 1, -1)


FORMS = {
    "one size for all axes": {"roi_size": 8},
    "the volume's size by -1": {"roi_size": (8, -1, 6)},
    "the volume's size by None and 0": {"roi_size": (None, 8, 0)},
    "a list of sizes": {"roi_size": [8, 12, 10]},
    "a list of overlaps": {"roi_size": 8, "overlap": [0.25, 0.5, 0.0]},
    "a sigma for each axis": {"roi_size": 8, "mode": "gaussian", "sigma_scale": (0.1, 0.2, 0.3), "overlap": 0.5},
    "a list of sigmas": {"roi_size": 8, "mode": "gaussian", "sigma_scale": [0.125, 0.125, 0.5]},
    "constant padding of another value": {"roi_size": (16, 8, 16), "padding_mode": "constant", "cval": -3.0},
    "reflect": {"roi_size": (17, 16, 8), "padding_mode": "reflect"},
    "replicate": {"roi_size": (20, 16, 16), "padding_mode": "replicate", "mode": "gaussian"},
    "circular": {"roi_size": (16, 16, 12), "padding_mode": "circular", "overlap": 0.5},
    "a weight map": {"roi_size": 8, "overlap": 0.5, "roi_weight_map": np.random.default_rng(3).uniform(0.1, 1, (8, 8, 8))},
}


@pytest.mark.fault("4.1")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_every_form_of_an_argument_of_monai_is_accepted(form):
    torch = pytest.importorskip("torch")
    inferers = pytest.importorskip("monai.inferers")
    x = np.random.default_rng(0).normal(size=(2, 14, 11, 9, 2)).astype(np.float32)

    def ours(patch):  # the output depends on the position within the window
        return np.asarray(patch) * np.linspace(1, 2, patch.shape[1], dtype=np.float32)[:, None, None, None] ** 2

    def theirs(patch):
        return patch * torch.linspace(1, 2, patch.shape[2])[:, None, None] ** 2

    options = dict(form)
    weights = options.pop("roi_weight_map", None)
    weight_options = {} if weights is None else {"roi_weight_map": torch.tensor(weights[None, None], dtype=torch.float32)}
    expected = inferers.sliding_window_inference(
        torch.tensor(channels_first(x)), sw_batch_size=2, predictor=theirs, **options, **weight_options
    )
    got = sliding_window_inference(x, sw_batch_size=2, predictor=ours, **form)
    np.testing.assert_allclose(got, channels_last(expected), atol=1e-5)


def rescaled(patch, factor):
    """Returns the mean of each block of `factor`³ voxels, or repeats each voxel 1 / `factor` times along each axis. Channels are last."""
    patch = np.asarray(patch)
    if factor < 1:
        for axis in (1, 2, 3):
            patch = patch.repeat(round(1 / factor), axis)
        return patch
    n, x, y, z, c = patch.shape
    return patch.reshape(n, x // factor, factor, y // factor, factor, z // factor, factor, c).mean((2, 4, 6))


OUTPUTS = {
    "a tuple": lambda p: (p, p[..., :1] * 2),
    "a list of one": lambda p: [p + 1],
    "a dict": lambda p: {"z": p, "a": p[..., :1] ** 2},
    "half the resolution": lambda p: rescaled(p, 2),
    "twice the resolution": lambda p: rescaled(p, 0.5),
    "a tuple of resolutions": lambda p: (p, rescaled(p, 2), rescaled(p, 4)),
    "a dict of resolutions": lambda p: {"fine": rescaled(p, 0.5), "deep": rescaled(p, 2)},
}


@pytest.mark.fault("4.1")
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize("outputs", OUTPUTS.values(), ids=OUTPUTS.keys())
def test_several_outputs_and_other_resolutions_equal_monais(outputs, mode):
    torch = pytest.importorskip("torch")
    inferers = pytest.importorskip("monai.inferers")
    # The last window along the first axis starts at 13, and the last axis is smaller than a window.
    x = np.random.default_rng(0).normal(size=(2, 21, 16, 6, 2)).astype(np.float32)
    ramp = np.linspace(1, 3, 8, dtype=np.float32)[:, None, None, None]

    def theirs(patch):
        result = outputs(channels_last(patch) * ramp)
        if isinstance(result, dict):
            return {key: torch.tensor(channels_first(value)) for key, value in result.items()}
        if isinstance(result, (tuple, list)):
            return tuple(torch.tensor(channels_first(value)) for value in result)
        return torch.tensor(channels_first(result))

    def call(function, x, predictor):
        return function(x, (8, 8, 8), 3, predictor, overlap=0.5, mode=mode)

    got = call(sliding_window_inference, x, lambda p: outputs(np.asarray(p) * ramp))
    expected = call(inferers.sliding_window_inference, torch.tensor(channels_first(x)), theirs)
    assert isinstance(got, (type(expected), np.ndarray))
    keys = expected.keys() if isinstance(expected, dict) else range(len(expected)) if isinstance(expected, tuple) else [...]
    for key in keys:
        np.testing.assert_allclose(got[key], channels_last(expected[key]), atol=1e-5)


def test_a_coarse_output_can_come_before_one_with_the_windows_resolution():
    x = np.random.default_rng(0).normal(size=(1, 20, 16, 9, 2)).astype(np.float32)
    results = sliding_window_inference(x, 8, 2, lambda p: (rescaled(p, 2), p), mode="gaussian")
    np.testing.assert_allclose(results[1], x, atol=1e-6)


# Wrong shapes


WRONG = {
    "one of four windows": (lambda p: p[:1], r"\(1, 8, 8, 8, 2\).*\(4, 8, 8, 8, channels\)"),
    "labels without a channel axis": (lambda p: jnp.argmax(p, -1), r"\(4, 8, 8, 8\).*\(4, 8, 8, 8, channels\)"),
    "channels first": (lambda p: jnp.moveaxis(p, -1, 1), r"\(4, 2, 8, 8, 8\).*channels first"),
    "no array": (lambda p: "text", "str, expected an array"),
    "nothing in a tuple": (lambda p: (p, None), "output 1 of the predictor is a NoneType"),
    "voxels cut off": (lambda p: p[:, :, :, :7], r"\(4, 8, 8, 7, 2\).*\(4, 8, 8, 8, channels\).*7 voxels for 8 along axis 2"),
    "without channels": (lambda p: p[..., :0], r"\(4, 8, 8, 8, 0\)"),
}


@pytest.mark.fault("1.10")
@pytest.mark.parametrize(("predictor", "text"), WRONG.values(), ids=WRONG.keys())
def test_an_output_with_a_wrong_shape_is_refused_with_both_shapes(predictor, text):
    with pytest.raises(InputError, match=text):
        sliding_window_inference(np.zeros((1, 10, 10, 10, 2), np.float32), 8, 4, predictor, overlap=0.25)


@pytest.mark.fault("1.10")
def test_an_output_whose_shape_changes_is_refused():
    calls = []

    def predictor(patch):
        calls.append(1)
        return patch if len(calls) < 3 else patch[..., :1]

    with pytest.raises(InputError, match=r"\(1, 8, 8, 8, 1\).*\(1, 8, 8, 8, 2\)"):
        sliding_window_inference(np.zeros((1, 10, 10, 10, 2), np.float32), 8, 1, predictor)


@pytest.mark.fault("1.10")
@pytest.mark.parametrize(
    ("inputs", "change", "text"),
    [
        ((9, 9, 9, 1), {}, r"\(9, 9, 9, 1\) and `roi_size` 3 sizes"),
        ((5, 3), {"roi_size": 8}, r"\(5, 3\)"),
        ((0, 9, 9, 9, 1), {}, "at least one volume"),
        ((1, 9, 9, 9, 1), {"roi_size": (8, 8, 2.5)}, "integers"),
        ((1, 9, 9, 9, 1), {"overlap": [0.5, 0.5]}, "3, one per axis"),
        ((1, 9, 9, 9, 1), {"mode": "gaussian", "sigma_scale": 0.0}, "sigma_scale"),
        ((1, 9, 9, 9, 1), {"padding_mode": "edge"}, "constant, reflect, replicate, circular"),
        ((1, 9, 9, 9, 1), {"roi_weight_map": np.ones((4, 4, 4))}, r"\(4, 4, 4\).*\(8, 8, 8\)"),
        ((1, 9, 9, 9, 1), {"reduce": lambda p: p.sum((1, 2))}, "spatial axes"),
    ],
)
def test_arguments_of_a_wrong_form_are_refused(inputs, change, text):
    arguments = {"roi_size": (8, 8, 8), "sw_batch_size": 1, "predictor": lambda p: p} | change
    with pytest.raises(InputError, match=text):
        sliding_window_inference(np.zeros(inputs, np.float32), **arguments)


# Memory


@pytest.mark.fault("4.2")
def test_the_results_of_reduce_are_returned(monkeypatch):
    monkeypatch.setattr("swinunetr_jax.inference.slab_sum.PIECE_BYTES", 12 * 9 * 2 * 4 * 3)  # three planes
    shapes = []

    def labels(planes):
        shapes.append(planes.shape)
        return jnp.argmax(planes, -1).astype(jnp.uint8)

    volume = np.random.default_rng(0).normal(size=(2, 41, 12, 9, 2)).astype(np.float32)
    result = sliding_window_inference(volume, 8, 2, lambda p: p, overlap=0.5, mode="gaussian", reduce=labels)
    assert result.dtype == np.uint8 and set(shapes) == {(3, 12, 9, 2)}
    np.testing.assert_array_equal(result, volume.argmax(-1))
    small = sliding_window_inference(volume[:, :5], (8, 16, 8), 2, lambda p: p, reduce=labels)
    np.testing.assert_array_equal(small, volume[:, :5].argmax(-1))


@pytest.mark.fault("4.2")
@pytest.mark.parametrize("reduced", [False, True])
def test_the_host_holds_one_result_and_the_device_one_slab_of_sums(reduced, monkeypatch):
    """Measures NumPy's allocations on the host, and JAX's live arrays and the temporary memory of compiled programs on the device."""
    monkeypatch.setattr("swinunetr_jax.inference.slab_sum.PIECE_BYTES", 1 << 18)
    volume = np.zeros((1, 160, 64, 64, 1), np.float32)
    classes, megabyte, device_peak = 8, 1 << 20, [0]
    slab_bytes, result_bytes = 16 * 64 * 64 * classes * 4, 160 * 64 * 64 * (1 if reduced else classes * 4)

    def predictor(patch):
        device_peak[0] = max(device_peak[0], sum(array.nbytes for array in jax.live_arrays()))
        return jnp.broadcast_to(patch, (*patch.shape[:-1], classes))

    def labels(planes):
        device_peak[0] = max(device_peak[0], sum(array.nbytes for array in jax.live_arrays()))
        return jnp.argmax(planes, -1).astype(jnp.uint8)

    before = sum(array.nbytes for array in jax.live_arrays())
    tracemalloc.start()
    try:
        sliding_window_inference(volume, 16, 1, predictor, overlap=0.5, reduce=labels if reduced else None)
        host_peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result_bytes < host_peak < result_bytes + 2 * megabyte
    window, weights, inputs = 16**3 * classes * 4, slab_bytes // classes, slab_bytes // classes
    assert device_peak[0] - before < slab_bytes + weights + inputs + 3 * window + 2 * (1 << 18) < 2 * slab_bytes
    total = jax.ShapeDtypeStruct((16, 64, 64, classes), jnp.float32)
    weight = jax.ShapeDtypeStruct((16, 64, 64), jnp.float32)
    move, average = _move_up.lower(total, 8), _averages.lower(total, weight, 0, count=2)
    for program, limit in ((move, slab_bytes // 8), (average, slab_bytes // 4)):
        memory = program.compile().memory_analysis()
        assert memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes <= limit
