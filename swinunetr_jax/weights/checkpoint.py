"""The project's own checkpoint: a folder with the weights in Orbax's format and a JSON file that describes them.

    CHECKPOINT/checkpoint.json     format, configuration, task, and digests of every array, of every file and of this file itself
    CHECKPOINT/params[-XXXXXXXX]/  the arrays as a nested dict in Orbax's format. checkpoint.json names this folder; any other folder of
                                   such a name is the remainder of an interrupted save.

Orbax does not notice a flipped bit in the numbers, and reports other damage with pages of text. Therefore every file is compared with
its digest before Orbax reads it, and every array afterwards. The project's safetensors files contain the same description, without
`params` and `files`.
"""

import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from swinunetr_jax import console, files
from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.model.custom import CustomConfig, CustomNetwork
from swinunetr_jax.task import Task
from swinunetr_jax.weights.arrays import array_shapes, count_file_bytes, file_digests, one_line, read_arrays, write_arrays
from swinunetr_jax.weights.params import NetworkConfig, Params, check, count_bytes, digest, mismatches, read_config, shapes
from swinunetr_jax.weights.weight_file import printable

FORMAT = 1
DESCRIPTION = "checkpoint.json"
PARAMS = "params"
_REMEDY = "restore it or take another checkpoint"
MAX_DESCRIPTION_BYTES = 64 << 20
# Weights hardly compress, so the description of a large network in a folder of few bytes is an attempt to exhaust the memory.
_MAX_COMPRESSION = 64
_SMALL_NETWORK_BYTES = 512 << 20  # a network of at most this size is read regardless of its size on the disk
PARAMS_NAME = re.compile(rf"{PARAMS}(-[0-9a-f]{{8}})?")


class OtherNetworkError(InputError):
    """A checkpoint is undamaged, but its weights belong to another network than the one that the factory creates now."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """The content of a checkpoint folder. `task` is None if the checkpoint does not state one."""

    config: NetworkConfig
    task: Task | None
    params: Params


def is_checkpoint(path: str | os.PathLike) -> bool:
    """Returns whether a path is a checkpoint folder; False for a path that cannot exist or be accessed."""
    return os.path.isfile(Path(path) / DESCRIPTION)


def write_checkpoint(
    path: str | os.PathLike,
    config: NetworkConfig,
    params: Params,
    task: Task | None = None,
    *,
    overwrite: bool = False,
    new_names: bool = False,
) -> None:
    """Writes a checkpoint folder atomically: at any moment the path holds either the complete new checkpoint or the previous content.

    Args:
        path: the folder. If it is a link, the folder that the link points to is written.
        config: the network's configuration.
        params: the network's variables by dotted name.
        task: the task that the network was trained for.
        overwrite: whether to replace an existing checkpoint.
        new_names: whether the folder of the weights gets a new name even if nothing is replaced, so that a copy of the checkpoint in a
            bucket never mixes the files of two writers.

    Raises:
        InputError: the path exists (unless it is a checkpoint and `overwrite` is set) or cannot be written, or the weights contain NaN
            or do not fit the configuration.
    """
    path = files.real_path(path)
    replacing = is_checkpoint(path)
    if replacing and not overwrite:
        raise InputError(
            f"{path} exists already, expected a new name: choose another one, or replace it with `overwrite` (--overwrite)."
        )
    if not replacing and os.path.lexists(path):
        raise InputError(f"{path} exists already and is not a checkpoint, expected a new name: choose another one or remove it.")
    check(params, config)
    files.remove_stale_temporaries(path.parent)
    # A folder cannot be replaced atomically, but a file can. So the new weights get a new name, and then the description is replaced.
    folder = f"{PARAMS}-{uuid.uuid4().hex[:8]}" if replacing or new_names else PARAMS
    try:
        if replacing:
            files.remove_stale_temporaries(path)
            with files.atomic_folder(path / folder) as temporary:
                orbax_folder = temporary / PARAMS  # Orbax creates its folder itself, from a temporary folder next to it
                write_arrays(orbax_folder, params)
                for entry in list(orbax_folder.iterdir()):
                    entry.rename(temporary / entry.name)
                orbax_folder.rmdir()
            text = describe(config, task, params, params=folder, files=file_digests(path, folder))
            files.write_text(path / DESCRIPTION, text)
        else:
            with files.atomic_folder(path) as temporary:
                write_arrays(temporary / folder, params)
                text = describe(config, task, params, params=folder, files=file_digests(temporary))
                (temporary / DESCRIPTION).write_text(text, encoding="utf-8")
    except Exception as error:  # OSError, and Orbax raises many types
        if replacing:
            shutil.rmtree(path / folder, ignore_errors=True)
        raise InputError(f"{path} cannot be written ({one_line(error)}): check the folder and its free space.") from error
    for other in path.iterdir():  # the replaced weights, and those of an interrupted save
        if PARAMS_NAME.fullmatch(other.name) and other.name != folder:
            shutil.rmtree(other, ignore_errors=True)


def read_checkpoint(path: str | os.PathLike, network: CustomNetwork | None = None) -> StoredCheckpoint:
    """Returns the content of a checkpoint folder, after every byte of it was compared with the digests.

    Args:
        path: the folder.
        network: the network, if it is neither a Swin UNETR nor registered.

    Raises:
        InputError: the folder is not a checkpoint, is damaged (the message names the files or arrays), or has a newer format.
        OtherNetworkError: the weights do not fit the network that the factory creates.
    """
    path = Path(path).absolute()
    description_file = path / DESCRIPTION
    config, task, values = parse_description(read_description(path), description_file, network)
    folder, stored_digests = values.get("params"), values.get("files")
    if not (isinstance(folder, str) and PARAMS_NAME.fullmatch(folder) and stored_digests is not None):
        raise InputError(f"{description_file} does not name the folder of its weights: it was not written by swinunetr_jax.")
    try:
        actual_digests = file_digests(path, folder)
        _refuse_damaged(path, [name for name in stored_digests if stored_digests[name] != actual_digests.get(name)])
        limit = max(_MAX_COMPRESSION * count_file_bytes(path / folder), _SMALL_NETWORK_BYTES)
        if count_bytes(config) > limit:
            raise InputError(
                f"{description_file} describes a network of {count_bytes(config):.1e} bytes, far more than its folder {folder} can "
                f"contain, expected at most {limit:.1e}: take another checkpoint."
            )
        # The shapes are checked before the arrays are read, because a few bytes on the disk can stand for gigabytes.
        stored_shapes = array_shapes(path / folder)
        differences = mismatches(stored_shapes, config)
        if differences and isinstance(config, CustomConfig):  # The files are as they were saved, so the factory has changed.
            raise OtherNetworkError(
                f"{path} holds the weights of another {config.name} than its factory creates now:",
                *(f"  {line}" for line in differences),
            )
        if differences:
            lines = (f"  {console.literal(line)}" for line in differences)
            raise InputError(f"{path} does not hold the weights of its own configuration:", *lines)
        params = read_arrays(path / folder)
    except InputError:
        raise
    except Exception as error:  # Orbax raises many types, with texts of many lines
        raise InputError(f"{path} cannot be read ({one_line(error)}): {_REMEDY}.") from error
    check_digests(path, params, values)
    return StoredCheckpoint(config, task, params)


# The description


def read_description(path: Path) -> bytes:
    """Returns the JSON that describes the checkpoint in a folder. Raises InputError if the folder is not a checkpoint."""
    file = path / DESCRIPTION
    try:
        if file.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise InputError(f"{file} is larger than a description can be, so it was not written by swinunetr_jax: {_REMEDY}.")
        return file.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} is not a checkpoint, because it has no {DESCRIPTION}: check which folder was given.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({one_line(error)}): {_REMEDY}.") from error


def describe(config: NetworkConfig, task: Task | None, arrays: Mapping[str, np.ndarray], **extra: Any) -> str:
    """Returns JSON with the configuration, the task, the digest of every array, the values of `extra`, and a digest of all of these."""
    values = {
        "format": FORMAT,
        "config": config.to_dict(),
        "task": None if task is None else task.to_dict(),
        "digests": {name: digest(array) for name, array in arrays.items()},
        **extra,
    }
    return files.json_text(values | {"digest": files.digest_of_json(values)}, indent=1)


class Description(TypedDict):
    """The JSON that describes a checkpoint. Only the description of a folder has `params` and `files`."""

    format: int
    config: dict[str, Any]
    task: dict[str, Any] | None
    digests: dict[str, str]
    params: NotRequired[str]
    files: NotRequired[dict[str, str]]


def parse_description(
    content: bytes, where: Path, network: CustomNetwork | None = None
) -> tuple[NetworkConfig, Task | None, Description]:
    """Returns the configuration, the task and all values of a description that `describe` wrote.

    Args:
        content: the JSON.
        where: the path of the file, for messages.
        network: the network, if it is neither a Swin UNETR nor registered.

    Raises:
        InputError: the JSON is damaged or has a newer format, or no network can have this configuration.
    """
    values = _decode(content, where)
    try:
        config = read_config(values["config"], network)
        if isinstance(config, SwinUNETRConfig) and sum(config.depths) > len(values["digests"]):  # do not trace millions of blocks
            raise InputError(f"`depths` {config.depths} needs more tensors than the {len(values['digests'])} that have digests.")
        shapes(config)
        return config, None if values["task"] is None else Task.from_dict(values["task"]), values
    except InputError as error:
        raise InputError(f"{where}: {console.literal(error)}") from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise InputError(
            f"{where} does not describe a network ({one_line(error)}): it was not written by swinunetr_jax."
        ) from error


def parse_task(content: bytes, where: Path) -> Task | None:
    """Returns only the task of a description, without tracing the network. Raises InputError if the description is damaged."""
    task = _decode(content, where)["task"]
    try:
        return None if task is None else Task.from_dict(task)
    except InputError as error:
        raise InputError(f"{where}: {console.literal(error)}") from error


def _decode(content: bytes, where: Path) -> Description:
    """Returns the values of a description. Raises InputError if the JSON is damaged or has a newer format."""
    files.check_stamp(files.decode_json(content, dict[str, Any], str(where), _REMEDY), str(where), FORMAT, _REMEDY)
    return files.decode_json(content, Description, str(where), _REMEDY)


def check_digests(path: Path, arrays: Mapping[str, np.ndarray], values: Description) -> None:
    """Raises InputError unless the arrays are exactly those of the description, with the same digests."""
    digests = values["digests"]
    names = sorted(digests.keys() | arrays.keys())
    _refuse_damaged(path, [name for name in names if name not in arrays or digest(arrays[name]) != digests.get(name)])


def _refuse_damaged(path: Path, names: list[str]) -> None:
    """Raises InputError with these names of damaged files or arrays, if there are any."""
    if names:
        listed = ", ".join(printable(name) for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise InputError(f"{path} is damaged, because these parts differ from their digests or are missing: {listed}; {_REMEDY}.")
