"""Compares the memory that a plan states for a training step with the memory that the step takes on this machine's default device.

    swinunetr plan Task04_Hippocampus --device cpu --memory 4 --out plan.json
    python -m tools.plan_memory --plan plan.json --channels 1 --outputs 3

The trainer's step is compiled as usual, with all optimizations, and run on ones or zeros. On a CPU the growth of the resident memory is
measured from the time before the state and the batch exist to the peak during the step (Linux only). A GPU reports its peak itself.
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
from swinunetr_jax.training.plan.compile import compile_step, held_and_temporary, run_twice, sample_shapes
from swinunetr_jax.training.plan.plan_file import Plan, read_plan
from swinunetr_jax.training.plan.search import NetworkSize, Step
from swinunetr_jax.training.recipes.msd import RECIPE
from swinunetr_jax.training.step import Training


@dataclass
class Options:
    """The plan whose step is run."""

    plan: Path
    """The file of `swinunetr plan`, made for this device with the recipe msd."""
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
    roi, batch, devices = plan.options.roi, plan.options.batch, jax.devices()[:1]
    release_compile_memory()
    program = compile_step(training, devices, roi=roi, batch=batch, channels=options.channels)
    held, temporary = held_and_temporary(program)
    print(f"the compiler states {(held + temporary) / 1e9:.3f} GB, and the plan {plan.need.step_bytes / 1e9:.3f} GB")
    on_cpu = devices[0].platform == "cpu"
    taken = (
        resident_growth(program, training, roi, batch, options.channels)
        if on_cpu
        else device_peak(program, training, plan, options.channels)
    )
    ratio = taken / plan.need.step_bytes
    kind = "resident memory grew by" if on_cpu else f"{devices[0].device_kind} used"
    print(f"{kind} {taken / 1e9:.3f} GB, {ratio:.3f} times as much as the plan states")


def resident_growth(program: jax.stages.Compiled, training: Training, roi: tuple[int, ...], batch: int, channels: int) -> int:
    """Returns the bytes by which the resident memory of this process grows at most in a step on a CPU."""
    strategy = JitStrategy(device_mesh(batch, 1, jax.devices()[:1]))
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    state = strategy.replicate(jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), training.like()))
    samples = strategy.shard_batch(
        {name: np.ones(shape, dtype) for name, (shape, dtype) in sample_shapes(roi, batch, channels).items()}
    )
    jax.block_until_ready(program(state, samples, strategy.stop_flags(False)))
    return status("VmHWM") - before


def device_peak(program: jax.stages.Compiled, training: Training, plan: Plan, channels: int) -> float:
    """Returns the peak of the device's memory in two steps, in bytes."""
    step = Step(NetworkSize(**vars(plan.options.network)), plan.options.roi, plan.options.batch)
    return run_twice(program, training, jax.devices()[:1], step, channels)[0]


if __name__ == "__main__":
    console.configure_streams()
    try:
        main(tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
