"""On a GPU or TPU the results are those of the CPU. Run as `JAX_PLATFORMS=cuda,cpu python -m pytest -m accelerator`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.relative import error

from swinunetr_jax import SwinUNETR, SwinUNETRConfig, jit, sliding_window_inference
from swinunetr_jax.weights.params import flatten

pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.skipif(jax.default_backend() == "cpu", reason="no accelerator, or JAX_PLATFORMS does not name it"),
]
CONFIG = SwinUNETRConfig(in_channels=4, out_channels=3, feature_size=12)
rng = np.random.default_rng(0)


def network(**fields):
    return SwinUNETR(CONFIG.replace(**fields), rngs=nnx.Rngs(0))


def on(device, function, model, *inputs):
    """Runs a function on one device and returns its result. The device's platform determines the implementations."""
    with jax.default_device(device):
        results = jax.jit(function)(*jax.device_put((model, *inputs), device))
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), results)


def on_both(function, dtype, *inputs):
    """Returns the results on the accelerator in `dtype` and on the CPU in float32."""
    accelerated = on(jax.devices()[0], function, network(dtype=dtype), *inputs)
    return accelerated, on(jax.local_devices(backend="cpu")[0], function, network(), *inputs)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_logits_equal_those_of_the_cpu(dtype, tolerance):
    x = rng.normal(size=(1, 64, 64, 64, 4)).astype(np.float32)
    got, expected = on_both(lambda model, x: model(x), dtype, x)
    assert error(got, expected) <= tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_gradients_equal_those_of_the_cpu(dtype, tolerance):
    """The gradients of the logits' mean square are compared as one vector, and in float32 also one by one."""
    x = rng.normal(size=(1, 64, 64, 64, 4)).astype(np.float32)

    def gradients(model, x):
        return jax.grad(lambda model: jnp.square(model(x).astype(jnp.float32)).mean())(model)

    got, expected = (flatten(result) for result in on_both(gradients, dtype, x))
    assert got.keys() == expected.keys()
    vectors = [np.concatenate([result[name].ravel() for name in expected]) for result in (got, expected)]
    assert error(*vectors) <= tolerance
    if dtype == "float32":
        largest = max(np.linalg.norm(value) for value in expected.values())
        for name, value in expected.items():
            assert np.linalg.norm(got[name] - value) <= tolerance * max(np.linalg.norm(value), 1e-3 * largest), name


def test_sliding_window_logits_equal_those_of_the_cpu():
    """The sizes are odd, so that the last window is moved back into the volume."""
    x = rng.normal(size=(1, 75, 70, 91, 4)).astype(np.float32)

    def logits_on(device):
        with jax.default_device(device):
            model = jax.device_put(network(), device)
            forward = jit(lambda model, x: model(x), device=device)
            return sliding_window_inference(x, (64, 64, 64), 2, lambda x: forward(model, x), 0.5, "gaussian")

    got, expected = (logits_on(device) for device in (jax.devices()[0], jax.local_devices(backend="cpu")[0]))
    assert error(got, expected) <= 1e-4
