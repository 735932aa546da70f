"""The compiled programs of a segmentation: the network, and the functions that turn its logits into probabilities and labels."""

import functools
from collections.abc import Callable

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


def compiled_network(model: nnx.Module, mesh: Mesh | None) -> Callable[[jax.Array], jax.Array]:
    """Returns the network as a compiled function of patches [n, *roi, c], which are divided among the devices of the mesh."""
    structure, state = nnx.split(model)
    state = state if mesh is None else replicate(state, mesh)
    run = quiet_compilation(_compiled(structure, mesh))
    return lambda patches: run(state, patches)


@functools.lru_cache(maxsize=8)
def _compiled(structure: nnx.GraphDef, mesh: Mesh | None) -> Callable[[nnx.State, jax.Array], jax.Array]:
    release_compile_memory()

    # The parameters are an argument, so that networks of the same structure share one program.
    def run(state: nnx.State, patches: jax.Array) -> jax.Array:
        return nnx.merge(structure, state)(patches)

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
