"""Folders on this machine that hold copies of what is in a bucket.

    SCRATCH/shared/gs/BUCKET/NAME     data and weights, which all processes of this machine share
    SCRATCH/own/K/gs/BUCKET/NAME      runs; each process uses a K of its own, which it holds until it ends

SCRATCH is the environment variable SWINUNETR_SCRATCH, by default ~/.cache/swinunetr_jax/scratch. The originals are in the bucket, so
the folders may be removed whenever no process uses them. Printed text names the address instead of the folder.
"""

import contextlib
import errno
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from swinunetr_jax import console, files
from swinunetr_jax.buckets.address import check_address
from swinunetr_jax.errors import InputError

VARIABLE = "SWINUNETR_SCRATCH"
_addresses: dict[Path, str] = {}  # the folders of this process, and their addresses
_lock_descriptors: list[int] = []  # file descriptors that keep the lock on SCRATCH/own/K


def scratch_folder(path: str | os.PathLike, *, shared: bool) -> Path:
    """Returns the folder for copies of what is at an address.

    Args:
        path: the address.
        shared: whether all processes of this machine use one folder; otherwise it belongs to this process.

    Raises:
        InputError: the address cannot be used, or no such folder can be created.
    """
    address = check_address(path)
    return _register_copy(address, files.make_folder(_path_below(scratch_root() / "shared" if shared else _own_root(), address)))


def scratch_file(path: str | os.PathLike) -> Path:
    """Returns the file for a copy of the object at an address, which all processes of this machine share. Its folder exists.

    Raises:
        InputError: the address cannot be used, or the folder cannot be created.
    """
    address = check_address(path)
    file = _path_below(scratch_root() / "shared", address)
    files.make_folder(file.parent)
    return _register_copy(address, file)


@contextlib.contextmanager
def staging_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a new path for a file or folder that will be uploaded to an address. It is removed after the block."""
    address = check_address(path)
    with tempfile.TemporaryDirectory(dir=files.make_folder(_own_root()), prefix="upload-") as folder:
        target = Path(folder) / address.rpartition("/")[2]
        try:
            yield _register_copy(address, target)
        finally:
            del _addresses[target]


def address_of(path: str | os.PathLike) -> str | None:
    """Returns the address that a path within a scratch folder of this process is a copy of, or None for any other path."""
    path = Path(path)
    for folder in (path, *path.parents):
        if address := _addresses.get(folder):
            rest = path.relative_to(folder).as_posix()
            return address if rest == "." else f"{address}/{rest}"
    return None


def shown(path: str | os.PathLike) -> str:
    """Returns a path as text for a user and for stored files: the address if it is one or a copy of one, and otherwise the path."""
    from swinunetr_jax.buckets.address import is_address

    return address_of(path) or (check_address(path) if is_address(path) else os.fspath(path))


def check_space(folder: Path, needed: int, what: str) -> None:
    """Raises InputError unless the disk of a folder has space for 1.1 times a number of bytes; `what` needs this space."""
    free = shutil.disk_usage(folder).free
    if needed * 1.1 > free:
        raise InputError(
            f"{what} needs {needed / 1e9:.2f} GB on this machine, but {scratch_root()} has only {free / 1e9:.2f} GB free: set "
            f"{VARIABLE} to a folder with more space."
        )


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raises InputError if the disk of a path is full or cannot be written, because repeating the operation of the block does not help."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise InputError(
            f"{path} cannot be written ({files.reason(error)}): free space in {scratch_root()}, or set {VARIABLE} to another folder."
        ) from error


def scratch_root() -> Path:
    """Returns the folder of all copies, without creating it."""
    if given := os.environ.get(VARIABLE):
        return Path(given).absolute()
    cache = files.user_cache()
    return cache / "scratch" if cache else Path(tempfile.gettempdir()) / f"swinunetr_jax-{os.getuid()}" / "scratch"


def _path_below(root: Path, address: str) -> Path:
    scheme, _, name = address.partition("://")
    return root / scheme / name


def _register_copy(address: str, path: Path) -> Path:
    """Returns the path, after registering it as a copy of what is at the address."""
    _addresses[path] = address
    console.show_as(str(path), address)
    return path


def own_folder(name: str) -> Path:
    """Returns a folder of this process for files that are not needed after it. If it is killed, a later process removes them.

    Raises:
        InputError: no such folder can be created.
    """
    return files.make_folder(_own_root() / name)


@functools.cache
def _own_root() -> Path:
    """Returns SCRATCH/own/K of this process, for the first K that no other process holds, and removes earlier files from it."""
    import fcntl

    own = files.make_folder(scratch_root() / "own")
    number = 0
    while True:
        descriptor = os.open(own / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            number += 1
        except OSError as error:
            os.close(descriptor)
            raise InputError(
                f"{own} cannot be locked ({files.reason(error)}): set {VARIABLE} to a folder on a local disk."
            ) from error
        else:
            _lock_descriptors.append(descriptor)
            shutil.rmtree(own / str(number), ignore_errors=True)
            return files.make_folder(own / str(number))
