"""Lists of voxels of each class, stored when a case is prepared, so that a crop can be centred on a class without a search.

The classes are the outputs of the task without the background: classes, or regions, which may overlap.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from swinunetr_jax.task import Task

MAX_VOXELS = 10_000  # the most voxels stored for a class, as in nnU-Net


@dataclass(frozen=True)
class ClassVoxels:
    """The stored voxels of a case.

    Attributes:
        path: the file with int32 [n, 3], indices into the case's arrays, one class after another.
        counts: the numbers of stored voxels of the classes in the order of `class_names`, at most `MAX_VOXELS` each.
    """

    path: Path
    counts: tuple[int, ...]

    @property
    def present(self) -> tuple[int, ...]:
        """The positions in `counts` of the classes that the case has."""
        return tuple(index for index, count in enumerate(self.counts) if count)

    def draw(self, rng: np.random.Generator) -> tuple[int, int, int]:
        """Returns a random stored voxel of a random class that the case has. Only this voxel is read from the disk."""
        index = self.present[int(rng.integers(len(self.present)))]
        number = sum(self.counts[:index]) + int(rng.integers(self.counts[index]))
        x, y, z = np.load(self.path, mmap_mode="r")[number].tolist()
        return x, y, z


def class_names(task: Task) -> tuple[str, ...]:
    """Returns the names of the classes in the order of `ClassVoxels.counts`."""
    return tuple(output.name for output in task.outputs if output.value)


def find_class_voxels(label: np.ndarray, task: Task) -> tuple[np.ndarray, list[int]]:
    """Returns (voxels, counts) of a label map [x, y, z], see `ClassVoxels`.

    For a class with more than `MAX_VOXELS` voxels a random subset is returned, the same for equal label maps. The voxels of a class are in
    the order of the array.
    """
    parts = [np.empty((0, 3), np.int32)]  # a task may have no class besides the background
    for index, output in enumerate(output for output in task.outputs if output.value):
        flat = np.flatnonzero(np.isin(label, task.labels_of(output)))
        if len(flat) > MAX_VOXELS:
            flat = np.sort(np.random.default_rng(index).choice(flat, MAX_VOXELS, replace=False))
        parts.append(np.stack(np.unravel_index(flat, label.shape), axis=-1).astype(np.int32))
    return np.concatenate(parts), [len(voxels) for voxels in parts[1:]]
