"""Compares the memory that a plan states for a training step with the resident memory that the step takes on a CPU.

    swinunetr plan Task04_Hippocampus --device cpu --memory 4 --out plan.json
    python -m tools.plan_memory --plan plan.json --channels 1 --outputs 3

The trainer's step is compiled as usual, with all optimizations, and run once on ones. The growth of the resident memory is measured
from the time before the state and the batch exist to the peak during the step. Linux only.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from swinunetr_jax import InputError, SwinUNETRConfig, Task, console
from swinunetr_jax.runtime.memory import release_compile_memory
from swinunetr_jax.runtime.sharding import device_mesh
from swinunetr_jax.runtime.strategies import JitStrategy
from swinunetr_jax.training.plan.compile import compile_step, sample_shapes
from swinunetr_jax.training.plan.plan_file import read_plan
from swinunetr_jax.training.recipes.msd import RECIPE
from swinunetr_jax.training.step import Training


@dataclass
class Options:
    """The plan whose step is run."""

    plan: Path
    """The file of `swinunetr plan --device cpu`, made with the recipe msd."""
    channels: int = 1
    """Input channels."""
    outputs: int = 3
    """Outputs of the network, with the background."""


def status(name: str) -> int:
    """Returns a figure of this process in bytes: VmRSS is its resident memory, VmHWM the peak of its resident memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def main(options: Options) -> None:
    plan = read_plan(options.plan)
    config = SwinUNETRConfig(in_channels=options.channels, out_channels=options.outputs).replace(**vars(plan.options.network))
    training = Training(config, Task.classes(options.outputs), RECIPE.loss, RECIPE.optim, 1000, 0)
    release_compile_memory()
    roi, batch, devices = plan.options.roi, plan.options.batch, jax.devices("cpu")[:1]
    program = compile_step(training, devices, roi=roi, batch=batch, channels=options.channels)
    strategy = JitStrategy(device_mesh(batch, 1, devices))
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    state = strategy.replicate(jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), training.like()))
    shapes = sample_shapes(roi, batch, options.channels)
    samples = strategy.shard_batch({name: np.ones(shape, dtype) for name, (shape, dtype) in shapes.items()})
    jax.block_until_ready(program(state, samples, strategy.stop_flags(False)))
    growth = status("VmHWM") - before
    ratio = growth / plan.need.step_bytes
    print(f"stated {plan.need.step_bytes / 1e9:.3f} GB, resident memory grew by {growth / 1e9:.3f} GB, ratio {ratio:.3f}")


if __name__ == "__main__":
    console.configure_streams()
    try:
        main(tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
