"""The table of JAX's transformations and settings that Swin UNETR supports; `docs/transformations.md` shows it to users.

Each row computes values of a small 2-D network in one way and compares them with those of `jax.jit` or `jax.grad` in float64, or with
finite differences. Rows with several devices run in one separate process with four CPU devices. Two rows of the page are tested
elsewhere: meshes of explicit axes (`test_explicit_mesh.py`) and `jax.pmap` of the trainer's step (`test_parallel.py`).
"""

import functools
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_functions import SHAPE, Small, distance, dot
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from swinunetr_jax import reference_ops, sliding_window_inference
from swinunetr_jax.inference.plan import Plan, importance_map
from swinunetr_jax.runtime import sharding

ROOT = Path(__file__).parents[1]
PLATFORMS = ("cpu", "cuda", "tpu")  # of exported programs

# ---- derivatives


def gradients_are_derivatives(small: Small) -> float:
    return distance(
        dot(small.gradients, small.direction), small.difference(lambda w: jax.jit(small.loss)(w, *small.arguments[1:]))
    )


def gradients_of_gradients(small: Small) -> float:
    """The gradient of the squared norm of the gradient, which is 2 Hᵀ g, along the direction."""

    def penalty(weights: Any) -> jax.Array:
        gradient = small.gradient(weights, *small.arguments[1:])
        return dot(gradient, gradient)

    return distance(dot(jax.jit(jax.grad(penalty))(small.weights), small.direction), small.difference(jax.jit(penalty)))


def forward_mode(small: Small) -> float:
    def loss(weights: Any) -> jax.Array:
        return small.loss(weights, *small.arguments[1:])

    with reference_ops():
        tangent = jax.jit(lambda w, d: jax.jvp(loss, (w,), (d,))[1])(small.weights, small.direction)
    return distance(tangent, dot(small.gradients, small.direction))


def linearized(small: Small) -> float:
    with reference_ops():
        tangent = jax.jit(lambda w, d: jax.linearize(lambda w: small.forward(w, small.x), w)[1](d))(
            small.weights, small.direction
        )
    return distance(tangent, small.difference(lambda w: jax.jit(small.forward)(w, small.x)))


def hessian_products(small: Small) -> float:
    """Forward over reverse mode: the Hessian times the direction."""
    gradient = functools.partial(small.gradient, x=small.x, labels=small.labels)
    with reference_ops():
        product = jax.jit(lambda w, d: jax.jvp(gradient, (w,), (d,))[1])(small.weights, small.direction)
    return distance(product, small.difference(jax.jit(gradient)))


# ---- functions of functions


def recomputed(small: Small) -> float:
    return distance(jax.jit(jax.grad(jax.checkpoint(small.loss)))(*small.arguments), small.gradients)


def mapped_over_samples(small: Small) -> float:
    """The gradients of each sample."""
    each = jax.jit(jax.vmap(small.gradient, (None, 0, 0)))(small.weights, small.x[:, None], small.labels[:, None])
    alone = [jax.jit(small.gradient)(small.weights, small.x[i : i + 1], small.labels[i : i + 1]) for i in range(len(small.x))]
    return distance(each, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone))


def mapped_over_weights(small: Small) -> float:
    """The logits of two networks."""
    pair = jax.tree.map(lambda a, b: jnp.stack([a, b]), small.weights, small.moved(0.1))
    logits = jax.jit(jax.vmap(small.forward, (0, None)))(pair, small.x)
    return distance(logits, [small.logits, jax.jit(small.forward)(small.moved(0.1), small.x)])


def scanned(small: Small) -> float:
    """Three steps of gradient descent in `jax.lax.scan`."""

    def descend(weights: Any, _: None) -> tuple[Any, None]:
        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, small.gradient(weights, *small.arguments[1:])), None

    expected, step = small.weights, jax.jit(descend)
    for _ in range(3):
        expected = step(expected, None)[0]
    return distance(jax.jit(lambda w: jax.lax.scan(descend, w, None, length=3)[0])(small.weights), expected)


def exported(small: Small) -> float:
    """One serialized program for three platforms and any number of samples, at two of them."""
    (samples,) = export.symbolic_shape("samples")
    shapes = jax.ShapeDtypeStruct((samples, *SHAPE[1:]), small.x.dtype)
    program = export.export(jax.jit(lambda leaves, x: small.forward(jax.tree.unflatten(tree, leaves), x)), platforms=PLATFORMS)
    leaves, tree = jax.tree.flatten(small.weights)
    loaded = export.deserialize(program(leaves, shapes).serialize())
    return max(distance(jax.jit(loaded.call)(leaves, small.x[:n]), small.logits[:n]) for n in (1, 4))


# ---- settings of JAX


def without_jit(small: Small) -> float:
    with jax.disable_jit():
        return distance(small.forward(small.weights, small.x), small.logits)


def gradients_without_jit(small: Small) -> float:
    with jax.disable_jit():
        return distance(small.gradient(*small.arguments), small.gradients)


def checked_for_nan(small: Small) -> float:
    with jax.debug_nans(True), jax.debug_infs(True):
        return distance(jax.jit(small.gradient)(*small.arguments), small.gradients)


def without_transfers(small: Small) -> float:
    """Implicit transfers are forbidden while a step is called on arrays that are on the device."""
    with jax.transfer_guard("disallow"):
        gradients = jax.jit(small.gradient)(*small.arguments)
    return distance(gradients, small.gradients)


def in_16_bits(dtype: str, small: Small) -> float:
    return distance(Small(dtype, "float32").logits, small.logits)


def gradients_in_16_bits(dtype: str, small: Small) -> float:
    return distance(Small(dtype, "float32").gradients, small.gradients)


# ---- sliding windows

WINDOWS = {"roi_size": (64, 32), "sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian"}
SCAN = np.random.default_rng(2).normal(size=(1, 90, 50, 1))


def by_windows(small: Small, weights: Any, scan: Any) -> Any:
    return sliding_window_inference(scan, predictor=jax.jit(functools.partial(small.forward, weights)), **WINDOWS)


def windows_under_jit(small: Small) -> float:
    got = jax.jit(functools.partial(by_windows, small))(small.weights, SCAN)
    return distance(got, by_windows(small, small.weights, SCAN))


def windows_over_traced_weights(small: Small) -> float:
    """The scan is not traced, but the weights are."""
    return distance(jax.jit(lambda w: by_windows(small, w, SCAN))(small.weights), by_windows(small, small.weights, SCAN))


def windows_mapped(small: Small) -> float:
    got = jax.vmap(lambda scan: by_windows(small, small.weights, scan))(np.stack([SCAN, 2 * SCAN]))
    return distance(got, [by_windows(small, small.weights, scan) for scan in (SCAN, 2 * SCAN)])


def windows_without_transfers(small: Small) -> float:
    expected, scan = by_windows(small, small.weights, SCAN), jnp.asarray(SCAN)
    with jax.transfer_guard("disallow"):
        return max(distance(by_windows(small, small.weights, volume), expected) for volume in (SCAN, scan))


def gradients_of_windows(small: Small) -> float:
    """The gradients by weights and scan of a weighted sum of the averaged logits, compared with a loop over windows."""
    plan, factors = Plan.of((90, 50), (64, 32), 0.5), np.random.default_rng(3).normal(size=(90, 50, 2))
    importance = importance_map((64, 32), "gaussian").astype(np.float64)

    def total(weights: Any, scan: Any) -> Any:
        return (by_windows(small, weights, scan)[0] * factors).sum()

    def by_loop(weights: Any, scan: Any) -> Any:
        sums, weight = jnp.zeros((90, 50, 2)), np.zeros((90, 50, 1))
        for i in plan.starts[0]:
            for j in plan.starts[1]:
                logits = small.forward(weights, scan[:, i : i + 64, j : j + 32])[0]
                sums = sums.at[i : i + 64, j : j + 32].add(logits * importance[..., None])
                weight[i : i + 64, j : j + 32, 0] += importance
        return (sums / weight * factors).sum()

    got, expected = (jax.jit(jax.grad(function, (0, 1)))(small.weights, SCAN) for function in (total, by_loop))
    return distance(got, expected)


# ---- the table


class Row(NamedTuple):
    """A row: a function of the small network that returns a relative difference, and the largest one that is allowed."""

    check: Callable[[Small], float]
    tolerance: float
    long: bool = True


ROWS = {
    "jax.grad, by finite differences": Row(gradients_are_derivatives, 1e-6),
    "jax.grad of jax.grad, by finite differences": Row(gradients_of_gradients, 1e-5),
    "jax.jvp": Row(forward_mode, 1e-10),
    "jax.linearize, by finite differences": Row(linearized, 1e-6),
    "products with the Hessian, by finite differences": Row(hessian_products, 1e-5),
    "jax.checkpoint": Row(recomputed, 1e-12),
    "jax.vmap over samples": Row(mapped_over_samples, 1e-10),
    "jax.vmap over weights": Row(mapped_over_weights, 1e-12),
    "jax.lax.scan": Row(scanned, 1e-12),
    "jax.export with any number of samples": Row(exported, 1e-12),
    "jax.disable_jit": Row(without_jit, 1e-12, long=False),
    "jax.disable_jit, gradients": Row(gradients_without_jit, 1e-10),
    "jax.debug_nans and jax.debug_infs": Row(checked_for_nan, 1e-12),
    'jax.transfer_guard("disallow")': Row(without_transfers, 1e-12),
    "float16": Row(functools.partial(in_16_bits, "float16"), 3e-3, long=False),
    "float16, gradients": Row(functools.partial(gradients_in_16_bits, "float16"), 0.05),
    "bfloat16": Row(functools.partial(in_16_bits, "bfloat16"), 2e-2),
    "sliding windows under jax.jit": Row(windows_under_jit, 1e-6, long=False),
    "sliding windows over traced weights": Row(windows_over_traced_weights, 1e-6),
    "sliding windows under jax.vmap": Row(windows_mapped, 1e-6),
    "sliding windows under jax.grad": Row(gradients_of_windows, 1e-6),
    'sliding windows under jax.transfer_guard("disallow")': Row(windows_without_transfers, 1e-12),
}


@pytest.fixture(scope="module")
def small():
    with jax.enable_x64(True):
        yield Small()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] if row.long else [], id=name.replace(" ", "-")) for name, row in ROWS.items()],
)
def test_row(name, small):
    with jax.enable_x64(True):
        assert ROWS[name].check(small) < ROWS[name].tolerance


# ---- rows with four devices


class Layout(NamedTuple):
    """A mesh of automatic axes with any names, and what is sharded over them.

    Attributes:
        sizes: the number of devices along each axis of the mesh.
        names: the names of these axes.
        images: the axis of the mesh for each axis of the images and labels.
        weights: the axis over which each weight is sharded, as in fully sharded data parallelism, or None.
    """

    sizes: tuple[int, ...]
    names: tuple[str, ...]
    images: tuple[str | None, ...]
    weights: str | None = None


LAYOUTS = {
    "samples": Layout((4,), ("replica",), ("replica",)),
    "samples and weights": Layout((4,), ("replica",), ("replica",), "replica"),
    "rows": Layout((4,), ("rows",), (None, "rows")),
    "samples and rows": Layout((2, 2), ("replica", "rows"), ("replica", "rows")),
}


@pytest.mark.long
def test_four_devices_compute_the_same_and_share_the_memory():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert results.keys() == LAYOUTS.keys() | {"one device"}
    one = results.pop("one device")
    for name, result in results.items():
        assert result["logits"] < 1e-12 and result["gradients"] < 1e-6, name
    # A device that has one of four samples needs the memory of a program for one sample, and little for what it exchanges.
    for name in ("samples", "samples and weights"):
        assert results[name]["forward bytes"] < 1.3 * one["forward bytes"], name
    assert results["samples"]["gradient bytes"] < 1.3 * one["gradient bytes"]
    # The weights and their gradients take a fourth, except those whose sizes are no multiples of four.
    for name in ("stored bytes", "gradients' bytes"):
        assert results["samples"][name] == one[name]
        assert results["samples and weights"][name] < 0.31 * one[name]


def test_an_explicit_axis_that_shards_nothing_of_the_input_is_warned_of():
    """XLA's kernel gradients would be wrong; see the page."""
    mesh = jax.sharding.AbstractMesh((2, 2), ("replica", "rows"), (AxisType.Explicit,) * 2)
    with pytest.warns(UserWarning, match="'replica' of the mesh shards nothing of the input: XLA then multiplies .* by 2"):
        sharding._warn_of_idle_axes(PartitionSpec(None, "rows", None, None), mesh)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sharding._warn_of_idle_axes(PartitionSpec("replica", "rows", None, None), mesh)
        sharding._warn_of_idle_axes(PartitionSpec(("replica", "rows"), None, None, None), mesh)
        sharding._warn_of_idle_axes(PartitionSpec("rows", None, None, None), mesh)  # space is not sharded


def with_four_devices() -> dict[str, dict[str, float]]:
    """Returns for each layout the differences from one device, and bytes of one device's memory; and those bytes for one sample."""
    small = Small(weights="float32")  # as in mixed precision, the weights are cast
    results = {"one device": Programs(small, small.weights, small.x[:1], small.labels[:1]).memory()}
    for name, layout in LAYOUTS.items():
        mesh = jax.make_mesh(layout.sizes, layout.names, axis_types=(AxisType.Auto,) * len(layout.names))

        def place(array: jax.Array, *spec: str | None, mesh: jax.sharding.Mesh = mesh) -> jax.Array:
            return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))

        def place_weight(weight: jax.Array, layout: Layout = layout, place: Callable[..., jax.Array] = place) -> jax.Array:
            """Shards the last axis that the devices can share evenly."""
            axis = next((a for a in reversed(range(weight.ndim)) if weight.shape[a] % 4 == 0), None)
            return place(weight) if layout.weights is None or axis is None else place(weight, *[None] * axis, layout.weights)

        weights = jax.tree.map(place_weight, small.weights)
        x, labels = place(small.x, *layout.images), place(small.labels, *layout.images)
        programs = Programs(small, weights, x, labels)
        results[name] = {
            "logits": distance(programs.forward(weights, x), small.logits),
            "gradients": distance(programs.gradient(weights, x, labels), small.gradients),
        } | programs.memory()
    return results


class Programs:
    """The compiled forward pass and gradient for arguments on their devices."""

    def __init__(self, small: Small, weights: Any, x: jax.Array, labels: jax.Array):
        self.weights = weights
        self.forward = jax.jit(small.forward).lower(weights, x).compile()
        self.gradient = jax.jit(small.gradient).lower(weights, x, labels).compile()

    def memory(self) -> dict[str, int]:
        """Returns the bytes of one device: temporary ones of both programs, the weights', and the gradients'."""
        forward, gradient = self.forward.memory_analysis(), self.gradient.memory_analysis()
        return {
            "forward bytes": forward.temp_size_in_bytes,
            "gradient bytes": gradient.temp_size_in_bytes,
            "stored bytes": sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(self.weights)),
            "gradients' bytes": gradient.output_size_in_bytes,
        }


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_enable_x64", True)
    print(json.dumps(with_four_devices()))
