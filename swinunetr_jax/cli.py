"""The command line: `swinunetr convert | predict | info`. What it does is in the library; here are options and messages."""

import json
import math
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.data.cases import Case
from swinunetr_jax.data.formats import case_from_files, find_cases
from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.batch import predict_cases
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.task import Output, Task
from swinunetr_jax.weights.load import FORMATS, Checkpoint, open_checkpoint, save_params
from swinunetr_jax.weights.params import shapes

EXIT_SOME_FAILED, EXIT_ERROR, EXIT_INTERRUPTED = 1, 2, 130


@dataclass
class WeightOptions:
    """What a PyTorch or safetensors file does not tell of itself."""

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
                print(
                    f"{path} does not say what it is for; taken as {task.kind} {', '.join(o.name for o in task.outputs)}{inputs} "
                    "(--task, --channels, --labels, --orientation, --intensity change that)"
                )
        changes: dict[str, Any] = {}
        if self.channels:
            changes["channels"] = self.channels
        if self.orientation:
            changes["orientation"] = self.orientation.upper()
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


@dataclass
class Convert:
    """Convert weights: MONAI's PyTorch files, safetensors and our checkpoint folders, in any direction."""

    source: Annotated[Positional[Path], arg(metavar="IN")]
    """A PyTorch file, a safetensors file or a checkpoint folder."""
    target: Annotated[Positional[Path], arg(metavar="OUT")]
    """What to write; its name tells the format (.pt, .pth: monai; .safetensors; else a folder) unless --to does."""
    to: Literal["orbax", "monai", "safetensors"] | None = None
    """Format to write."""
    encoder_only: bool = False
    """Take the Swin encoder alone (self-supervised weights) and start the rest anew."""
    adapt_channels: bool = False
    """Allow --in-channels and --out-channels to differ from the file's."""
    in_channels: int | None = None
    """Input channels wanted, with --adapt-channels."""
    out_channels: int | None = None
    """Outputs wanted, with --encoder-only or --adapt-channels."""
    overwrite: bool = False
    """Replace OUT where it exists."""
    weights: OmitArgPrefixes[WeightOptions] = field(default_factory=WeightOptions)
    meaning: OmitArgPrefixes[TaskOptions] = field(default_factory=TaskOptions)

    def run(self) -> int:
        fields = self.weights.fields()
        fields |= {n: getattr(self, n) for n in ("in_channels", "out_channels") if getattr(self, n) is not None}
        checkpoint = open_checkpoint(self.source, encoder_only=self.encoder_only, adapt_channels=self.adapt_channels, **fields)
        task = self.meaning.apply(checkpoint, self.source)
        by_suffix = {".pt": "monai", ".pth": "monai", ".safetensors": "safetensors"}
        to = self.to or by_suffix.get(self.target.suffix.lower(), FORMATS[0])
        save_params(self.target, checkpoint.config, checkpoint.params, task=task, to=to, overwrite=self.overwrite)
        print(checkpoint.report)
        print(f"{self.source} → {self.target} ({to}), weights {checkpoint.digest[:16]}")
        return 0


@dataclass
class Predict:
    """Segment scans: a folder of cases, one case, or files; each result lies on the scan's own grid."""

    input: Annotated[tuple[Path, ...], arg(aliases=["-i"])]
    """A data set in any known layout, a case folder, a datalist, or the files of one case, one per channel."""
    output: Annotated[Path, arg(aliases=["-o"])]
    """Folder for the label maps."""
    model: Annotated[tuple[Path, ...], arg(aliases=["-m"])]
    """Checkpoint: ours, a MONAI .pt or safetensors; several are averaged as an ensemble."""
    roi: tuple[int, int, int] | None = None
    """Window size, multiples of 32; by default the checkpoint's, else 96 96 96."""
    overlap: float = 0.5
    """Of neighbouring windows, 0 to less than 1."""
    blend: Literal["gaussian", "constant"] = "gaussian"
    """Weights within a window."""
    batch: int = 1
    """Windows per call of the network."""
    mirror: bool = False
    """Average over mirrored windows too, 8 times the work."""
    crop: bool = False
    """Look only inside the box of voxels that are not background: fewer windows, at other places than without."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Computation type."""
    probabilities: bool = False
    """Write each output's probability as a 4-D file, too."""
    preview: bool = False
    """Write a picture of each case, too."""
    overwrite: bool = False
    """Do finished cases again, and replace files of unknown origin."""
    weights: OmitArgPrefixes[WeightOptions] = field(default_factory=WeightOptions)
    meaning: OmitArgPrefixes[TaskOptions] = field(default_factory=TaskOptions)

    def run(self) -> int:
        for name in ("input", "model"):
            if not getattr(self, name):
                raise InputError(f"--{name} names nothing: give at least one path.")
        checkpoints = [open_checkpoint(path, dtype=self.dtype, **self.weights.fields()) for path in self.model]
        tasks = [self.meaning.apply(checkpoint, path) for checkpoint, path in zip(checkpoints, self.model)]
        for path, task in zip(self.model, tasks):
            if task != tasks[0]:
                raise InputError(f"{path} was trained for something else than {self.model[0]}: they are no ensemble.")
        cases = self._cases(tasks[0])
        segmenter = Segmenter(
            [checkpoint.model() for checkpoint in checkpoints],
            tasks[0],
            roi=self.roi,
            overlap=self.overlap,
            blend=self.blend,
            batch=self.batch,
            mirror=self.mirror,
            crop=self.crop,
        )
        identity = {
            "weights": [checkpoint.digest for checkpoint in checkpoints],
            "configs": [checkpoint.config.to_dict() for checkpoint in checkpoints],
            "task": tasks[0].to_dict(),
            "roi": segmenter.roi,
            "overlap": self.overlap,
            "blend": self.blend,
            "mirror": self.mirror,
            "crop": self.crop,
        }
        print(
            f"{len(cases)} case{'s' * (len(cases) != 1)}, windows of {'×'.join(map(str, segmenter.roi))}, overlap {self.overlap}"
        )
        failed = predict_cases(
            segmenter,
            cases,
            self.output,
            identity=identity,
            probabilities=self.probabilities,
            preview=self.preview,
            overwrite=self.overwrite,
        )
        if failed:
            print(f"{len(failed)} of {len(cases)} cases failed: {', '.join(failed)}", file=sys.stderr)
        return EXIT_SOME_FAILED if failed else 0

    def _cases(self, task: Task) -> tuple[Case, ...]:
        if len(self.input) > 1:
            return (case_from_files(self.input),)
        return find_cases(self.input[0], channels=task.channels or None).cases


@dataclass
class Info:
    """Show what a checkpoint holds."""

    checkpoint: Annotated[Positional[Path], arg(metavar="CHECKPOINT")]
    """A PyTorch file, a safetensors file or a checkpoint folder."""
    json: bool = False
    """Machine-readable."""
    weights: OmitArgPrefixes[WeightOptions] = field(default_factory=WeightOptions)

    def run(self) -> int:
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
            print(f"  {'intensity':<20} {task.intensity}{'' if task.window is None else f' {task.window}'}")
        print(checkpoint.report)
        return 0


def count_parameters(config: SwinUNETRConfig) -> int:
    """Trained numbers of a network, running statistics left out."""
    return sum(math.prod(v.shape) for name, v in shapes(config).items() if not name.endswith((".mean", ".var", ".count")))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `swinunetr` command: 0 all well, 1 some cases failed, 2 bad input, 130 interrupted."""
    commands = {"convert": Convert, "predict": Predict, "info": Info}
    command = tyro.extras.subcommand_cli_from_dict(
        commands, prog="swinunetr", description="Swin UNETR in JAX: convert weights, segment scans.", args=arguments
    )
    try:
        code = command.run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted; finished cases are kept, run the same command to go on", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_ERROR
    sys.exit(code)


if __name__ == "__main__":
    main()
