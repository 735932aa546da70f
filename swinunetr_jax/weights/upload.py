"""Writes weights into a bucket. They are written to this machine first and then uploaded, so that the bucket holds only complete files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from swinunetr_jax import console
from swinunetr_jax.buckets import Bucket, is_address
from swinunetr_jax.buckets.fetch import LARGE, errors_with_addresses
from swinunetr_jax.buckets.scratch import check_space, staging_path
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task
from swinunetr_jax.weights.checkpoint import DESCRIPTION, PARAMS_NAME, write_checkpoint
from swinunetr_jax.weights.params import NetworkConfig, Params
from swinunetr_jax.weights.weight_file import refuse_existing


@contextlib.contextmanager
def new_file(path: Path, needed: int, *, overwrite: bool) -> Iterator[Path]:
    """Yields the path of a file that the block writes. If `path` is an address, the file is uploaded after the block.

    Args:
        path: the file or the address.
        needed: the bytes that the file needs on this machine.
        overwrite: whether to replace an existing object.

    Yields:
        The path of the file that the block has to write.

    Raises:
        InputError: the file exists and `overwrite` is not set, the address is that of a folder, or the bucket cannot be written.
    """
    if not is_address(path):
        refuse_existing(path, overwrite=overwrite)
        yield path
        return
    bucket = Bucket(path)
    stored = bucket.objects()
    if "" in stored and not overwrite:
        raise InputError(_exists(bucket.address))
    if stored.keys() - {""}:
        raise InputError(
            f"{bucket.address} is a folder, because there are objects below it, expected the name of a file: choose another one."
        )
    with errors_with_addresses(), staging_path(bucket.address) as file:
        check_space(file.parent, needed, bucket.address)
        yield file
        bucket.upload({"": file})


def upload_checkpoint(path: Path, config: NetworkConfig, params: Params, task: Task | None, *, overwrite: bool) -> None:
    """Writes a checkpoint folder to an address, with the arguments and errors of `write_checkpoint`.

    The weights get a new name and the description is written last, so that a reader finds a complete checkpoint at any moment. The files
    of interrupted saves are removed afterwards.
    """
    bucket = Bucket(path)
    stored = bucket.objects()
    if DESCRIPTION in stored and not overwrite:
        raise InputError(_exists(bucket.address))
    if DESCRIPTION not in stored and not all(_is_weight(name) for name in stored):
        raise InputError(
            f"{bucket.address} exists already and is not a checkpoint, expected a new name: choose another one or remove it."
        )
    with errors_with_addresses(), staging_path(bucket.address) as folder:
        check_space(folder.parent, sum(array.nbytes for array in params.values()), bucket.address)
        write_checkpoint(folder, config, params, task, new_names=True)
        names = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
        description = names.pop(DESCRIPTION)
        size = sum(file.stat().st_size for file in names.values())
        with console.Progress(f"copying to {bucket.address}", "file", silent=size < LARGE) as progress:
            bucket.upload(names, progress)
        bucket.upload({DESCRIPTION: description})
        bucket.remove(name for name in stored if _is_weight(name) and name not in names)


def _is_weight(name: str) -> bool:
    """Returns whether an object of a checkpoint belongs to its weights."""
    return PARAMS_NAME.fullmatch(name.partition("/")[0]) is not None


def _exists(address: str) -> str:
    return f"{address} exists already, expected a new name: choose another one, or replace it with `overwrite` (--overwrite)."
