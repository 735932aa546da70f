"""A case in the cache of training cases, whose arrays stay on the disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swinunetr_jax.data.boxes import Box
from swinunetr_jax.data.prepare.cache_entry import Entry
from swinunetr_jax.data.prepare.class_voxels import ClassVoxels
from swinunetr_jax.data.prepare.example import Example


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case in the cache.

    `path` is its JSON; `sources` are the files that it was prepared from, the images and then the label map.
    `image` and `label` are opened at each access, so that the case is cheap to send to another process.
    `shape` and `affine` are those of the whole grid in the task's orientation and voxel size; `box` is the part of it that is stored.
    `class_voxels` are voxels of each class of the task.
    `foreground` is the box, within the stored part, of voxels above `above`; `statistics` are the `nonzero_statistics` of the image.
    """

    name: str
    path: Path
    sources: tuple[Path, ...]
    image_path: Path
    label_path: Path
    class_voxels: ClassVoxels
    box: Box
    shape: tuple[int, int, int]
    affine: np.ndarray
    above: float
    foreground: Box
    statistics: tuple[np.ndarray, np.ndarray]
    notes: tuple[str, ...]

    @property
    def image(self) -> np.memmap:
        """The image [x, y, z, c], float32 or float16, read-only."""
        return np.load(self.image_path, mmap_mode="r")

    @property
    def label(self) -> np.memmap:
        """The label map [x, y, z], uint8, read-only."""
        return np.load(self.label_path, mmap_mode="r")

    def example(self) -> Example:
        """Returns the example that transforms take: both arrays and their measurements."""
        return {
            "image": np.asarray(self.image),
            "label": np.asarray(self.label),
            "foreground": {self.above: self.foreground},
            "statistics": self.statistics,
            "class_voxels": self.class_voxels,
        }


def prepared_case(name: str, path: Path, sources: Sequence[Path], above: float, entry: Entry) -> PreparedCase:
    """Returns the case that an entry describes.

    Args:
        name: the name of the case.
        path: the JSON of the entry.
        sources: the files that the case was prepared from.
        above: the threshold of the foreground.
        entry: the content of the JSON.
    """
    return PreparedCase(
        name=name,
        path=path,
        sources=tuple(sources),
        image_path=path.parent / entry["image"]["file"],
        label_path=path.parent / entry["label"]["file"],
        class_voxels=ClassVoxels(path.parent / entry["voxels"]["file"], tuple(entry["voxel_counts"])),
        box=entry["box"],
        shape=entry["shape"],
        affine=np.array(entry["affine"]),
        above=above,
        foreground=entry["foreground"],
        statistics=(np.array(entry["mean"]), np.array(entry["deviation"])),
        notes=tuple(entry["notes"]),
    )
