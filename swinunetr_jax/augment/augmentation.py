"""The augmentation of a batch on the device: transforms in their order, for crops that are larger than those of the training step.

The spatial transforms of a sample are combined into one matrix, so that the sample is interpolated once. They come before the intensity
transforms, whose results do not depend on the positions of voxels. Costly transforms are computed only for the samples that they change.
"""

import math
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from swinunetr_jax.augment.intensity import Brightness, Contrast, Gamma, GaussianBlur, GaussianNoise, LowResolution
from swinunetr_jax.augment.passes import Size, cubic, passes, resample, resample_labels, sharp_cubic
from swinunetr_jax.augment.spatial import Mirror, Rotation, Scaling
from swinunetr_jax.augment.transform import Intensity, Run, Spatial, Transform
from swinunetr_jax.errors import InputError

T = TypeVar("T")
MULTIPLE = 8  # the sizes of sources are multiples of this number, or one voxel more


def nnunet_transforms() -> tuple[Transform, ...]:
    """Returns the transforms of nnU-Net v2 in its order, with its probabilities and ranges. Its elastic deformation is off by default."""
    return (
        Rotation(),
        Scaling(),
        GaussianNoise(),
        GaussianBlur(),
        Brightness(),
        Contrast(),
        LowResolution(),
        Gamma(probability=0.1, inverted=True),
        Gamma(),
        Mirror(),
    )


@dataclass(frozen=True)
class Augmentation:
    """The field `augment` of a recipe whose samples are changed on the device.

    Attributes:
        transforms: the transforms in their order. Each is a frozen dataclass; its attributes are probabilities and ranges.
        margin: the size of the source relative to that of the training crop, along axes that voxels are moved along. The host crops
            sources, and voxels of a rotated sample that are outside of its source are 0.
    """

    transforms: tuple[Transform, ...] = ()
    margin: float = 1.25

    def __post_init__(self) -> None:
        for transform in self.transforms:
            if not isinstance(transform, Spatial | Intensity):
                raise InputError(
                    f"`transforms` of Augmentation must be spatial or intensity transforms, such as Rotation(), got {transform!r}."
                )
        if sum(isinstance(transform, Rotation) for transform in self.transforms) > 1:
            raise InputError("`transforms` of Augmentation has several rotations: give one, with the sum of their angles.")
        if not 1 <= self.margin <= 4:
            raise InputError(f"`margin` of Augmentation must be from 1 to 4, got {self.margin}.")

    def for_run(self, run: Run, size: Size, labels: tuple[int, ...], masked: bool) -> "SampleAugmentation":
        """Returns the augmentation of the samples of a run.

        Args:
            run: the facts about the data that transforms depend on.
            size: the size of the training crops.
            labels: the values that occur in label maps.
            masked: whether voxels that are 0 in all channels are outside of the patient and stay 0.

        Raises:
            InputError: the data do not permit a transform.
        """
        transforms = tuple(transform.for_run(run) for transform in self.transforms)
        return SampleAugmentation(transforms, self.margin, size, labels, masked)


def nnunet_augmentation() -> Augmentation:
    """Returns the augmentation with the transforms of nnU-Net v2."""
    return Augmentation(nnunet_transforms())


@dataclass(frozen=True)
class SampleAugmentation:
    """The augmentation of samples of one size. It is a function (images, labels, keys) -> changed images and label maps.

    Attributes:
        transforms: the transforms, with all values that depend on the run.
        margin: see `Augmentation`.
        size: the size of the results.
        labels: the values that occur in label maps.
        masked: whether voxels that are 0 in all channels are outside of the patient and stay 0.
    """

    transforms: tuple[Transform, ...]
    margin: float
    size: Size
    labels: tuple[int, ...]
    masked: bool

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes along which voxels are moved: none, or at least two."""
        moved = {axis for transform in self.transforms if isinstance(transform, Spatial) for axis in transform.moved}
        return tuple(sorted(moved)) if len(moved) != 1 else tuple(sorted(moved | {min({0, 1, 2} - moved)}))

    @property
    def swapped(self) -> tuple[int, int] | None:
        """The two axes that have to be exchanged for large angles, or None."""
        rotated = [transform.swapped for transform in self.transforms if isinstance(transform, Rotation)]
        return rotated[0] if rotated else None

    @property
    def source_size(self) -> Size:
        """The size of the crops that the augmentation takes: `margin` times `size`, rounded up to a multiple of 8.

        If `size` is odd the source has one voxel more, so that both have the same centre. It equals `size` along axes that voxels are not
        moved along, and axes that are exchanged have the same size.
        """
        size = list(self.size)
        for axis in self.axes:
            size[axis] = math.ceil(self.margin * size[axis] / MULTIPLE) * MULTIPLE + size[axis] % 2
        if self.swapped:
            for axis in self.swapped:
                size[axis] = max(size[other] for other in self.swapped)
        return size[0], size[1], size[2]

    def __call__(self, images: Array, labels: Array, keys: Array) -> tuple[Array, Array]:
        """Returns images and label maps of `size`.

        Args:
            images: normalised, float32 [b, x, y, z, c] of `source_size`.
            labels: uint8 [b, x, y, z].
            keys: [b].
        """
        return map_samples(lambda sample: self.sample(*sample), (images, labels, keys))

    def sample(self, image: Array, label: Array, key: Array) -> tuple[Array, Array]:
        """Returns one image and label map, changed by random parameters."""
        return self.apply(image, label, self.draw(key, image.shape[-1]))

    def draw(self, key: Array, channels: int) -> list[Any]:
        """Returns the random parameters of each transform.

        A transform's parameters depend on its class, and on how many of the same class precede it, but not on other transforms.
        """
        parameters, counts = [], Counter[str]()
        for transform in self.transforms:
            name = type(transform).__name__
            number = zlib.crc32(f"{name} {counts[name]}".encode())
            counts[name] += 1
            parameters.append(transform.draw(jax.random.fold_in(key, number), channels))
        return parameters

    def apply(self, image: Array, label: Array, parameters: list[Any]) -> tuple[Array, Array]:
        """Returns an image [x, y, z, c] and its label map [x, y, z], both of `source_size`, changed by parameters of `draw`."""
        if image.shape[:3] != self.source_size or label.shape != self.source_size:
            raise InputError(
                f"the augmentation takes crops of {'×'.join(map(str, self.source_size))} voxels, which it changes to "
                f"{'×'.join(map(str, self.size))}, and got an image of {'×'.join(map(str, image.shape[:3]))} and a label map of "
                f"{'×'.join(map(str, label.shape))}; `transforms` of the recipe must return crops of that size."
            )
        matrix = jnp.eye(3)
        for transform, values in zip(self.transforms, parameters, strict=True):
            if isinstance(transform, Spatial):
                matrix = jnp.matmul(matrix, transform.matrix(values), precision=lax.Precision.HIGHEST)
        if self.masked:  # the mask is interpolated as a further channel
            image = jnp.concatenate([image, (image != 0).any(-1, keepdims=True).astype(image.dtype)], axis=-1)
        image, label = self._moved(image, label, matrix)
        mask = None
        if self.masked:
            image, mask = image[..., :-1], image[..., -1:] > 0.5
        for transform, values in zip(self.transforms, parameters, strict=True):
            if isinstance(transform, Intensity):
                image = transform.apply(image, values)
        return (image if mask is None else jnp.where(mask, image, 0.0)), label

    def _moved(self, image: Array, label: Array, matrix: Array) -> tuple[Array, Array]:
        """Returns image and label map transformed by the matrix. They are interpolated only if the matrix does more than reverse axes."""
        signs = jnp.sign(jnp.diag(matrix))

        def mirrored(array: Array, axes: tuple[int, ...]) -> Array:
            for axis in axes:
                array = jnp.where(signs[axis] < 0, jnp.flip(array, axis), array)
            return array

        def cropped(image: Array, label: Array) -> tuple[Array, Array]:
            return mirrored(_centre(image, self.size), (0, 1, 2)), mirrored(_centre(label, self.size), (0, 1, 2))

        def resampled(image: Array, label: Array) -> tuple[Array, Array]:
            remaining = matrix
            if self.swapped:
                first, second = self.swapped
                swap = jnp.abs(matrix[first, first]) < jnp.abs(matrix[second, first])
                order = [{first: second, second: first}.get(axis, axis) for axis in range(3)]
                remaining = jnp.where(swap, matrix[jnp.array(order)], matrix)
                image, label = (jnp.where(swap, jnp.swapaxes(a, first, second), a) for a in (image, label))
            sequence = passes(remaining, self.axes, self.source_size, self.size)
            image = resample(image, sequence, cubic, lax.Precision.HIGH)
            label = resample_labels(label, self.labels, sequence, sharp_cubic)
            others = tuple(axis for axis in range(3) if axis not in self.axes)
            return mirrored(image, others), mirrored(label, others)

        if not self.axes:
            return cropped(image, label)
        moves = (jnp.abs(matrix) != jnp.eye(3)).any()
        return lax.cond(moves, resampled, cropped, image, label)


def map_samples(function: Callable[[Any], T], samples: Any) -> T:
    """Returns the results of a function for each sample of a tree of arrays [b, …], computed one after another.

    A sample's result is computed by the same instructions for any number of samples, so that it is the same, bit for bit, on any number
    of devices of a kind.
    """
    return lax.map(function, samples)


def _centre(array: Array, size: Size) -> Array:
    """Returns the central voxels of an array [x, y, z, …]."""
    return array[tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(array.shape, size))]
