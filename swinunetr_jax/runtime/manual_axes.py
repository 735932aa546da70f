"""Types of arrays inside `jax.shard_map`, which state over which axes of the mesh an array differs between devices.

Inside `shard_map` with its default check (`check_vma`), a gradient that is written by hand must have the type of its input. Weights are the
same on all devices, but the gradients that devices compute from their own samples are not. So all inputs of such a function are first
declared to differ over the same axes. JAX sums gradients over the devices where it differentiates this declaration. The start of a loop
must have the type of what the loop computes, and is declared in the same way. Outside of `shard_map` these functions do nothing.
"""

from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array, lax

T = TypeVar("T")


def vary_alike(tree: T) -> T:
    """Returns the arrays of a tree, declared to differ over every axis over which one of them differs."""
    axes = _varying_axes(tree)
    return jax.tree.map(lambda leaf: _declare(leaf, axes) if _is_array(leaf) else leaf, tree) if axes else tree


def vary_like(array: Array, *sources: Any) -> Array:
    """Returns the array, declared to differ over every axis over which one of the arrays in `sources` differs."""
    return _declare(array, _varying_axes(sources))


def _varying_axes(tree: Any) -> frozenset[str]:
    return frozenset().union(*(jax.typeof(leaf).manual_axis_type.varying for leaf in jax.tree.leaves(tree) if _is_array(leaf)))


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (Array, np.ndarray))


def _declare(array: Array, axes: frozenset[str]) -> Array:
    missing = axes - _varying_axes(array)
    return lax.pcast(array, tuple(sorted(missing)), to="varying") if missing else array
