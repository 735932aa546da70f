"""Options that several commands share: what a weight file does not tell, and what a network was trained for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from swinunetr_jax import console
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Output, Task

if TYPE_CHECKING:
    from swinunetr_jax.weights.load import Checkpoint


@dataclass
class WeightOptions:
    """What a PyTorch or safetensors file does not tell of itself."""

    key: str | None = None
    """Entry of the file that holds the network, such as model_ema or checkpoint.state_dict, where it holds several networks."""
    downsample: Literal["legacy", "merging", "mergingv2"] | None = None
    """Order of patch merging: legacy for published weights and MONAI <= 1.4, merging for MONAI >= 1.5."""
    window_size: tuple[int, ...] | None = None
    """Attention window, where the tensors leave a choice."""
    num_groups: int | None = None
    """Groups of the group norm, for networks that have one."""

    def fields(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class TaskOptions:
    """What the network was trained for, where the checkpoint does not say (or instead of what it says)."""

    task: Literal["brats", "classes"] | None = None
    """brats: tumour core, whole tumour, enhancing tumour as overlapping regions; classes: one class per voxel."""
    channels: tuple[str, ...] = ()
    """Names of the input channels in the network's order, such as FLAIR T1ce T1 T2."""
    labels: tuple[str, ...] = ()
    """Names of the outputs, in order; for classes the background first."""
    orientation: str | None = None
    """Axes the network was trained in, such as LPS or RAS; without any, scans are taken as stored."""
    spacing: tuple[float, float, float] | None = None
    """Voxel size in mm the network was trained in, along those axes; without any, scans are taken as stored."""
    intensity: Literal["zscore", "window", "none"] | None = None
    """zscore: over non-zero voxels, per channel; window: the range of --window to 0 … 1; none: as stored."""
    window: tuple[float, float] | None = None
    """Low and high intensity, such as -175 250 for abdominal CT."""

    def apply(self, checkpoint: Checkpoint, path: Path) -> Task:
        config = checkpoint.config
        if self.task == "brats":
            task = Task.brats()
        elif self.task == "classes":
            task = Task.classes(config.out_channels)
        else:
            task = checkpoint.task or Task.default(config)
            if checkpoint.task is None:
                inputs = f" from {', '.join(task.channels)}" if task.channels else ""
                console.say(
                    f"{console.literal(path)} does not say what it is for; taken as {task.kind} "
                    f"{', '.join(console.literal(o.name) for o in task.outputs)}{inputs} "
                    "(--task, --channels, --labels, --orientation, --intensity change that)"
                )
        changes: dict[str, Any] = {}
        if self.channels:
            self._check_channels(task.channels if checkpoint.task is not None and self.task is None else (), path)
            changes["channels"] = self.channels
        if self.orientation:
            changes["orientation"] = self.orientation.upper()
        if self.spacing:
            changes["spacing"] = self.spacing
        if self.window or self.intensity:
            changes["intensity"] = self.intensity or "window"
            changes["window"] = self.window
        if self.labels:
            if len(self.labels) != config.out_channels:
                raise InputError(f"--labels names {len(self.labels)} outputs, the network has {config.out_channels}.")
            outputs = (Output(name=n, value=o.value, members=o.members) for n, o in zip(self.labels, task.outputs))
            changes["outputs"] = tuple(outputs)
        task = replace(task, **changes)
        task.check(config)
        return task

    def _check_channels(self, stated: tuple[str, ...], path: Path) -> None:
        """Says that --channels replaces the checkpoint's names; refuses names that the checkpoint has in another place.

        Raises:
            InputError: images would be given to the network in another order than it was trained with.
        """
        from swinunetr_jax.data.discovery.channels import channel_key

        have, want = [channel_key(name) for name in stated], [channel_key(name) for name in self.channels]
        if not stated or have == want:
            return
        moved = [
            name for place, name in enumerate(self.channels) if want[place] in have and have[place : place + 1] != [want[place]]
        ]
        if moved:
            raise InputError(
                f"{path} was trained with the channels {' '.join(stated)}, and --channels {' '.join(self.channels)} has {', '.join(moved)} "
                "in another place, which would swap images; leave --channels out: files are matched by name whatever their order."
            )
        names = f"{console.literal(' '.join(self.channels))} replaces {console.literal(' '.join(stated))}"
        console.say(f"{console.literal(path)}: --channels {names}, the names it was trained with, in the same order")
