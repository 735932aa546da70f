"""Our own checkpoint: a folder with the weights in Orbax's format and one JSON file that describes them.

    CHECKPOINT/checkpoint.json     format, configuration, task, digests of every leaf, every file and of this file itself
    CHECKPOINT/params[-XXXXXXXX]/  Orbax: a nested dict with string keys; checkpoint.json names it, any other is a left-over

Orbax does not notice a flipped bit in the numbers, and answers one elsewhere with pages of text, so every file is checked against
its digest before Orbax sees it, and every leaf after. The same description, without files, lies in safetensors files of ours.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task
from swinunetr_jax.weights.arrays import file_digests, read_arrays, reason, write_arrays
from swinunetr_jax.weights.params import Params, check, digest, mismatches

FORMAT = 1
DESCRIPTION = "checkpoint.json"
PARAMS = "params"
_PARAMS_NAME = re.compile(rf"{PARAMS}(-[0-9a-f]{{8}})?")


@dataclass(frozen=True)
class Stored:
    """A checkpoint as it was read."""

    config: SwinUNETRConfig
    task: Task | None
    params: Params


def is_checkpoint(path: str | os.PathLike) -> bool:
    return os.path.isfile(Path(path) / DESCRIPTION)  # no error for a name that cannot be


def write_checkpoint(
    path: str | os.PathLike, config: SwinUNETRConfig, params: Params, task: Task | None = None, *, overwrite: bool = False
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
    unique = uuid.uuid4().hex[:8]
    temporary = path.with_name(f".{path.name}.{unique}.tmp")
    folder = f"{PARAMS}-{unique}" if replacing else PARAMS
    try:
        temporary.mkdir(parents=True)
        write_arrays(temporary / folder, params)
        text = describe(config, task, params, params=folder, files=file_digests(temporary))
        (temporary / DESCRIPTION).write_text(text, encoding="utf-8")
        if replacing:  # a folder cannot take another's place in one step, a file can: the description is the checkpoint
            (temporary / folder).rename(path / folder)
            (temporary / DESCRIPTION).replace(path / DESCRIPTION)
        else:
            temporary.rename(path)
    except Exception as error:  # the system's and Orbax's, which raises many kinds
        if replacing:
            shutil.rmtree(path / folder, ignore_errors=True)
        raise InputError(f"{path} cannot be written ({reason(error)}): check the folder and its free space.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for other in path.iterdir():  # the replaced weights, and those of a save that was killed
        if _PARAMS_NAME.fullmatch(other.name) and other.name != folder:
            shutil.rmtree(other, ignore_errors=True)


def read_checkpoint(path: str | os.PathLike) -> Stored:
    """Reads a checkpoint folder and verifies every byte of it.

    Raises:
        InputError: it is not a checkpoint, is damaged (naming the files or leaves), or is of a newer format.
    """
    path = Path(path).absolute()
    try:
        text = (path / DESCRIPTION).read_text(encoding="utf-8", errors="replace")  # what is replaced changes the digest
    except FileNotFoundError as error:
        raise InputError(f"{path} is not a checkpoint, it has no {DESCRIPTION}: check which folder was given.") from error
    except OSError as error:
        raise InputError(
            f"{path / DESCRIPTION} cannot be read ({reason(error)}): restore it or take another checkpoint."
        ) from error
    config, task, values = parse_description(text, path / DESCRIPTION)
    folder, files = values.get("params"), values.get("files")
    if not (isinstance(folder, str) and _PARAMS_NAME.fullmatch(folder) and isinstance(files, Mapping)):
        raise InputError(f"{path / DESCRIPTION} does not name the weights beside it: it was not written by swinunetr_jax.")
    try:
        found = file_digests(path, folder)
        _refuse_damaged(path, [name for name in files if files[name] != found.get(name)])
        params = read_arrays(path / folder)
    except InputError:
        raise
    except Exception as error:  # Orbax raises many kinds, with texts of many lines
        raise InputError(f"{path} cannot be read ({reason(error)}): restore it or take another checkpoint.") from error
    check_digests(path, params, values)
    wrong = mismatches(params, config)
    if wrong:
        raise InputError(f"{path} does not hold the weights of its own configuration:\n  " + "\n  ".join(wrong))
    return Stored(config, task, params)


# ---- the description -------------------------------------------------------------------------------------------------------------


def describe(config: SwinUNETRConfig, task: Task | None, arrays: Mapping[str, np.ndarray], **more: Any) -> str:
    """JSON that tells what weights are for and how they are recognised, with a digest of itself."""
    values = {
        "format": FORMAT,
        "config": config.to_dict(),
        "task": None if task is None else task.to_dict(),
        "digests": {name: digest(array) for name, array in arrays.items()},
        **more,
    }
    return json.dumps(values | {"digest": _self_digest(values)}, indent=1)


def parse_description(text: str, where: Path) -> tuple[SwinUNETRConfig, Task | None, dict[str, Any]]:
    """The reverse of `describe`: configuration, task, and all values as they stand there.

    Raises:
        InputError: the text is damaged, or of a newer version.
    """
    try:
        values = json.loads(text)
        stated = values.pop("digest")
        intact = stated == _self_digest(values) and isinstance(values["digests"], Mapping)
        version, config, task = values["format"], values["config"], values["task"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{where} is damaged, its description cannot be read: restore it or take another checkpoint.") from error
    if not intact:
        raise InputError(f"{where} is damaged, it differs from its own digest: restore it or take another checkpoint.")
    if version != FORMAT:
        raise InputError(f"{where} has format {version}, this version reads format {FORMAT}: use a newer swinunetr_jax.")
    try:
        return SwinUNETRConfig.from_dict(config), None if task is None else Task.from_dict(task), values
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} describes no network ({reason(error)}): it was not written by swinunetr_jax.") from error


def check_digests(path: Path, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
    """Raises InputError unless these are the described arrays, all of them and no other."""
    digests = values["digests"]
    names = sorted(digests.keys() | arrays.keys())
    _refuse_damaged(path, [name for name in names if name not in arrays or digest(arrays[name]) != digests.get(name)])


def _refuse_damaged(path: Path, names: list[str]) -> None:
    if names:
        some = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise InputError(
            f"{path} is damaged, these differ from their digests or are missing: {some}; restore it or take another checkpoint."
        )


def _self_digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
