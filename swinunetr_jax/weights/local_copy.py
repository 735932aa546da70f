"""Copies weights of a bucket or of a zip archive to this machine, where they are read and verified like those of a local path.

Only what is needed is copied: the network of a saved state without the optimizer, and the weight file of a folder with weights. Intact
copies that exist already are not copied again. They are recognised by the digests in a checkpoint's description and, for other files, by
the sizes and tags that the bucket lists.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from swinunetr_jax import console, files
from swinunetr_jax.buckets import Bucket, is_address, path_or_address, scratch_folder
from swinunetr_jax.buckets.fetch import Download, copy_object, fetch, optional_file
from swinunetr_jax.buckets.scratch import scratch_file
from swinunetr_jax.buckets.stored import StoredObject
from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.checkpoint import DESCRIPTION, MAX_DESCRIPTION_BYTES, PARAMS, PARAMS_NAME
from swinunetr_jax.weights.weight_file import printable
from swinunetr_jax.weights.weight_folder import BUNDLE_WEIGHTS, INDEX, choose_weight_file, is_configuration, read_index
from swinunetr_jax.weights.zip_folder import ZipFolder, find_zip, unpacked

_ATTEMPTS = 5  # a checkpoint that is replaced while it is copied is copied again, at most this many times in all


@contextlib.contextmanager
def local_copy(path: str | os.PathLike) -> Iterator[Path]:
    """Copies what `open_checkpoint` reads at an address or in a zip archive. No other process changes the copy during the block.

    Args:
        path: the address of a checkpoint folder, of a weight file, of an index of shards, or of a folder with one of the latter two; or
            the path of a zip archive or of a folder in one.

    Yields:
        The path of the copied folder, weight file or index; any other path is yielded as it is.

    Raises:
        InputError: there is nothing of this kind at the address, or it cannot be read or copied.
    """
    path = path_or_address(path)
    if not is_address(path):
        inside = find_zip(path)
        if inside is None:
            yield path
            return
        with unpacked(*inside, _needed(*inside)) as folder:
            yield folder
        return
    bucket = Bucket(path)
    objects = bucket.objects()
    if DESCRIPTION in objects:
        folder = scratch_folder(bucket.address, shared=True)
        with files.locked(folder):
            _copy_checkpoint(bucket, folder, objects)
            yield folder
        return
    name = "" if "" in objects else choose_weight_file(objects, bucket.address)
    if name is None and objects:
        raise InputError(f"{bucket.address} is not a checkpoint, because it has no {DESCRIPTION}: check which folder was given.")
    if name is None:
        raise InputError(
            f"{bucket.address} does not exist, expected a weight file or a checkpoint folder: there is no such object and none below this "
            "address, so check it."
        )
    address = f"{bucket.address}/{name}" if name else bucket.address
    file = scratch_file(address)
    with files.locked(file.parent):
        copy_object(address, objects[name])
        if file.name.endswith(INDEX):
            _copy_shards(address, file)
        configuration = [other for other in objects if name == BUNDLE_WEIGHTS and is_configuration(other)]
        for other in configuration:
            part = f"{bucket.address}/{other}"
            with files.locked(scratch_file(part).parent):
                copy_object(part, objects[other])
        yield scratch_folder(bucket.address, shared=True) if configuration else file


@contextlib.contextmanager
def optional_copy(path: str | os.PathLike) -> Iterator[Path | None]:
    """Yields a file, or a copy of it if it is in a bucket or in a zip archive, or None if it does not exist."""
    inside = None if is_address(path) else find_zip(path)
    if inside is None:
        yield optional_file(path)
        return
    archive, inner = inside
    if inner not in archive.members:
        yield None
        return
    folder, _, name = inner.rpartition("/")
    with unpacked(archive, folder, [name]) as copies:
        yield copies / name


def _needed(archive: ZipFolder, inner: str) -> list[str]:
    """Returns the names of the members of a folder in an archive that `open_checkpoint` reads.

    Raises:
        InputError: there are no weights, or those of several networks.
    """
    names, where = archive.names(inner), archive.path / inner
    if DESCRIPTION in names:
        return [name for name in names if name == DESCRIPTION or PARAMS_NAME.fullmatch(name.partition("/")[0])]
    weights = choose_weight_file(names, str(where))
    if weights is None:
        folds = sorted({name.partition("/")[0] for name in names if re.match(r"fold\d+/", name)})
        if folds:
            raise InputError(f"{where} holds {len(folds)} networks, expected one: give one of them, such as {where / folds[0]}.")
        listed = console.name_list(map(printable, sorted(names)), 3) or "nothing"
        raise InputError(f"{where} holds no weights, but {listed}: give a packed model, a MONAI bundle or a weight file.")
    if not weights.endswith(INDEX):
        return [weights, *filter(is_configuration, names)]
    return [weights, *(name for name in names if "/" not in name and name != weights)]


def stored_description(path: str | os.PathLike) -> bytes | None:
    """Returns the description of the checkpoint folder at an address, or None if there is no checkpoint folder."""
    bucket = Bucket(path)
    objects = bucket.objects(DESCRIPTION)
    return _read_description(bucket, objects) if DESCRIPTION in objects else None


def _copy_checkpoint(bucket: Bucket, folder: Path, objects: Mapping[str, StoredObject]) -> None:
    """Copies a checkpoint folder. If it is replaced meanwhile, as the best network of a run may be, the new one is copied."""
    content = _read_description(bucket, objects)
    for _ in range(_ATTEMPTS):
        objects = bucket.objects()  # after the description was read, so that all parts of the checkpoint are listed
        params, digests = _parts(content)
        # Parts that the bucket lacks are not copied; `read_checkpoint` names them.
        wanted = {
            name: Download(folder / name, objects[name], digest)
            for name, digest in digests.items()
            if name.startswith(f"{params}/") and name in objects and ".." not in name.split("/")
        }
        try:
            fetch(bucket, wanted)
            is_complete = True
        except FileNotFoundError:
            is_complete = False
        earlier, content = content, _read_description(bucket, objects)
        if is_complete and content == earlier:
            _write_description(folder, content)
            _remove_others(folder, params, digests)
            return
    raise InputError(f"{bucket.address} was replaced {_ATTEMPTS} times while it was read: start the same command again.")


def _read_description(bucket: Bucket, objects: Mapping[str, StoredObject]) -> bytes:
    if DESCRIPTION in objects and objects[DESCRIPTION].size > MAX_DESCRIPTION_BYTES:
        raise InputError(f"{bucket.address}/{DESCRIPTION} is larger than a description can be: check which folder was given.")
    try:
        return bucket.read(DESCRIPTION)
    except FileNotFoundError as error:
        raise InputError(f"{bucket.address} was removed while it was read: check which folder was given.") from error


def _parts(content: bytes) -> tuple[str, Mapping[str, str]]:
    """Returns the name of the folder with the weights, and the digests of the files; there are none if the description is damaged.

    `read_checkpoint` reports damage, so that there is one message for it.
    """
    try:
        values: dict[str, Any] = files.decode_json(content, dict[str, Any], DESCRIPTION, "")
        params, digests = values.get("params"), values.get("files")
    except InputError:
        return PARAMS, {}
    if not isinstance(params, str) or not PARAMS_NAME.fullmatch(params) or not isinstance(digests, dict):
        return PARAMS, {}
    return params, {name: digest for name, digest in digests.items() if isinstance(digest, str)}


def _write_description(folder: Path, content: bytes) -> None:
    try:
        files.write_bytes(folder / DESCRIPTION, content)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({files.reason(error)}): check the folder and its free space.") from error


def _remove_others(folder: Path, params: str, digests: Mapping[str, str]) -> None:
    """Removes the files of earlier copies of the checkpoint from the folder."""
    for entry in folder.iterdir():
        if PARAMS_NAME.fullmatch(entry.name) and entry.name != params:
            shutil.rmtree(entry, ignore_errors=True)
    for file in (folder / params).rglob("*"):
        if file.is_file() and file.relative_to(folder).as_posix() not in digests:
            file.unlink(missing_ok=True)


def _copy_shards(address: str, index: Path) -> None:
    """Copies the files that a copied index of shards names. Those that the bucket lacks are removed here, and the reader names them."""
    for name in sorted(set(read_index(index).values())):
        shard = f"{address.rpartition('/')[0]}/{name}"
        stored = Bucket(shard).objects().get("")
        if stored is None:
            scratch_file(shard).unlink(missing_ok=True)
        else:
            copy_object(shard, stored)
