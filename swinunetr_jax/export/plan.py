"""The choices of an export, which are checked here, the function that is traced, and the description that the file holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx
from jax import Array

from swinunetr_jax import files
from swinunetr_jax.config import SIZE_MULTIPLE, SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.fields import is_int
from swinunetr_jax.task import Task
from swinunetr_jax.version import __version__
from swinunetr_jax.weights import params as flat
from swinunetr_jax.weights.weight_file import refuse_existing

FORMAT = 1
DEFAULT_SIZE = 96  # voxels along each axis, the size of the windows in predictions
AXES = {2: "batch, x, y, channel", 3: "batch, x, y, z, channel"}
INTENSITIES = {
    "zscore": "of each channel, subtract the mean of the scan's voxels that are not 0, and divide by their standard deviation; 0 stays 0",
    "window": "clip the values to the two numbers of task.window, and scale these to 0 and 1",
    "none": "unchanged",
}
PROBABILITIES = {"classes": "the softmax over the last axis", "regions": "the sigmoid", "images": None}
Batch = int | Literal["any"]


@dataclass(frozen=True)
class Plan:
    """The choices of an export. Create it with `Plan.of`, which checks them.

    Attributes:
        config: the configuration of the network, in the type of the computation.
        params: its weights by name.
        task: its task.
        roi: the size of a window along each axis.
        batch: the number of windows of a call, or "any".
    """

    config: SwinUNETRConfig
    params: flat.Params
    task: Task
    roi: tuple[int, ...]
    batch: Batch

    @classmethod
    def of(cls, model: nnx.Module, task: Task | None, roi: Sequence[int] | None, dtype: str, batch: Batch) -> "Plan":
        """Returns the plan of an export.

        Raises:
            InputError: the network is not a Swin UNETR, it does not accept windows of this size, or the batch is not a positive number.
        """
        config = getattr(model, "config", None)
        if not isinstance(config, SwinUNETRConfig):
            name = getattr(config, "name", type(model).__name__)
            raise InputError(f"the network is {name}, and export is for a Swin UNETR: export your own network with `jax.export`.")
        if dtype not in ("float32", "bfloat16"):
            raise InputError(f"`dtype` (--dtype) must be float32 or bfloat16, got {dtype!r}.")
        if batch != "any" and not (is_int(batch) and batch > 0):
            raise InputError(f"`batch` (--batch) must be a number above 0 or any, got {batch!r}.")
        task = task or Task.default(config)
        task.check(config)
        roi = tuple(roi or task.roi or (DEFAULT_SIZE,) * config.spatial_dims)
        if len(roi) != config.spatial_dims or not all(is_int(size) and size > 0 and size % SIZE_MULTIPLE == 0 for size in roi):
            example = " ".join([str(DEFAULT_SIZE)] * config.spatial_dims)
            got = " ".join(map(str, roi))
            raise InputError(
                f"`roi` (--roi) must be {config.spatial_dims} multiples of {SIZE_MULTIPLE}, such as {example}, got {got}."
            )
        config.check_spatial(roi)
        params = flat.flatten(model)
        flat.check(params, config)
        return cls(config.replace(dtype=dtype, use_checkpoint=False), params, task, roi, batch)

    @property
    def shape(self) -> tuple[int | str, ...]:
        """The shape of the input, whose first size is "batch" if the batch is "any"."""
        return ("batch" if self.batch == "any" else self.batch, *self.roi, self.config.in_channels)

    def forward(self, weights: Mapping[str, Array], x: Array) -> Array:
        """Returns the logits in float32, [b, *roi, in_channels] -> [b, *roi, out_channels], for weights by name."""
        return flat.build(self.config, weights)(x).astype(jnp.float32)

    def description(self, platforms: Sequence[str]) -> dict[str, Any]:
        """Returns what a user of the file must know, as JSON values."""
        digest = flat.digest_all({name: flat.digest(array) for name, array in self.params.items()})
        return {
            "format": FORMAT,
            "writer": f"swinunetr_jax {__version__}",
            "input": {
                "shape": list(self.shape),
                "axes": AXES[self.config.spatial_dims],
                "dtype": "float32",
                "channels": list(self.task.channels),
                "orientation": self.task.orientation or "as stored",
                "spacing": self.task.spacing or "as stored",
                "intensity": INTENSITIES[self.task.intensity],
            },
            "output": {
                "shape": [*self.shape[:-1], self.config.out_channels],
                "dtype": "float32",
                "values": "logits",
                "probabilities": PROBABILITIES[self.task.kind],
                "names": [output.name for output in self.task.outputs],
            },
            "computed_in": self.config.dtype,
            "platforms": list(platforms),
            "task": self.task.to_dict(),
            "network": self.config.to_dict(),
            "weights": digest,
        }


def new_file(path: Path, ending: str, *, overwrite: bool) -> Path:
    """Returns the path of the file to write, before a network is traced.

    Raises:
        InputError: the file exists and `overwrite` is not set, its folder does not exist, or its name has another ending.
    """
    path = files.local_path(path, expected="a file on this machine, which you can copy to the bucket afterwards")
    if path.suffix.lower() != ending:
        raise InputError(f"{path} has the ending {path.suffix or '(none)'}, expected {ending}: change the name.")
    if files.is_folder(path):
        raise InputError(f"{path} is a folder, expected the name of a file: choose another one.")
    refuse_existing(path, overwrite=overwrite)
    if not files.is_folder(path.parent):
        raise InputError(f"{path.parent} is not a folder, expected the folder of the new file {path.name}: create it first.")
    return path
