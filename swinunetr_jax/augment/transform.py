"""The base classes of transforms on the device. A transform is a frozen dataclass that draws parameters and applies them.

The two steps can be called separately, to compare the application with another implementation for the same parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import Array

from swinunetr_jax.errors import InputError


@dataclass(frozen=True)
class Run:
    """The facts about the samples of a run that transforms depend on.

    Attributes:
        mirrored: the axes along which samples may be mirrored.
        thin: the axis along which voxels are much longer than along the other two, or None. Samples are then rotated, scaled and reduced
            in resolution only in the plane of the other two.
    """

    mirrored: tuple[int, ...] = (0, 1, 2)
    thin: int | None = None

    @property
    def plane(self) -> tuple[int, ...]:
        """The axes except for the thin one."""
        return tuple(axis for axis in range(3) if axis != self.thin)


class Transform(ABC):
    """A random change of samples."""

    @abstractmethod
    def draw(self, key: Array, channels: int) -> Any:
        """Returns random parameters for an image with this number of channels: arrays, or a tuple of arrays."""

    def for_run(self, run: Run) -> Self:
        """Returns the transform with the values that depend on the run. Raises InputError if the run does not permit the transform."""
        return self


class Spatial(Transform):
    """Moves voxels by a matrix."""

    @abstractmethod
    def matrix(self, parameters: Any) -> Array:
        """Returns the matrix [3, 3], which maps a voxel of the result to that of the source, both relative to the centre."""

    @property
    @abstractmethod
    def moved(self) -> frozenset[int]:
        """The axes along which voxels move, not counting reversals. For the other axes the matrix is the identity, or reverses them."""


class Intensity(Transform):
    """Changes intensities."""

    @abstractmethod
    def apply(self, image: Array, parameters: Any) -> Array:
        """Returns an image [x, y, z, c], float32, changed by parameters of `draw`."""


def happens(key: Array, probability: float, shape: tuple[int, ...] = ()) -> Array:
    """Returns random truth values, each true with a probability."""
    return jax.random.uniform(key, shape) < probability


def uniform(key: Array, limits: tuple[float, float], shape: tuple[int, ...] = ()) -> Array:
    """Returns random numbers, uniform between two limits."""
    return jax.random.uniform(key, shape, minval=limits[0], maxval=limits[1])


def around_one(key: Array, limits: tuple[float, float], shape: tuple[int, ...] = ()) -> Array:
    """Returns random factors: half of them uniform between the lower limit and 1, the others between 1 and the upper limit.

    If both limits are on one side of 1, all factors are uniform between them.
    """
    low, high = limits
    if not low < 1 < high:
        return uniform(key, limits, shape)
    side_key, value_key = jax.random.split(key)
    share = jax.random.uniform(value_key, shape)
    return jnp.where(happens(side_key, 0.5, shape), low + share * (1 - low), 1 + share * (high - 1))


def check(transform: Transform, **values: float | tuple[float, float]) -> None:
    """Raises InputError unless probabilities are from 0 to 1, and ranges hold two positive numbers (or 0), the smaller one first."""
    for name, value in values.items():
        fits = 0 <= value <= 1 if isinstance(value, float | int) else len(value) == 2 and 0 <= value[0] <= value[1] < float("inf")
        if not fits:
            want = (
                "a probability from 0 to 1"
                if isinstance(value, float | int)
                else "two numbers of at least 0, the smaller one first"
            )
            raise InputError(f"`{name}` of {type(transform).__name__} must be {want}, got {value}.")


def check_axes(transform: Transform, axes: Sequence[int] | None) -> None:
    """Raises InputError unless axes are different ones of 0, 1 and 2."""
    if axes is not None and not (set(axes) <= {0, 1, 2} and len(set(axes)) == len(axes)):
        raise InputError(f"`axes` of {type(transform).__name__} must name axes 0, 1 and 2, each once, got {axes}.")
