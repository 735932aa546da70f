"""The place of a prepared data set: a folder of this machine, or an address in a bucket."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from swinunetr_jax import files
from swinunetr_jax.buckets import Bucket, is_address, scratch_folder, shown
from swinunetr_jax.errors import InputError


class Place:
    """A folder whose files, or an address whose objects, are read and written by name.

    Args:
        path: the folder or the address.

    Attributes:
        folder: the folder or, for an address, the folder with the copy that all processes of this machine share.
        bucket: the objects of the address, or None for a folder.

    Raises:
        InputError: the address cannot be used.
    """

    def __init__(self, path: Path):
        self.bucket = Bucket(path) if is_address(path) else None
        self.folder = Path(path) if self.bucket is None else scratch_folder(path, shared=True)

    def __str__(self) -> str:
        return shown(self.folder)

    def names(self) -> dict[str, int]:
        """Returns the names of all files with their sizes in bytes. A folder that does not exist has none."""
        if self.bucket is not None:
            return self.bucket.names()
        if not files.is_folder(self.folder):
            return {}
        sizes: dict[str, int] = {}
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process has renamed its temporary file
                sizes[path.name] = path.stat().st_size
        return sizes

    def read(self, name: str) -> bytes:
        """Returns the content of a file. Raises FileNotFoundError if there is none, and InputError if it cannot be read."""
        if self.bucket is not None:
            return self.bucket.read(name)
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(name) from error
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder / name}: cannot be read ({files.reason(error)}); check the file.") from error

    def write(self, name: str, data: bytes) -> None:
        """Creates or replaces a file, which appears completely or not at all. Raises OSError, or InputError for an address."""
        if self.bucket is not None:
            self.bucket.write(name, data)
        else:
            files.write_bytes(self.folder / name, data)

    def remove(self, name: str) -> None:
        """Removes a file if it exists."""
        if self.bucket is not None:
            self.bucket.remove([name])
        else:
            (self.folder / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """Yields a folder for new files: the place itself or, for an address, a temporary folder, which is removed after the block."""
        if self.bucket is None:
            yield files.make_folder(self.folder)
            return
        with tempfile.TemporaryDirectory(dir=scratch_folder(self.bucket.address, shared=False), prefix="case-") as folder:
            yield Path(folder)

    def store(self, folder: Path, names: Sequence[str]) -> None:
        """Copies files of the folder of `workspace` into the place, unless they are there already."""
        if self.bucket is not None:
            self.bucket.upload({name: folder / name for name in names})
