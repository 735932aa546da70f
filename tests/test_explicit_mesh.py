"""The network over meshes of `jax.make_mesh`, whose axes are explicit: four CPU devices, in a process of their own."""

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


def elsewhere(what: str) -> dict:
    """What a function of this file returns in a process with four devices."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__, what], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.fault("4.4")
def test_the_network_and_its_gradient_can_be_traced_over_explicit_axes_and_give_the_logits_of_one_device():
    found = elsewhere("quickly")
    assert found["traced"] == list(CASES)
    assert found["divided"]
    assert found["logits"] < 1e-12


@pytest.mark.long
@pytest.mark.fault("4.4")
def test_over_explicit_axes_loss_logits_gradients_and_intermediates_are_those_of_one_device():
    found = elsewhere("thoroughly")
    assert max(found.pop("intermediates").values()) < 1e-10
    for name in CASES:
        case = found[name]
        assert case["divided"], name
        assert case["loss"] < 1e-12 and case["logits"] < 1e-12 and case["gradient"] < 1e-9, (name, case)


def apart(got: jax.Array, expected: jax.Array) -> float:
    """The largest difference over the largest value."""
    return float(np.abs(np.asarray(got) - np.asarray(expected)).max() / (np.abs(np.asarray(expected)).max() or 1))


class Prepared:
    """A case's network, inputs and mesh."""

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

        self.forward = jax.jit(lambda weights, x: nnx.merge(structure, weights)(x), compiler_options=FAST)
        self.gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=FAST)

    def place(self, array: np.ndarray, *spec: str | None) -> jax.Array:
        return jax.device_put(array, NamedSharding(self.mesh, PartitionSpec(*spec)))

    def placed(self) -> tuple[nnx.State, jax.Array, jax.Array]:
        def place_weight(w: jax.Array) -> jax.Array:
            divided = self.case.weights and w.ndim and w.shape[-1] % DEVICES == 0
            return self.place(w, *[None] * (w.ndim - 1), self.case.weights) if divided else self.place(w)

        return (
            jax.tree.map(place_weight, self.weights),
            self.place(self.x, *self.case.spec),
            self.place(self.label, *self.case.spec),
        )

    def is_divided(self, logits: jax.Array) -> bool:
        """As the input is."""
        return logits.sharding.shard_shape(logits.shape) == self.place(logits, *self.case.spec).sharding.shard_shape(logits.shape)


def quickly() -> dict:
    """Which gradients can be traced, and of one case the logits' difference from one device."""
    traced = []
    for name, case in CASES.items():
        prepared = Prepared(case)
        prepared.gradient.trace(*prepared.placed())
        traced.append(name)
    prepared = Prepared(CASES["samples and rows"])
    weights, x, _ = prepared.placed()
    logits = prepared.forward(weights, x)
    expected = prepared.forward(prepared.weights, prepared.x)
    return {"traced": traced, "divided": prepared.is_divided(logits), "logits": apart(logits, expected)}


def thoroughly() -> dict:
    found = {}
    for name, case in CASES.items():
        prepared = Prepared(case)
        (loss, logits), gradient = prepared.gradient(prepared.weights, prepared.x, prepared.label)
        (own_loss, own), own_gradient = prepared.gradient(*prepared.placed())
        found[name] = {
            "divided": prepared.is_divided(own),
            "loss": apart(own_loss, loss),
            "logits": apart(own, logits),
            "gradient": max(map(apart, jax.tree.leaves(own_gradient), jax.tree.leaves(gradient))),
        }
    return found | {"intermediates": intermediates()}


def intermediates() -> dict[str, float]:
    """Within `jax.set_mesh`, in training with a batch norm: differences from one device by name."""
    model = SwinUNETR(configuration(PLANE, norm_name="batch"), rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=PLANE)
    run = jax.jit(lambda model, x: model.forward(x, train=True)[1], compiler_options=FAST)
    expected = run(model, x)
    mesh = jax.make_mesh((2, 2), ("samples", "rows"))
    with jax.set_mesh(mesh):
        got = run(model, jax.device_put(x, NamedSharding(mesh, PartitionSpec("samples", "rows"))))
    return {name: apart(got[name], expected[name]) for name in expected}


def configuration(shape: tuple[int, ...], **options: str) -> SwinUNETRConfig:
    sizes = {"in_channels": 1, "out_channels": 2, "feature_size": 12, "depths": (1, 1, 1, 1), "spatial_dims": len(shape) - 2}
    return SwinUNETRConfig(**sizes, dtype="float64", param_dtype="float64", **options)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_enable_x64", True)
    print(json.dumps({"quickly": quickly, "thoroughly": thoroughly}[sys.argv[1]]()))
