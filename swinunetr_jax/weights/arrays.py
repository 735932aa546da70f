"""Named arrays in a folder, in Orbax's format, and the digests by which damage is found.

Orbax does not notice a flipped bit in the numbers, and answers one elsewhere with pages of text: whoever reads compares digests first.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


def write_arrays(folder: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays under dotted names as a nested dict with string keys. Raises what Orbax raises."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *path, leaf = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = np.asarray(array)
    with _checkpointer() as checkpointer:
        checkpointer.save(Path(folder).absolute(), tree)


def read_arrays(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """The reverse of `write_arrays`. Raises what Orbax raises."""
    with _checkpointer() as checkpointer:
        tree = checkpointer.restore(Path(folder).absolute())
    return {name: np.asarray(value) for name, value in _flatten(tree).items()}


def _checkpointer() -> ocp.Checkpointer:
    """Of this process alone: without being told, Orbax waits for all processes of a pod."""
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process{process}"
    )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def file_digests(root: str | os.PathLike, folder: str = "") -> dict[str, str]:
    """SHA-256 of each file below a folder of `root`, by its name within `root`."""
    digests = {}
    for file in sorted((Path(root) / folder).rglob("*")):
        if file.is_file():
            with open(file, "rb") as stream:
                digests[file.relative_to(root).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def reason(error: Exception) -> str:
    """What an exception says, in one short line."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text if 0 < len(text) <= 200 else f"{type(error).__name__} {text[:160]}".strip()


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
