"""On a GPU or TPU, where there is one: the same results as on the CPU. Run as `JAX_PLATFORMS=cuda,cpu python -m pytest -m accelerator`."""

import jax
import numpy as np
import pytest
from flax import nnx

from swinunetr_jax import SwinUNETR, SwinUNETRConfig

pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.skipif(jax.default_backend() == "cpu", reason="no accelerator, or JAX_PLATFORMS does not name it"),
]
CONFIG = SwinUNETRConfig(in_channels=4, out_channels=3, feature_size=12)


def forward(model, x, device):
    """The pass on one device; which formulations run is decided by its platform."""
    with jax.default_device(device):
        return np.asarray(jax.jit(lambda model, x: model(x))(jax.device_put(model, device), x), np.float32)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_the_accelerator_equals_the_cpu(dtype, tolerance):
    model = SwinUNETR(CONFIG.replace(dtype=dtype), rngs=nnx.Rngs(0))
    exact = SwinUNETR(CONFIG, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(1, 64, 64, 64, 4)).astype(np.float32)
    here = forward(model, x, jax.devices()[0])
    expected = forward(exact, x, jax.local_devices(backend="cpu")[0])
    assert np.linalg.norm(here - expected) <= tolerance * np.linalg.norm(expected)
