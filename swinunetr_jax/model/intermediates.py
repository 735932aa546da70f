"""Perturbations: arrays that are added to the named intermediates of a forward pass.

JAX differentiates with respect to inputs of a function only. A perturbation of zeros is such an input, and the gradient with respect to it
is the gradient with respect to the intermediate. Without a perturbation an intermediate is unchanged, and so is the program.
"""

from collections.abc import Mapping
from types import MappingProxyType

import jax.numpy as jnp
from jax import Array

from swinunetr_jax.errors import InputError
from swinunetr_jax.ops.lane_blocks import BlockedGrid, G, array_of, like, to_blocks

Perturbations = Mapping[str, Array]
NO_PERTURBATIONS: Perturbations = MappingProxyType({})


def perturbed(grid: G, perturbation: Array | None) -> G:
    """Returns a grid plus a perturbation [b, *grid, c], or the grid itself without one. Blocks may be padded at the end of each axis."""
    if perturbation is None:
        return grid
    padding = [(0, size - own) for size, own in zip(grid.shape, perturbation.shape)]
    if perturbation.ndim != len(grid.shape) or any(count < 0 for _, count in padding):
        return grid  # `check_perturbations` reports it
    if isinstance(grid, BlockedGrid):
        perturbation = to_blocks(jnp.pad(perturbation, padding), grid.counts).array
    elif any(count for _, count in padding):
        return grid
    return like(grid, array_of(grid) + perturbation.astype(grid.dtype))


def under(prefix: str, perturbations: Perturbations) -> Perturbations:
    """Returns the perturbations whose names start with `prefix.`, by the rest of their names."""
    start = f"{prefix}."
    return {name.removeprefix(start): array for name, array in perturbations.items() if name.startswith(start)}


def check_perturbations(perturbations: Perturbations, intermediates: Mapping[str, Array]) -> None:
    """Raises InputError unless each perturbation has the name and the shape of an intermediate."""
    for name, array in perturbations.items():
        check_name(name, intermediates)
        if array.shape != intermediates[name].shape:
            raise InputError(
                f"the perturbation of {name} has shape {tuple(array.shape)}, expected that of the intermediate, "
                f"{tuple(intermediates[name].shape)}."
            )


def check_name(name: str, intermediates: Mapping[str, object]) -> None:
    """Raises InputError unless this is the name of an intermediate."""
    if name not in intermediates:
        raise InputError(f"the network has no intermediate {name!r}: choose one of {', '.join(intermediates)}.")
