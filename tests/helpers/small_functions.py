"""A small 2-D network as functions of its weights, with the values that tests of JAX's transformations compare with."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from swinunetr_jax import SwinUNETR, SwinUNETRConfig, Task
from swinunetr_jax.losses import Loss

CONFIG = SwinUNETRConfig(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1), spatial_dims=2, dtype="float64")
SHAPE = (4, 64, 64, 1)
STEP = 1e-5  # of finite differences


class Small:
    """The network as a function of its weights, its loss, their inputs, and the values of `jax.jit` and `jax.grad`.

    Args:
        dtype: the type in which the network computes.
        weights: the type of the weights.
    """

    def __init__(self, dtype: str = "float64", weights: str = "float64"):
        structure, self.weights = nnx.split(SwinUNETR(CONFIG.replace(dtype=dtype), rngs=nnx.Rngs(0)))
        rng = np.random.default_rng(0)
        self.weights = jax.tree.map(lambda w: w.astype(weights), self.weights)
        self.x = jnp.asarray(rng.normal(size=SHAPE), np.float64)
        self.labels = jnp.asarray(rng.integers(0, 2, SHAPE[:-1]), jnp.int32)
        self.forward = lambda weights, x: nnx.merge(structure, weights)(x)
        directions = np.random.default_rng(1)
        size = sum(w.size for w in jax.tree.leaves(self.weights)) ** 0.5  # so that the direction has about the length 1
        self.direction = jax.tree.map(lambda w: jnp.asarray(directions.normal(size=w.shape) / size, w.dtype), self.weights)

    def loss(self, weights: Any, x: Any, labels: Any) -> jax.Array:
        return Loss(kind="dice_ce")(self.forward(weights, x), labels, Task.classes(2))

    def gradient(self, weights: Any, x: Any, labels: Any) -> Any:
        return jax.grad(self.loss)(weights, x, labels)

    @property
    def arguments(self) -> tuple[Any, jax.Array, jax.Array]:
        return self.weights, self.x, self.labels

    @functools.cached_property
    def logits(self) -> jax.Array:
        return jax.jit(self.forward)(self.weights, self.x)

    @functools.cached_property
    def gradients(self) -> Any:
        return jax.jit(self.gradient)(*self.arguments)

    def moved(self, step: float) -> Any:
        """Returns the weights moved along the direction."""
        return jax.tree.map(lambda w, d: w + step * d, self.weights, self.direction)

    def difference(self, function: Callable[[Any], Any]) -> Any:
        """Returns the derivative along the direction by central differences."""
        high, low = (function(self.moved(step)) for step in (STEP, -STEP))
        return jax.tree.map(lambda a, b: (a - b) / (2 * STEP), high, low)


def distance(got: Any, expected: Any) -> float:
    """Returns the norm of the difference of two pytrees, relative to the norm of the second."""
    got, expected = (np.concatenate([np.ravel(np.asarray(a, np.float64)) for a in jax.tree.leaves(t)]) for t in (got, expected))
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def dot(a: Any, b: Any) -> jax.Array:
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
