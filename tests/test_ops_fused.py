"""Fused operations equal the separate operations: values and gradients, odd sizes, every dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.relative import error

from swinunetr_jax import SwinUNETRConfig
from swinunetr_jax.model.layers import Conv, Linear, PatchConv
from swinunetr_jax.ops import norm
from swinunetr_jax.ops.conv import reference as conv_reference
from swinunetr_jax.ops.norm import norm_act_conv, pointwise_conv_norm
from swinunetr_jax.ops.pointwise import add_bias, leaky_relu
from swinunetr_jax.runtime.dispatch import Implementation, Table

rng = np.random.default_rng(0)
TYPES = [("float64", 1e-12), ("float32", 5e-6), ("bfloat16", 2e-2)]


def values_and_gradients(implementation, inputs, weight, dtype):
    def loss(*inputs):
        y = implementation(*inputs)
        return (y.astype(weight.dtype) * weight).sum(), y

    inputs = [jnp.asarray(a, dtype) for a in inputs]
    (_, y), gradients = jax.jit(jax.value_and_grad(loss, tuple(range(len(inputs))), has_aux=True))(*inputs)
    return y, *gradients


def compare(implementation, reference, inputs, weight, dtype, tolerance):
    """Asserts that an implementation in `dtype` equals the reference in float64."""
    with jax.enable_x64(True):
        inputs = [np.asarray(jnp.asarray(a, dtype), np.float64) for a in inputs]
        exact = values_and_gradients(reference, inputs, weight, "float64")
        for got, expected in zip(values_and_gradients(implementation, inputs, weight, dtype), exact):
            assert got.dtype == dtype
            assert error(got, expected) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize("c", [2, 4])
@pytest.mark.parametrize("grid", [(5, 6, 7), (9, 4)])
def test_pointwise_conv_norm(grid, c, dtype, tolerance):
    x, kernel = rng.normal(size=(2, *grid, c)) + 3, rng.normal(size=(c, 6))
    weight = rng.normal(size=(2, *grid, 6))
    compare(pointwise_conv_norm.pointwise_conv_norm, pointwise_conv_norm.reference, (x, kernel), weight, dtype, tolerance)


@pytest.mark.parametrize("mean", [3, 1000])
def test_pointwise_conv_norm_of_channels_with_a_mean(mean):
    """Scans that are not normalised have such channels. Their deviations from the mean must not be lost to rounding."""
    x, kernel = rng.normal(size=(1, 20, 20, 20, 4)) + mean, rng.normal(size=(4, 6))
    weight = rng.normal(size=(1, 20, 20, 20, 6)) + 0.5
    compare(pointwise_conv_norm.by_channels, pointwise_conv_norm.reference, (x, kernel), weight, "float32", 1e-5)


@pytest.mark.parametrize("value", [0, 0.1, 1000.1])
def test_pointwise_conv_norm_of_a_constant_volume(value):
    y = pointwise_conv_norm.by_channels(jnp.full((1, 6, 6, 6, 4), value), jnp.asarray(rng.normal(size=(4, 6)), jnp.float32))
    assert np.isfinite(y).all()
    assert np.abs(y).max() < 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
@pytest.mark.parametrize("computed_again", [False, True])
@pytest.mark.parametrize("grid", [(5, 6, 7), (9, 4)])
def test_norm_act_conv(grid, computed_again, dtype, tolerance, monkeypatch):
    """The results are the same if the input of the convolution is computed again for its gradient, as on a GPU."""
    if computed_again:
        forward = norm_act_conv.CONV_INPUT.platforms["cuda"][0].forward
        monkeypatch.setattr(norm_act_conv, "CONV_INPUT", Table("test", Implementation(forward), {}))
    x, kernel = rng.normal(size=(2, *grid, 3)) + 3, rng.normal(size=(*(3,) * len(grid), 3, 4))
    weight = rng.normal(size=(2, *grid, 4))

    def separately(x, kernel):
        return conv_reference.conv(leaky_relu(norm.instance_norm(x)), kernel)

    compare(lambda x, kernel: norm_act_conv.norm_act_conv(x, kernel), separately, (x, kernel), weight, dtype, tolerance)


def test_on_a_gpu_the_input_of_the_convolution_is_computed_again_after_a_barrier():
    """Without the barrier XLA would see that it has computed the input already, and keep it."""
    x, kernel = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((1, 16, 16, 16, 8), (3, 3, 3, 8, 8)))
    gradient = jax.grad(lambda x, kernel: jnp.square(norm_act_conv.norm_act_conv(x, kernel).astype(jnp.float32)).sum(), (0, 1))
    text = jax.jit(gradient).trace(x, kernel).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("optimization_barrier") == 1


@pytest.mark.parametrize(("dtype", "tolerance"), TYPES)
def test_the_gradient_of_a_bias_is_summed_in_float32(dtype, tolerance):
    x, bias, dy = rng.normal(size=(64, 64, 64, 3)), np.float32([0.3, -1, 2]), np.ones((64, 64, 64, 3))
    with jax.enable_x64(True):
        y, pullback = jax.vjp(add_bias, jnp.asarray(x, dtype), jnp.asarray(bias, jnp.float32))
        dx, dbias = pullback(jnp.asarray(dy, dtype))
    assert y.dtype == dx.dtype == dtype
    assert dbias.dtype == jnp.float32
    assert error(y, x + bias) < tolerance
    assert error(dbias, np.full(3, 64**3)) < 1e-6


@pytest.mark.parametrize("kind", ["linear", "conv", "patches"])
def test_layers_in_bfloat16_have_precise_gradients_of_their_biases(kind):
    """A sum over many voxels in bfloat16 would be lost to rounding."""
    config, rngs = SwinUNETRConfig(in_channels=1, out_channels=1, dtype="bfloat16"), nnx.Rngs(0)
    layer = {
        "linear": lambda: Linear(2, 3, config, rngs=rngs),
        "conv": lambda: Conv(2, 3, 1, config, bias=True, rngs=rngs),
        "patches": lambda: PatchConv(2, 3, config, rngs=rngs),
    }[kind]()
    x = jnp.ones((1, 64, 64, 64, 2))
    gradient = jax.grad(lambda layer: layer(x).astype(jnp.float32).sum())(layer).bias[...]
    assert error(gradient, np.full(3, 32**3 if kind == "patches" else 64**3)) < 1e-6
