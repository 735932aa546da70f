"""Copies objects of a bucket to this machine, except those of which it already has intact copies."""

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from swinunetr_jax import console, files
from swinunetr_jax.buckets.address import check_address, is_address
from swinunetr_jax.buckets.bucket import Bucket, in_parallel
from swinunetr_jax.buckets.scratch import check_space, scratch_file
from swinunetr_jax.buckets.stored import StoredObject
from swinunetr_jax.errors import InputError

_MEGABYTE = 1 << 20
LARGE = 64 * _MEGABYTE  # the progress of copying fewer bytes is not shown


@dataclass(frozen=True)
class Download:
    """An object that is to be copied to this machine.

    Attributes:
        target: the file for it.
        stored: the object as the bucket lists it.
        sha256: the digest of its content if that is known. Otherwise a record next to the file states which object it is a copy of.
    """

    target: Path
    stored: StoredObject
    sha256: str | None = None


class _Record(TypedDict):
    """The record next to a copy: the size and the tag of the object, and the digest of the copy."""

    size: int
    tag: str
    sha256: NotRequired[str]


def fetch(bucket: Bucket, wanted: Mapping[str, Download]) -> None:
    """Copies objects into their files, unless the files are copies of them already. The caller holds the lock on the folder of the files.

    Raises:
        FileNotFoundError: an object does not exist any more.
        InputError: the bucket cannot be read, or there is too little space.
    """
    due = {name: item for name, item in wanted.items() if not _is_current(item)}
    if not due:
        return
    total = sum(item.stored.size for item in due.values())
    for item in due.values():
        files.make_folder(item.target.parent)
    check_space(next(iter(due.values())).target.parent, total, bucket.address)
    lock, count = threading.Lock(), 0
    with console.Progress(f"copying {bucket.address} to this machine", "megabyte", silent=total < LARGE) as progress:

        def arrived(size: int) -> None:
            nonlocal count
            with lock:
                count += size
                progress(count // _MEGABYTE, -(-total // _MEGABYTE))

        def copy(name: str) -> None:
            item = due[name]
            _record_of(item.target).unlink(missing_ok=True)
            bucket.download_file(name, item.target, item.stored, arrived)
            if item.sha256 is None:
                record = _Record(size=item.stored.size, tag=item.stored.tag, sha256=files.digest_of_file(item.target))
                files.write_json(_record_of(item.target), record)

        in_parallel(copy, due)


def copy_object(path: str | os.PathLike, stored: StoredObject) -> Path:
    """Copies the object at an address to this machine, and returns the file. The caller holds the lock on the file's folder.

    Args:
        path: the address.
        stored: the object as `Bucket.objects` has returned it.

    Raises:
        InputError: the errors of `fetch`, or the object was removed or replaced since it was listed.
    """
    file = scratch_file(path)
    try:
        fetch(Bucket(path), {"": Download(file, stored)})
    except FileNotFoundError as error:
        raise InputError(
            f"{check_address(path)} was removed or replaced while it was read: start the same command again."
        ) from error
    return file


def optional_file(path: str | os.PathLike) -> Path | None:
    """Returns a file, or a copy of it on this machine if the path is an address, or None if it does not exist."""
    if not is_address(path):
        return Path(path) if files.exists(path) else None
    stored = Bucket(path).objects().get("")
    if stored is None:
        return None
    with files.locked(scratch_file(path).parent):
        return copy_object(path, stored)


def exists(path: str | os.PathLike) -> bool:
    """Returns whether a file or folder exists or, if the path is an address, whether there is an object at or below it."""
    return bool(Bucket(path).objects()) if is_address(path) else files.exists(path)


def is_folder(path: str | os.PathLike) -> bool:
    """Returns whether a path is a folder or, if it is an address, whether there are objects below it."""
    return bool(Bucket(path).names()) if is_address(path) else files.is_folder(path)


@contextlib.contextmanager
def errors_with_addresses() -> Iterator[None]:
    """Makes the errors of the block name addresses instead of the folders on this machine that hold copies."""
    try:
        yield
    except InputError as error:
        error.args = tuple(console.with_names(part) if isinstance(part, str) else part for part in error.args)
        raise


def _is_current(item: Download) -> bool:
    """Returns whether the file of an object is an undamaged copy of it."""
    try:
        if item.target.stat().st_size != item.stored.size:
            return False
        if item.sha256 is not None:
            return files.digest_of_file(item.target) == item.sha256
        record = files.read_json(_record_of(item.target), _Record, "")
        known = (record["size"], record["tag"]) == (item.stored.size, item.stored.tag) and bool(item.stored.tag)
        return known and files.digest_of_file(item.target) == record.get("sha256")
    except (OSError, InputError):  # the file or its record is missing or damaged
        return False


def _record_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.copy")
