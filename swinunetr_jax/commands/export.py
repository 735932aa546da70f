"""`swinunetr export`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from swinunetr_jax import console
from swinunetr_jax.buckets import MAY_BE_MODEL, shown
from swinunetr_jax.commands.options import TaskOptions, WeightOptions
from swinunetr_jax.errors import InputError


@dataclass
class Export:
    """Write a network as one file that runs without this package: a StableHLO program for JAX, or an ONNX file."""

    source: Annotated[Positional[Path], arg(metavar="MODEL"), MAY_BE_MODEL]
    """The checkpoint of one network, also in a bucket: a training run, a checkpoint folder, a packed model, a MONAI .pt or a safetensors
    file."""
    target: Annotated[Positional[Path], arg(metavar="FILE")]
    """The file to write, a name that ends with .stablehlo or .onnx."""
    roi: tuple[int, ...] | None = None
    """The size of the windows that the file takes, multiples of 32; by default the checkpoint's, otherwise 96 96 96."""
    batch: str = "any"
    """The number of windows of a call, or any."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of the computation in a .stablehlo file. Windows and logits are float32."""
    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ()
    """The platforms on which a .stablehlo file can run; by default cpu, cuda and tpu."""
    overwrite: bool = False
    """Replace FILE if it exists."""
    weights: OmitArgPrefixes[WeightOptions] = field(default_factory=WeightOptions)
    task_options: OmitArgPrefixes[TaskOptions] = field(default_factory=TaskOptions)

    def run(self) -> int:
        ending = self.target.suffix.lower()
        if ending not in (".stablehlo", ".onnx"):
            raise InputError(f"{self.target} has the ending {ending or '(none)'}, expected .stablehlo or .onnx: change the name.")
        if ending == ".onnx" and (self.dtype != "float32" or self.platforms):
            option = "--platforms" if self.platforms else "--dtype"
            raise InputError(f"{option} is for a .stablehlo file, and an .onnx file computes in float32 anywhere: leave it out.")
        batch = self.batch if self.batch == "any" else _number(self.batch)

        from swinunetr_jax.export import export_onnx, export_stablehlo
        from swinunetr_jax.weights.load import open_checkpoint
        from swinunetr_jax.weights.run_folder import ensemble_paths

        paths = ensemble_paths(self.source)
        if len(paths) != 1:
            raise InputError(
                f"{self.source} holds {len(paths)} networks, and a file holds one: give one of them, such as {paths[0]}."
            )
        preset = self.weights.find_preset(self.task_options)
        checkpoint = open_checkpoint(paths[0], **self.weights.fields())
        task = self.task_options.apply(checkpoint, paths[0], preset)
        options = {"task": task, "roi": self.roi, "batch": batch, "overwrite": self.overwrite}
        console.say("tracing the network, which can take minutes for ONNX …")
        if ending == ".onnx":
            export_onnx(self.target, checkpoint.model(), **options)
        else:
            platforms = {"platforms": self.platforms} if self.platforms else {}
            export_stablehlo(self.target, checkpoint.model(), dtype=self.dtype, **platforms, **options)
        console.say(f"{shown(self.source)} → {shown(self.target)} ({console.size(self.target.stat().st_size)})")
        return 0


def _number(text: str) -> int:
    """Returns the number of windows of a call. Raises InputError if the text is not a number."""
    if not text.isdecimal():
        raise InputError(f"--batch must be a number above 0 or any, got {text!r}.")
    return int(text)
