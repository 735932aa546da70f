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
    inside = tuple(slice(min(max(s, 0), size), max(min(s + n, size), 0)) for s, n, size in zip(start, shape, array.shape))
    if all(part.stop - part.start == n for part, n in zip(inside, shape)):
        return array[inside]
    out = np.full((*shape, *array.shape[3:]), fill, array.dtype)
    out[tuple(slice(part.start - s, part.stop - s) for part, s in zip(inside, start))] = array[inside]
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
        """Returns the region of the crop. It is computed only if the example has no box for this threshold."""
        box = example.get("foreground", {}).get(self.above) or foreground(example["image"], self.above)
        shape = tuple(-(-(stop - start) // k) * k for (start, stop), k in zip(box, self.divisible))
        return tuple(start - (n - (stop - start)) // 2 for (start, stop), n in zip(box, shape)), shape

    def __call__(self, example: Example, rng: np.random.Generator | None = None) -> Example:
        return crop(example, self.region(example), self.above)


@dataclass(frozen=True)
class RandomCrop(RandomTransform[tuple[int, ...]]):
    """Crops a fixed size at a random position in the volume, or in its foreground (`inside`).

    The parameters are the crop's first voxel, relative to the volume or the foreground. If that is smaller than the crop, it is padded on
    both sides; if the number of voxels to add is odd, one more is added at the end. Source: MONAI's `RandSpatialCrop`, then `SpatialPad`.
    """

    size: tuple[int, int, int]
    inside: ForegroundCrop | None = None

    def draw(self, rng: np.random.Generator, example: Example) -> tuple[int, ...]:
        _, shape = _region(example, self.inside)
        return tuple(int(rng.integers(max(n - s, 0) + 1)) for n, s in zip(shape, self.size))

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
    """Crops around a random voxel, which is a labelled one with probability `positive` / (`positive` + `negative`).

    The parameters are the crop's centre. All labelled voxels are equally likely, and so are all other voxels whose image is above `above`.
    A voxel with the label `ignore` is never drawn. The crop is moved into the volume or its foreground (`inside`); if that is smaller than
    the crop, it is padded on both sides with `above`.
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
                return tuple(_centre_inside(c, min(s, n), n) for c, s, n in zip(voxel, self.size, label.shape))
        raise InputError(f"no voxel is labelled or above {self.above}, so none can be the centre of a crop; check the image.")

    @property
    def fill(self) -> float:
        """The intensity of voxels outside of the volume."""
        return self.above if self.above is not None else self.inside.above if self.inside else 0.0

    def region(self, example: Example, parameters: tuple[int, ...]) -> Region:
        """Returns the region of the crop with these parameters."""
        region = _region(example, self.inside)
        start = tuple(max(c - min(s, n) // 2, 0) for c, s, n in zip(parameters, self.size, region[1]))
        return _padded(region, start, self.size)

    def apply(self, example: Example, parameters: tuple[int, ...]) -> Example:
        return crop(example, self.region(example, parameters), self.fill)


@dataclass(frozen=True)
class CropByClass(RandomTransform[tuple[int, ...]]):
    """Crops around a voxel of a class for a share of the samples, and as another crop does for the rest.

    For a sample of the share, one class is drawn uniformly among those that the case has, and one voxel uniformly among the stored ones of
    the class. The crop is centred on it and then moved into the volume, or into its foreground extended to that voxel. A case without any
    class is cropped as the rest. The example needs 'sample' and 'class_voxels', see `example`. The parameters are the first voxel of the
    crop.

    Attributes:
        crop: crops the rest, and states the size and the foreground.
        by_class: the share.
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
        centre = voxels.draw(rng)
        region = _region(example, self.crop.inside)
        low = tuple(min(start, c) for start, c in zip(region[0], centre))
        length = tuple(max(start + n, c + 1) - first for start, n, c, first in zip(*region, centre, low))
        start = tuple(
            _centre_inside(c - first, min(s, n), n) - min(s, n) // 2
            for c, first, s, n in zip(centre, low, self.crop.size, length)
        )
        return _padded((low, length), start, self.crop.size)[0]

    def region(self, example: Example, parameters: tuple[int, ...]) -> Region:
        """Returns the region of the crop with these parameters."""
        return parameters, self.crop.size

    def apply(self, example: Example, parameters: tuple[int, ...]) -> Example:
        return crop(example, self.region(example, parameters), self.fill)


def with_class_share(crop: RandomCrop | CropByLabel, by_class: ClassShare | None) -> RandomCrop | CropByLabel | CropByClass:
    """Returns a crop of which a share of the samples is centred on a class, or the crop itself if there is no share."""
    return crop if by_class is None else CropByClass(crop, by_class)


@dataclass(frozen=True)
class SourceCrop(RandomTransform[tuple[int, ...]]):
    """Crops a larger region around the crop of another transform, with the data type and the intensities of the cache.

    An augmentation on the device takes such crops, which it rotates and scales. The parameters are those of `crop`.

    Attributes:
        crop: draws the position.
        size: the size of the larger region. The crop is in its centre.
    """

    crop: RandomCrop | CropByLabel | CropByClass
    size: tuple[int, int, int]

    def draw(self, rng: np.random.Generator, example: Example) -> tuple[int, ...]:
        return self.crop.draw(rng, example)

    def apply(self, example: Example, parameters: tuple[int, ...]) -> Example:
        start, shape = self.crop.region(example, parameters)
        region = tuple(s - (n - m) // 2 for s, n, m in zip(start, self.size, shape)), self.size
        image, label = read_region(example["image"], region, self.crop.fill), read_region(example["label"], region)
        return {**example, "image": image, "label": label}


def _region(example: Example, inside: ForegroundCrop | None) -> Region:
    """Returns the region of the foreground, or of the whole volume if `inside` is None."""
    return inside.region(example) if inside else ((0, 0, 0), example["label"].shape)


def _padded(region: Region, start: tuple[int, ...], size: tuple[int, ...]) -> Region:
    """Returns the region of `size` that starts at `start` in `region`, centred along the axes on which `region` is smaller."""
    pad = [max(s - n, 0) // 2 for s, n in zip(size, region[1])]
    return tuple(r + s - p for r, s, p in zip(region[0], start, pad)), size


def _centre_inside(centre: int, size: int, length: int) -> int:
    """Returns the centre nearest to `centre` for which an interval of `size` is inside 0 … `length`."""
    return min(max(centre, size // 2), length - size + size // 2)


def _random_voxel(
    rng: np.random.Generator,
    label: np.ndarray,
    image: np.ndarray | None,
    above: float | None,
    labelled: bool,
    ignore: int | None,
) -> tuple[int, ...] | None:
    """Returns a random labelled voxel, or a random unlabelled one whose image is above a threshold; None if there is none."""

    def is_labelled(label: np.ndarray) -> np.ndarray:
        return label > 0 if ignore is None else (label > 0) & (label != ignore)

    def fits(voxels: np.ndarray) -> np.ndarray:
        at = tuple(voxels)
        return is_labelled(label[at]) if labelled else (label[at] == 0) & (True if image is None else (image[at] > above).any(-1))

    for _ in range(ROUNDS):
        voxels = np.stack([rng.integers(size, size=TRIES) for size in label.shape])
        good = np.flatnonzero(fits(voxels))
        if len(good):
            return tuple(int(c) for c in voxels[:, good[0]])
    mask = is_labelled(label) if labelled else (label == 0) & (True if image is None else (image > above).any(-1))
    every = np.flatnonzero(mask)
    return tuple(int(c) for c in np.unravel_index(rng.choice(every), label.shape)) if len(every) else None
