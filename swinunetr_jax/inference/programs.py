"""The compiled programs of a segmentation: the network, and the functions that turn its logits into probabilities and labels."""

import functools
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from swinunetr_jax.alarm import quiet_compilation
from swinunetr_jax.runtime.memory import release_compile_memory
from swinunetr_jax.runtime.sharding import replicate, spatially_sharded
from swinunetr_jax.runtime.xla import compiler_options
from swinunetr_jax.task import Task


class CompiledNetwork(Protocol):
    """A network as a compiled function of patches [n, *roi, c] and of the random key of its dropout, if it is used."""

    def __call__(self, patches: jax.Array, key: jax.Array | None = None) -> jax.Array: ...


def compiled_network(model: nnx.Module, mesh: Mesh | None) -> CompiledNetwork:
    """Returns the network as a compiled function of patches [n, *roi, c], which are divided among the devices of the mesh."""
    structure, state = nnx.split(model)
    state = state if mesh is None else replicate(state, mesh)
    run = quiet_compilation(_compiled(structure, mesh))
    return lambda patches, key=None: run((state, key), patches)


def uses_key(model: nnx.Module, shape: tuple[int, ...]) -> bool:
    """Returns whether the network's output depends on the key of the call, for patches of this shape."""
    traced = jax.make_jaxpr(lambda key, x: model(x, key=key))(jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))  # pyright: ignore[reportCallIssue] - a network is callable
    (key, *_) = traced.jaxpr.invars
    return any(variable is key for equation in traced.jaxpr.eqns for variable in equation.invars)


@functools.lru_cache(maxsize=8)
def _compiled(structure: nnx.GraphDef, mesh: Mesh | None) -> Callable[[tuple[nnx.State, jax.Array | None], jax.Array], jax.Array]:
    release_compile_memory()

    # The parameters are an argument, so that networks of the same structure share one program.
    def run(weights: tuple[nnx.State, jax.Array | None], patches: jax.Array) -> jax.Array:
        state, key = weights
        model = nnx.merge(structure, state)
        return model(patches) if key is None else model(patches, key=key)

    if mesh is not None:
        return spatially_sharded(run, mesh, compiler_options())
    return jax.jit(run, compiler_options=compiler_options())


@functools.lru_cache(maxsize=8)  # because a new function would be compiled again for every case
def output_functions(task: Task) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """Returns the functions that compute probabilities from averaged logits [..., c], and labels from probabilities, on the device.

    They are two programs, so that labels are computed from the same probabilities that are written, and agree with them in every voxel.
    """
    values = np.array([output.value for output in task.outputs], np.uint8)

    @jax.jit
    def probabilities(logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits, axis=-1) if task.kind == "classes" else jax.nn.sigmoid(logits)

    @jax.jit
    def labels(probabilities: jax.Array) -> jax.Array:
        if task.kind == "classes":
            return jnp.asarray(values)[jnp.argmax(probabilities, axis=-1)]
        labels = jnp.zeros(probabilities.shape[:-1], jnp.uint8)
        for channel in task.paint:
            labels = jnp.where(probabilities[..., channel] > 0.5, values[channel], labels)
        return labels

    return probabilities, labels
