"""`swinunetr info`."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, arg

from swinunetr_jax import console, files
from swinunetr_jax.buckets import MAY_BE_MODEL, shown
from swinunetr_jax.commands.options import WeightOptions

if TYPE_CHECKING:
    from swinunetr_jax.weights.load import Checkpoint

# Properties that some files do not state, and placeholder values for reading such a file. Placeholders are not shown.
_PLACEHOLDERS: dict[str, dict[str, Any]] = {
    "downsample": {"downsample": "legacy"},
    "num_groups": {"num_groups": 1},
    "hyena_fft_padding": {
        "hyena_fft_padding": "circular",
        "hyena_grid_type": "single",
        "hyena_l_cache": 32,
        "hyena_mask_max_attenuation": 0.95,
    },
    "out_channels": {"out_channels": 1, "encoder_only": True},
}


@dataclass
class Info:
    """Show the content of a checkpoint."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT"), MAY_BE_MODEL]
    """A PyTorch or safetensors file, an index of shards, a MONAI bundle, a packed model, a training run or a checkpoint folder, also in a
    bucket or on the Hugging Face hub."""
    json: bool = False
    """Print the facts as JSON."""
    weights: OmitArgPrefixes[WeightOptions] = field(default_factory=WeightOptions)

    def run(self) -> int:
        checkpoint, unknown = _open(self.checkpoint, self.weights.fields())
        facts = _facts(self.checkpoint, checkpoint, unknown)
        if self.json:
            console.say(files.json_text(facts, indent=1))
            return 0
        kind = facts["config"].get("network", "Swin UNETR" if facts["weights"] else "part of a Swin UNETR")
        weights = f", weights {facts['weights'][:16]}" if facts["weights"] else ""
        console.say(f"{self.checkpoint}: {kind}, {facts['parameters']:,} parameters{weights}")
        for name, value in facts["config"].items():
            console.say(f"  {name:<20} {'not stated in the file' if name in unknown else value}")
        task = checkpoint.task
        if task is None:
            console.say("  its task is not stated in the file")
        else:
            console.say(f"  {'channels':<20} {', '.join(map(console.literal, task.channels)) or 'unnamed'}")
            names = [console.literal(output.name) for output in task.outputs]
            if task.kind != "images":
                names = [f"{name} = {output.value}" for name, output in zip(names, task.outputs)]
            console.say(f"  {task.kind:<20} {', '.join(names)}")
            if task.kind == "images":
                console.say("  pre-trained without labels: it returns images, and can segment after it was trained with labels")
            console.say(f"  {'orientation':<20} {task.orientation or 'as stored'}")
            console.say(f"  {'spacing':<20} {'as stored' if task.spacing is None else f'{task.spacing} mm'}")
            console.say(f"  {'roi':<20} {task.roi or 'not stated'}")
            console.say(f"  {'intensity':<20} {task.intensity}{'' if task.window is None else f' {task.window}'}")
        console.say(str(replace(checkpoint.report, initialized=[], output_layer="")))
        return 0


def _open(path: Path, options: dict[str, Any]) -> tuple["Checkpoint", set[str]]:
    """Returns the checkpoint, and the configuration fields that the file does not state."""
    from swinunetr_jax.weights.infer import NotInferable
    from swinunetr_jax.weights.load import DECODER_FIELDS, open_checkpoint

    unknown: set[str] = set()
    while True:
        try:
            checkpoint = open_checkpoint(path, **options)
        except NotInferable as error:
            if error.field not in _PLACEHOLDERS or error.field in unknown:
                raise
            placeholders = _PLACEHOLDERS[error.field]
            unknown |= placeholders.keys() - options.keys() - {"encoder_only"}
            options = placeholders | options
        else:
            return checkpoint, unknown | (DECODER_FIELDS if "out_channels" in unknown else set())


def _facts(path: Path, checkpoint: "Checkpoint", unknown: set[str]) -> dict[str, Any]:
    """Returns the content of the file as JSON values, without parameters that were initialised because it lacks them."""
    from swinunetr_jax.weights.params import count_parameters

    return {
        "path": shown(path),
        "parameters": count_parameters({name: checkpoint.params[name] for name in checkpoint.report.read}),
        "weights": None if checkpoint.report.initialized else checkpoint.digest,
        "config": checkpoint.config.to_dict() | dict.fromkeys(unknown),
        "task": None if checkpoint.task is None else checkpoint.task.to_dict(),
    }
