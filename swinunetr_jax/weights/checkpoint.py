"""Our own checkpoint: a folder with the weights in Orbax's format and one JSON file that describes them.

    CHECKPOINT/checkpoint.json   format, configuration, task, a digest of every leaf and one of this file itself
    CHECKPOINT/params/           Orbax: a nested dict with string keys

Orbax does not notice a flipped bit, so every leaf is checked against its digest on reading.
"""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task
from swinunetr_jax.weights.params import Params, digest, shapes

FORMAT = 1
DESCRIPTION = "checkpoint.json"
PARAMS = "params"


@dataclass(frozen=True)
class Stored:
    """A checkpoint folder as it was read."""

    config: SwinUNETRConfig
    task: Task | None
    params: Params


def is_checkpoint(path: str | os.PathLike) -> bool:
    return (Path(path) / DESCRIPTION).is_file()


def write_checkpoint(
    path: str | os.PathLike, config: SwinUNETRConfig, params: Params, task: Task | None = None, *, overwrite: bool = False
) -> None:
    """Writes a checkpoint folder in one step: under its name there is a whole checkpoint or what was there before.

    Raises:
        InputError: the path is taken (unless it is a checkpoint and `overwrite`), or cannot be written.
    """
    path = Path(path).absolute()
    if path.exists() and not (overwrite and is_checkpoint(path)):
        raise InputError(f"{path} exists already: choose another name or remove it.")
    bad = [name for name, array in params.items() if not np.all(np.isfinite(np.asarray(array, np.float32)))]
    if bad:
        raise InputError(f"the weights hold NaN or infinite values, nothing was written: {', '.join(bad)}.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(temporary / PARAMS, _nest(params))
        description = {
            "format": FORMAT,
            "config": config.to_dict(),
            "task": None if task is None else task.to_dict(),
            "digests": {name: digest(array) for name, array in params.items()},
        }
        description["digest"] = _self_digest(description)
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=1))
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}): check the folder and its free space.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_checkpoint(path: str | os.PathLike) -> Stored:
    """Reads a checkpoint folder and verifies every byte of it.

    Raises:
        InputError: it is not a checkpoint, is damaged (naming the leaves), or is of a newer format.
    """
    path = Path(path).absolute()
    description = _read_description(path)
    config = SwinUNETRConfig.from_dict(description["config"])
    task = None if description["task"] is None else Task.from_dict(description["task"])
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            params = _flatten(checkpointer.restore(path / PARAMS))
    except Exception as error:  # Orbax raises many kinds, with texts of many lines
        reason = str(error).strip().split("\n")[0][:200]
        raise InputError(f"{path} is damaged, its weights cannot be read ({type(error).__name__}: {reason}).") from error
    params = {name: np.asarray(value) for name, value in params.items()}
    digests = description["digests"]
    wrong = [name for name in digests if name not in params or digest(params[name]) != digests[name]]
    wrong += [name for name in params if name not in digests]
    wrong += [name for name in shapes(config) if name not in digests]
    if wrong:
        raise InputError(f"{path} is damaged: {', '.join(wrong[:8])}{' …' if len(wrong) > 8 else ''} differ from their digests.")
    return Stored(config, task, params)


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads((path / DESCRIPTION).read_text())
        stated, version = description.pop("digest"), description["format"]
    except FileNotFoundError as error:
        raise InputError(f"{path} is not a checkpoint: it has no {DESCRIPTION}.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path / DESCRIPTION} is damaged and cannot be read.") from error
    if stated != _self_digest(description):
        raise InputError(f"{path / DESCRIPTION} is damaged: it differs from its own digest.")
    if version != FORMAT:
        raise InputError(f"{path} has format {version}, this version reads format {FORMAT}: use a newer swinunetr_jax.")
    return description


def _self_digest(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _nest(params: Params) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, array in params.items():
        *path, leaf = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = np.asarray(array)
    return tree


def _flatten(tree: dict[str, Any], prefix: str = "") -> Params:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
