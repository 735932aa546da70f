"""StableHLO files: a program of `jax.export`, its weights and a description in one zip file.

The entries are `description.json`, `program`, which is the serialized program, and `weights/NAME.npy`. `numpy.load` opens such a file.
The program is a function of the weights, as a dict by name, and of the windows. Weights are arguments and no constants, because a
compiler takes long to look at large constants.
"""

import contextlib
import importlib.util
import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from swinunetr_jax import files
from swinunetr_jax.errors import InputError
from swinunetr_jax.export.load import DESCRIPTION, PROGRAM, WEIGHTS
from swinunetr_jax.export.plan import Batch, Plan, new_file
from swinunetr_jax.runtime.dispatch import CERTAIN_PLATFORMS, for_device
from swinunetr_jax.task import Task

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")
ENDING = ".stablehlo"


def export_stablehlo(
    path: str | os.PathLike,
    model: nnx.Module,
    *,
    task: Task | None = None,
    roi: Sequence[int] | None = None,
    dtype: str = "float32",
    platforms: Sequence[str] = DEFAULT_PLATFORMS,
    batch: Batch = "any",
    overwrite: bool = False,
) -> None:
    """Writes a network as a StableHLO program, which `load_exported` or JAX alone runs.

    Args:
        path: the file to write, whose name ends in .stablehlo.
        model: a Swin UNETR.
        task: its task, which the file describes; by default that of its number of channels.
        roi: the size of a window along each axis, multiples of 32; by default the task's, otherwise 96 along each axis.
        dtype: the type of the computation, "float32" or "bfloat16". Windows and logits are float32.
        platforms: where the program can run: "cpu", "cuda", "rocm", "tpu".
        batch: the number of windows of a call, or "any". A program for any number contains the plain formulation of each operation, which
            needs more memory and time than the implementation for a number.
        overwrite: replace an existing file.

    Raises:
        InputError: an argument has an impossible value, flatbuffers is not installed, or the file exists or cannot be written.
    """
    path = new_file(Path(path), ENDING, overwrite=overwrite)
    unknown = [name for name in platforms if name not in PLATFORMS]
    if unknown or not platforms:
        raise InputError(
            f"`platforms` (--platforms) must name some of {', '.join(PLATFORMS)}, got {', '.join(map(str, unknown)) or 'none'}."
        )
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError(
            "to write a StableHLO file, JAX needs the package flatbuffers: install it with `pip install flatbuffers`."
        )
    plan = Plan.of(model, task, roi, dtype, batch)
    program = _program(plan, tuple(dict.fromkeys(platforms)))
    with _reported(path), files.atomic_path(path) as temporary, zipfile.ZipFile(temporary, "x") as archive:
        archive.writestr(DESCRIPTION, files.json_text(plan.description(program.platforms), indent=1))
        archive.writestr(PROGRAM, program.serialize())
        for name, array in sorted(plan.params.items()):
            archive.writestr(f"{WEIGHTS}{name}.npy", _npy(_storable(array)))


def _program(plan: Plan, platforms: tuple[str, ...]) -> jax.export.Exported:
    """Returns the program of a plan."""
    shape = plan.shape
    if plan.batch == "any":
        shape = (*jax.export.symbolic_shape("batch"), *plan.shape[1:])
    weights = {name: jax.ShapeDtypeStruct(array.shape, _storable(array).dtype) for name, array in plan.params.items()}
    forward = plan.forward
    if len(platforms) == 1 and platforms[0] in CERTAIN_PLATFORMS:
        forward = for_device(_Target(platforms[0]), forward)
    return jax.export.export(jax.jit(forward), platforms=platforms)(weights, jax.ShapeDtypeStruct(shape, jnp.float32))


@dataclass(frozen=True)
class _Target:
    """A device of a platform, which this machine need not have."""

    platform: str
    id: int = 0
    process_index: int = 0


def _storable(array: np.ndarray) -> np.ndarray:
    """Returns an array in a type that .npy files have. Floats become float32, in which the network computes at most."""
    return array.astype(np.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Makes an OSError of the block an InputError, which names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({files.reason(error)}); give a file in a folder with write access."
        ) from error
