"""The network over meshes of `jax.make_mesh`, whose axes are explicit. The tests run on four CPU devices, in a separate process."""

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
PLANE, SPACE = (4, 64, 32, 1), (2, 64, 32, 32, 1)  # shapes of inputs


class Case(NamedTuple):
    """A test case: the shape of the input, the mesh, and the sharding of the volumes and of the last axes of the weights."""

    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    names: tuple[str, ...]
    spec: tuple[str | None, ...]
    weights: str | None = None


# most cases are in 2-D, which compiles ten times as fast
CASES = {
    "samples and rows in 3-D": Case(SPACE, (2, 2), ("samples", "rows"), ("samples", "rows")),
    "samples": Case(PLANE, (4,), ("samples",), ("samples",)),
    "samples and rows": Case(PLANE, (2, 2), ("samples", "rows"), ("samples", "rows")),
    "rows and weights": Case(PLANE, (4,), ("rows",), (None, "rows"), "rows"),
    "weights alone": Case(PLANE, (4,), ("outputs",), (), "outputs"),
}


TRACED = ("rows and weights",)  # by default; the long test runs all cases


def in_subprocess(function: str) -> dict:
    """Returns the result of a function of this file in a process with four devices."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__, function], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
@pytest.mark.fault("4.4")
def test_the_network_can_be_traced_over_explicit_axes_and_has_the_logits_of_one_device():
    results = in_subprocess("check_some_cases")
    assert results["traced"] == list(TRACED)
    assert results["sharded"]
    assert results["logits"] < 1e-12


@pytest.mark.long
@pytest.mark.fault("4.4")
def test_loss_logits_gradients_and_intermediates_over_explicit_axes_equal_those_of_one_device():
    results = in_subprocess("check_all_cases")
    assert max(results.pop("intermediates").values()) < 1e-10
    for name in CASES:
        case = results[name]
        assert case["sharded"], name
        assert case["loss"] < 1e-12 and case["logits"] < 1e-12 and case["gradient"] < 1e-9, (name, case)


def relative_error(got: jax.Array, expected: jax.Array) -> float:
    """Returns the largest difference divided by the largest value."""
    return float(np.abs(np.asarray(got) - np.asarray(expected)).max() / (np.abs(np.asarray(expected)).max() or 1))


class Prepared:
    """The network, the inputs and the mesh of a case."""

    def __init__(self, case: Case):
        self.case, config = case, configuration(case.shape)
        structure, self.weights = nnx.split(SwinUNETR(config, rngs=nnx.Rngs(0)))
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=case.shape)
        self.label = rng.integers(0, 2, case.shape[:-1]).astype(np.int32)
        self.mesh = jax.make_mesh(case.sizes, case.names)
        assert set(self.mesh.axis_types) == {AxisType.Explicit}

        def loss(weights: nnx.State, x: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = nnx.merge(structure, weights)(x)
            return Loss(kind="dice_ce")(logits, label, Task.classes(2)), logits

        self.forward = jax.jit(lambda weights, x: nnx.merge(structure, weights)(x))
        self.gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))

    def place(self, array: np.ndarray, *spec: str | None) -> jax.Array:
        return jax.device_put(array, NamedSharding(self.mesh, PartitionSpec(*spec)))

    def placed_inputs(self) -> tuple[nnx.State, jax.Array, jax.Array]:
        def place_weight(w: jax.Array) -> jax.Array:
            is_divisible = self.case.weights and w.ndim and w.shape[-1] % DEVICES == 0
            return self.place(w, *[None] * (w.ndim - 1), self.case.weights) if is_divisible else self.place(w)

        return (
            jax.tree.map(place_weight, self.weights),
            self.place(self.x, *self.case.spec),
            self.place(self.label, *self.case.spec),
        )

    def is_sharded(self, logits: jax.Array) -> bool:
        """Returns whether the logits are sharded as the input is."""
        return logits.sharding.shard_shape(logits.shape) == self.place(logits, *self.case.spec).sharding.shard_shape(logits.shape)


def check_some_cases() -> dict:
    """Traces the gradients of the cases in TRACED.

    Returns their names and, for one case, the difference of the logits from those of one device.
    """
    traced = []
    for name in TRACED:
        prepared = Prepared(CASES[name])
        prepared.gradient.trace(*prepared.placed_inputs())
        traced.append(name)
    prepared = Prepared(CASES["samples and rows"])
    weights, x, _ = prepared.placed_inputs()
    logits = prepared.forward(weights, x)
    expected = prepared.forward(prepared.weights, prepared.x)
    return {"traced": traced, "sharded": prepared.is_sharded(logits), "logits": relative_error(logits, expected)}


def check_all_cases() -> dict:
    """Returns for each case the differences of loss, logits and gradients from those of one device."""
    results = {}
    for name, case in CASES.items():
        prepared = Prepared(case)
        (loss, logits), gradient = prepared.gradient(prepared.weights, prepared.x, prepared.label)
        (sharded_loss, sharded_logits), sharded_gradient = prepared.gradient(*prepared.placed_inputs())
        results[name] = {
            "sharded": prepared.is_sharded(sharded_logits),
            "loss": relative_error(sharded_loss, loss),
            "logits": relative_error(sharded_logits, logits),
            "gradient": max(map(relative_error, jax.tree.leaves(sharded_gradient), jax.tree.leaves(gradient))),
        }
    return results | {"intermediates": intermediates()}


def intermediates() -> dict[str, float]:
    """Returns the differences of intermediates from those of one device, with `jax.set_mesh`, in training with a batch norm."""
    model = SwinUNETR(configuration(PLANE, norm_name="batch"), rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=PLANE)
    run = jax.jit(lambda model, x: model.forward(x, train=True)[1])
    expected = run(model, x)
    mesh = jax.make_mesh((2, 2), ("samples", "rows"))
    with jax.set_mesh(mesh):
        got = run(model, jax.device_put(x, NamedSharding(mesh, PartitionSpec("samples", "rows"))))
    return {name: relative_error(got[name], expected[name]) for name in expected}


def configuration(shape: tuple[int, ...], **options: str) -> SwinUNETRConfig:
    sizes = {"in_channels": 1, "out_channels": 2, "feature_size": 12, "depths": (1, 1, 1, 1), "spatial_dims": len(shape) - 2}
    return SwinUNETRConfig(**sizes, dtype="float64", param_dtype="float64", **options)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_enable_x64", True)
    print(json.dumps({"check_some_cases": check_some_cases, "check_all_cases": check_all_cases}[sys.argv[1]]()))
