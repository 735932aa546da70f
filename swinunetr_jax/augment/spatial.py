"""Rotation, scaling and mirroring. Each transform has a matrix, and a sample is resampled once, by the product of the matrices."""

import math
from dataclasses import dataclass, replace
from typing import Self

import jax
import jax.numpy as jnp
from jax import Array, lax

from swinunetr_jax.augment.transform import Run, Spatial, check, check_axes, happens, uniform
from swinunetr_jax.errors import InputError

DEGREES, DEGREES_IN_PLANE = 30.0, 180.0  # nnU-Net's largest angles for scans with voxels of similar sizes, and for others
SWAPPED_FROM = 45.0  # degrees from which two axes are exchanged first, so that the passes rotate by the remaining angle


@dataclass(frozen=True)
class Rotation(Spatial):
    """Rotates about each axis by an angle that is uniform in [-degrees, degrees], with a probability for all axes together.

    The parameters are the three angles in radians. About several axes the largest angle is 30°, because a larger one would need a larger
    source. About one axis it is 180°.

    Attributes:
        degrees: the largest angle. None means 30, or 180 for scans with a thin axis, which are rotated only about this axis.
        probability: the probability that a sample is rotated.
        axes: the axes to rotate about. None means all, or the thin axis if there is one.
    """

    degrees: float | None = None
    probability: float = 0.2
    axes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check(self, probability=self.probability)
        check_axes(self, self.axes)
        if self.axes == ():
            raise InputError("`axes` of Rotation must name one axis or more: leave the rotation out instead.")
        limit = DEGREES_IN_PLANE if self.axes is not None and len(self.axes) == 1 else DEGREES
        if self.degrees is not None and (not 0 <= self.degrees <= DEGREES_IN_PLANE or (self.axes and self.degrees > limit)):
            raise InputError(
                f"`degrees` of Rotation must be at least 0 and at most {limit:g} for these axes, got {self.degrees}."
            )

    def for_run(self, run: Run) -> Self:
        if run.thin is not None and self.axes is not None and self.axes != (run.thin,):
            wrong = next(axis for axis in self.axes if axis != run.thin)
            raise InputError(
                f"samples cannot be rotated about axis {wrong}: the voxels or the crop are so much longer along one axis that samples are "
                f"rotated only about axis {run.thin}; give Rotation(axes=({run.thin},)), or scans with voxels of equal sizes (--spacing)."
            )
        axes = self.axes or ((0, 1, 2) if run.thin is None else (run.thin,))
        default_degrees = DEGREES if run.thin is None else DEGREES_IN_PLANE
        return replace(self, axes=axes, degrees=default_degrees if self.degrees is None else self.degrees)

    @property
    def _rotation_axes(self) -> tuple[int, ...]:
        return (0, 1, 2) if self.axes is None else self.axes

    @property
    def moved(self) -> frozenset[int]:
        return frozenset(range(3)) - (frozenset(self._rotation_axes) if len(self._rotation_axes) == 1 else frozenset())

    @property
    def swapped(self) -> tuple[int, int] | None:
        """The two axes that have to be exchanged for large angles, or None."""
        if len(self._rotation_axes) > 1 or (self.degrees or 0) <= SWAPPED_FROM:
            return None
        first, second = sorted(self.moved)
        return first, second

    def draw(self, key: Array, channels: int) -> Array:
        sample_key, value_key = jax.random.split(key)
        limit = math.radians(DEGREES if self.degrees is None else self.degrees)
        angles = uniform(value_key, (-limit, limit), (3,)) * jnp.array([axis in self._rotation_axes for axis in range(3)])
        return jnp.where(happens(sample_key, self.probability), angles, 0.0)

    def matrix(self, parameters: Array) -> Array:
        product = jnp.eye(3)
        for axis in range(3):
            first, second = (other for other in range(3) if other != axis)
            cos, sin = jnp.cos(parameters[axis]), jnp.sin(parameters[axis])
            rotation = jnp.eye(3).at[first, first].set(cos).at[second, second].set(cos)
            rotation = rotation.at[first, second].set(-sin).at[second, first].set(sin)
            product = jnp.matmul(product, rotation, precision=lax.Precision.HIGHEST)
        return product


@dataclass(frozen=True)
class Scaling(Spatial):
    """Scales all axes by one factor that is uniform in `factor`, with a probability. A factor above 1 makes objects smaller.

    The parameter is the factor, 1 if the sample is not scaled.

    Attributes:
        factor: the smallest and the largest factor.
        probability: the probability that a sample is scaled.
        axes: the axes to scale. None means all except for a thin one.
    """

    factor: tuple[float, float] = (0.7, 1.4)
    probability: float = 0.2
    axes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check(self, probability=self.probability, factor=self.factor)
        check_axes(self, self.axes)
        if self.factor[0] <= 0:
            raise InputError(f"`factor` of Scaling must be above 0, got {self.factor}.")

    def for_run(self, run: Run) -> Self:
        return replace(self, axes=run.plane) if self.axes is None else self

    @property
    def moved(self) -> frozenset[int]:
        return frozenset(range(3) if self.axes is None else self.axes)

    def draw(self, key: Array, channels: int) -> Array:
        sample_key, value_key = jax.random.split(key)
        return jnp.where(happens(sample_key, self.probability), uniform(value_key, self.factor), 1.0)

    def matrix(self, parameters: Array) -> Array:
        return jnp.diag(jnp.where(jnp.array([axis in self.moved for axis in range(3)]), parameters, 1.0))


@dataclass(frozen=True)
class Mirror(Spatial):
    """Mirrors along each axis independently with a probability. The parameters are three truth values.

    Attributes:
        probability: the probability for each axis.
        axes: the axes. None means all except for those along which labels name sides, and none in a run that is too short
            to benefit from mirroring.
    """

    probability: float = 0.5
    axes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check(self, probability=self.probability)
        check_axes(self, self.axes)

    def for_run(self, run: Run) -> Self:
        return replace(self, axes=run.mirrored) if self.axes is None else self

    @property
    def moved(self) -> frozenset[int]:
        return frozenset()

    def draw(self, key: Array, channels: int) -> Array:
        allowed = jnp.array([self.axes is None or axis in self.axes for axis in range(3)])
        return happens(key, self.probability, (3,)) & allowed

    def matrix(self, parameters: Array) -> Array:
        return jnp.diag(jnp.where(parameters, -1.0, 1.0))
