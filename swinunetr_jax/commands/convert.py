"""`swinunetr convert`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from swinunetr_jax import console
from swinunetr_jax.commands.options import TaskOptions, WeightOptions
from swinunetr_jax.config import SwinUNETRConfig


@dataclass
class Convert:
    """Convert weights between MONAI's PyTorch files, safetensors files and this project's checkpoint folders."""

    source: Annotated[Positional[Path], arg(metavar="IN")]
    """A PyTorch or safetensors file, an index of shards, a MONAI bundle, a training run or a checkpoint folder."""
    target: Annotated[Positional[Path], arg(metavar="OUT")]
    """The file or folder to write. Unless --to is given, its ending determines the format: monai for .pt and .pth,
    safetensors for .safetensors, and a folder (orbax) if there is none."""
    to: Literal["orbax", "monai", "safetensors"] | None = None
    """The format to write."""
    encoder_only: bool = False
    """Read only the Swin encoder (self-supervised weights) and initialise the rest randomly."""
    adapt_channels: bool = False
    """Allow --in-channels and --out-channels to differ from the file's."""
    in_channels: int | None = None
    """The number of input channels to write, with --adapt-channels."""
    out_channels: int | None = None
    """The number of outputs to write, with --encoder-only or --adapt-channels."""
    overwrite: bool = False
    """Replace OUT if it exists."""
    weights: OmitArgPrefixes[WeightOptions] = field(default_factory=WeightOptions)
    task_options: OmitArgPrefixes[TaskOptions] = field(default_factory=TaskOptions)

    def run(self) -> int:
        from swinunetr_jax.weights.load import format_of, open_checkpoint, save_params

        to = self.to or format_of(self.target)  # first, so that no large file is read if the name cannot be used
        fields = self.weights.fields()
        fields |= {n: getattr(self, n) for n in ("in_channels", "out_channels") if getattr(self, n) is not None}
        checkpoint = open_checkpoint(self.source, encoder_only=self.encoder_only, adapt_channels=self.adapt_channels, **fields)
        task, config = self.task_options.apply(checkpoint, self.source), checkpoint.config
        assert isinstance(config, SwinUNETRConfig)  # any other network is refused by `open_checkpoint`
        save_params(self.target, config, checkpoint.params, task=task, to=to, overwrite=self.overwrite)
        console.say(str(checkpoint.report))
        console.say(f"{self.source} → {self.target} ({to}), weights {checkpoint.digest[:16]}")
        return 0
