"""The emulation of an accelerator's precision on a CPU, and the precision of every convolution and matrix product in a network."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from swinunetr_jax import SwinUNETR, SwinUNETRConfig
from swinunetr_jax.ops.attention import window_attention
from swinunetr_jax.ops.conv import conv, reference
from tools.precision_report import BFLOAT16, Options, emulate, exact, in_one_pass, in_three_passes, measure, rounded

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def test_rounding():
    third = jnp.float32(1 / 3)
    assert float(rounded(third, BFLOAT16)) == float(third.astype(jnp.bfloat16)) == 171 / 512
    assert float(rounded(third, 10)) == 1365 / 4096


def test_operands_of_products_are_rounded():
    x, kernel = normal(1, 4, 5, 6, 3), normal(3, 3, 3, 3, 2)
    rounded_inputs = [a.astype(jnp.bfloat16).astype(jnp.float32) for a in (jnp.asarray(x), jnp.asarray(kernel))]
    got = emulate(conv, "cuda", in_one_pass(BFLOAT16))(x, kernel)
    np.testing.assert_allclose(got, reference.conv(*rounded_inputs), atol=1e-5)
    assert np.abs(got - reference.conv(x, kernel)).max() > 1e-3
    closer = emulate(conv, "cuda", in_three_passes)(x, kernel)
    np.testing.assert_allclose(closer, reference.conv(x, kernel), atol=2e-4)


def test_other_operations_are_not_changed():
    q, k, v, bias = normal(6, 5, 2, 4), normal(6, 5, 2, 4), normal(6, 5, 2, 4), normal(2, 5, 5)
    regions = rng.integers(0, 3, (3, 5)).astype(np.int32)

    def attend(q, k, v, bias):
        return window_attention(q, k, v, bias, regions)

    np.testing.assert_allclose(jax.jit(emulate(attend, "cuda", exact))(q, k, v, bias), attend(q, k, v, bias), atol=1e-6)


def test_a_loop_is_an_error():
    with pytest.raises(NotImplementedError, match="scan"):
        emulate(lambda x: lax.map(jnp.sin, x), "cuda", exact)(normal(3))


@pytest.mark.long
def test_the_reported_errors_grow_as_precision_decreases():
    rows, deviation = measure(Options(size=(64, 32, 32), feature_size=12))
    errors = [row.mean_error / deviation for row in rows]
    assert errors == sorted(errors)
    assert errors[0] < 1e-4 < errors[-1] < 0.1
    assert rows[0].changed < 1e-3


@pytest.mark.parametrize("platform", [pytest.param("cpu", marks=pytest.mark.long), "cuda", "tpu"])
def test_every_product_has_the_requested_precision(platform):
    """Checks the forward pass and the gradients. With 24 features and 64³ voxels the program contains every implementation."""
    config = SwinUNETRConfig(in_channels=4, out_channels=3, feature_size=24)
    structure, state = nnx.split(nnx.eval_shape(lambda: SwinUNETR(config, rngs=nnx.Rngs(0))))
    x = jax.ShapeDtypeStruct((1, 64, 64, 64, 4), np.float32)
    with jax.default_matmul_precision("tensorfloat32"):  # not a precision that an operation might request itself
        traced = jax.jit(jax.grad(lambda state, x: nnx.merge(structure, state)(x).sum())).trace(state, x)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    count = Counter()
    for line in text.splitlines():
        if operation := re.search(r"stablehlo\.(convolution|dot_general)\b", line):
            count[operation[1], frozenset(re.findall(r"\b(DEFAULT|HIGH|HIGHEST)\b", line))] += 1
    assert set(count) == {("convolution", frozenset({"HIGH"})), ("dot_general", frozenset({"HIGH"}))}
    assert min(count.values()) >= 5
