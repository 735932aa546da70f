"""Options that several commands share: properties that a weight file does not state, and the task of a network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from swinunetr_jax import console
from swinunetr_jax.errors import InputError
from swinunetr_jax.output import Output
from swinunetr_jax.presets import Preset, find_preset
from swinunetr_jax.task import Task

if TYPE_CHECKING:
    from swinunetr_jax.weights.load import Checkpoint


@dataclass
class RunOptions:
    """The device that computes, and what is printed."""

    device: str | None = None
    """The devices that compute: cpu, gpu or tpu, or one of them by its number, such as gpu:1; by default those that JAX prefers."""
    quiet: Annotated[bool, arg(aliases=["-q"])] = False
    """Print only warnings and errors. All notes are in the record of the output folder."""
    verbose: Annotated[bool, arg(aliases=["-v"])] = False
    """Also print the versions, the devices, and the seconds of reading, computing and writing for each case."""

    def apply(self) -> None:
        """Chooses the device and what is printed. Raises InputError if an option is wrong."""
        console.set_amount(quiet=self.quiet, verbose=self.verbose)
        if self.device is not None:
            from swinunetr_jax.runtime.device import use_device

            use_device(self.device)
        if self.verbose:
            from swinunetr_jax.inference.batch import environment

            console.detail(", ".join(f"{name} {value}" for name, value in environment().items()))


@dataclass
class WeightOptions:
    """Properties of a network that a PyTorch or safetensors file does not state."""

    preset: Literal["brats21", "btcv"] | None = None
    """The published network that the file holds, which gives --downsample and the task; other options replace parts of it. `swinunetr
    weights` lists them."""
    key: str | None = None
    """The entry of the file that holds the network, such as model_ema or checkpoint.state_dict, if the file holds several."""
    downsample: Literal["legacy", "merging", "mergingv2"] | None = None
    """The order of patch merging: legacy for published weights and MONAI <= 1.4, merging for MONAI >= 1.5."""
    window_size: tuple[int, ...] | None = None
    """The attention window, if the tensors do not determine it."""
    num_groups: int | None = None
    """The groups of the group norm, for networks that have one."""
    hyena_fft_padding: Literal["circular", "zero"] | None = None
    """The padding of the global convolution, for networks with Hyena stages; MONAI's default is circular."""
    hyena_grid_type: Literal["single", "double"] | None = None
    """The size of the global kernel, for networks with Hyena stages, if it is not single."""
    hyena_l_cache: int | None = None
    """The unit of the global kernel's coordinates, for networks with Hyena stages, if it is not 32."""
    hyena_mask_max_attenuation: float | None = None
    """The limit of the global kernel's masks, for networks with Hyena stages, if it is not 0.95."""

    def fields(self) -> dict[str, Any]:
        """Returns the fields of the configuration that the options give, and `key`."""
        fields = {name: value for name, value in vars(self).items() if value is not None and name != "preset"}
        return fields if self.preset is None else {"downsample": find_preset(self.preset).downsample} | fields

    def find_preset(self, task_options: TaskOptions) -> Preset | None:
        """Returns the preset, after printing a line for each option that replaces a part of it."""
        if self.preset is None:
            return None
        preset = find_preset(self.preset)
        task = preset.task
        replaced = {"downsample": (self.downsample, preset.downsample)} | {
            name: (getattr(task_options, name) or None, getattr(task, name))
            for name in ("channels", "orientation", "spacing", "intensity", "window")
        }
        replaced["task"] = (task_options.task, "brats" if task.kind == "regions" else task.kind)
        replaced["labels"] = (task_options.labels or None, tuple(output.name for output in task.outputs))
        for name, (given, stated) in replaced.items():
            if given is not None and _text(given) != _text(stated):
                console.say(f"--{name} {console.literal(_text(given))} replaces {_text(stated)} of the preset {preset.name}")
        return preset


@dataclass
class TaskOptions:
    """The task of the network, if the checkpoint does not state it, or to replace what it states."""

    task: Literal["brats", "classes"] | None = None
    """brats: tumour core, whole tumour, enhancing tumour as overlapping regions; classes: one class per voxel."""
    channels: tuple[str, ...] = ()
    """The names of the input channels in the network's order, such as FLAIR T1ce T1 T2."""
    labels: tuple[str, ...] = ()
    """The names of the outputs in order; for classes the first one is the background."""
    orientation: str | None = None
    """The orientation that the network was trained in, such as LPS or RAS; by default that of each scan."""
    spacing: tuple[float, float, float] | None = None
    """The voxel size in mm that the network was trained in, along the axes of --orientation; by default that of each scan."""
    intensity: Literal["zscore", "window", "none"] | None = None
    """zscore: over the non-zero voxels of each channel; window: the range of --window becomes 0 … 1; none: unchanged."""
    window: tuple[float, float] | None = None
    """The low and the high intensity, such as -175 250 for abdominal CT."""

    def apply(self, checkpoint: Checkpoint, path: Path, preset: Preset | None = None) -> Task:
        """Returns the checkpoint's task, or that of a preset, with the changes of the options.

        Raises:
            InputError: the preset or the options do not fit the network.
        """
        from swinunetr_jax.inference.open_networks import assumed_task

        config = checkpoint.config
        if self.task == "brats":
            task = Task.brats()
        elif self.task == "classes":
            task = Task.classes(config.out_channels)
        elif preset is not None:
            task = self._of_preset(preset, checkpoint, path)
        else:
            task = checkpoint.task or assumed_task(
                checkpoint, path, "change it with --task, --channels, --labels, --orientation, --intensity"
            )
        changes: dict[str, Any] = {}
        if self.channels:
            self._check_channels(
                task.channels if checkpoint.task is not None and self.task is None and preset is None else (), path
            )
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
                raise InputError(
                    f"--labels names {len(self.labels)} outputs, but the network has {config.out_channels}: give one name for each."
                )
            outputs = (Output(name=n, value=o.value, members=o.members) for n, o in zip(self.labels, task.outputs))
            changes["outputs"] = tuple(outputs)
        task = replace(task, **changes)
        task.check(config)
        return task

    def _of_preset(self, preset: Preset, checkpoint: Checkpoint, path: Path) -> Task:
        """Returns the task of a preset. Raises InputError if the network is another one."""
        config, task = checkpoint.config, preset.task
        numbers = (len(task.channels) or 1, len(task.outputs))
        if (config.in_channels, config.out_channels) != numbers:
            raise InputError(
                f"--preset {preset.name} is for a network with {numbers[0]} channels and {numbers[1]} outputs, but {path} has "
                f"{config.in_channels} and {config.out_channels}: leave it out, and describe the task with --task, --channels and --labels."
            )
        if checkpoint.task is not None and checkpoint.task != task:
            console.say(f"{console.literal(path)}: the preset {preset.name} replaces the task that it states")
        return task

    def _check_channels(self, stated: tuple[str, ...], path: Path) -> None:
        """Prints a line if --channels replaces names that the checkpoint states.

        Raises:
            InputError: the network would receive images in another order than it was trained with.
        """
        from swinunetr_jax.data.discovery.channels import channel_key

        have, want = [channel_key(name) for name in stated], [channel_key(name) for name in self.channels]
        if not stated or have == want:
            return
        moved = [name for i, name in enumerate(self.channels) if want[i] in have and have[i : i + 1] != [want[i]]]
        if moved:
            raise InputError(
                f"{path} was trained with the channels {' '.join(stated)}, and --channels {' '.join(self.channels)} has {', '.join(moved)} "
                "at another position, which would swap images; leave --channels out, because files are matched by name in any order."
            )
        names = f"{console.literal(' '.join(self.channels))} replaces {console.literal(' '.join(stated))}"
        console.say(f"{console.literal(path)}: --channels {names}, the names that it was trained with, in the same order")


def _text(value: Any) -> str:
    """Returns the value of an option as a user types it."""
    if isinstance(value, (tuple, list)):
        return " ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
