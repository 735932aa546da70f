"""The JSON of a case in the cache: its fields, checks of the JSON and of the arrays, and the removal of obsolete files."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from swinunetr_jax import console, files
from swinunetr_jax.data.boxes import Box
from swinunetr_jax.data.nifti.nifti_file import check_affine
from swinunetr_jax.data.prepare.class_voxels import MAX_VOXELS
from swinunetr_jax.errors import InputError

VERSION = 4  # version of the stored format; entries of other versions are not used
# Names of files that the cache wrote; other files in the folder are never touched.
_ENTRY, _ARRAY = re.compile(r".*-[0-9a-f]{12,16}\.json"), re.compile(r".*-[0-9a-f]{16}-(image|label|voxels)\.npy")
_REMEDY = "the case is prepared again"
_users: dict[tuple[int, int], int] = {}  # handles of the folders that this process uses, by device and inode


class Source(TypedDict):
    """A file that a case was prepared from, with the size, time and digest that identify its content."""

    path: str
    bytes: int
    modified_ns: int
    sha256: str


class Array(TypedDict):
    """A .npy file in the folder of the JSON. The size in bytes is stated only in prepared data sets."""

    file: str
    sha256: str
    bytes: NotRequired[int]


class Entry(TypedDict):
    """The content of the JSON. `digest` is that of all other fields, so that any changed number is detected.

    `reference` is the label map on the scan's own grid, a .nii.gz file, which only prepared data sets hold if scans are resampled.
    """

    name: str
    key: str
    settings: dict[str, Any]
    sources: list[Source]
    image: Array
    label: Array
    voxels: Array
    voxel_counts: list[int]
    labels: list[int]
    box: Box
    shape: tuple[int, int, int]
    affine: list[list[float]]
    foreground: Box
    mean: list[float]
    deviation: list[float]
    notes: list[str]
    reference: NotRequired[Array]
    digest: str


class _Settings(TypedDict):
    version: int


class _AnyEntry(TypedDict):
    """The fields that entries of all versions have."""

    name: str
    key: str
    settings: _Settings
    sources: list[dict[str, Any]]


@dataclass
class Contents:
    """The contents of a cache's folder.

    `settings_digests` holds the `settings_digest` of each usable entry, wherever its source files are. `note` is a sentence on entries of
    other versions, or None.
    """

    settings_digests: set[str] = field(default_factory=set)
    note: str | None = None


def write_entry(path: Path, entry: Entry) -> None:
    """Writes an entry with its digest. Raises OSError."""
    files.write_bytes(path, entry_json(entry))


def entry_json(entry: Entry) -> bytes:
    """Returns an entry with its digest as JSON."""
    text = files.json_text(entry | {"digest": _digest(entry)}, indent=1)
    return f"{text}\n".encode("utf-8", "backslashreplace")


def read_entry(path: Path, dtype: np.dtype, channels: int, labels: set[int]) -> Entry | None:
    """Returns the entry in `path`, or None if the file does not exist.

    Args:
        path: the JSON.
        dtype: the data type of the image.
        channels: the number of channels of the image.
        labels: the values that the label map may hold.

    Raises:
        InputError: the entry is damaged, or holds impossible values.
    """
    try:
        entry = files.read_json(path, Entry, _REMEDY)
    except FileNotFoundError:
        return None
    fault = entry_fault(entry, dtype, channels, labels)
    if fault:
        raise InputError(f"{path} is not a valid entry ({fault}): {_REMEDY}.")
    return entry


def check_arrays(path: Path, entry: Entry, dtype: np.dtype, channels: int) -> Entry:
    """Compares the arrays of an entry with their digests, and returns the entry.

    Raises:
        InputError: an array is missing or has changed.
    """
    extent = tuple(stop - start for start, stop in entry["box"])
    for array, shape, kind in (
        (entry["image"], (*extent, channels), dtype),
        (entry["label"], extent, np.dtype(np.uint8)),
        (entry["voxels"], (sum(entry["voxel_counts"]), 3), np.dtype(np.int32)),
    ):
        file = path.parent / array["file"]
        try:
            unchanged = files.digest_of_file(file) == array["sha256"]
            stored = np.load(file, mmap_mode="r") if unchanged else None
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be read ({files.reason(error)}): {_REMEDY}.") from error
        if stored is None:
            raise InputError(f"{file} is damaged (its SHA-256 is not that of the array that was written): {_REMEDY}.")
        if stored.shape != shape or stored.dtype != kind:
            raise InputError(f"{file} holds {stored.dtype} {stored.shape}, expected {kind} {shape}: {_REMEDY}.")
    return entry


def settings_digest(name: str, settings: dict[str, Any]) -> str:
    """Returns the digest of a case's name and settings, which does not depend on where its files are."""
    return files.digest_of_json([name, settings])


def open_cache(folder: Path) -> Contents:
    """Marks the folder as used by this process until the process ends, and removes obsolete files if no other process uses it.

    Obsolete files are the temporary files of killed processes, entries of older versions, and arrays that no entry names because their
    sources have changed.

    Returns:
        The contents of the folder.
    """
    contents = Contents()
    with _used(folder) as alone:
        used_files, older, newer = set(), [], 0
        for path in folder.glob("*.json"):
            if _ENTRY.fullmatch(path.name) is None:
                continue
            with contextlib.suppress(InputError, OSError):  # a damaged entry is replaced when its case is prepared
                version = files.read_json(path, _AnyEntry, _REMEDY)["settings"]["version"]
                newer += version > VERSION
                if version < VERSION:
                    older.append(path)
                elif version == VERSION:
                    entry = files.read_json(path, Entry, _REMEDY)
                    used_files |= {array["file"] for array in arrays_of(entry)}
                    contents.settings_digests.add(settings_digest(entry["name"], entry["settings"]))
        if alone:
            files.remove_stale_temporaries(folder)
            arrays = [] if newer else [path for path in folder.glob("*.npy") if _ARRAY.fullmatch(path.name)]
            for path in (*older, *(path for path in arrays if path.name not in used_files)):
                with contextlib.suppress(OSError):
                    path.unlink()
    if older:
        outcome = "They were removed" if alone else "They remain, because another process uses this folder or it cannot be locked"
        contents.note = (
            f"{console.literal(folder)}: entries of an older version of swinunetr_jax ({len(older)}) cannot be used. {outcome}, and the "
            "cases of this training are prepared again."
        )
    elif newer:
        contents.note = (
            f"{console.literal(folder)}: entries of a newer version of swinunetr_jax ({newer}) are not used, so the cases of this training "
            "that have no other entry are prepared again."
        )
    return contents


@contextlib.contextmanager
def _used(folder: Path) -> Iterator[bool]:
    """Takes a shared lock on the folder until the process ends.

    Yields:
        Whether no other process holds the lock during the block. This is always False where locks do not exist (Windows, some network
        file systems), so that nothing is ever removed there.
    """
    try:
        import fcntl

        status = os.stat(folder)
        identity = (status.st_dev, status.st_ino)
        if identity in _users:  # this process may still use arrays that it prepared earlier
            yield False
            return
        handle = _users[identity] = os.open(folder, os.O_RDONLY)
        alone = _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        yield False
        return
    try:
        yield alone
    finally:
        _lock(handle, fcntl.LOCK_SH)


def _lock(handle: int, kind: int) -> bool:
    import fcntl

    try:
        fcntl.flock(handle, kind)
    except OSError:
        return False
    return True


def entry_fault(entry: Entry, dtype: np.dtype, channels: int, labels: set[int]) -> str | None:
    """Returns a description of the first fault among the values of an entry, or None."""
    if entry["digest"] != _digest(entry):
        return "its digest is not that of its content"
    if any(Path(array["file"]).name != array["file"] or not array["file"] for array in arrays_of(entry)):
        return "an array is not a file in its folder"
    if not all(0 < size < 1 << 31 for size in entry["shape"]):
        return f"shape {entry['shape']}"
    if not all(0 <= start < stop <= size for (start, stop), size in zip(entry["box"], entry["shape"], strict=True)):
        return f"box {entry['box']} in shape {entry['shape']}"
    extent = [stop - start for start, stop in entry["box"]]
    if not all(0 <= start < stop <= size for (start, stop), size in zip(entry["foreground"], extent, strict=True)):
        return f"foreground {entry['foreground']} in a box of {extent} voxels"
    if foreign := sorted(set(entry["labels"]) - labels):
        return f"label {foreign[0]}, which the task does not have"
    if not all(0 <= count <= MAX_VOXELS for count in entry["voxel_counts"]):
        return f"voxel_counts {entry['voxel_counts']}"
    mean, deviation = np.array(entry["mean"]), np.array(entry["deviation"])
    largest = float(np.finfo(dtype).max)
    if mean.shape != (channels,) or not (np.abs(mean) <= largest).all():
        return f"mean {entry['mean']}"
    if deviation.shape != (channels,) or not ((deviation > 0) & (deviation <= largest)).all():
        return f"deviation {entry['deviation']}"
    try:
        check_affine("affine", np.array(entry["affine"], np.float64).reshape(4, 4))
    except (InputError, ValueError, OverflowError):
        return f"affine {entry['affine']}"
    return None


def arrays_of(entry: Entry) -> list[Array]:
    """Returns the arrays of an entry, and the reference if it has one."""
    arrays = [entry["image"], entry["label"], entry["voxels"]]
    return [*arrays, entry["reference"]] if "reference" in entry else arrays


def _digest(entry: Entry) -> str:
    return files.digest_of_json({key: value for key, value in entry.items() if key != "digest"})
