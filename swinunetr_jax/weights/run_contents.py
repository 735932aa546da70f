"""Answers questions about the content of a folder of a run, on this machine, in a zip archive or in a bucket."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from swinunetr_jax import files
from swinunetr_jax.buckets import Bucket, is_address, shown
from swinunetr_jax.buckets.run_objects import usable_states
from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.checkpoint import DESCRIPTION, is_checkpoint
from swinunetr_jax.weights.zip_folder import ZipFolder, find_zip

T = TypeVar("T")


class Contents(Protocol):
    """The content of a folder."""

    def has(self, name: str) -> bool:
        """Returns whether the folder has a file of this name, which may contain slashes."""
        ...

    def folders(self, prefix: str) -> list[str]:
        """Returns the names of the folders in this folder that begin with a prefix."""
        ...

    def newest_state(self) -> str | None:
        """Returns the name of the newest saved state of a run that holds a network, such as checkpoints/00000100, or None."""
        ...

    def read_json(self, name: str, kind: type[T], remedy: str) -> T | None:
        """Returns the content of a JSON file as `files.read_json` does, or None if it does not exist."""
        ...


def contents(path: str | os.PathLike) -> Contents:
    """Returns the content of the folder at a path or an address. A path that does not exist is like an empty folder.

    Raises:
        InputError: the path is an address that cannot be used, the bucket cannot be read, or a zip archive is damaged.
    """
    if is_address(path):
        return _BucketContents(Bucket(path))
    inside = find_zip(path)
    return _LocalContents(Path(path)) if inside is None else _ZipContents(*inside)


def holds_checkpoint(path: str | os.PathLike) -> bool:
    """Returns whether a path or an address is that of a checkpoint folder. Raises the errors of `contents`."""
    return contents(path).has(DESCRIPTION)


class _LocalContents:
    """The content of a folder on this machine."""

    def __init__(self, path: Path):
        self.path = path

    def has(self, name: str) -> bool:
        return os.path.isfile(self.path / name)

    def folders(self, prefix: str) -> list[str]:
        return [path.name for path in self.path.glob(f"{prefix}*") if files.is_folder(path)]

    def newest_state(self) -> str | None:
        folder = self.path / "checkpoints"
        try:
            names = os.listdir(folder) if files.is_folder(folder) else []
        except OSError as error:
            raise InputError(f"{folder} cannot be read ({files.reason(error)}): check its permissions.") from error
        steps = sorted((name for name in names if len(name) == 8 and name.isdecimal()), reverse=True)
        return next((f"checkpoints/{step}" for step in steps if is_checkpoint(folder / step)), None)

    def read_json(self, name: str, kind: type[T], remedy: str) -> T | None:
        if not files.exists(self.path / name):
            return None
        return files.read_json(self.path / name, kind, remedy)


class _ZipContents:
    """The content of a folder in a zip archive."""

    def __init__(self, archive: ZipFolder, inner: str):
        self.archive, self.inner = archive, inner
        self.names = archive.names(inner)

    def has(self, name: str) -> bool:
        return name in self.names

    def folders(self, prefix: str) -> list[str]:
        return sorted({name.partition("/")[0] for name in self.names if name.startswith(prefix) and "/" in name})

    def newest_state(self) -> str | None:
        steps = (
            name.split("/")[1] for name in self.names if name.startswith("checkpoints/") and name.endswith(f"/{DESCRIPTION}")
        )
        return max((f"checkpoints/{step}" for step in steps if len(step) == 8 and step.isdecimal()), default=None)

    def read_json(self, name: str, kind: type[T], remedy: str) -> T | None:
        if not self.has(name):
            return None
        member = f"{self.inner}/{name}" if self.inner else name
        return files.decode_json(self.archive.read(member), kind, f"{self.archive.path}/{member}", remedy)


class _BucketContents:
    """The content of a folder in a bucket, which is listed once."""

    def __init__(self, bucket: Bucket):
        self.bucket = bucket
        self.names: Mapping[str, int] = bucket.names()

    def has(self, name: str) -> bool:
        return name in self.names

    def folders(self, prefix: str) -> list[str]:
        return sorted({name.partition("/")[0] for name in self.names if name.startswith(prefix) and "/" in name})

    def newest_state(self) -> str | None:
        return next((state.name for state in usable_states(self.names) if self.has(f"{state.name}/{DESCRIPTION}")), None)

    def read_json(self, name: str, kind: type[T], remedy: str) -> T | None:
        if not self.has(name):
            return None
        try:
            data = self.bucket.read(name)
        except FileNotFoundError:
            return None
        return files.decode_json(data, kind, shown(f"{self.bucket.address}/{name}"), remedy)
