"""Prepares one training case: reads its files, writes its arrays, and returns the content of its JSON."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from swinunetr_jax import files
from swinunetr_jax.data.boxes import bounding_box, slices, whole_box
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.formats import read_labels
from swinunetr_jax.data.nifti import on_grid_of, write_volume
from swinunetr_jax.data.prepare.cache_entry import VERSION, Array, Entry, Source, arrays_of
from swinunetr_jax.data.prepare.class_voxels import find_class_voxels
from swinunetr_jax.data.prepare.example import foreground
from swinunetr_jax.data.prepare.intensity import nonzero_statistics
from swinunetr_jax.data.prepare.read_case import content_map, read_case, read_case_label
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task

DTYPES = ("float32", "float16")


class CaseWriter:
    """Writes cases for one task.

    Args:
        task: how the cases are prepared.
        in_channels: the number of channels that the network takes.
        dtype: the data type of the stored image; "float16" takes half the space and keeps three digits.

    Attributes:
        known: the values that label maps may hold.
        above: the intensity above which voxels are foreground.
        settings: everything except the files that the stored data depend on, as JSON values.

    Raises:
        InputError: the data type is not one of `DTYPES`.
    """

    def __init__(self, task: Task, in_channels: int, dtype: str):
        if dtype not in DTYPES:
            raise InputError(f"the cache's dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
        self.task, self.in_channels, self.dtype = task, in_channels, np.dtype(dtype)
        self.known = {0} | {value for output in task.outputs for value in output.members or (output.value,)}
        if task.ignore is not None:
            self.known.add(task.ignore)
        if task.kind == "images":
            self.known.add(1)  # the value of a content map
        self.above = task.window[0] if task.window else 0.0
        # The stored data also depend on the outputs, which define the labels, and on the window, which defines the foreground.
        values = {key: value for key, value in task.to_dict().items() if key not in ("roi", "paint", "scans")}
        self.settings: dict[str, Any] = {"version": VERSION, "task": values, "in_channels": in_channels, "dtype": dtype}

    def key(self, case: Case, sources: Sequence[Source]) -> str:
        """Returns the digest of the content of a case's files and of the settings, which the names of its arrays contain."""
        plane = [] if case.plane is None else [case.plane]
        return files.digest_of_json([case.channels, self.settings, *plane, *(source["sha256"] for source in sources)])

    def write(self, case: Case, key: str, sources: list[Source], folder: Path, *, for_copies: bool = False) -> Entry:
        """Writes the arrays of a case into a folder, and returns the content of its JSON, which the caller writes.

        Args:
            case: the case.
            key: its `key`.
            sources: its files.
            folder: the folder.
            for_copies: whether the arrays will be used without the files of the case. The entry then states their sizes, and if scans are
                resampled, the label map is also stored on the scan's own grid, on which a validation compares it.

        Raises:
            InputError: the case cannot be used.
            OSError: the folder cannot be written.
        """
        loaded = read_case(case, self.task, self.in_channels)
        label = read_case_label(case, loaded) if case.needs_label else content_map(loaded.array, self.task)
        foreign = sorted(set(np.unique(label).tolist()) - self.known)
        if foreign:
            raise InputError(
                f"{case.label}: label {', '.join(map(str, foreign))} is not one of the task's labels "
                f"({', '.join(map(str, sorted(self.known)))}); correct the label map, or add the label to the task."
            )
        if self.task.ignore is not None and (label == self.task.ignore).all():
            raise InputError(
                f"{case.label}: every voxel has the label {self.task.ignore}, which is ignored; annotate voxels, or leave the case out."
            )
        box = whole_box(label.shape)
        if self.task.intensity == "zscore":  # statistics ignore zeros, so those around the patient are not stored
            box = bounding_box((loaded.array != 0).any(-1) | (label > 0)) or box
        image = self._stored(case, np.ascontiguousarray(loaded.array[slices(box)]))
        mean, deviation = nonzero_statistics(image)
        stored_label = np.ascontiguousarray(label[slices(box)])
        voxels, counts = find_class_voxels(stored_label, self.task)
        stem = f"{file_name(case.name)}-{key[:16]}"
        entry: Entry = {
            "name": case.name,
            "key": key,
            "settings": self.settings,
            "sources": sources,
            "image": _write_array(folder / f"{stem}-image.npy", image),
            "label": _write_array(folder / f"{stem}-label.npy", stored_label),
            "voxels": _write_array(folder / f"{stem}-voxels.npy", voxels),
            "voxel_counts": counts,
            "labels": np.unique(label).tolist(),
            "box": box,
            "shape": label.shape,
            "affine": loaded.affine.tolist(),
            "foreground": foreground(image, self.above),
            "mean": mean.tolist(),
            "deviation": deviation.tolist(),
            "notes": list(loaded.notes),
            "digest": "",
        }
        if for_copies:
            if self.task.spacing is not None and case.label is not None and case.needs_label:
                path = folder / f"{stem}-reference.nii.gz"
                write_volume(path, on_grid_of(read_labels(case.label), loaded.scan).array, loaded.scan)
                entry["reference"] = {"file": path.name, "sha256": files.digest_of_file(path)}
            for array in arrays_of(entry):
                array["bytes"] = (folder / array["file"]).stat().st_size
        return entry

    def _stored(self, case: Case, image: np.ndarray) -> np.ndarray:
        """Returns the image as the cache's data type. Raises InputError if its values do not fit float16."""
        if self.dtype == np.float32:
            return image
        with np.errstate(over="ignore"):
            half = image.astype(self.dtype)
        if not np.isfinite(half).all() or np.count_nonzero(half) != np.count_nonzero(image):
            raise InputError(
                f"{case.images[0]}: intensities from {image.min():g} to {image.max():g} do not fit float16, whose values lie "
                "between 6e-8 and 65504; store this cache in float32 (--cache-dtype float32)."
            )
        return half


def source_of_file(file: Path, known: Sequence[Source] = ()) -> Source:
    """Returns the path, size, time and digest of a file.

    Args:
        file: the file.
        known: files that were hashed earlier; the digest is taken from the one that has the same path, size and time.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        status = file.stat()
        path, size, modified = str(file.absolute()), status.st_size, status.st_mtime_ns
        for source in known:
            if (source["path"], source["bytes"], source["modified_ns"]) == (path, size, modified):
                return source
        return {"path": path, "bytes": size, "modified_ns": modified, "sha256": files.digest_of_file(file)}
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({files.reason(error)}); give the file, or leave the case out.") from error


def file_name(name: str) -> str:
    """Returns the beginning of the names of a case's files."""
    return re.sub(r"[^\w.-]", "_", name)[:80]


def _write_array(path: Path, array: np.ndarray) -> Array:
    """Writes a .npy file, and returns its name and digest. Raises OSError."""
    with files.atomic_path(path) as temporary, open(temporary, "xb") as file:
        hashed = _Hashed(file)
        np.lib.format.write_array(hashed, array, allow_pickle=False)
    return {"file": path.name, "sha256": hashed.digest.hexdigest()}


class _Hashed:
    """A file that hashes the data written to it, so that the digest does not depend on whether the disk returns the same data."""

    def __init__(self, file: BinaryIO):
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)
