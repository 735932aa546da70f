"""The formulations for NVIDIA GPUs against the plain ones. cuDNN itself runs only on a GPU; here, what is rewritten around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from relative import error

from swinunetr_jax.model import windows
from swinunetr_jax.ops import attention, attention_cuda, up_conv, up_conv_cuda
from swinunetr_jax.runtime import xla
from swinunetr_jax.runtime.dispatch import Implementation, by_platform

rng = np.random.default_rng(0)
on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU, or JAX_PLATFORMS does not name it")


def normal(*shape, dtype=np.float32):
    return rng.normal(size=shape).astype(dtype)


def values_and_gradients(form, q, k, v, bias, weight):
    def loss(*inputs):
        y = form(*inputs)
        return (y.astype(jnp.float32) * weight).sum(), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(q, k, v, bias)
    return y, *gradients


def ranked(regions):
    return None if regions is None else jnp.asarray(attention.ranks(regions))


def through_xla(regions):
    return lambda q, k, v, bias: attention_cuda.fused(q, k, v, bias, ranked(regions), implementation="xla")


def plain(regions):
    traced = None if regions is None else jnp.asarray(regions)
    return lambda q, k, v, bias: attention.plain(q, k, v, bias, traced)


# grid, window, shift: odd tokens, windows clipped on one axis, 64 tokens (which are padded further), 2-D
SHAPES = [((5, 6, 3), (5, 3, 3), (2, 1, 0)), ((8, 8, 4), (4, 4, 4), (2, 2, 0)), ((9, 6), (3, 3), (1, 1))]


@pytest.mark.parametrize(("grid", "window", "shift"), SHAPES)
@pytest.mark.parametrize("c", [4, 16])
@pytest.mark.parametrize("shifted", [False, True])
def test_mask_as_channels_equals_the_mask(grid, window, shift, c, shifted):
    regions = windows.region_ids(grid, window, shift) if shifted else None
    t, n = np.prod(window), 2 * np.prod(grid) // np.prod(window)  # two samples
    q, k, v, weight = (normal(n, t, 3, c) for _ in range(4))
    bias = normal(3, t, t)
    got = values_and_gradients(through_xla(regions), q, k, v, bias, weight)
    for ours, theirs in zip(got, values_and_gradients(plain(regions), q, k, v, bias, weight)):
        assert error(ours, theirs) < 1e-5  # logits of 100 and more: their rounding is that much larger


@pytest.mark.parametrize("shifted", [False, True])
def test_mask_as_channels_in_bfloat16(shifted):
    grid, window, shift = SHAPES[0]
    regions = windows.region_ids(grid, window, shift) if shifted else None
    q, k, v, weight = (normal(2, 45, 3, 16) for _ in range(4))
    bias = normal(3, 45, 45)
    exact = values_and_gradients(plain(regions), *(np.asarray(jnp.bfloat16(a), np.float32) for a in (q, k, v)), bias, weight)
    short = [jnp.asarray(a, jnp.bfloat16) for a in (q, k, v)]
    got = values_and_gradients(through_xla(regions), *short, bias, weight)
    for ours, theirs, dtype in zip(got, exact, ("bfloat16",) * 4 + ("float32",)):
        assert ours.dtype == dtype
        assert error(ours.astype(jnp.float32), theirs) < 1e-2


def test_regions_are_numbered_within_a_window():
    regions = windows.region_ids((14, 14, 14), (7, 7, 7), (3, 3, 3))
    ranks = attention.ranks(regions)
    assert ranks.max() == attention_cuda.REGIONS - 1
    apart = regions[:, :, None] != regions[:, None, :]
    np.testing.assert_array_equal(ranks[:, :, None] != ranks[:, None, :], apart)


def test_what_is_left_to_the_plain_form():
    assert not attention_cuda.fits(jax.ShapeDtypeStruct((2, 9, 3, 16), np.float32), None)
    short = jax.ShapeDtypeStruct((2, 9, 3, 16), jnp.bfloat16)
    assert not attention_cuda.fits(short, np.arange(9, dtype=np.int8)[None])  # more regions than a window can have
    assert not attention_cuda.fits(jax.ShapeDtypeStruct((2, 9, 3, 128), jnp.bfloat16), None)
    assert all(attention_cuda._tokens(t) % 128 != 64 and attention_cuda._tokens(t) >= t for t in range(1, 400))


def test_bfloat16_attention_is_traced_once_for_a_shape(monkeypatch, fresh_traces):
    """Networks repeat shapes; a function made at each call would be traced, and compiled, each time."""
    traced = []
    form = Implementation(lambda *inputs: traced.append(0) or attention_cuda.fused(*inputs, implementation="xla"))
    monkeypatch.setattr(attention, "_attention_short", by_platform(Implementation(attention.plain), cuda=form))
    monkeypatch.setattr(attention_cuda, "fits", lambda q, regions: True)
    short = [jnp.asarray(normal(4, 8, 2, 16), jnp.bfloat16) for _ in range(3)]
    bias, regions = jnp.asarray(normal(2, 8, 8)), np.arange(32, dtype=np.int32).reshape(4, 8)

    @jax.jit
    def network(q, k, v, bias):
        for shift in (0, 1, 2):
            q = attention.window_attention(q, k, v, bias, regions + shift)
        return q

    network.lower(*short, bias)
    assert len(traced) == 1


@pytest.mark.accelerator
@on_gpu
@pytest.mark.parametrize(("grid", "window", "shift"), [*SHAPES, ((14, 14, 14), (7, 7, 7), (3, 3, 3))])
@pytest.mark.parametrize("shifted", [False, True])
def test_cudnn_equals_the_plain_form(grid, window, shift, shifted):
    regions = windows.region_ids(grid, window, shift) if shifted else None
    t, n = np.prod(window), np.prod(grid) // np.prod(window)
    q, k, v = (jnp.asarray(normal(n, t, 3, 16), jnp.bfloat16) for _ in range(3))
    bias, weight = normal(3, t, t), normal(n, t, 3, 16)
    assert attention_cuda.fits(q, None if regions is None else attention.ranks(regions))
    got = values_and_gradients(lambda *a: attention_cuda.fused(*a, ranked(regions)), q, k, v, bias, weight)
    exact = values_and_gradients(plain(regions), *(a.astype(jnp.float32) for a in (q, k, v)), bias, weight)
    for ours, theirs in zip(got, exact):
        assert np.isfinite(np.asarray(ours, np.float32)).all()
        assert error(ours.astype(jnp.float32), theirs) < 2e-2


UP_SHAPES = [((1, 3, 4, 5), 6, 4, 3), ((2, 1, 2, 3), 5, 2, 4)]


def up_conv_inputs(shape, c, u, o, dtype):
    fine = (shape[0], *(2 * size for size in shape[1:]))
    shapes = ((*shape, c), (*fine, u), (2, 2, 2, c, u), (3, 3, 3, 2 * u, o), (1, 1, 1, 2 * u, o))
    return [normal(*s, dtype=dtype) for s in shapes], normal(2, *fine, o, dtype=dtype)


@pytest.mark.parametrize(("shape", "c", "u", "o"), UP_SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-6)])
def test_folded_kernels_and_their_gradients(shape, c, u, o, dtype, tolerance):
    with jax.enable_x64(dtype == np.float64):
        inputs, weights = up_conv_inputs(shape, c, u, o, dtype)

        def results(form):
            def loss(*inputs):
                y = form(*inputs)
                return sum((a * b).sum() for a, b in zip(y, weights)), y

            (_, y), gradients = jax.jit(jax.value_and_grad(loss, tuple(range(5)), has_aux=True))(*inputs)
            return *y, *gradients

        for got, expected in zip(results(up_conv_cuda.folded), results(up_conv.plain)):
            assert got.dtype == dtype
            assert error(got, expected) < tolerance


@pytest.mark.parametrize(("shape", "c", "u", "o"), UP_SHAPES)
def test_folded_kernels_in_bfloat16(shape, c, u, o):
    inputs, _ = up_conv_inputs(shape, c, u, o, np.float32)
    short = [jnp.asarray(a, jnp.bfloat16) for a in inputs]
    exact = up_conv.plain(*(a.astype(jnp.float32) for a in short))
    for got, expected in zip(up_conv_cuda.folded(*short), exact):
        assert got.dtype == jnp.bfloat16
        assert error(got.astype(jnp.float32), expected) < 1e-2


def test_an_option_that_xla_does_not_know_is_left_out(monkeypatch):
    assert xla.xla_supports("xla_gpu_force_conv_nhwc", True)
    assert not xla.xla_supports("xla_gpu_make_it_fast", True)
    assert xla.compiler_options() == ({} if jax.default_backend() != "gpu" else xla.GPU_OPTIONS)
    monkeypatch.setattr(xla, "GPU_OPTIONS", {"xla_gpu_make_it_fast": True, "xla_gpu_force_conv_nhwc": True})
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert xla.compiler_options() == {"xla_gpu_force_conv_nhwc": True}


def test_gradients_in_order_are_the_same():
    gradients = {"kernel": normal(3, 3, 3, 2, 4), "bias": normal(4)}
    got = jax.jit(xla.pin_gradient_layout)(gradients)
    jax.tree.map(np.testing.assert_array_equal, got, gradients)
