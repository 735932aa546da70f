"""Named arrays in a folder in Orbax's format, and digests that reveal damage.

Orbax does not notice a flipped bit in the numbers, and reports other damage with pages of text, so readers compare digests first.
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
    """Writes arrays with dotted names as a nested dict with string keys. Raises any exception of Orbax."""
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
    """Returns the shape of each array in a folder by name, without reading any array.

    Raises:
        ValueError: an entry is not an array, or an array is stored in chunks that are larger than it.
        Exception: any exception of Orbax.
    """
    with _checkpointer() as checkpointer:
        tree = checkpointer.metadata(Path(folder).absolute()).item_metadata.tree
    shapes = {}
    for name, leaf in _flatten(tree).items():
        shape, chunk = getattr(leaf, "shape", None), getattr(getattr(leaf, "storage", None), "chunk_shape", None)
        # A chunk is decoded as a whole, even if the array is smaller.
        if shape is None or chunk is None or any(part > max(size, 1) for part, size in zip(chunk, shape, strict=True)):
            raise ValueError(f"{name} is not an array, or is stored in chunks that are larger than it")
        shapes[name] = tuple(shape)
    return shapes


def read_arrays(folder: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, np.ndarray]:
    """Returns the arrays that `write_arrays` wrote, by dotted name.

    Args:
        folder: the folder that was written.
        shapes: the names and shapes that the arrays must have. They are compared before any array is read, because a few bytes on the
            disk can stand for gigabytes.

    Raises:
        ValueError: the names or shapes differ.
        Exception: any exception of Orbax.
    """
    if shapes is not None:
        stored = array_shapes(folder)
        differing = sorted(name for name in stored.keys() | shapes.keys() if stored.get(name) != shapes.get(name))
        if differing:
            raise ValueError(f"{differing[0]} has the shape {stored.get(differing[0])}, expected {shapes.get(differing[0])}")
    with _checkpointer() as checkpointer:
        tree = checkpointer.restore(Path(folder).absolute())
    return {name: np.asarray(value) for name, value in _flatten(tree).items()}


def count_file_bytes(folder: str | os.PathLike) -> int:
    """Returns the total size of the files in a folder and its subfolders, in bytes."""
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _checkpointer() -> ocp.Checkpointer:
    """Returns a checkpointer for this process only. By default, Orbax waits for all processes of a pod."""
    process = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process{process}"
    )
    return ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=options), multiprocessing_options=options)


def file_digests(root: str | os.PathLike, folder: str = "") -> dict[str, str]:
    """Returns the SHA-256 of each file in a folder of `root` and its subfolders, by the file's path relative to `root`."""
    digests = {}
    for file in sorted((Path(root) / folder).rglob("*")):
        if file.is_file():
            with open(file, "rb") as stream:
                digests[file.relative_to(root).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def one_line(error: Exception) -> str:
    """Returns the text of an exception on one short line."""
    text = literal(" ".join(str(getattr(error, "strerror", None) or error).split()))
    return text if 0 < len(text) <= 200 else f"{type(error).__name__} {text[:160]}".strip()


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dicts by dotted name."""
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
