"""Random changes of intensities, with nnU-Net's parameters as defaults. Images are [x, y, z, c], float32 and normalised.

Parameters that change nothing leave an image as it is, bit for bit. The source of each transform is batchgeneratorsv2.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array, lax

from swinunetr_jax.augment.transform import Intensity, Run, around_one, check, check_axes, happens, uniform

VOXELS = (0, 1, 2)  # the axes of an image that are not its channels
SMALLEST = 1e-7  # ranges and deviations of intensities that are smaller are replaced by this number
PRECISION = lax.Precision.HIGH  # a TPU would round products to bfloat16


class Noise(NamedTuple):
    """The standard deviation of the noise, a scalar that is 0 for none, and the random key of its voxels."""

    sigma: Array
    key: Array


@dataclass(frozen=True)
class GaussianNoise(Intensity):
    """Adds Gaussian noise, which is the same in all channels, with a probability; its standard deviation is uniform in `sigma`."""

    probability: float = 0.1
    sigma: tuple[float, float] = (0.0, 0.1)

    def __post_init__(self) -> None:
        check(self, probability=self.probability, sigma=self.sigma)

    def draw(self, key: Array, channels: int) -> Noise:
        sample_key, value_key, noise_key = jax.random.split(key, 3)
        return Noise(jnp.where(happens(sample_key, self.probability), uniform(value_key, self.sigma), 0.0), noise_key)

    def apply(self, image: Array, parameters: Noise) -> Array:
        def add(image: Array) -> Array:
            return image + parameters.sigma * jax.random.normal(parameters.key, (*image.shape[:3], 1))

        return _if(parameters.sigma > 0, add, image)


@dataclass(frozen=True)
class GaussianBlur(Intensity):
    """Blurs each channel with a probability; standard deviations in voxels are uniform in `sigma`, one for each channel and axis.

    The parameters are the deviations [c, 3], 0 for channels that are not blurred. The kernel is cut off after 3σ - 0.25 voxels, rounded,
    and the image is reflected at its border.

    Attributes:
        probability: the probability that a sample is changed.
        channel_probability: the probability that a channel of such a sample is blurred.
        sigma: the smallest and the largest standard deviation.
    """

    probability: float = 0.2
    channel_probability: float = 0.5
    sigma: tuple[float, float] = (0.5, 1.0)

    def __post_init__(self) -> None:
        check(self, probability=self.probability, channel_probability=self.channel_probability, sigma=self.sigma)

    def draw(self, key: Array, channels: int) -> Array:
        sample_key, channel_key, value_key = jax.random.split(key, 3)
        changed = happens(sample_key, self.probability) & happens(channel_key, self.channel_probability, (channels, 1))
        return jnp.where(changed, uniform(value_key, self.sigma, (channels, 3)), 0.0)

    def apply(self, image: Array, parameters: Array) -> Array:
        radius = round(3 * self.sigma[1] - 0.25)

        def blur(image: Array) -> Array:
            blurred = image
            for axis in VOXELS:
                matrices = jax.vmap(lambda sigma, size=image.shape[axis]: _blur_matrix(sigma, size, radius))(parameters[:, axis])
                blurred = _along(axis, matrices, blurred)
            return jnp.where(parameters[:, 0] > 0, blurred, image)

        return _if((parameters > 0).any(), blur, image)


@dataclass(frozen=True)
class Brightness(Intensity):
    """Multiplies each channel by a factor, with a probability. Half of the factors are below 1, and half are above it.

    The parameters are the factors [c], 1 if the sample is not changed.
    """

    probability: float = 0.15
    factor: tuple[float, float] = (0.75, 1.25)

    def __post_init__(self) -> None:
        check(self, probability=self.probability, factor=self.factor)

    def draw(self, key: Array, channels: int) -> Array:
        return _factors(key, channels, self.probability, self.factor)

    def apply(self, image: Array, parameters: Array) -> Array:
        return image * parameters


@dataclass(frozen=True)
class Contrast(Intensity):
    """Multiplies the differences from each channel's mean by a factor, with a probability, and clips to the channel's old range.

    The parameters are the factors [c], 1 if the sample is not changed; otherwise each is below or above 1 with equal probability.
    """

    probability: float = 0.15
    factor: tuple[float, float] = (0.75, 1.25)

    def __post_init__(self) -> None:
        check(self, probability=self.probability, factor=self.factor)

    def draw(self, key: Array, channels: int) -> Array:
        return _factors(key, channels, self.probability, self.factor)

    def apply(self, image: Array, parameters: Array) -> Array:
        def change(image: Array) -> Array:
            mean = image.mean(VOXELS)
            changed = jnp.clip((image - mean) * parameters + mean, image.min(VOXELS), image.max(VOXELS))
            return jnp.where(parameters == 1, image, changed)

        return _if((parameters != 1).any(), change, image)


@dataclass(frozen=True)
class LowResolution(Intensity):
    """Reduces the resolution of each channel with a probability, by one factor for all axes.

    The channel is reduced with nearest-neighbour interpolation, and brought back to its size with linear interpolation.

    The parameters are the factors [c], 1 for channels that are not changed.

    Attributes:
        probability: the probability that a sample is changed.
        channel_probability: the probability that a channel of such a sample is changed.
        factor: the smallest and the largest factor; at 0.5 an axis has half as many voxels.
        axes: the axes. None means all axes, but `for_run` leaves out a thin one.
    """

    probability: float = 0.25
    channel_probability: float = 0.5
    factor: tuple[float, float] = (0.5, 1.0)
    axes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check(self, probability=self.probability, channel_probability=self.channel_probability, factor=self.factor)
        check_axes(self, self.axes)

    def for_run(self, run: Run) -> Self:
        return replace(self, axes=run.plane) if self.axes is None else self

    def draw(self, key: Array, channels: int) -> Array:
        sample_key, channel_key, value_key = jax.random.split(key, 3)
        changed = happens(sample_key, self.probability) & happens(channel_key, self.channel_probability, (channels,))
        return jnp.where(changed, uniform(value_key, self.factor, (channels,)), 1.0)

    def apply(self, image: Array, parameters: Array) -> Array:
        def reduce(image: Array) -> Array:
            reduced = image
            for axis in VOXELS if self.axes is None else self.axes:
                matrices = jax.vmap(lambda factor, size=image.shape[axis]: _low_resolution_matrix(factor, size))(parameters)
                reduced = _along(axis, matrices, reduced)
            return jnp.where(parameters == 1, image, reduced)

        return _if((parameters != 1).any(), reduce, image)


@dataclass(frozen=True)
class Gamma(Intensity):
    """Raises intensities, scaled to 0 … 1, to the power of gamma with a probability; each channel keeps its mean and deviation.

    The parameters are the exponents [c], 1 if the sample is not changed; otherwise each is below or above 1 with equal probability.

    Attributes:
        probability: the probability that a sample is changed.
        gamma: the smallest and the largest exponent.
        inverted: whether the negated image is changed, so that the exponent acts on the other end of the range.
    """

    probability: float = 0.3
    gamma: tuple[float, float] = (0.7, 1.5)
    inverted: bool = False

    def __post_init__(self) -> None:
        check(self, probability=self.probability, gamma=self.gamma)

    def draw(self, key: Array, channels: int) -> Array:
        return _factors(key, channels, self.probability, self.gamma)

    def apply(self, image: Array, parameters: Array) -> Array:
        def change(image: Array) -> Array:
            source = -image if self.inverted else image
            low = source.min(VOXELS)
            width = source.max(VOXELS) - low
            changed = ((source - low) / jnp.maximum(width, SMALLEST)) ** parameters * width + low
            ratio = source.std(VOXELS) / jnp.maximum(changed.std(VOXELS), SMALLEST)
            changed = (changed - changed.mean(VOXELS)) * ratio + source.mean(VOXELS)
            return jnp.where(parameters == 1, image, -changed if self.inverted else changed)

        return _if((parameters != 1).any(), change, image)


def _if(condition: Array, change: Callable[[Array], Array], image: Array) -> Array:
    """Returns the image, changed if the condition is true. The change is computed only then."""
    return lax.cond(condition, change, lambda image: image, image)


def _factors(key: Array, channels: int, probability: float, limits: tuple[float, float]) -> Array:
    """Returns a factor for each channel by `around_one`, or 1 for all channels, [c]."""
    sample_key, value_key = jax.random.split(key)
    return jnp.where(happens(sample_key, probability), around_one(value_key, limits, (channels,)), 1.0)


def _along(axis: int, matrices: Array, image: Array) -> Array:
    """Returns an image [x, y, z, c] whose axis is multiplied by a matrix for each channel, [c, out, in]."""
    letter = "xyz"[axis]
    return jnp.einsum(f"co{letter},xyzc->{'xyzc'.replace(letter, 'o')}", matrices, image, precision=PRECISION)


def _blur_matrix(sigma: Array, size: int, radius: int) -> Array:
    """Returns the matrix [size, size] of a Gaussian blur of at most `radius` voxels, reflected about the first and the last voxel."""
    reach = jnp.round(3 * sigma - 0.25)
    sigma = jnp.maximum(sigma, SMALLEST)

    def weight(distance: Array) -> Array:
        return jnp.where(jnp.abs(distance) <= reach, jnp.exp(-0.5 * (distance / sigma) ** 2), 0.0)

    source = jnp.arange(size, dtype=jnp.float32)
    target = source[:, None]
    reflected_first = jnp.where(source > 0, weight(-source - target), 0.0)
    reflected_last = jnp.where(source < size - 1, weight(2 * (size - 1) - source - target), 0.0)
    total = weight(jnp.arange(-radius, radius + 1, dtype=jnp.float32)).sum()
    return (weight(source - target) + reflected_first + reflected_last) / total


def _low_resolution_matrix(factor: Array, size: int) -> Array:
    """Returns the matrix [size, size] that reduces an axis to round(factor · size) voxels and brings it back to its size.

    It equals PyTorch's `interpolate` with the mode "nearest-exact" and then "linear", without aligned corners.
    """
    count = jnp.maximum(jnp.round(factor * size), 1.0)
    position = jnp.clip((jnp.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
    below = jnp.floor(position)
    above = jnp.minimum(below + 1, count - 1)
    share = (position - below)[:, None]

    def of_source(reduced: Array) -> Array:
        """Returns [size, size], whose row i is 1 at the voxel of the source that the reduced voxel `reduced[i]` is copied from."""
        source = (2 * reduced.astype(jnp.int32) + 1) * size // (2 * count.astype(jnp.int32))
        return (source[:, None] == jnp.arange(size)).astype(jnp.float32)

    return (1 - share) * of_source(below) + share * of_source(above)
