"""The cache of training cases: each case is read once and stored as arrays that training maps into memory.

FOLDER/NAME-SOURCES.json             written last, so that its existence means that the case is complete
FOLDER/NAME-KEY-image.npy            [x, y, z, c] on the task's grid, with the intensities of the files
FOLDER/NAME-KEY-label.npy            uint8 [x, y, z]; the content map of a case without a label map, see `read_case.content_map`
FOLDER/NAME-KEY-voxels.npy           int32 [n, 3], voxels of each class, see `class_voxels`

SOURCES is a digest of the files' paths and the settings, so that cases of equal names in several data sets do not collide. KEY is a
digest of the files' content and the settings. A file is hashed again only if its path, size or modification time differs from the JSON; the
arrays are hashed at each start. Every file is written atomically, equal input gives equal bytes, and nothing is removed while
another process uses the folder, so that several trainings can share one.
"""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from swinunetr_jax import console, files
from swinunetr_jax.data.boxes import bounding_box, slices, whole_box
from swinunetr_jax.data.check.problems import problem_lines
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.prepare.cache_entry import (
    VERSION,
    Array,
    Entry,
    Source,
    check_arrays,
    open_cache,
    read_entry,
    settings_digest,
    write_entry,
)
from swinunetr_jax.data.prepare.class_voxels import find_class_voxels
from swinunetr_jax.data.prepare.example import foreground
from swinunetr_jax.data.prepare.intensity import nonzero_statistics
from swinunetr_jax.data.prepare.prepared_case import PreparedCase, prepared_case
from swinunetr_jax.data.prepare.read_case import content_map, read_case, read_case_label
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task

DTYPES = ("float32", "float16")
THREADS = 4  # threads suffice, because decompression releases the global interpreter lock; each holds an entire case in memory
Progress = Callable[[int, int], None]


def prepare_training_cases(
    cases: Sequence[Case],
    task: Task,
    folder: str | os.PathLike,
    *,
    in_channels: int,
    dtype: str = "float32",
    verify: bool = True,
    progress: Progress | None = None,
    warn: Callable[[str], None] = console.warn,
) -> list[PreparedCase]:
    """Returns the prepared cases in the given order, after reading and storing those that the cache does not hold.

    The stored arrays of the other cases are compared with their digests; a case with a damaged entry or array is prepared again.

    Args:
        cases: the cases to prepare.
        task: how they are prepared.
        folder: the cache; it is created if necessary. Several data sets, tasks and processes may share one.
        in_channels: the number of channels that the network takes.
        dtype: the data type of the stored image; "float16" takes half the space and keeps three digits.
        verify: whether to compare the digests; a caller that has just compared them can give False.
        progress: called with the numbers of cases done and of all cases.
        warn: called with a sentence for each damaged entry, for a cache of another version, and for cases that were prepared from files
            at other paths.

    Raises:
        InputError: some cases cannot be used, in which case all of them are named, one per line; or the folder cannot be written.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise InputError(f"the cache's dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    names = [case.name for case in cases]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"several cases are called {', '.join(repeated)}; give each case a different name.")
    store = _Store(folder, task, in_channels, dtype, verify, warn)
    prepared: dict[int, PreparedCase] = {}
    faults: dict[int, str] = {}
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        futures = {pool.submit(store.prepared, case): index for index, case in enumerate(cases)}
        try:
            for count, future in enumerate(as_completed(futures), 1):
                try:
                    prepared[futures[future]] = future.result()
                except InputError as error:
                    faults[futures[future]] = str(error)
                if progress:
                    progress(count, len(cases))
        except OSError as error:
            # Errors of reading are InputErrors, so this one is an error of writing, which would recur for the next case.
            raise InputError(f"{folder}: cannot be written ({files.reason(error)}); give a folder with space.") from error
        finally:
            pool.shutdown(cancel_futures=True)
    if store.moved:
        warn(
            f"{console.literal(folder)} holds {console.name_list(map(console.literal, sorted(store.moved)))} prepared from files at other "
            "paths; these cases were prepared again from the files given now."
        )
    if faults:
        lines = problem_lines([(cases[index].name, faults[index]) for index in sorted(faults)])
        raise InputError(f"{len(faults)} of {len(cases)} cases cannot be used for training:", *lines)
    return [prepared[index] for index in range(len(cases))]


class _Store:
    """The cache of one task in a folder."""

    def __init__(self, folder: Path, task: Task, in_channels: int, dtype: str, verify: bool, warn: Callable[[str], None]):
        self.folder, self.task, self.in_channels, self.dtype = folder, task, in_channels, np.dtype(dtype)
        self.verify, self.warn = verify, warn
        files.make_folder(folder)
        contents = open_cache(folder)
        if contents.note:
            warn(contents.note)
        self.settings_digests, self.moved = contents.settings_digests, set[str]()
        self.known = {0} | {value for output in task.outputs for value in output.members or (output.value,)}
        if task.ignore is not None:
            self.known.add(task.ignore)
        if task.kind == "images":
            self.known.add(1)  # the value of a content map
        self.above = task.window[0] if task.window else 0.0
        # The stored data also depend on the outputs, which define the labels, and on the window, which defines the foreground.
        values = {key: value for key, value in task.to_dict().items() if key not in ("roi", "paint")}
        self.settings = {"version": VERSION, "task": values, "in_channels": in_channels, "dtype": dtype}

    def prepared(self, case: Case) -> PreparedCase:
        """Returns the case from the cache, or prepares it if it is missing or damaged. Raises OSError only if it cannot be written."""
        if case.problem:
            raise InputError(case.problem)
        paths = [*case.images, *([case.label] if case.label else [])]
        try:
            resolved = [os.path.realpath(path) for path in paths]
        except (OSError, ValueError) as error:
            raise InputError(f"{paths[0]}: cannot be read ({files.reason(error)}); give an existing file.") from error
        plane = [] if case.plane is None else [case.plane]
        identity = files.digest_of_json([case.name, case.channels, self.settings, resolved, *plane])
        path = self.folder / f"{_file_name(case.name)}-{identity[:16]}.json"
        is_new = not files.exists(path)
        entry = self._checked(case, path, read_entry, self.dtype, self.in_channels, self.known)
        sources = [_source(file, entry) for file in paths]
        key = files.digest_of_json([case.channels, self.settings, *plane, *(source["sha256"] for source in sources)])
        if entry is not None and entry["key"] != key:  # a source has changed
            entry = None
        if entry is not None and self.verify:
            entry = self._checked(case, path, check_arrays, entry, self.dtype, self.in_channels)
        if entry is None:
            entry = self._prepare(case, key, sources)
            write_entry(path, entry)
            if is_new and settings_digest(case.name, self.settings) in self.settings_digests:
                self.moved.add(case.name)
        elif entry["sources"] != sources:
            current: Entry = {**entry, "sources": sources}
            entry = current
            write_entry(path, entry)
        return prepared_case(case.name, path, paths, self.above, entry)

    def _checked(self, case: Case, path: Path, check: Callable[..., Entry | None], *values: Any) -> Entry | None:
        """Returns the entry in `path`. If it or an array is damaged, warns, removes the entry and returns None."""
        try:
            return check(path, *values)
        except InputError as error:
            self.warn(f"{console.literal(case.name)}: {console.literal(error)}")
            path.unlink(missing_ok=True)
            return None

    def _prepare(self, case: Case, key: str, sources: list[Source]) -> Entry:
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
        stem = f"{_file_name(case.name)}-{key[:16]}"
        return {
            "name": case.name,
            "key": key,
            "settings": self.settings,
            "sources": sources,
            "image": _write_array(self.folder / f"{stem}-image.npy", image),
            "label": _write_array(self.folder / f"{stem}-label.npy", stored_label),
            "voxels": _write_array(self.folder / f"{stem}-voxels.npy", voxels),
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


def _source(file: Path, entry: Entry | None) -> Source:
    """Returns the path, size, time and digest of a file. The digest is that in the entry if path, size and time are unchanged."""
    try:
        status = file.stat()
        path, size, modified = str(file.absolute()), status.st_size, status.st_mtime_ns
        for source in entry["sources"] if entry else ():
            if (source["path"], source["bytes"], source["modified_ns"]) == (path, size, modified):
                return source
        return {"path": path, "bytes": size, "modified_ns": modified, "sha256": files.digest_of_file(file)}
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({files.reason(error)}); give the file, or leave the case out.") from error


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


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)[:80]
