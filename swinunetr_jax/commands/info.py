"""`swinunetr info`."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from swinunetr_jax.commands.options import WeightOptions
from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError


@dataclass
class Info:
    """Show what a checkpoint holds."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A PyTorch file, a safetensors file or a checkpoint folder."""
    json: bool = False
    """Print JSON, for programs."""
    weights: OmitArgPrefixes[WeightOptions] = field(default_factory=WeightOptions)

    def run(self) -> int:
        from swinunetr_jax.weights.load import open_checkpoint

        fields, unknown = self.weights.fields(), []
        try:
            checkpoint = open_checkpoint(self.checkpoint, **fields)
        except InputError as error:
            if "`downsample`" not in str(error) or "downsample" in fields:
                raise
            checkpoint = open_checkpoint(self.checkpoint, downsample="legacy", **fields)
            unknown = ["downsample"]
        config = checkpoint.config.to_dict()
        config |= dict.fromkeys(unknown)
        facts = {
            "path": str(self.checkpoint),
            "parameters": count_parameters(checkpoint.config),
            "weights": checkpoint.digest,
            "config": config,
            "task": None if checkpoint.task is None else checkpoint.task.to_dict(),
        }
        if self.json:
            print(json.dumps(facts, indent=1))
            return 0
        print(f"{self.checkpoint}: Swin UNETR, {facts['parameters']:,} parameters, weights {checkpoint.digest[:16]}")
        for name, value in config.items():
            print(f"  {name:<20} {'not told by the file' if name in unknown else value}")
        task = checkpoint.task
        if task is None:
            print("  what it was trained for is not told by the file")
        else:
            print(f"  {'channels':<20} {', '.join(task.channels) or 'unnamed'}")
            print(f"  {task.kind:<20} {', '.join(f'{o.name} = {o.value}' for o in task.outputs)}")
            print(f"  {'orientation':<20} {task.orientation or 'as stored'}")
            print(f"  {'spacing':<20} {'as stored' if task.spacing is None else f'{task.spacing} mm'}")
            print(f"  {'roi':<20} {task.roi or 'not told'}")
            print(f"  {'intensity':<20} {task.intensity}{'' if task.window is None else f' {task.window}'}")
        print(checkpoint.report)
        return 0


def count_parameters(config: SwinUNETRConfig) -> int:
    """Trained numbers of a network, running statistics left out."""
    from swinunetr_jax.weights.params import is_statistic, shapes

    return sum(math.prod(v.shape) for name, v in shapes(config).items() if not is_statistic(name))
