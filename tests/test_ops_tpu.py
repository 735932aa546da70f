"""The implementations for TPUs equal the reference, as tested on any machine: values and gradients, odd sizes, both dtypes."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.relative import error

from swinunetr_jax import SwinUNETR, SwinUNETRConfig
from swinunetr_jax.model.blocks import ResBlock
from swinunetr_jax.ops import conv, lane_blocks, up_conv
from swinunetr_jax.ops.attention import reference as attention_reference
from swinunetr_jax.ops.attention import tpu as attention_tpu
from swinunetr_jax.ops.attention.heads import queries_keys_values
from swinunetr_jax.ops.conv import reference as conv_reference
from swinunetr_jax.ops.conv import tpu as conv_tpu
from swinunetr_jax.ops.lane_blocks import from_blocks, to_blocks
from swinunetr_jax.ops.norm.moments import moments
from swinunetr_jax.ops.up_conv import reference as up_conv_reference
from swinunetr_jax.ops.up_conv import tpu as up_conv_tpu
from swinunetr_jax.runtime.dispatch import for_device, record_choices

rng = np.random.default_rng(0)


def normal(*shape, dtype=jnp.float32):
    return jnp.asarray(rng.normal(size=shape), dtype)


def close(got, expected, tolerance):
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, atol=tolerance * max(np.abs(expected).max(), 1e-30), rtol=0)


ATTENTION = [(6, 3, 7, 3, 16), (4, 4, 27, 12, 16), (2, 1, 9, 2, 4), (2, 2, 5, 10, 24), (1, 1, 1, 1, 2)]


@pytest.mark.parametrize(("n", "windows", "t", "m", "c"), ATTENTION)
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 3e-6), pytest.param(jnp.bfloat16, 3e-2, marks=pytest.mark.long)])
def test_attention_and_its_gradients(n, windows, t, m, c, shifted, dtype, tolerance):
    q, k, v, dy = (normal(n, t, m, c, dtype=dtype) for _ in range(4))
    bias = normal(m, t, t)
    regions = jnp.asarray(rng.integers(0, 27, (windows, t)) // 9, jnp.int32) if shifted else None

    @functools.partial(jax.jit, static_argnums=0)
    def results(implementation, *inputs):
        y, pullback = jax.vjp(lambda *a: implementation(*a, regions), *inputs[:4])
        return y, *pullback(inputs[4])

    got = results(attention_tpu.CHUNKS, q, k, v, bias, dy)
    exact = results(attention_reference.attention, *(a.astype(jnp.float32) for a in (q, k, v, bias, dy)))
    assert [a.dtype for a in got] == [dtype] * 4 + [jnp.float32]
    for result, expected in zip(got, exact):
        close(result.astype(jnp.float32), expected, tolerance)


def conv_in_blocks(x, kernel):
    return from_blocks(conv.conv(to_blocks(x), kernel))


def up_conv_in_blocks(x, skip, *kernels):
    return tuple(map(from_blocks, up_conv.up_conv(x, to_blocks(skip), *kernels)))


CONVS = [
    (conv_tpu.PLANES_AS_BATCH, (1, 5, 6, 7, 3), 4),
    (conv_tpu.PLANES_AS_BATCH, (2, 4, 3, 5, 5), 2),
    (conv_tpu.PLANES_AS_BATCH, (1, 1, 2, 2, 3), 3),
    (conv_in_blocks, (1, 4, 4, 8, 2), 3),
    (conv_in_blocks, (2, 8, 12, 24, 3), 4),
]


@pytest.mark.parametrize(("implementation", "shape", "o"), CONVS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_conv_and_its_gradients(implementation, shape, o, dtype, tolerance):
    x, kernel, dy = normal(*shape, dtype=dtype), normal(3, 3, 3, shape[-1], o, dtype=dtype), normal(*shape[:-1], o, dtype=dtype)

    @functools.partial(jax.jit, static_argnums=0)
    def results(implementation, x, kernel, dy):
        y, pullback = jax.vjp(implementation, x, kernel)
        return y, *pullback(dy)

    got = results(implementation, x, kernel, dy)
    exact = results(conv_reference.conv, *(a.astype(jnp.float32) for a in (x, kernel, dy)))
    assert [a.dtype for a in got] == [dtype] * 3
    for result, expected in zip(got, exact):
        close(result.astype(jnp.float32), expected, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_patch_conv_and_its_gradients(dtype, tolerance):
    x, kernel, dy = normal(2, 4, 6, 2, 3, dtype=dtype), normal(2, 2, 2, 3, 5, dtype=dtype), normal(2, 2, 3, 1, 5, dtype=dtype)

    @functools.partial(jax.jit, static_argnums=0)
    def results(implementation, x, kernel, dy):
        y, pullback = jax.vjp(implementation, x, kernel)
        return y, *pullback(dy)

    exact = results(conv_reference.patch_conv, *(a.astype(jnp.float32) for a in (x, kernel, dy)))
    for result, expected in zip(results(conv_tpu.PAIRS_OF_PLANES, x, kernel, dy), exact):
        close(result.astype(jnp.float32), expected, tolerance)


UP_CONVS = [
    (up_conv_tpu.FUSED, (1, 3, 4, 5), 6, 4, 3),
    (up_conv_tpu.FUSED, (2, 1, 2, 3), 5, 2, 4),
    (up_conv_in_blocks, (1, 4, 4, 8), 6, 4, 3),
    (up_conv_in_blocks, (2, 8, 4, 16), 3, 2, 4),
]


@pytest.mark.parametrize(("implementation", "shape", "c", "u", "o"), UP_CONVS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 3e-6), pytest.param(jnp.bfloat16, 4e-2, marks=pytest.mark.long)])
def test_up_conv_and_its_gradients(implementation, shape, c, u, o, dtype, tolerance):
    fine = (shape[0], *(2 * size for size in shape[1:]))
    shapes = ((*shape, c), (*fine, u), (2, 2, 2, c, u), (3, 3, 3, 2 * u, o), (1, 1, 1, 2 * u, o))
    inputs, dy = [normal(*s, dtype=dtype) for s in shapes], tuple(normal(*fine, o, dtype=dtype) for _ in range(2))

    @functools.partial(jax.jit, static_argnums=0)
    def results(implementation, dy, *inputs):
        y, pullback = jax.vjp(implementation, *inputs)
        return *y, *pullback(dy)

    got = results(implementation, dy, *inputs)
    in_float32 = [a.astype(jnp.float32) for a in (*dy, *inputs)]
    exact = results(up_conv_reference.up_conv, tuple(in_float32[:2]), *in_float32[2:])
    assert {a.dtype for a in got} == {jnp.dtype(dtype)}
    for result, expected in zip(got, exact):
        close(result.astype(jnp.float32), expected, tolerance)


@pytest.mark.parametrize("shifts", [(-1, 1, -2), (2, 0, 1), (0, -1, 4), (0, 0, 0)])
def test_roll_of_a_grid_in_blocks(shifts):
    x, counts = np.asarray(normal(2, 6, 8, 15, 2)), (2, 4, 3)
    rolled = from_blocks(lane_blocks.roll(to_blocks(jnp.asarray(x), counts), shifts))
    np.testing.assert_array_equal(rolled, np.roll(x, shifts, (1, 2, 3)))


def test_queries_keys_and_values_and_their_gradient():
    qkv, dy = normal(2, 5, 3 * 12), normal(3, 2, 5, 3, 4)

    def results(platform):
        split = for_device(SimpleNamespace(platform=platform), lambda qkv: queries_keys_values(qkv, heads=3))
        parts, pullback = jax.vjp(split, qkv)
        return *parts, *pullback(tuple(dy))

    q, k, v, gradient = results("tpu")
    np.testing.assert_array_equal(k, qkv[:, :, 12:24].reshape(2, 5, 3, 4))
    np.testing.assert_array_equal(gradient[:, :, 24:], dy[2].reshape(2, 5, 12))
    for got, expected in zip((q, k, v, gradient), results("cpu"), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("axes", [(1, 2), (3,)])
@pytest.mark.parametrize("ratio", [0, 8, 64])
def test_moments_in_bfloat16_lose_fewer_digits_than_their_input(axes, ratio):
    """`ratio` is the mean in deviations. At 64 deviations the input is rounded by up to a fourth of a deviation, the variance by 0.2 %."""
    x = (normal(2, 30, 40, 20) + ratio).astype(jnp.bfloat16)
    traced = for_device(SimpleNamespace(platform="tpu"), lambda x: moments(x, axes))
    with record_choices("tpu") as choices:
        got = jax.jit(traced)(x)
    assert [choice.implementation.name for choice in choices] == ["norm.moments.in_the_pass_before"]
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(got.mean, exact.mean(axes, keepdims=True), rtol=1e-6, atol=1e-6)
    errors = np.abs(got.var - exact.var(axes, keepdims=True))
    assert (errors <= 2**-21 * np.square(exact).mean(axes, keepdims=True)).all()


@pytest.mark.parametrize("value", [0, 0.1, 1000])
def test_moments_of_a_constant_in_bfloat16(value):
    """Rounding must not make the variance negative, whose root would be no number."""
    x = jnp.full((1, 31, 17, 3), value, jnp.bfloat16)
    got = jax.jit(for_device(SimpleNamespace(platform="tpu"), lambda x: moments(x, (1, 2))))(x)
    assert (got.var >= 0).all() and (got.var <= 1e-6 * value**2).all()


@pytest.mark.parametrize("norm", ["instance", "group", "batch"])
def test_a_residual_block_of_a_grid_in_blocks(norm):
    """Norms take their statistics over all blocks of a volume."""
    config = SwinUNETRConfig(
        in_channels=2, out_channels=3, feature_size=12, norm_name=norm, num_groups=2 if norm == "group" else None
    )
    block, x = ResBlock(2, 4, config, rngs=nnx.Rngs(0)), normal(2, 8, 8, 16, 2)
    (got, stats), (expected, expected_stats) = block(to_blocks(x), train=True), block(x, train=True)
    close(from_blocks(got), expected, 1e-5)
    assert stats.keys() == expected_stats.keys()
    for name, value in expected_stats.items():
        close(stats[name], value, 1e-5)


@pytest.mark.long
def test_a_network_traced_for_a_tpu_equals_one_traced_for_a_cpu(monkeypatch):
    """Compares every intermediate, and every gradient with respect to parameters and to intermediates.

    For the TPU, the finest grids and the windows are in blocks.
    """
    monkeypatch.setattr(lane_blocks, "MIN_EDGE", 16)
    monkeypatch.setattr(lane_blocks, "LANES", 16)
    types = {"dtype": "float64", "param_dtype": "float64"}
    config = SwinUNETRConfig(in_channels=2, out_channels=3, feature_size=12, depths=(2, 1, 1, 1), use_checkpoint=True, **types)

    def loss(differentiated, x, weight):
        params, perturbations = differentiated
        logits, intermediates = nnx.merge(structure, params).forward(x, perturbations=perturbations)
        return (logits * weight).sum(), intermediates

    results = []
    with jax.enable_x64(True):
        structure, params = nnx.split(SwinUNETR(config, rngs=nnx.Rngs(0)))
        x, weight = (normal(1, 32, 32, 64, c, dtype="float64") for c in (2, 3))
        perturbations = jax.tree.map(jnp.zeros_like, jax.eval_shape(loss, (params, {}), x, weight)[1])
        inputs = (params, perturbations), x, weight
        for platform in ("tpu", "cpu"):
            traced = for_device(SimpleNamespace(platform=platform), jax.value_and_grad(loss, has_aux=True))
            results.append(jax.jit(traced)(*inputs))
        with record_choices("tpu") as choices:
            jax.eval_shape(loss, *inputs)
    in_blocks = [choice.table.operation for choice in choices if choice.implementation.name.endswith("blocks")]
    assert {"lane_blocks", "window_blocks", "conv of blocks"} == set(in_blocks)
    assert in_blocks.count("lane_blocks") == 2 and in_blocks.count("window_blocks") == 1  # encoder1, encoder2 and stage 0
    ((_, intermediates), gradients), ((_, expected), exact) = results
    for name, value in expected.items():
        assert intermediates[name].shape == value.shape
        assert error(intermediates[name], value) < 1e-12, name
    (gradients, of_intermediates), (exact, exact_of_intermediates) = gradients, exact
    gradients = dict(nnx.to_flat_state(gradients))
    for path, value in nnx.to_flat_state(exact):
        assert error(gradients[path][...], value[...]) < 1e-10, path
    assert of_intermediates.keys() == expected.keys()
    for name, value in exact_of_intermediates.items():
        assert error(of_intermediates[name], value) < 1e-10, name
