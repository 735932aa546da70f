"""Our own checkpoint: a folder with the weights in Orbax's format and one JSON file that describes them.

    CHECKPOINT/checkpoint.json     format, configuration, task, digests of every leaf, every file and of this file itself
    CHECKPOINT/params[-XXXXXXXX]/  Orbax: a nested dict with string keys; checkpoint.json names it, any other is a left-over

Orbax does not notice a flipped bit in the numbers, and answers one elsewhere with pages of text, so every file is checked against
its digest before Orbax sees it, and every leaf after. The same description, without files, lies in safetensors files of ours.
"""

import json
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
from swinunetr_jax.model.custom import CustomConfig, NetworkFactory
from swinunetr_jax.task import Task
from swinunetr_jax.weights.arrays import array_shapes, count_file_bytes, file_digests, read_arrays, reason, write_arrays
from swinunetr_jax.weights.params import NetworkConfig, Params, check, count_bytes, digest, mismatches, read_config, shapes
from swinunetr_jax.weights.weight_file import shown

FORMAT = 1
DESCRIPTION = "checkpoint.json"
PARAMS = "params"
_REMEDY = "restore it or take another checkpoint"
_MAX_DESCRIPTION_BYTES = 64 << 20
# Weights hardly compress. A network that takes this many times its bytes on the disk, and is not small, was made to fill the memory.
_MAX_RATIO, _MAX_SMALL = 64, 512 << 20
_PARAMS_NAME = re.compile(rf"{PARAMS}(-[0-9a-f]{{8}})?")


class OtherNetworkError(InputError):
    """A checkpoint is sound and holds the weights of another network than the factory makes that was given for it."""


@dataclass(frozen=True)
class Stored:
    """A checkpoint as it was read."""

    config: NetworkConfig
    task: Task | None
    params: Params


def is_checkpoint(path: str | os.PathLike) -> bool:
    return os.path.isfile(Path(path) / DESCRIPTION)  # no error for a name that cannot be


def write_checkpoint(
    path: str | os.PathLike, config: NetworkConfig, params: Params, task: Task | None = None, *, overwrite: bool = False
) -> None:
    """Writes a checkpoint folder in one step: at any moment there is under its name a whole checkpoint or what was there before.

    Raises:
        InputError: the path is taken (unless it is a checkpoint and `overwrite`), or cannot be written, or the weights hold NaN or are
            not the configuration's.
    """
    path = Path(path).resolve()  # what a link points to is what is replaced
    replacing = is_checkpoint(path)
    if replacing and not overwrite:
        raise InputError(
            f"{path} exists already, expected a free name: choose another or ask for it with `overwrite` (--overwrite)."
        )
    if not replacing and os.path.lexists(path):
        raise InputError(f"{path} exists already and is not a checkpoint, expected a free name: choose another or remove it.")
    check(params, config)
    files.remove_stale_temporaries(path.parent)
    # a folder cannot take another's place in one step, a file can: the description is the checkpoint
    folder = f"{PARAMS}-{uuid.uuid4().hex[:8]}" if replacing else PARAMS
    try:
        if replacing:
            files.remove_stale_temporaries(path)
            with files.atomic_folder(path / folder) as temporary:
                written = temporary / PARAMS  # Orbax makes its folder itself, from a temporary one beside it
                write_arrays(written, params)
                for entry in list(written.iterdir()):
                    entry.rename(temporary / entry.name)
                written.rmdir()
            text = describe(config, task, params, params=folder, files=file_digests(path, folder))
            files.write_text(path / DESCRIPTION, text)
        else:
            with files.atomic_folder(path) as temporary:
                write_arrays(temporary / folder, params)
                text = describe(config, task, params, params=folder, files=file_digests(temporary))
                (temporary / DESCRIPTION).write_text(text, encoding="utf-8")
    except Exception as error:  # the system's and Orbax's, which raises many kinds
        if replacing:
            shutil.rmtree(path / folder, ignore_errors=True)
        raise InputError(f"{path} cannot be written ({reason(error)}): check the folder and its free space.") from error
    for other in path.iterdir():  # the replaced weights, and those of a save that was killed
        if _PARAMS_NAME.fullmatch(other.name) and other.name != folder:
            shutil.rmtree(other, ignore_errors=True)


def read_checkpoint(path: str | os.PathLike, network: NetworkFactory | None = None) -> Stored:
    """Reads a checkpoint folder and verifies every byte of it; of a network that is no Swin UNETR with the factory that makes it.

    Raises:
        InputError: it is not a checkpoint, is damaged (naming the files or leaves), or is of a newer format.
    """
    path = Path(path).absolute()
    where = path / DESCRIPTION
    try:
        if where.stat().st_size > _MAX_DESCRIPTION_BYTES:
            raise InputError(f"{where} is larger than a description can be, it was not written by swinunetr_jax: {_REMEDY}.")
        content = where.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} is not a checkpoint, it has no {DESCRIPTION}: check which folder was given.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{where} cannot be read ({reason(error)}): {_REMEDY}.") from error
    config, task, values = parse_description(content, where, network)
    folder, stated = values.get("params"), values.get("files")
    if not (isinstance(folder, str) and _PARAMS_NAME.fullmatch(folder) and stated is not None):
        raise InputError(f"{where} does not name the weights beside it: it was not written by swinunetr_jax.")
    try:
        found = file_digests(path, folder)
        _refuse_damaged(path, [name for name in stated if stated[name] != found.get(name)])
        room = max(_MAX_RATIO * count_file_bytes(path / folder), _MAX_SMALL)
        if count_bytes(config) > room:
            raise InputError(
                f"{where} describes a network of {count_bytes(config):.1e} bytes, far more than the {folder} beside it can hold, "
                f"expected at most {room:.1e}: take another checkpoint."
            )
        got = array_shapes(path / folder)  # before any array is read: a few bytes on the disk can stand for gigabytes
        wrong = mismatches(got, config)
        if wrong and isinstance(config, CustomConfig):  # its files are what was saved, so the factory has changed
            raise OtherNetworkError(
                f"{path} holds the weights of another {config.name} than the recipe makes now:", *(f"  {line}" for line in wrong)
            )
        if wrong:
            lines = (f"  {console.literal(line)}" for line in wrong)
            raise InputError(f"{path} does not hold the weights of its own configuration:", *lines)
        params = read_arrays(path / folder)
    except InputError:
        raise
    except Exception as error:  # Orbax raises many kinds, with texts of many lines
        raise InputError(f"{path} cannot be read ({reason(error)}): {_REMEDY}.") from error
    check_digests(path, params, values)
    return Stored(config, task, params)


# ---- the description -------------------------------------------------------------------------------------------------------------


def describe(config: NetworkConfig, task: Task | None, arrays: Mapping[str, np.ndarray], **more: Any) -> str:
    """JSON that tells what weights are for and how they are recognised, with a digest of itself."""
    values = {
        "format": FORMAT,
        "config": config.to_dict(),
        "task": None if task is None else task.to_dict(),
        "digests": {name: digest(array) for name, array in arrays.items()},
        **more,
    }
    return json.dumps(values | {"digest": files.digest_of_json(values)}, indent=1)


class Description(TypedDict):
    """The JSON of a checkpoint; `params` and `files` are those of a folder."""

    format: int
    config: dict[str, Any]
    task: dict[str, Any] | None
    digests: dict[str, str]
    params: NotRequired[str]
    files: NotRequired[dict[str, str]]


def parse_description(
    content: bytes, where: Path, network: NetworkFactory | None = None
) -> tuple[NetworkConfig, Task | None, Description]:
    """The reverse of `describe`: configuration, task, and all values as they stand there.

    Raises:
        InputError: the text is damaged, or of a newer version.
    """
    everything = files.decode_json(content, dict[str, Any], str(where), _REMEDY)
    stated = everything.pop("digest", None)
    if stated != files.digest_of_json(everything):
        raise InputError(f"{where} is damaged, it differs from its own digest: {_REMEDY}.")
    version = everything.get("format")
    if isinstance(version, int) and version != FORMAT:
        raise InputError(f"{where} has format {version}, this version reads format {FORMAT}: use a newer swinunetr_jax.")
    values = files.decode_json(content, Description, str(where), _REMEDY)
    try:
        config = read_config(values["config"], network)
        blocks = sum(config.depths) if isinstance(config, SwinUNETRConfig) else 0
        if blocks > len(values["digests"]):  # before a network of millions of blocks is traced
            raise InputError(f"`depths` {config.depths} needs more tensors than the {len(values['digests'])} that have digests.")
        shapes(config)
        return config, None if values["task"] is None else Task.from_dict(values["task"]), values
    except InputError as error:
        raise InputError(f"{where}: {console.literal(error)}") from error
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise InputError(f"{where} describes no network ({reason(error)}): it was not written by swinunetr_jax.") from error


def check_digests(path: Path, arrays: Mapping[str, np.ndarray], values: Description) -> None:
    """Raises InputError unless these are the described arrays, all of them and no other."""
    digests = values["digests"]
    names = sorted(digests.keys() | arrays.keys())
    _refuse_damaged(path, [name for name in names if name not in arrays or digest(arrays[name]) != digests.get(name)])


def _refuse_damaged(path: Path, names: list[str]) -> None:
    if names:
        some = ", ".join(shown(name) for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise InputError(
            f"{path} is damaged, these differ from their digests or are missing: {some}; restore it or take another checkpoint."
        )
