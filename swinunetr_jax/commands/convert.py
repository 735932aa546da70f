"""`swinunetr convert`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from swinunetr_jax import console, files
from swinunetr_jax.buckets import MAY_BE_ADDRESS, MAY_BE_MODEL, is_address, shown
from swinunetr_jax.buckets.fetch import is_folder
from swinunetr_jax.commands.options import TaskOptions, WeightOptions
from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError

if TYPE_CHECKING:
    from swinunetr_jax.weights.load import Checkpoint


@dataclass
class Convert:
    """Convert weights between MONAI's PyTorch files, safetensors files and this project's checkpoint folders."""

    source: Annotated[Positional[Path], arg(metavar="IN"), MAY_BE_MODEL]
    """A PyTorch or safetensors file, an index of shards, a MONAI bundle, a packed model, a training run or a checkpoint folder, also in a
    bucket or on the Hugging Face hub."""
    target: Annotated[Positional[Path], arg(metavar="OUT"), MAY_BE_ADDRESS]
    """The file or folder to write, also in a bucket. Unless --to is given, its ending determines the format: monai for .pt and .pth,
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
    write_encoder: bool = False
    """Write only the Swin encoder, as the method `load_from` of MONAI's network reads it. OUT is a .pt or .pth file, or a folder, in which
    the name of the new file states the order of patch merging."""
    overwrite: bool = False
    """Replace OUT if it exists."""
    weights: OmitArgPrefixes[WeightOptions] = field(default_factory=WeightOptions)
    task_options: OmitArgPrefixes[TaskOptions] = field(default_factory=TaskOptions)

    def run(self) -> int:
        from swinunetr_jax.weights.format_of_name import format_of
        from swinunetr_jax.weights.load import save_params

        may_be_folder = self.write_encoder and self.to in (None, "monai")
        into_folder = may_be_folder and (is_folder(self.target) or (self.to is None and not self.target.suffix))
        # The format is determined first, so that no large file is read if the name cannot be used.
        to = "monai" if into_folder else self.to or format_of(self.target)
        if self.write_encoder:
            return self._write_encoder(to, into_folder)
        preset = self.weights.find_preset(self.task_options)
        checkpoint, config = self._open()
        task = self.task_options.apply(checkpoint, self.source, preset)
        save_params(self.target, config, checkpoint.params, task=task, to=to, overwrite=self.overwrite)
        console.say(str(checkpoint.report))
        console.say(f"{self.source} → {self.target} ({to}), weights {checkpoint.digest[:16]}")
        return 0

    def _open(self) -> tuple["Checkpoint", SwinUNETRConfig]:
        """Returns the network in the file IN, and its configuration."""
        from swinunetr_jax.weights.load import open_checkpoint

        fields = self.weights.fields()
        fields |= {n: getattr(self, n) for n in ("in_channels", "out_channels") if getattr(self, n) is not None}
        if self.write_encoder and self.encoder_only:
            fields["out_channels"] = 1  # a file with an encoder alone does not determine it, and it is not written
        checkpoint = open_checkpoint(self.source, encoder_only=self.encoder_only, adapt_channels=self.adapt_channels, **fields)
        if not isinstance(checkpoint.config, SwinUNETRConfig):
            raise InputError(
                f"{shown(self.source)} holds the network {checkpoint.config.name}, and convert is for a Swin UNETR: copy the folder "
                "instead."
            )
        return checkpoint, checkpoint.config

    def _write_encoder(self, to: str, into_folder: bool) -> int:
        """Writes only the encoder, and returns the exit code."""
        from swinunetr_jax.weights.encoder_file import encoder_file_name, encoder_notes, write_encoder

        if to != "monai":
            raise InputError(
                f"--write-encoder writes a PyTorch file for MONAI, but {self.target} would be a file of the format {to}: give a name that "
                "ends in .pt, or a folder."
            )
        if self.out_channels is not None:
            raise InputError(
                "--out-channels is for the output layer, which --write-encoder does not write: leave one of them out."
            )
        checkpoint, config = self._open()
        path = self.target
        if into_folder:
            path = (path if is_address(path) else files.make_folder(path)) / encoder_file_name(config)
        write_encoder(path, config, checkpoint.params, overwrite=self.overwrite)
        console.say(f"{self.source} → {path} (the Swin encoder, for `load_from` of MONAI's SwinUNETR)")
        adapted = [f"adapted {name}: {how}" for name, how in checkpoint.report.adapted.items() if name.startswith("swin.")]
        for note in (*adapted, *encoder_notes(path, config)):
            console.say(note)
        return 0
