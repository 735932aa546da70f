"""ONNX files, converted by jax2onnx. The plain formulation of each operation is traced, because ONNX has no operators for the others."""

import importlib
import importlib.util
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from flax import nnx

from swinunetr_jax import files
from swinunetr_jax.errors import InputError
from swinunetr_jax.export.onnx_plugins import our_plugins
from swinunetr_jax.export.plan import Batch, Plan, new_file
from swinunetr_jax.runtime.dispatch import reference_ops
from swinunetr_jax.task import Task
from swinunetr_jax.weights.params import count_bytes

ENDING = ".onnx"
INPUT, OUTPUT = "windows", "logits"
METADATA = "swinunetr_jax"  # the entry of the file's metadata that holds the description
MAX_BYTES = 2**31 - 2**26  # a file of ONNX has less than 2 GiB; the graph needs less than the difference
NEEDS_JAX2ONNX = (
    "an ONNX file needs jax2onnx, which pins an older Orbax: make an environment of its own, install this package and jax2onnx in it, and "
    "run the export there (see docs/export.md)."
)


def export_onnx(
    path: str | os.PathLike,
    model: nnx.Module,
    *,
    task: Task | None = None,
    roi: Sequence[int] | None = None,
    batch: Batch = "any",
    overwrite: bool = False,
) -> None:
    """Writes a network as an ONNX file, which computes in float32. Its metadata `swinunetr_jax` is the description as JSON.

    Args:
        path: the file to write, whose name ends in .onnx. Its input `windows` is [b, *roi, in_channels], its output `logits` is
            [b, *roi, out_channels].
        model: a Swin UNETR without Hyena stages.
        task, roi, batch, overwrite: as for `export_stablehlo`.

    Raises:
        InputError: an argument has an impossible value, the network has Hyena stages or is too large for a file of ONNX, jax2onnx is not
            installed or cannot convert the network, or the file exists or cannot be written.
    """
    path = new_file(Path(path), ENDING, overwrite=overwrite)
    plan = Plan.of(model, task, roi, "float32", batch)
    if plan.config.use_hyena:
        raise InputError(
            "the network has Hyena stages, and jax2onnx cannot convert their Fourier transforms over several axes to ONNX: write a "
            ".stablehlo file instead."
        )
    if (size := count_bytes(plan.config)) > MAX_BYTES:
        raise InputError(
            f"the weights have {size} bytes, expected less than 2 GiB in one file of ONNX: write a .stablehlo file instead."
        )
    if importlib.util.find_spec("jax2onnx") is None:
        raise InputError(NEEDS_JAX2ONNX)
    data = _converted(plan)
    try:
        files.write_bytes(path, data)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({files.reason(error)}); give a file in a folder with write access."
        ) from error


def _converted(plan: Plan) -> bytes:
    """Returns the content of the ONNX file of a plan. Raises InputError if jax2onnx cannot convert the network."""
    jax2onnx = importlib.import_module("jax2onnx")
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of every shape of an intermediate that depends on the batch
    forward = reference_ops()(lambda x: plan.forward(plan.params, x))  # pyright: ignore[reportArgumentType] - arrays of NumPy become constants
    try:
        with our_plugins():
            model = jax2onnx.to_onnx(forward, [plan.shape], model_name="SwinUNETR", input_names=[INPUT], output_names=[OUTPUT])
    except NotImplementedError as error:
        raise InputError(f"jax2onnx cannot convert the network ({error}): write a .stablehlo file instead.") from error
    model.metadata_props.add(key=METADATA, value=json.dumps(plan.description(["onnx"])))
    return model.SerializeToString()
