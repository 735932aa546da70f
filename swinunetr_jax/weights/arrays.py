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

from swinunetr_jax.console import literal


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


def array_shapes(folder: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """The shape of each array in a folder, without reading any. Raises what Orbax raises, or ValueError for what is no array."""
    with _checkpointer() as checkpointer:
        tree = checkpointer.metadata(Path(folder).absolute()).item_metadata.tree
    shapes = {}
    for name, leaf in _flatten(tree).items():
        shape, chunk = getattr(leaf, "shape", None), getattr(getattr(leaf, "storage", None), "chunk_shape", None)
        # a chunk is decoded whole, whatever the array's shape
        if shape is None or chunk is None or any(part > max(size, 1) for part, size in zip(chunk, shape, strict=True)):
            raise ValueError(f"{name} is no array, or is stored in chunks that are larger than it")
        shapes[name] = tuple(shape)
    return shapes


def read_arrays(folder: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, np.ndarray]:
    """The reverse of `write_arrays`.

    Args:
        folder: what was written.
        shapes: names and shapes that the arrays must have; they are compared before any array is read, as a few bytes on the disk can
            stand for gigabytes.

    Raises:
        ValueError: the arrays are others. Whatever Orbax raises.
    """
    if shapes is not None:
        found = array_shapes(folder)
        wrong = sorted(name for name in found.keys() | shapes.keys() if found.get(name) != shapes.get(name))
        if wrong:
            raise ValueError(f"{wrong[0]} has the shape {found.get(wrong[0])}, expected {shapes.get(wrong[0])}")
    with _checkpointer() as checkpointer:
        tree = checkpointer.restore(Path(folder).absolute())
    return {name: np.asarray(value) for name, value in _flatten(tree).items()}


def count_file_bytes(folder: str | os.PathLike) -> int:
    """How many bytes the files below a folder have together."""
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _checkpointer() -> ocp.Checkpointer:
    """A checkpointer of this process alone; by default, Orbax waits for all processes of a pod."""
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
    text = literal(" ".join(str(getattr(error, "strerror", None) or error).split()))
    return text if 0 < len(text) <= 200 else f"{type(error).__name__} {text[:160]}".strip()


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
