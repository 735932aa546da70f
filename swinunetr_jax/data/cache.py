"""Training cases, read once and kept as plain arrays that are memory-mapped ever after.

FOLDER/NAME-SETTINGS.json            written last: where there is one, the case is complete
FOLDER/NAME-KEY-image.npy            [x, y, z, c] on the task's grid, its intensities as in the files
FOLDER/NAME-KEY-label.npy            uint8 [x, y, z]

KEY is a digest of the files' content and of the settings. A file is hashed again only where its path, size or time of change is
not what the JSON says. Everything appears under its name in one step, and equal input gives equal bytes, so that processes that
prepare the same case at once do no harm.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swinunetr_jax.data.cases import Case
from swinunetr_jax.data.example import Box, Example, bounding_box, foreground, slices
from swinunetr_jax.data.intensity import nonzero_statistics
from swinunetr_jax.data.read_case import read_case, read_case_label
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task

VERSION = 2  # of what is stored; another one makes everything stale
DTYPES = ("float32", "float16")
THREADS = 4  # decompression runs beside other threads; each holds a whole case in memory
Progress = Callable[[int, int], None]
_FIELDS = {"key", "files", "sources", "box", "shape", "affine", "above", "foreground", "mean", "deviation", "notes"}


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case in the cache.

    `path` is its JSON; `sources` are the files that it was made from, the images and then the label map.
    `image` and `label` are opened anew each time, so that the case is cheap to send to another process.
    `shape` and `affine` are those of the whole grid in the task's orientation and voxel size, `box` the part of it that is kept.
    `foreground` is the box, in the kept part, of voxels above `above`; `statistics` are `nonzero_statistics` of the image.
    """

    name: str
    path: Path
    sources: tuple[Path, ...]
    image_path: Path
    label_path: Path
    box: Box
    shape: tuple[int, int, int]
    affine: np.ndarray
    above: float
    foreground: Box
    statistics: tuple[np.ndarray, np.ndarray]
    notes: tuple[str, ...]

    @property
    def image(self) -> np.memmap:
        """[x, y, z, c], float32 or float16, read-only."""
        return np.load(self.image_path, mmap_mode="r")

    @property
    def label(self) -> np.memmap:
        """uint8 [x, y, z], read-only."""
        return np.load(self.label_path, mmap_mode="r")

    def example(self) -> Example:
        """What transforms take: both arrays, and what was measured of them."""
        return {
            "image": np.asarray(self.image),
            "label": np.asarray(self.label),
            "foreground": {self.above: self.foreground},
            "statistics": self.statistics,
        }


def prepare_training_cases(
    cases: Sequence[Case],
    task: Task,
    folder: str | os.PathLike,
    *,
    in_channels: int,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> list[PreparedCase]:
    """Reads every case that the cache does not hold, and returns all in the order given.

    Args:
        folder: of the cache, made if need be; several data sets and tasks may share one.
        dtype: of the stored image; "float16" takes half the space and keeps three digits.
        progress: called with cases done and cases in all.

    Raises:
        InputError: some cases are unsound, and then all of them are named, one a line; or the folder cannot be written.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise InputError(f"the cache's dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    names = [case.name for case in cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"several cases are called {', '.join(twice)}; give each a name of its own.")
    store = _Store(folder, task, in_channels, dtype)
    done: dict[int, PreparedCase] = {}
    faults: dict[int, str] = {}
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        futures = {pool.submit(store.prepared, case): index for index, case in enumerate(cases)}
        try:
            for count, future in enumerate(as_completed(futures), 1):
                try:
                    done[futures[future]] = future.result()
                except InputError as error:
                    faults[futures[future]] = str(error)
                if progress:
                    progress(count, len(cases))
        except OSError as error:  # reading gives InputError: the cache cannot be written, and the next case will not do better
            raise InputError(f"{folder}: cannot be written ({error.strerror or error}); give a folder with space.") from error
        finally:
            pool.shutdown(cancel_futures=True)
    if faults:
        lines = [f"{cases[index].name}: {faults[index]}" for index in sorted(faults)]
        raise InputError(f"{len(lines)} of {len(cases)} cases cannot be used for training:", *lines)
    return [done[index] for index in range(len(cases))]


class _Store:
    """The cache of one task in a folder."""

    def __init__(self, folder: Path, task: Task, in_channels: int, dtype: str):
        self.folder, self.task, self.in_channels, self.dtype = folder, task, in_channels, np.dtype(dtype)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made ({error.strerror or error}); give a folder with write access.") from error
        self.known = {0} | {value for output in task.outputs for value in output.members or (output.value,)}
        self.above = task.window[0] if task.window else 0.0
        # what else the arrays depend on: labels are checked against the outputs, and the foreground is measured
        values = {key: value for key, value in task.to_dict().items() if key not in ("roi", "paint")}
        self.settings = {"version": VERSION, "task": values, "in_channels": in_channels, "dtype": dtype}

    def prepared(self, case: Case) -> PreparedCase:
        """From the cache if it is there, else made now. OSError only from writing."""
        if case.problem:
            raise InputError(case.problem)
        files = [*case.images, *([case.label] if case.label else [])]
        path = self.folder / f"{_file_name(case.name)}-{_digest([case.name, self.settings])[:12]}.json"
        entry = _read_entry(path)
        sources = [_source(file, entry) for file in files]
        key = _digest([case.channels, self.settings, *(source["sha256"] for source in sources)])
        if entry is None or entry["key"] != key or not self._complete(entry):
            stale, entry = entry, self._make(case, key)
            entry["sources"] = sources
            _write(path, lambda file: file.write(json.dumps(entry, indent=1).encode()))
            if stale is not None and stale["key"] != key:
                for array in stale["files"]:
                    (self.folder / Path(array).name).unlink(missing_ok=True)
        elif entry["sources"] != sources:
            entry["sources"] = sources
            _write(path, lambda file: file.write(json.dumps(entry, indent=1).encode()))
        return _from_entry(case.name, path, entry)

    def _complete(self, entry: dict[str, Any]) -> bool:
        paths = {self.folder / name: size for name, size in entry["files"].items()}
        return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())

    def _make(self, case: Case, key: str) -> dict[str, Any]:
        read = read_case(case, self.task, self.in_channels)
        label = read_case_label(case, read)
        foreign = sorted(set(np.unique(label).tolist()) - self.known)
        if foreign:
            raise InputError(
                f"{case.label}: label {', '.join(map(str, foreign))} is none of the task's ({', '.join(map(str, sorted(self.known)))}); "
                "correct the label map or describe the task with it."
            )
        whole = tuple((0, size) for size in label.shape)
        # zeros say nothing where intensities are counted from them; a label is never cut off
        box = bounding_box((read.array != 0).any(-1) | (label > 0)) if self.task.intensity == "zscore" else whole
        image = self._stored(case, np.ascontiguousarray(read.array[slices(box)]))
        mean, deviation = nonzero_statistics(image)
        files = {}
        for kind, array in (("image", image), ("label", np.ascontiguousarray(label[slices(box)]))):
            path = self.folder / f"{_file_name(case.name)}-{key[:16]}-{kind}.npy"
            _write(path, lambda file, array=array: np.lib.format.write_array(file, array, allow_pickle=False))
            files[path.name] = path.stat().st_size
        return {
            "name": case.name,
            "key": key,
            "settings": self.settings,
            "files": files,
            "box": box,
            "shape": label.shape,
            "affine": read.affine.tolist(),
            "above": self.above,
            "foreground": foreground(image, self.above),
            "mean": mean.tolist(),
            "deviation": deviation.tolist(),
            "notes": read.notes,
        }

    def _stored(self, case: Case, image: np.ndarray) -> np.ndarray:
        if self.dtype == np.float32:
            return image
        with np.errstate(over="ignore"):
            half = image.astype(self.dtype)
        if not np.isfinite(half).all() or np.count_nonzero(half) != np.count_nonzero(image):
            raise InputError(
                f"{case.images[0]}: intensities from {image.min():g} to {image.max():g} do not fit float16, which ends at 65504 "
                'and 6e-8; keep this cache in "float32" (--cache-dtype float32).'
            )
        return half


def _from_entry(name: str, path: Path, entry: dict[str, Any]) -> PreparedCase:
    image, label = (path.parent / file for file in entry["files"])
    return PreparedCase(
        name=name,
        path=path,
        sources=tuple(Path(source["path"]) for source in entry["sources"]),
        image_path=image,
        label_path=label,
        box=tuple(tuple(side) for side in entry["box"]),
        shape=tuple(entry["shape"]),
        affine=np.array(entry["affine"]),
        above=entry["above"],
        foreground=tuple(tuple(side) for side in entry["foreground"]),
        statistics=(np.array(entry["mean"]), np.array(entry["deviation"])),
        notes=tuple(entry["notes"]),
    )


def _read_entry(path: Path) -> dict[str, Any] | None:
    """None where there is none, or one that was not written here."""
    try:
        entry = json.loads(path.read_text())
        return entry if entry.keys() >= _FIELDS and len(entry["files"]) == 2 else None
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def _source(file: Path, entry: dict[str, Any] | None) -> dict[str, Any]:
    """What identifies a file's content; the digest is taken from the cache's entry where the rest has not changed."""
    try:
        status = file.stat()
        seen = {"path": str(file.absolute()), "bytes": status.st_size, "modified_ns": status.st_mtime_ns}
        for known in entry["sources"] if entry else ():
            if known == {**seen, "sha256": known.get("sha256")}:
                return known
        with open(file, "rb") as stream:
            return {**seen, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error}); give the file, or leave the case out.") from error


def _write(path: Path, write: Callable[[Any], Any]) -> None:
    """Under its name only when complete."""
    temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)[:80]
