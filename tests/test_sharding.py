"""A batch spread over devices: values and gradients are those of one device. Four CPU devices, in a process of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from swinunetr_jax import SwinUNETR, SwinUNETRConfig

DEVICES = 4


@pytest.mark.slow
def test_gradients_of_a_sharded_batch():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices of the batch"] == found["devices of the logits"] == DEVICES
    assert found["loss"] < 1e-12
    assert found["smallest gradient"] > 0
    assert found["gradient"] < 1e-10


def compare() -> dict[str, float]:
    """Differences between one device and four in float64, relative to the largest value of each tensor."""
    config = SwinUNETRConfig(in_channels=2, out_channels=2, feature_size=12, dtype="float64", param_dtype="float64")
    structure, state = nnx.split(SwinUNETR(config, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(DEVICES, 64, 32, 32, 2))
    weight = rng.normal(size=(DEVICES, 64, 32, 32, 2))

    def loss(state: nnx.State, x: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(structure, state)(x)
        return (jnp.square(logits) * weight).mean(), logits

    # compiling takes longer than running
    step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options={"xla_backend_optimization_level": 0})
    (one, _), expected = step(state, x, weight)
    mesh = Mesh(np.array(jax.devices()), ("batch",))
    spread, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("batch",), ()))
    batch = jax.device_put((x, weight), spread)
    (four, logits), got = step(jax.device_put(state, everywhere), *batch)
    largest = [np.abs(leaf).max() for leaf in map(np.asarray, jax.tree.leaves(expected))]
    apart = [np.abs(np.asarray(a) - np.asarray(b)).max() for a, b in zip(*map(jax.tree.leaves, (expected, got)))]
    return {
        "devices of the batch": len(batch[0].sharding.device_set),
        "devices of the logits": len({str(shard.index) for shard in logits.addressable_shards}),
        "loss": abs(float(one) - float(four)) / abs(float(one)),
        "smallest gradient": float(min(largest)),
        "gradient": float(max(a / b for a, b in zip(apart, largest))),
    }


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_enable_x64", True)
    print(json.dumps(compare()))
