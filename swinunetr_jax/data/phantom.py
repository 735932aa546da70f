"""A data set like BraTS, made on the spot for a first run without a download: heads with gliomas in four MRI sequences.

Case k of seed s is the same on every machine of one kind, whatever the number of cases, and the same head at every grid size.
It looks like MRI and is learned like MRI, but says nothing of how well a network does on patients.
"""

import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from swinunetr_jax.data import phantom_anatomy as anatomy
from swinunetr_jax.data.nifti import Volume, write_volume
from swinunetr_jax.data.phantom_lesion import LESIONS, foci
from swinunetr_jax.data.phantom_shapes import Waves, union
from swinunetr_jax.errors import InputError

CHANNELS = ("FLAIR", "T1ce", "T1", "T2")
FIELD = (240.0, 240.0, 155.0)  # mm
SMALLEST = (40, 40, 26)  # 6 mm; the rim of a small lesion is lost beyond

RECIPE = 1  # raised when the same parameters give other voxels
RECORD = "phantom.json"
# How the files of a case are called while the enhancing tumour is label 4 (up to 2022) and 3 (since 2023): readers go by it.
_NAMES = {
    4: ("BraTS2021_{:05d}", {"FLAIR": "_flair", "T1": "_t1", "T1ce": "_t1ce", "T2": "_t2"}, "_seg"),
    3: ("BraTS-GLI-{:05d}-000", {"FLAIR": "-t2f", "T1": "-t1n", "T1ce": "-t1c", "T2": "-t2w"}, "-seg"),
}

# The origin of the head's coordinates in the field, and the box that heads stay in, mm.
_ORIGIN = (119.5, 102.5, 72.0)
_BOX = ((-84, 84), (-116, 84), (-80, 90))
_RIM_OF_FLUID = 1.2  # mm that skull stripping leaves around the brain

# Brightness, white matter in T1 = 1.
_TISSUE = ("csf", "gm", "wm", "nuclei", "stem", "vessel", "necrosis", "rim", "oedema")
_BRIGHTNESS = {
    "FLAIR": (0.16, 0.84, 0.70, 0.80, 0.72, 0.55, 0.78, 1.12, 1.36),
    "T1ce": (0.24, 0.72, 0.96, 0.79, 0.90, 1.45, 0.46, 1.78, 0.72),
    "T1": (0.22, 0.70, 1.00, 0.79, 0.93, 0.55, 0.46, 0.70, 0.74),
    "T2": (1.50, 0.66, 0.46, 0.52, 0.50, 0.95, 1.22, 0.84, 1.02),
}
_SCALE = {"FLAIR": 420, "T1ce": 620, "T1": 560, "T2": 700}  # of a scanner, give or take


@dataclass(frozen=True, eq=False)
class _Scanner:
    """How one sequence of one case was taken."""

    scale: float
    bias: Waves
    texture: Waves
    mottle: Waves
    noise: float
    blur: tuple[float, float, float]  # deviation, mm

    @classmethod
    def make(cls, rng: np.random.Generator, channel: str) -> "_Scanner":
        return cls(
            scale=_SCALE[channel] * float(np.exp(rng.normal(0, 0.35))),
            bias=Waves.make(rng, 190.0, 6),
            texture=Waves.make(rng, 17.0, 12, 0.5),
            mottle=Waves.make(rng, 6.0, 12, 0.4),
            noise=rng.uniform(0.02, 0.035),
            blur=(0.55, 0.55, float(rng.choice([0.55, 0.9]))),  # some were taken in thick slices
        )


def phantom_case(
    index: int, *, size: tuple[int, int, int] = (240, 240, 155), seed: int = 0, et_label: int = 4
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Case `index` of data set `seed`.

    Args:
        size: voxels along x (to the left), y (to the back) and z (up) of a field of 240 × 240 × 155 mm.
        et_label: the enhancing tumour's label, 4 as up to BraTS 2022 or 3 as since 2023.

    Returns:
        Images int16 [x, y, z] by channel (FLAIR, T1ce, T1, T2), 0 outside the brain and more inside, and labels uint8 [x, y, z]:
        0 none, 1 necrosis, 2 oedema, `et_label` enhancing tumour; each is there.

    Raises:
        InputError: `index` or `seed` is negative, `size` is too small, or `et_label` is another.
    """
    _check(size, seed, et_label)
    if not _is_count(index):
        raise InputError(f"`index` of a phantom is {index!r}, expected a whole number from 0; correct it.")
    rng = np.random.default_rng((seed, index))
    head, lesions = anatomy.Head.make(rng), foci(rng)
    scanners = {channel: _Scanner.make(rng, channel) for channel in CHANNELS}
    spacing = _spacing(size)
    width = 1.2 * max(1.0, float(np.prod(spacing)) ** (1 / 3))

    box, grid = _grid(size)
    inside, points, shape = _shape(head, grid, spacing)
    before = points
    for focus in lesions:
        before = focus.push(before, np.clip(shape["outer"] / 12, 0, 1))  # the skull does not give way
    tissues = anatomy.tissues(head, before, shape["depth"], shape["inward"], shape["part"], width)
    tissues |= {name: np.zeros_like(shape["depth"]) for name in LESIONS}
    for focus in lesions:
        focus.grow(tissues, points, width)

    labels = np.zeros(size, np.uint8)
    labels[box][inside] = _marks(tissues, et_label)
    images = {}
    for channel, scanner in scanners.items():
        images[channel] = np.zeros(size, np.int16)
        images[channel][box][inside] = _scan(rng, channel, scanner, tissues, points, inside, spacing)
    return images, labels


def _spacing(size: Sequence[int]) -> list[float]:
    return [f / n for f, n in zip(FIELD, size)]


def _grid(size: Sequence[int]) -> tuple[tuple[slice, ...], list[np.ndarray]]:
    """The voxels in the box, and their coordinates, to broadcast."""
    box, grid = [], []
    for axis, (n, s, origin, sign, (low, high)) in enumerate(zip(size, _spacing(size), _ORIGIN, (1, -1, 1), _BOX)):
        mm = sign * ((np.arange(n) + 0.5) * s - 0.5 - origin)
        held = np.flatnonzero((mm > low) & (mm < high))
        box.append(slice(int(held[0]), int(held[-1]) + 1))
        grid.append(mm[box[-1]].astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)]))
    return tuple(box), grid


def _shape(
    head: anatomy.Head, grid: list[np.ndarray], spacing: Sequence[float]
) -> tuple[np.ndarray, tuple[np.ndarray, ...], dict[str, np.ndarray]]:
    """The mask of the brain, its n points, and what `anatomy.tissues` asks of them."""
    placed = head.place(grid)
    cerebrum, cerebellum, stem = distances = anatomy.outlines(placed)
    inside = union(union(cerebrum, cerebellum, 5), stem, 6) < _RIM_OF_FLUID
    between = (cerebellum - cerebrum) / 2  # they do not touch
    depth = np.stack([np.minimum(-cerebrum, between), np.minimum(-cerebellum, -between), -stem])
    part = np.argmin(distances, 0)
    depth = np.take_along_axis(depth, part[None], 0)[0]
    inward = np.stack([g[inside] for g in np.gradient(depth, spacing[0], -spacing[1], spacing[2])])
    inward /= np.maximum(np.sqrt((inward * inward).sum(0)), 0.3)
    outer = -np.minimum(np.minimum(cerebrum, cerebellum), stem)
    shape = {"depth": depth[inside], "inward": inward, "part": part[inside], "outer": outer[inside]}
    return inside, tuple(np.broadcast_to(p, inside.shape)[inside] for p in placed), shape


def _marks(tissues: dict[str, np.ndarray], et_label: int) -> np.ndarray:
    core = tissues["rim"] + tissues["necrosis"]
    enhancing = tissues["rim"] >= tissues["necrosis"]
    return np.where(core > 0.5, np.where(enhancing, et_label, 1), np.where(core + tissues["oedema"] > 0.5, 2, 0)).astype(np.uint8)


def _scan(
    rng: np.random.Generator,
    channel: str,
    scanner: _Scanner,
    tissues: dict[str, np.ndarray],
    points: Sequence[np.ndarray],
    inside: np.ndarray,
    spacing: Sequence[float],
) -> np.ndarray:
    """The voxels of the brain as one sequence shows them, int16 [n], all above 0."""
    signal = sum(bright * tissues[name] for name, bright in zip(_TISSUE, _BRIGHTNESS[channel]))
    sick = sum(tissues[name] for name in LESIONS)
    signal *= 1 + (0.018 + 0.03 * sick) * scanner.texture(points) + (0.01 + 0.04 * sick) * scanner.mottle(points)
    signal *= np.exp(0.055 * scanner.bias(points))
    volume = np.zeros(inside.shape, np.float32)
    volume[inside] = signal
    sigma = [b / s for b, s in zip(scanner.blur, spacing)]
    signal, whole = (
        ndimage.gaussian_filter(v, sigma, mode="constant", truncate=3)[inside] for v in (volume, inside.astype(np.float32))
    )
    noise = scanner.noise * rng.standard_normal((2, signal.size), dtype=np.float32)
    signal = np.hypot(signal / whole + noise[0], noise[1])  # the magnitude of a complex signal
    return np.clip(np.rint(scanner.scale * signal), 1, np.iinfo(np.int16).max).astype(np.int16)


def write_phantom(
    folder: str | os.PathLike,
    *,
    cases: int,
    size: tuple[int, int, int] = (240, 240, 155),
    seed: int = 0,
    et_label: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Make `folder` hold cases 0 … `cases` - 1 as BraTS 2021 lays them out, or as 2023 does if `et_label` is 3.

    Complete cases of an earlier call with the same parameters stay as they are, so a call that was cut off is completed by the
    next. Every file appears whole. `progress` is called with (cases there, `cases`) after each.

    Raises:
        InputError: the folder holds something else or more cases, cannot be written, or a parameter is out of range.
    """
    folder = Path(folder)
    _check(size, seed, et_label)
    if not _is_count(cases) or cases == 0:
        raise InputError(f"`cases` of a phantom is {cases!r}, expected a whole number from 1; correct it.")
    name, ends, label_end = _NAMES[et_label]
    try:
        _claim(folder, {"recipe": RECIPE, "size": [int(n) for n in size], "seed": int(seed), "et_label": int(et_label)}, cases)
        for index in range(cases):
            stem = name.format(index)
            files = {channel: folder / stem / f"{stem}{end}.nii.gz" for channel, end in (*ends.items(), ("label", label_end))}
            if not all(file.is_file() for file in files.values()):
                files["label"].parent.mkdir(exist_ok=True)
                images, labels = phantom_case(index, size=size, seed=seed, et_label=et_label)
                like = _place_of(labels, folder)
                for channel, image in images.items():
                    write_volume(files[channel], image, like, np.int16)
                write_volume(files["label"], labels, like, np.uint8)
            if progress is not None:
                progress(index + 1, cases)
    except OSError as error:
        where = error.filename or folder
        raise InputError(f"{where}: cannot be written ({error.strerror}); give a folder with write access and space.") from error


def _claim(folder: Path, asked: dict[str, Any], cases: int) -> None:
    """Make the folder and write what it holds into its record; or check that the record says the same."""
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / RECORD
    there = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if not there:
        temporary = folder / f".{RECORD}.{secrets.token_hex(6)}.tmp"
        temporary.write_text(json.dumps(asked) + "\n", "utf-8")
        os.replace(temporary, record)
        return
    if RECORD not in there:
        raise InputError(f"{folder}: holds other files, such as {there[0]}, expected an empty folder or a phantom; give another.")
    try:
        found = json.loads(record.read_text("utf-8"))
    except ValueError as error:
        raise InputError(
            f"{record}: cannot be read ({error}), expected the phantom's parameters; give another folder."
        ) from error
    if found != asked:
        raise InputError(f"{folder}: holds a phantom made with {found}, but {asked} is asked for; give another folder.")
    held = [entry for entry in there if (folder / entry).is_dir()]
    if len(held) > cases:
        raise InputError(f"{folder}: holds {len(held)} cases, but {cases} are asked for; give another folder.")


def _place_of(labels: np.ndarray, folder: Path) -> Volume:
    """The grid in the world as BraTS gives it: voxels of the field's own spacing start at (0, 239, 0) mm, axes L, P, S."""
    spacing = _spacing(labels.shape)
    shift = [(s - 1) / 2 for s in spacing]
    affine = nib.affines.from_matvec(np.diag([-spacing[0], -spacing[1], spacing[2]]), [0 - shift[0], 239 - shift[1], shift[2]])
    header = nib.Nifti1Header()
    header.set_data_shape(labels.shape)
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    header.set_xyzt_units("mm")
    return Volume(labels, affine, header, folder)


def _check(size: Any, seed: Any, et_label: Any) -> None:
    if not (len(size) == 3 and all(_is_count(n) and n >= least for n, least in zip(size, SMALLEST))):
        raise InputError(f"`size` of a phantom is {size!r}, expected three numbers of voxels, at least {SMALLEST}; enlarge it.")
    if not _is_count(seed):
        raise InputError(f"`seed` of a phantom is {seed!r}, expected a whole number from 0; correct it.")
    if et_label not in _NAMES:
        raise InputError(f"`et_label` of a phantom is {et_label!r}, expected 4 (up to BraTS 2022) or 3 (since 2023); choose one.")


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 0
