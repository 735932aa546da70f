"""Crops of an example. They read no more of a memory-mapped volume than they return.

A region is (start, shape) in voxels of the arrays. It may extend beyond them; its voxels outside are filled with a constant.
"""

from dataclasses import dataclass

import numpy as np

from swinunetr_jax.data.augment.class_share import ClassShare
from swinunetr_jax.data.augment.random_transform import RandomTransform
from swinunetr_jax.data.prepare.class_voxels import ClassVoxels
from swinunetr_jax.data.prepare.example import Example, foreground
from swinunetr_jax.errors import InputError

Region = tuple[tuple[int, ...], tuple[int, ...]]
# Voxels are drawn at random in rounds, because it takes longer to list all voxels of the wanted kind.
TRIES, ROUNDS = 256, 16


def read_region(array: np.ndarray, region: Region, fill: float = 0) -> np.ndarray:
    """Returns the voxels of a region of [x, y, z] or [x, y, z, c]: a view if it is inside the array, otherwise a copy.

    In a copy, voxels outside the array have the value `fill`.
    """
    start, shape = region
    inside = tuple(
        slice(min(max(first, 0), size), max(min(first + length, size), 0))
        for first, length, size in zip(start, shape, array.shape)
    )
    if all(part.stop - part.start == length for part, length in zip(inside, shape)):
        return array[inside]
    out = np.full((*shape, *array.shape[3:]), fill, array.dtype)
    out[tuple(slice(part.start - first, part.stop - first) for part, first in zip(inside, start))] = array[inside]
    return out


def crop(example: Example, region: Region, fill: float = 0.0) -> Example:
    """Returns the region of the image (float32) and of the label. Outside the arrays the image is `fill` and the label 0."""
    image, label = read_region(example["image"], region, fill), read_region(example["label"], region)
    rest = {key: value for key, value in example.items() if key != "foreground"}  # its box does not describe the crop
    return {**rest, "image": image.astype(np.float32, copy=False), "label": label}


@dataclass(frozen=True)
class ForegroundCrop:
    """Crops to the box of voxels above a threshold in any channel, widened around its centre to multiples of `divisible`.

    Voxels outside the volume are filled with the threshold. Source: MONAI's `CropForeground(k_divisible=divisible)`.
    """

    divisible: tuple[int, int, int] = (1, 1, 1)
    above: float = 0.0

    def region(self, example: Example) -> Region:
        """Returns the region of the crop. The box is computed only if the example does not hold that of this threshold."""
        box = example.get("foreground", {}).get(self.above) or foreground(example["image"], self.above)
        shape = tuple(-(-(stop - start) // divisor) * divisor for (start, stop), divisor in zip(box, self.divisible))
        return tuple(start - (length - (stop - start)) // 2 for (start, stop), length in zip(box, shape)), shape

    def __call__(self, example: Example, rng: np.random.Generator | None = None) -> Example:
        return crop(example, self.region(example), self.above)


@dataclass(frozen=True)
class RandomCrop(RandomTransform[tuple[int, ...]]):
    """Crops a fixed size at a random position in the volume, or in its foreground (`inside`).

    The parameters are the crop's first voxel, relative to the volume or the foreground. A volume or foreground that is smaller than the
    crop is padded on both sides; if the number of voxels to add is odd, one more is added at the end.
    Source: MONAI's `RandSpatialCrop`, then `SpatialPad`.
    """

    size: tuple[int, int, int]
    inside: ForegroundCrop | None = None

    def draw(self, rng: np.random.Generator, example: Example) -> tuple[int, ...]:
        _, shape = _region(example, self.inside)
        return tuple(int(rng.integers(max(length - size, 0) + 1)) for length, size in zip(shape, self.size))

    @property
    def fill(self) -> float:
        """The intensity of voxels outside of the volume."""
        return self.inside.above if self.inside else 0.0

    def region(self, example: Example, parameters: tuple[int, ...]) -> Region:
        """Returns the region of the crop with these parameters."""
        return _padded(_region(example, self.inside), parameters, self.size)

    def apply(self, example: Example, parameters: tuple[int, ...]) -> Example:
        return crop(example, self.region(example, parameters), self.fill)


@dataclass(frozen=True)
class CropByLabel(RandomTransform[tuple[int, ...]]):
    """Crops around a random voxel, which is labelled with probability `positive` / (`positive` + `negative`).

    The parameters are the crop's centre. All labelled voxels are equally likely, and so are all other voxels whose image is above `above`.
    A voxel with the label `ignore` is never drawn. The crop is moved into the volume or its foreground (`inside`), which is
    padded on both sides with `above` if it is smaller than the crop.
    Source: MONAI's `RandCropByPosNegLabel(allow_smaller=True)` with `above` as `image_threshold`.
    """

    size: tuple[int, int, int]
    positive: float = 1.0
    negative: float = 1.0
    above: float | None = None
    inside: ForegroundCrop | None = None
    ignore: int | None = None

    def draw(self, rng: np.random.Generator, example: Example) -> tuple[int, ...]:
        region = _region(example, self.inside)
        label = read_region(example["label"], region)
        image = None if self.above is None else read_region(example["image"], region, self.above)
        labelled = rng.random() * (self.positive + self.negative) < self.positive
        for wanted in (labelled, not labelled):  # if no voxel of the drawn kind exists, the other kind is used
            voxel = _random_voxel(rng, label, image, self.above, wanted, self.ignore)
            if voxel is not None:
                return tuple(
                    _centre_inside(centre, min(size, length), length)
                    for centre, size, length in zip(voxel, self.size, label.shape)
                )
        raise InputError(f"no voxel is labelled or above {self.above}, so none can be the centre of a crop; check the image.")

    @property
    def fill(self) -> float:
        """The intensity of voxels outside of the volume."""
        return self.above if self.above is not None else self.inside.above if self.inside else 0.0

    def region(self, example: Example, parameters: tuple[int, ...]) -> Region:
        """Returns the region of the crop with these parameters."""
        region = _region(example, self.inside)
        start = tuple(max(centre - min(size, length) // 2, 0) for centre, size, length in zip(parameters, self.size, region[1]))
        return _padded(region, start, self.size)

    def apply(self, example: Example, parameters: tuple[int, ...]) -> Example:
        return crop(example, self.region(example, parameters), self.fill)


@dataclass(frozen=True)
class CropByClass(RandomTransform[tuple[int, ...]]):
    """Crops around a voxel of a class for a share of the samples; another transform crops the rest.

    For a sample of the share, one class is drawn uniformly among those that the case has, and one voxel uniformly among the stored ones of
    the class. The crop is centred on it and then moved into the volume, or into its foreground extended to that voxel. A case without any
    class is cropped like the rest. The example needs 'sample' and 'class_voxels', see `example`. The parameters are the first voxel of the
    crop.

    Attributes:
        crop: the transform that crops the rest; its size and its foreground apply to the share, too.
        by_class: chooses the samples of the share.
    """

    crop: RandomCrop | CropByLabel
    by_class: ClassShare

    @property
    def fill(self) -> float:
        """The intensity of voxels outside of the volume."""
        return self.crop.fill

    def draw(self, rng: np.random.Generator, example: Example) -> tuple[int, ...]:
        voxels: ClassVoxels = example["class_voxels"]
        if not self.by_class.chooses(example["sample"]) or not voxels.present:
            return self.crop.region(example, self.crop.draw(rng, example))[0]
        voxel = voxels.draw(rng)
        region = _region(example, self.crop.inside)
        # The region, extended to the voxel.
        firsts = tuple(min(start, centre) for start, centre in zip(region[0], voxel))
        lengths = tuple(max(start + length, centre + 1) - first for start, length, centre, first in zip(*region, voxel, firsts))
        start = tuple(
            _centre_inside(centre - first, min(size, length), length) - min(size, length) // 2
            for centre, first, size, length in zip(voxel, firsts, self.crop.size, lengths)
        )
        return _padded((firsts, lengths), start, self.crop.size)[0]

    def region(self, example: Example, parameters: tuple[int, ...]) -> Region:
        """Returns the region of the crop with these parameters."""
        return parameters, self.crop.size

    def apply(self, example: Example, parameters: tuple[int, ...]) -> Example:
        return crop(example, self.region(example, parameters), self.fill)


def with_class_share(crop: RandomCrop | CropByLabel, by_class: ClassShare | None) -> RandomCrop | CropByLabel | CropByClass:
    """Returns a crop that centres a share of the samples on a class, or the crop itself if `by_class` is None."""
    return crop if by_class is None else CropByClass(crop, by_class)


@dataclass(frozen=True)
class SourceCrop(RandomTransform[tuple[int, ...]]):
    """Crops a larger region around the crop of another transform, with the data type and the intensities of the cache.

    The augmentation on the device rotates and scales such crops. The parameters are those of `crop`.

    Attributes:
        crop: the transform that draws the position.
        size: the size of the larger region. The crop is in its centre.
    """

    crop: RandomCrop | CropByLabel | CropByClass
    size: tuple[int, int, int]

    def draw(self, rng: np.random.Generator, example: Example) -> tuple[int, ...]:
        return self.crop.draw(rng, example)

    def apply(self, example: Example, parameters: tuple[int, ...]) -> Example:
        start, shape = self.crop.region(example, parameters)
        region = tuple(first - (large - small) // 2 for first, large, small in zip(start, self.size, shape)), self.size
        image, label = read_region(example["image"], region, self.crop.fill), read_region(example["label"], region)
        return {**example, "image": image, "label": label}


def _region(example: Example, inside: ForegroundCrop | None) -> Region:
    """Returns the region of the foreground, or of the whole volume if `inside` is None."""
    return inside.region(example) if inside else ((0, 0, 0), example["label"].shape)


def _padded(region: Region, start: tuple[int, ...], size: tuple[int, ...]) -> Region:
    """Returns the region of `size` that starts at `start` in `region`; along axes on which `region` is smaller, the two are centred."""
    pads = [max(wanted - length, 0) // 2 for wanted, length in zip(size, region[1])]
    return tuple(origin + first - pad for origin, first, pad in zip(region[0], start, pads)), size


def _centre_inside(centre: int, size: int, length: int) -> int:
    """Returns the position nearest to `centre` around which an interval of length `size` is inside 0 … `length`."""
    return min(max(centre, size // 2), length - size + size // 2)


def _random_voxel(
    rng: np.random.Generator,
    label: np.ndarray,
    image: np.ndarray | None,
    above: float | None,
    labelled: bool,
    ignore: int | None,
) -> tuple[int, ...] | None:
    """Returns a random labelled voxel, or a random unlabelled one whose image is above a threshold; None if no voxel is."""

    def is_labelled(label: np.ndarray) -> np.ndarray:
        return label > 0 if ignore is None else (label > 0) & (label != ignore)

    def fits(voxels: np.ndarray) -> np.ndarray:
        index = tuple(voxels)
        return (
            is_labelled(label[index])
            if labelled
            else (label[index] == 0) & (True if image is None else (image[index] > above).any(-1))
        )

    for _ in range(ROUNDS):
        voxels = np.stack([rng.integers(size, size=TRIES) for size in label.shape])
        fitting = np.flatnonzero(fits(voxels))
        if len(fitting):
            return tuple(int(index) for index in voxels[:, fitting[0]])
    mask = is_labelled(label) if labelled else (label == 0) & (True if image is None else (image > above).any(-1))
    candidates = np.flatnonzero(mask)
    return tuple(int(index) for index in np.unravel_index(rng.choice(candidates), label.shape)) if len(candidates) else None
