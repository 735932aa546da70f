"""Reads and writes objects in a bucket with fsspec. Operations are repeated while the bucket cannot be reached, up to a time limit."""

import contextlib
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from swinunetr_jax import console, files
from swinunetr_jax.buckets.address import check_address
from swinunetr_jax.buckets.scratch import check_space, disk_errors
from swinunetr_jax.buckets.stored import StoredObject, counting_callback, is_object, md5_of, stored_object
from swinunetr_jax.errors import InputError

T = TypeVar("T")
PATIENCE_SECONDS = 60.0  # an operation is repeated for at most this time
PATIENCE_OF_TRAINING = 600.0
LONGEST_PAUSE = 20.0  # seconds between two attempts
interrupted = threading.Event()  # set when the user interrupts the program, so that no operation is repeated any more
CONNECT_SECONDS, READ_SECONDS = 15, 60
PARALLEL = 8  # objects that are copied at once
Progress = Callable[[int, int], None]
# Errors that repeating an operation does not resolve, by the names of their classes, so that no package of a store is imported here.
_PERMANENT = {
    *("FileNotFoundError", "FileExistsError", "PermissionError", "IsADirectoryError", "NonRetryableError"),
    *("DefaultCredentialsError", "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"),
    *("ImportError", "ModuleNotFoundError"),
}
_PERMANENT_CODES = {"400", "401", "403", "404", "405", "409", "412"}


def wait_longer() -> None:
    """Sets the time for which all buckets repeat operations from now on to `PATIENCE_OF_TRAINING`, because a training runs for hours."""
    global PATIENCE_SECONDS
    PATIENCE_SECONDS = max(PATIENCE_SECONDS, PATIENCE_OF_TRAINING)


class BucketError(InputError):
    """A bucket cannot be read or written. `lost` states whether it was unreachable for a long time, so that a later try may succeed."""

    def __init__(self, text: str, *, lost: bool):
        super().__init__(text)
        self.lost = lost


class Bucket:
    """The objects whose names begin with an address and a slash.

    Args:
        address: the address, such as gs://bucket/run.
        announces: whether a warning is printed when an operation is repeated.

    Raises:
        InputError: the address cannot be used, or the package for it is missing.
    """

    def __init__(self, address: str | os.PathLike, *, announces: bool = True):
        self.address, self.announces = check_address(address), announces
        scheme, _, self._root = self.address.partition("://")
        self._system = _file_system(scheme)
        self.guard: Callable[[], None] = lambda: None  # called before each attempt of an operation; it may raise an InputError

    def __truediv__(self, name: str) -> "Bucket":
        return Bucket(f"{self.address}/{name}")

    def names(self, prefix: str = "") -> dict[str, int]:
        """Returns the names of the objects below the address that begin with a prefix, relative to it, with their sizes in bytes."""
        return {name: stored.size for name, stored in self.objects(prefix).items() if name}

    def objects(self, prefix: str = "") -> dict[str, StoredObject]:
        """Returns the objects below the address whose names begin with a prefix, by name relative to it.

        If the address itself is that of an object, such as gs://bucket/model.pt, the name of this object is "".
        """
        folder, _, _ = prefix.rpartition("/")
        path = f"{self._root}/{folder}".rstrip("/")
        found = self._repeated_in_bucket(f"{self.address} cannot be listed", lambda: self._system.find(path, detail=True))
        start = len(self._root) + 1
        objects = {name.lstrip("/")[start:]: stored_object(info) for name, info in found.items() if is_object(info)}
        # The consoles of the services show folders by empty objects, whose names end with a slash.
        return {name: stored for name, stored in sorted(objects.items()) if name.startswith(prefix) and not name.endswith("/")}

    def read(self, name: str) -> bytes:
        """Returns the content of an object. Raises FileNotFoundError if there is none."""
        return self._repeated(f"{self._shown(name)} cannot be read", lambda: self._system.cat_file(self._path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Creates or replaces an object."""
        self._repeated_in_bucket(f"{self._shown(name)} cannot be written", lambda: self._system.pipe_file(self._path(name), data))

    def create(self, name: str, data: bytes) -> bool:
        """Creates an object unless it exists, and returns whether this call has created it.

        Args:
            name: its name.
            data: its content, which has to differ from that of every other caller. If the answer to a creation is lost, the creation is
                repeated, and finds the object that it has created; the content shows this.
        """

        def attempt() -> bool:
            try:
                self._system.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return self._system.cat_file(self._path(name)) == data
            return True

        return self._repeated_in_bucket(f"{self._shown(name)} cannot be created", attempt)

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects, one after another. An object that does not exist is no error."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self._repeated(f"{self._shown(name)} cannot be removed", lambda name=name: self._system.rm_file(self._path(name)))

    def upload(self, sources: Mapping[str, Path], progress: Progress | None = None) -> None:
        """Copies files into objects, several at once.

        Args:
            sources: the name of each object, and the file.
            progress: called with the numbers of copied files and of all files.
        """

        def copy(name: str) -> None:
            source = str(sources[name])
            self._repeated_in_bucket(
                f"{self._shown(name)} cannot be written", lambda: self._system.put_file(source, self._path(name))
            )

        in_parallel(copy, sources, progress)

    def download(self, objects: Mapping[str, StoredObject], folder: Path, progress: Progress | None = None) -> None:
        """Copies objects into files of the same names, several at once. A file appears completely or not at all.

        Args:
            objects: the objects by name, as `objects` has returned them.
            folder: the folder for the files.
            progress: called with the numbers of copied objects and of all objects.

        Raises:
            FileNotFoundError: an object does not exist any more, or has been replaced.
            InputError: the folder has too little space or cannot be written.
        """
        check_space(files.make_folder(folder), sum(stored.size for stored in objects.values()), self.address)

        def copy(name: str) -> None:
            files.make_folder((folder / name).parent)
            self.download_file(name, folder / name, objects[name])

        in_parallel(copy, objects, progress)

    def download_file(self, name: str, target: Path, stored: StoredObject, arrived: Callable[[int], None] | None = None) -> None:
        """Copies an object into a file, whose folder exists. The file appears completely or not at all.

        Args:
            name: the name of the object.
            target: the file.
            stored: the object as `objects` has returned it. The size and the MD5 of what arrives are compared with it.
            arrived: called with the number of bytes that have just arrived, or minus the number of all bytes of an attempt that has failed.

        Raises:
            FileNotFoundError: the object does not exist any more, or has been replaced.
            InputError: the disk of the file is full.
        """

        def attempt(temporary: Path) -> None:
            with counting_callback(arrived) as callback, disk_errors(target):
                self._system.get_file(self._path(name), str(temporary), callback=callback)
                self._compare(name, temporary, stored)

        with files.atomic_path(target) as temporary:
            self._repeated(f"{self._shown(name)} cannot be read", lambda: attempt(temporary))

    def _compare(self, name: str, copy: Path, stored: StoredObject) -> None:
        """Raises OSError unless a file is a complete copy of an object, and FileNotFoundError if the object has been replaced meanwhile."""
        size = copy.stat().st_size
        if size == stored.size and stored.md5 in (None, md5_of(copy) if stored.md5 else None):
            return
        if stored.tag and stored_object(self._system.info(self._path(name))) != stored:
            raise FileNotFoundError(f"{self._shown(name)} has been replaced")
        raise OSError(
            f"{size} of {stored.size} bytes arrived" if size != stored.size else "the MD5 of what arrived is another one"
        )

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _shown(self, name: str) -> str:
        return f"{self.address}/{name}" if name else self.address

    def _repeated_in_bucket(self, failure: str, attempt: Callable[[], T]) -> T:
        """Returns the result of `_repeated`, for operations whose FileNotFoundError means that the bucket does not exist."""
        try:
            return self._repeated(failure, attempt)
        except FileNotFoundError as error:
            raise BucketError(f"{failure}, because there is no such bucket: check the address.", lost=False) from error

    def _repeated(self, failure: str, attempt: Callable[[], T]) -> T:
        """Returns the result of an operation, which is repeated while the bucket cannot be reached.

        Raises:
            FileNotFoundError: the object does not exist.
            BucketError: the operation is not permitted, or has failed for `PATIENCE_SECONDS`.
        """
        started, pause, announced = time.monotonic(), 0.5, False
        while True:
            self.guard()
            try:
                return attempt()
            except (FileNotFoundError, InputError, TypeError, AttributeError, NameError):
                raise
            except Exception as error:  # the packages for stores raise exceptions of many libraries
                reason = _reason(error)
                if _is_permanent(error):
                    raise BucketError(
                        f"{failure} ({reason}): check the address and your access to the bucket.", lost=False
                    ) from error
                waited = time.monotonic() - started
                if waited + pause > PATIENCE_SECONDS or interrupted.is_set():
                    raise BucketError(
                        f"{failure} ({reason}), although it was tried for {console.duration(waited)}: check the network and the bucket, "
                        "then start the same command again.",
                        lost=True,
                    ) from error
                if self.announces and not announced and waited > 2:
                    announced = True
                    console.warn(f"{failure} ({reason}); it is tried again for up to {console.duration(PATIENCE_SECONDS)}.")
            interrupted.wait(pause * random.uniform(0.7, 1.3))  # so that many hosts do not send their requests at the same time
            pause = min(2 * pause, LONGEST_PAUSE)


@cache
def _file_system(scheme: str) -> Any:  # an fsspec file system, whose package has no types
    """Returns the file system for a scheme. It keeps no listings, because other processes change the bucket."""
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "gs":
        from aiohttp import ClientTimeout

        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints the traceback of each failed attempt
        logging.getLogger("google.auth").setLevel(logging.ERROR)  # it warns on every machine outside Google Cloud
        options["requests_timeout"] = ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    else:
        # Only `Bucket` repeats operations, because a trainer that was suspended has to check its claim before it repeats a write.
        times = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
        options["config_kwargs"] = times | {"retries": {"total_max_attempts": 1}}
    system = fsspec.filesystem(scheme, **options)
    if scheme == "s3":
        system.retries = 1
    return system


def in_parallel(copy: Callable[[str], None], names: Iterable[str], progress: Progress | None = None) -> None:
    """Calls a function for each name in several threads. After an error no further call starts, and the error is raised."""
    names = list(names)
    with ThreadPoolExecutor(PARALLEL) as pool:
        futures = [pool.submit(copy, name) for name in names]
        try:
            for count, future in enumerate(as_completed(futures), 1):
                future.result()
                if progress:
                    progress(count, len(names))
        finally:
            pool.shutdown(cancel_futures=True)


def _is_permanent(error: Exception) -> bool:
    """Returns whether repeating the operation cannot help, for example because a permission is missing."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    code = getattr(error, "code", None) or getattr(error, "status", None)
    return bool(kinds & _PERMANENT) or str(code) in _PERMANENT_CODES or str(error).startswith("Forbidden")


def _reason(error: Exception) -> str:
    """Returns the text of an error on one short line."""
    text = " ".join(str(error).split())
    return console.literal(text[:200] or type(error).__name__).rstrip(".")
