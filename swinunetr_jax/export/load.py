"""Loads an exported StableHLO program. Of this package it needs only the error class, and otherwise JAX, NumPy and flatbuffers."""

import json
import os
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import jax
import jax.export
import numpy as np

from swinunetr_jax.errors import InputError

DESCRIPTION, PROGRAM, WEIGHTS = "description.json", "program", "weights/"
FORMAT = 1
EXPECTED = "expected a .stablehlo file of `swinunetr export`"


@dataclass(frozen=True)
class ExportedNetwork:
    """A network that was loaded from a file. Call it with windows [b, *roi, in_channels]; it returns logits [b, *roi, out_channels].

    Attributes:
        description: the description in the file: the shapes of input and output, the task, the preparation of scans, the platforms.
        program: the program of `jax.export`, a function of the weights and the windows.
        weights: the weights by name, on the device.
    """

    description: dict[str, Any]
    program: jax.export.Exported
    weights: dict[str, jax.Array]

    def __call__(self, x: Any) -> jax.Array:
        """Returns the logits, float32, [b, *roi, in_channels] -> [b, *roi, out_channels].

        Raises:
            InputError: the program does not take the shape of x.
        """
        want, got = self.description["input"]["shape"], np.shape(x)
        if len(got) != len(want) or any(size not in (wanted, "batch") and wanted != "batch" for size, wanted in zip(got, want)):
            raise InputError(f"the program takes windows of the shape {tuple(want)}, got {got}.")
        return _run(self.program, self.weights, jax.numpy.asarray(x, jax.numpy.float32))


def load_exported(path: str | os.PathLike) -> ExportedNetwork:
    """Returns the network in a file of `export_stablehlo`, on the default device.

    Raises:
        InputError: the file cannot be read, is not such a file, is damaged, or was not exported for this machine's default platform.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            description = json.loads(stored[DESCRIPTION])
            _check(path, description)
            program = jax.export.deserialize(bytearray(stored[PROGRAM]))
            weights = {name.removeprefix(WEIGHTS): stored[name] for name in stored.files if name.startswith(WEIGHTS)}
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(
            f"to read {path}, JAX needs the package flatbuffers: install it with `pip install flatbuffers`."
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}), {EXPECTED}.") from error
    except (AttributeError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged or of another kind, {EXPECTED}: export the network again.") from error
    return ExportedNetwork(description, program, jax.device_put(weights))


def _check(path: str | os.PathLike, description: dict[str, Any]) -> None:
    """Raises InputError if this version cannot read the file, or if its program cannot run on this machine's default platform."""
    if description["format"] != FORMAT:
        raise InputError(
            f"{path} has format {description['format']}, this version reads format {FORMAT}: export the network again."
        )
    platforms, here = description["platforms"], jax.default_backend()
    if here not in platforms and not (here == "gpu" and {"cuda", "rocm"} & set(platforms)):
        raise InputError(
            f"{path} was exported for {', '.join(platforms)}, and JAX runs on {here} here: export the network for this machine, with "
            f"--platforms {'cuda (or rocm)' if here == 'gpu' else here}."
        )


@jax.jit(static_argnums=0)
def _run(program: Any, weights: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return program.call(weights, x)
