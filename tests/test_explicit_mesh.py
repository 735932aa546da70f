"""The network over meshes of `jax.make_mesh`, whose axes are explicit: four CPU devices, in a process of their own."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from swinunetr_jax import SwinUNETR, SwinUNETRConfig, Task
from swinunetr_jax.losses import Loss

ROOT = Path(__file__).parents[1]
DEVICES = 4
FAST = {"xla_backend_optimization_level": 0}  # compiling takes longer than running
PLANE, SPACE = (4, 64, 32, 1), (2, 64, 32, 32, 1)  # shapes of inputs


class Case(NamedTuple):
    """A mesh's sizes and names, how the volumes are divided over it, and the last axes of the weights."""

    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    names: tuple[str, ...]
    spec: tuple[str | None, ...]
    weights: str | None = None


# in 2-D most of them, which compiles ten times as fast
CASES = {
    "samples and rows in 3-D": Case(SPACE, (2, 2), ("samples", "rows"), ("samples", "rows")),
    "samples": Case(PLANE, (4,), ("samples",), ("samples",)),
    "samples and rows": Case(PLANE, (2, 2), ("samples", "rows"), ("samples", "rows")),
    "rows and weights": Case(PLANE, (4,), ("rows",), (None, "rows"), "rows"),
    "weights alone": Case(PLANE, (4,), ("outputs",), (), "outputs"),
}


@pytest.fixture(scope="module")
def found():
    """What this file finds in a process with four devices."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.fault("4.4")
@pytest.mark.parametrize("case", CASES)
def test_the_network_over_explicit_axes_gives_the_loss_logits_and_gradients_of_one_device(case, found):
    assert found[case]["explicit"]
    assert found[case]["divided"]
    assert found[case]["loss"] < 1e-6
    assert found[case]["logits"] < 1e-5
    assert found[case]["gradient"] < 1e-4


@pytest.mark.slow
@pytest.mark.fault("4.4")
def test_intermediates_and_running_statistics_over_explicit_axes_are_those_of_one_device(found):
    assert max(found["intermediates"].values()) < 1e-4


def apart(got: jax.Array, expected: jax.Array) -> float:
    """The largest difference over the largest value."""
    return float(np.abs(np.asarray(got) - np.asarray(expected)).max() / (np.abs(np.asarray(expected)).max() or 1))


def results() -> dict:
    found = {name: differences(case) for name, case in CASES.items()}
    return found | {"intermediates": intermediates()}


def differences(case: Case) -> dict:
    """From one device, of loss, logits and gradients."""
    structure, weights = nnx.split(SwinUNETR(configuration(case.shape), rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    x = rng.normal(size=case.shape).astype(np.float32)
    label = rng.integers(0, 2, x.shape[:-1]).astype(np.int32)

    @functools.partial(jax.jit, compiler_options=FAST)
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(weights: nnx.State, x: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = nnx.merge(structure, weights)(x)
        return Loss(kind="dice_ce")(logits, label, Task.classes(2)), logits

    mesh = jax.make_mesh(case.sizes, case.names)

    def place(array: np.ndarray, *spec: str | None) -> jax.Array:
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))

    def place_weight(w: jax.Array) -> jax.Array:
        divided = case.weights and w.ndim and w.shape[-1] % DEVICES == 0
        return place(w, *[None] * (w.ndim - 1), case.weights) if divided else place(w)

    (loss, logits), gradient = run(weights, x, label)
    (own_loss, own), own_gradient = run(jax.tree.map(place_weight, weights), place(x, *case.spec), place(label, *case.spec))
    return {
        "explicit": set(mesh.axis_types) == {AxisType.Explicit},
        "divided": own.sharding.shard_shape(own.shape) == place(x, *case.spec).sharding.shard_shape(own.shape),
        "loss": apart(own_loss, loss),
        "logits": apart(own, logits),
        "gradient": max(map(apart, jax.tree.leaves(own_gradient), jax.tree.leaves(gradient))),
    }


def intermediates() -> dict[str, float]:
    """Within `jax.set_mesh`, in training with a batch norm: differences from one device by name."""
    model = SwinUNETR(configuration(PLANE, norm_name="batch"), rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=PLANE).astype(np.float32)
    run = jax.jit(lambda model, x: model.forward(x, train=True)[1], compiler_options=FAST)
    expected = run(model, x)
    mesh = jax.make_mesh((2, 2), ("samples", "rows"))
    with jax.set_mesh(mesh):
        got = run(model, jax.device_put(x, NamedSharding(mesh, PartitionSpec("samples", "rows"))))
    return {name: apart(got[name], expected[name]) for name in expected}


def configuration(shape: tuple[int, ...], **options: str) -> SwinUNETRConfig:
    dims = len(shape) - 2
    return SwinUNETRConfig(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1), spatial_dims=dims, **options)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_default_matmul_precision", "highest")
    print(json.dumps(results()))
