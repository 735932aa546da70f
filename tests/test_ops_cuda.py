"""The implementations for NVIDIA GPUs equal the reference. cuDNN itself is tested only on a GPU, everything else on any machine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.relative import error

from swinunetr_jax.model import windows
from swinunetr_jax.ops import attention
from swinunetr_jax.ops.attention import cuda as attention_cuda
from swinunetr_jax.ops.attention import reference as attention_reference
from swinunetr_jax.ops.up_conv import cuda as up_conv_cuda
from swinunetr_jax.ops.up_conv import reference as up_conv_reference
from swinunetr_jax.runtime import xla
from swinunetr_jax.runtime.dispatch import Implementation, Table

rng = np.random.default_rng(0)
on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU, or JAX_PLATFORMS does not name it")


def normal(*shape, dtype=np.float32):
    return rng.normal(size=shape).astype(dtype)


def values_and_gradients(implementation, q, k, v, bias, weight):
    def loss(*inputs):
        y = implementation(*inputs)
        return (y.astype(jnp.float32) * weight).sum(), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(q, k, v, bias)
    return y, *gradients


def relabelled(regions):
    return None if regions is None else jnp.asarray(attention.relabel_regions(regions))


def through_xla(regions):
    return lambda q, k, v, bias: attention_cuda.cudnn(q, k, v, bias, relabelled(regions), implementation="xla")


def reference(regions):
    traced = None if regions is None else jnp.asarray(regions)
    return lambda q, k, v, bias: attention_reference.attention(q, k, v, bias, traced)


# (grid, window, shift): a window of 45 tokens, an odd number; one of 64 tokens, which are padded; and one in 2-D
SHAPES = [((5, 6, 3), (5, 3, 3), (2, 1, 0)), ((8, 8, 4), (4, 4, 4), (2, 2, 0)), ((9, 6), (3, 3), (1, 1))]


@pytest.mark.parametrize(("grid", "window", "shift"), SHAPES)
@pytest.mark.parametrize("c", [4, pytest.param(16, marks=pytest.mark.long)])
@pytest.mark.parametrize("shifted", [False, True])
def test_a_mask_in_additional_channels_equals_the_mask(grid, window, shift, c, shifted):
    regions = windows.region_ids(grid, window, shift) if shifted else None
    t, n = np.prod(window), 2 * np.prod(grid) // np.prod(window)  # two samples
    q, k, v, weight = (normal(n, t, 3, c) for _ in range(4))
    bias = normal(3, t, t)
    got = values_and_gradients(through_xla(regions), q, k, v, bias, weight)
    for ours, theirs in zip(got, values_and_gradients(reference(regions), q, k, v, bias, weight)):
        assert error(ours, theirs) < 1e-5  # logits of 100 and more have larger rounding errors


@pytest.mark.parametrize("shifted", [False, True])
def test_a_mask_in_additional_channels_equals_the_mask_in_bfloat16(shifted):
    grid, window, shift = SHAPES[0]
    regions = windows.region_ids(grid, window, shift) if shifted else None
    q, k, v, weight = (normal(2, 45, 3, 16) for _ in range(4))
    bias = normal(3, 45, 45)
    exact = values_and_gradients(reference(regions), *(np.asarray(jnp.bfloat16(a), np.float32) for a in (q, k, v)), bias, weight)
    rounded = [jnp.asarray(a, jnp.bfloat16) for a in (q, k, v)]
    got = values_and_gradients(through_xla(regions), *rounded, bias, weight)
    for ours, theirs, dtype in zip(got, exact, ("bfloat16",) * 4 + ("float32",)):
        assert ours.dtype == dtype
        assert error(ours.astype(jnp.float32), theirs) < 1e-2


def test_regions_are_numbered_within_a_window():
    regions = windows.region_ids((14, 14, 14), (7, 7, 7), (3, 3, 3))
    labels = attention.relabel_regions(regions)
    assert labels.max() == attention_cuda.REGIONS - 1
    differ = regions[:, :, None] != regions[:, None, :]
    np.testing.assert_array_equal(labels[:, :, None] != labels[:, None, :], differ)


def test_inputs_that_cudnn_does_not_support():
    def supported(shape, dtype, regions=None):
        return attention_cuda.supports(*[jax.ShapeDtypeStruct(shape, dtype)] * 3, jax.ShapeDtypeStruct((3, 9, 9), dtype), regions)

    assert not supported((2, 9, 3, 16), np.float32)
    assert not supported((2, 9, 3, 16), jnp.bfloat16, np.arange(9, dtype=np.int8)[None])  # more regions than a window can have
    assert not supported((2, 9, 3, 128), jnp.bfloat16)
    assert all(attention_cuda._tokens(t) % 128 != 64 and attention_cuda._tokens(t) >= t for t in range(1, 400))


def test_bfloat16_attention_is_traced_once_for_a_shape(monkeypatch, fresh_traces):
    """Networks repeat shapes; a function that is defined in each call would be traced, and compiled, each time."""
    traced = []
    cudnn = Implementation(lambda *inputs: traced.append(0) or attention_cuda.cudnn(*inputs, implementation="xla"))
    table = Table("test", Implementation(attention_reference.attention), {"cuda": (cudnn,)})
    monkeypatch.setattr(attention, "WINDOW_ATTENTION", table)
    rounded = [jnp.asarray(normal(4, 8, 2, 16), jnp.bfloat16) for _ in range(3)]
    bias, regions = jnp.asarray(normal(2, 8, 8)), np.arange(32, dtype=np.int32).reshape(4, 8)

    @jax.jit
    def network(q, k, v, bias):
        for shift in (0, 1, 2):
            q = attention.window_attention(q, k, v, bias, regions + shift)
        return q

    network.lower(*rounded, bias)
    assert len(traced) == 1


@pytest.mark.accelerator
@on_gpu
@pytest.mark.parametrize(("grid", "window", "shift"), [*SHAPES, ((14, 14, 14), (7, 7, 7), (3, 3, 3))])
@pytest.mark.parametrize("shifted", [False, True])
def test_cudnn_equals_the_reference(grid, window, shift, shifted):
    regions = windows.region_ids(grid, window, shift) if shifted else None
    t, n = np.prod(window), np.prod(grid) // np.prod(window)
    q, k, v = (jnp.asarray(normal(n, t, 3, 16), jnp.bfloat16) for _ in range(3))
    bias, weight = normal(3, t, t), normal(n, t, 3, 16)
    assert attention_cuda.supports(q, k, v, bias, None if regions is None else attention.relabel_regions(regions))
    got = values_and_gradients(lambda *a: attention_cuda.cudnn(*a, relabelled(regions)), q, k, v, bias, weight)
    exact = values_and_gradients(reference(regions), *(a.astype(jnp.float32) for a in (q, k, v)), bias, weight)
    for ours, theirs in zip(got, exact):
        assert np.isfinite(np.asarray(ours, np.float32)).all()
        assert error(ours.astype(jnp.float32), theirs) < 2e-2


UP_SHAPES = [((1, 3, 4, 5), 6, 4, 3), ((2, 1, 2, 3), 5, 2, 4)]


def up_conv_inputs(shape, c, u, o, dtype):
    fine = (shape[0], *(2 * size for size in shape[1:]))
    shapes = ((*shape, c), (*fine, u), (2, 2, 2, c, u), (3, 3, 3, 2 * u, o), (1, 1, 1, 2 * u, o))
    return [normal(*s, dtype=dtype) for s in shapes], normal(2, *fine, o, dtype=dtype)


@pytest.mark.parametrize(("shape", "c", "u", "o"), UP_SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), pytest.param(np.float32, 2e-6, marks=pytest.mark.long)])
def test_fused_kernels_and_their_gradients(shape, c, u, o, dtype, tolerance):
    with jax.enable_x64(dtype == np.float64):
        inputs, weights = up_conv_inputs(shape, c, u, o, dtype)

        def results(implementation):
            def loss(*inputs):
                y = implementation(*inputs)
                return sum((a * b).sum() for a, b in zip(y, weights)), y

            (_, y), gradients = jax.jit(jax.value_and_grad(loss, tuple(range(5)), has_aux=True))(*inputs)
            return *y, *gradients

        for got, expected in zip(results(up_conv_cuda.fused), results(up_conv_reference.up_conv)):
            assert got.dtype == dtype
            assert error(got, expected) < tolerance


@pytest.mark.parametrize(("shape", "c", "u", "o"), UP_SHAPES)
def test_fused_kernels_in_bfloat16(shape, c, u, o):
    inputs, _ = up_conv_inputs(shape, c, u, o, np.float32)
    rounded = [jnp.asarray(a, jnp.bfloat16) for a in inputs]
    exact = up_conv_reference.up_conv(*(a.astype(jnp.float32) for a in rounded))
    for got, expected in zip(up_conv_cuda.fused(*rounded), exact):
        assert got.dtype == jnp.bfloat16
        assert error(got.astype(jnp.float32), expected) < 1e-2


def test_an_option_that_xla_does_not_have_is_omitted(monkeypatch):
    assert xla.xla_supports("xla_gpu_force_conv_nhwc", True)
    assert not xla.xla_supports("xla_gpu_make_it_fast", True)
    assert xla.compiler_options() == ({} if jax.default_backend() != "gpu" else xla.GPU_OPTIONS)
    monkeypatch.setattr(xla, "GPU_OPTIONS", {"xla_gpu_make_it_fast": True, "xla_gpu_force_conv_nhwc": True})
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert xla.compiler_options() == {"xla_gpu_force_conv_nhwc": True}


def test_pinning_the_layout_does_not_change_gradients():
    gradients = {"kernel": normal(3, 3, 3, 2, 4), "bias": normal(4)}
    got = jax.jit(xla.pin_gradient_layout)(gradients)
    jax.tree.map(np.testing.assert_array_equal, got, gradients)
