"""The images and labels of a phantom: heads with gliomas as four MRI sequences show them.

Case k of seed s is always the same, and shows the same head at every grid size, because tissues are functions of the position in mm. Only
the noise is drawn voxel by voxel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from swinunetr_jax.data import brats
from swinunetr_jax.data.phantom import anatomy
from swinunetr_jax.data.phantom.lesion import LESIONS, foci
from swinunetr_jax.data.phantom.shapes import Points, Waves, union
from swinunetr_jax.errors import InputError

FIELD = tuple(map(float, brats.GRID))  # the field of view, mm
SMALLEST = (32, 32, 20)  # voxels of 7.5 mm, which suffice for tests

# The origin of the head's coordinates in the field of view, and the box that contains every head, mm.
_ORIGIN = (119.5, 102.5, 68.0)
_BOX = ((-84, 84), (-120, 86), (-80, 92))
_RIM_OF_FLUID = 1.2  # mm of fluid around the brain that skull stripping keeps
_SKULL = 12.0  # mm below the surface; deeper tissue is displaced freely by a lesion

# Brightness relative to white matter in T1, in the usual order of tissues at 1.5 and 3 T.
_TISSUE = ("csf", "gm", "wm", "nuclei", "stem", "vessel", "necrosis", "rim", "oedema")
_BRIGHTNESS = {
    "FLAIR": (0.09, 0.84, 0.70, 0.80, 0.72, 0.55, 0.78, 1.12, 1.36),
    "T1ce": (0.14, 0.72, 0.96, 0.79, 0.90, 1.35, 0.46, 1.78, 0.72),
    "T1": (0.12, 0.70, 1.00, 0.79, 0.93, 0.55, 0.46, 0.70, 0.74),
    "T2": (1.50, 0.66, 0.46, 0.52, 0.50, 0.95, 1.22, 0.84, 1.02),
}
_SCALE = {"FLAIR": 420, "T1ce": 620, "T1": 560, "T2": 700}  # typical intensities of a scanner


@dataclass(frozen=True, eq=False)
class Body:
    """The content of the field of view, independent of a scanner: the brain's n voxels with their fractions of tissues and lesions."""

    size: tuple[int, int, int]
    box: tuple[slice, slice, slice]  # the part of the field of view around the brain
    inside: np.ndarray  # bool, in the box's shape, with n True values
    points: Points  # [n] each
    tissues: dict[str, np.ndarray]  # [n] each

    @classmethod
    def make(cls, rng: np.random.Generator, size: tuple[int, int, int]) -> "Body":
        head, lesions = anatomy.Head.make(rng), foci(rng)
        spacing = spacing_of(size)
        width = 1.2 * max(1.0, float(np.prod(spacing)) ** (1 / 3))
        box, grid = _grid(size)
        placed = head.place(grid)
        cerebrum, cerebellum, stem = distances = anatomy.outlines(placed)
        inside = union(union(cerebrum, cerebellum, 5), stem, 6) < _RIM_OF_FLUID
        points = tuple(np.broadcast_to(coordinate, inside.shape)[inside] for coordinate in placed)

        part = np.argmin(distances, 0)
        between = (cerebellum - cerebrum) / 2  # distance to the surface halfway between them
        depths = np.stack([np.minimum(-cerebrum, between), np.minimum(-cerebellum, -between), -stem])
        depth = np.take_along_axis(depths, part[None], 0)[0]
        inward = np.stack([slope[inside] for slope in np.gradient(depth, spacing[0], -spacing[1], spacing[2])])
        inward /= np.maximum(np.sqrt((inward * inward).sum(0)), 0.3)

        freedom = np.clip(-np.min(distances, 0)[inside] / _SKULL, 0, 1)
        undisplaced = points
        for focus in lesions:
            undisplaced = focus.push(undisplaced, freedom)
        tissues = anatomy.tissues(head, undisplaced, depth[inside], inward, part[inside], width)
        tissues |= {name: np.zeros_like(freedom) for name in LESIONS}
        for focus in lesions:
            focus.grow(tissues, points, width)
        return cls(size, box, inside, points, tissues)

    def volume(self, values: np.ndarray) -> np.ndarray:
        """Returns the values [n] on the grid of the entire field of view, with 0 outside the brain."""
        volume = np.zeros(self.size, values.dtype)
        volume[self.box][self.inside] = values
        return volume

    def labels(self, et_label: int) -> np.ndarray:
        """Returns the prevailing label of each voxel [n]; a label that prevails nowhere is assigned to the voxel that holds most of it."""
        necrosis, rim, oedema = (self.tissues[name] for name in LESIONS)
        labels = np.where(necrosis + rim + oedema > 0.5, 2, 0).astype(np.uint8)
        core = necrosis + rim > 0.5
        labels[core] = np.where(rim >= necrosis, et_label, 1)[core]
        for part, value in ((oedema, 2), (rim, et_label), (necrosis, 1)):
            if not (labels == value).any():  # on coarse grids
                labels[part.argmax()] = value
        return labels


@dataclass(frozen=True, eq=False)
class Scanner:
    """The properties of one sequence of one case."""

    channel: str
    scale: float
    bias: Waves
    texture: Waves
    mottle: Waves
    noise: float
    blur: tuple[float, float, float]  # standard deviation, mm

    @classmethod
    def make(cls, rng: np.random.Generator, channel: str) -> "Scanner":
        return cls(
            channel=channel,
            scale=_SCALE[channel] * float(np.exp(rng.normal(0, 0.35))),
            bias=Waves.make(rng, 190.0, 6),
            texture=Waves.make(rng, 17.0, 12, 0.5),
            mottle=Waves.make(rng, 6.0, 20, 0.5),
            noise=rng.uniform(0.02, 0.035),
            blur=(0.55, 0.55, float(rng.choice([0.55, 0.9]))),  # some scans have thick slices
        )

    def scan(self, rng: np.random.Generator, body: Body) -> np.ndarray:
        """Returns the intensities of the brain's voxels, int16 [n], all above 0; `rng` draws the noise."""
        tissues, inside = body.tissues, body.inside
        signal = sum(bright * tissues[name] for name, bright in zip(_TISSUE, _BRIGHTNESS[self.channel]))
        lesion = sum(tissues[name] for name in LESIONS)
        texture, mottle = self.texture(body.points), self.mottle(body.points)
        signal *= 1 + (0.018 + 0.03 * lesion) * texture + (0.01 + 0.03 * lesion) * mottle
        signal *= np.exp(0.055 * self.bias(body.points))
        sigma = [deviation / voxel_size for deviation, voxel_size in zip(self.blur, spacing_of(body.size))]
        volume = np.zeros(inside.shape, np.float32)
        volume[inside] = signal
        # The blur uses voxels of the brain only, because the skull is not modelled.
        signal, weight = (
            ndimage.gaussian_filter(values, sigma, mode="constant", truncate=3)[inside]
            for values in (volume, inside.astype(np.float32))
        )
        noise = self.noise * rng.standard_normal((2, signal.size), dtype=np.float32)
        signal = np.hypot(signal / weight + noise[0], noise[1])  # the magnitude of a complex signal
        return np.clip(np.rint(self.scale * signal), 1, np.iinfo(np.int16).max).astype(np.int16)


def phantom_case(
    index: int, *, size: tuple[int, int, int] = (240, 240, 155), seed: int = 0, et_label: int = 4
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the images and the labels of one case.

    Args:
        index: the number of the case, from 0.
        size: voxels along x (to the left), y (to the back) and z (up) of a field of view of 240 × 240 × 155 mm.
        seed: the seed of the data set.
        et_label: the enhancing tumour's label, 4 as in BraTS up to 2022 or 3 as since 2023.

    Returns:
        Images int16 [x, y, z] by channel (FLAIR, T1ce, T1, T2), 0 outside the brain and above 0 inside, and labels uint8 [x, y, z]:
        0 none, 1 necrosis, 2 oedema, `et_label` enhancing tumour. Each label occurs.

    Raises:
        InputError: `index` or `seed` is negative, `size` is too small, or `et_label` is neither 3 nor 4.
    """
    check_parameters(size, seed, et_label)
    if not is_count(index):
        raise InputError(f"`index` of a phantom is {index!r}, expected an integer of at least 0; correct it.")
    rng = np.random.default_rng((seed, index))
    body = Body.make(rng, (size[0], size[1], size[2]))
    scanners = [Scanner.make(rng, channel) for channel in brats.CHANNELS]
    images = {scanner.channel: body.volume(scanner.scan(rng, body)) for scanner in scanners}
    return images, body.volume(body.labels(et_label))


def spacing_of(size: Sequence[int]) -> tuple[float, ...]:
    """Returns the voxel sizes in mm of a grid of `size` voxels that fills the field of view."""
    return tuple(length / voxels for length, voxels in zip(FIELD, size))


def _grid(size: Sequence[int]) -> tuple[tuple[slice, slice, slice], list[np.ndarray]]:
    """Returns the part of the field of view that contains heads, and its voxels' coordinates along each axis, which broadcast."""
    box, grid = [], []
    for axis, (n, spacing, origin, sign, (low, high)) in enumerate(zip(size, spacing_of(size), _ORIGIN, (1, -1, 1), _BOX)):
        mm = sign * ((np.arange(n) + 0.5) * spacing - 0.5 - origin)
        covered = np.flatnonzero((mm > low) & (mm < high))
        box.append(slice(int(covered[0]), int(covered[-1]) + 1))
        grid.append(mm[box[-1]].astype(np.float32).reshape([-1 if other == axis else 1 for other in range(3)]))
    return (box[0], box[1], box[2]), grid


def check_parameters(size: Any, seed: Any, et_label: Any) -> None:
    """Raises InputError unless all parameters are in their ranges."""
    if not (
        isinstance(size, tuple | list) and len(size) == 3 and all(is_count(n) and n >= least for n, least in zip(size, SMALLEST))
    ):
        raise InputError(f"`size` of a phantom is {size!r}, expected three numbers of voxels, at least {SMALLEST}; enlarge it.")
    if not is_count(seed):
        raise InputError(f"`seed` of a phantom is {seed!r}, expected an integer of at least 0; correct it.")
    if et_label not in brats.ET_LABELS:
        raise InputError(f"`et_label` of a phantom is {et_label!r}, expected 4 (up to BraTS 2022) or 3 (since 2023); choose one.")


def is_count(value: Any) -> bool:
    """Returns whether the value is an integer of at least 0."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 0)
