"""Compiles the trainer's own step for the devices of a plan, and stores on disk how much memory the step needs."""

import dataclasses
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swinunetr_jax import InputError, SwinUNETRConfig, __version__, files
from swinunetr_jax.runtime.device import Device
from swinunetr_jax.runtime.sharding import device_mesh
from swinunetr_jax.runtime.strategies import JitStrategy
from swinunetr_jax.training.plan.decisions import by
from swinunetr_jax.training.plan.devices import Target
from swinunetr_jax.training.plan.memory import StepBytes
from swinunetr_jax.training.plan.search import NetworkSize, Step, gib
from swinunetr_jax.training.step import Training


def compile_step(
    training: Training,
    devices: Sequence[Device],
    *,
    roi: tuple[int, ...],
    batch: int,
    channels: int,
    spatial_shards: int = 1,
    options: Mapping[str, Any] | None = None,
) -> jax.stages.Compiled:
    """Returns the trainer's own step, compiled for devices that this machine need not have.

    Args:
        training: the run.
        devices: the devices that share the batch.
        roi: the crop.
        batch: the samples of all of these devices.
        channels: the channels of a sample.
        spatial_shards: the devices that share each sample.
        options: options of the compiler.

    Raises:
        jax.errors.JaxRuntimeError: the compiler fails, for example because the memory of a device is too small.
    """
    strategy = JitStrategy(device_mesh(batch, spatial_shards, devices))
    samples = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=strategy.batch_sharding(len(shape)))
        for name, (shape, dtype) in sample_shapes(roi, batch, channels).items()
    }
    flags = jax.ShapeDtypeStruct((strategy.size,), jnp.int32)
    return strategy.compile(training.step, options or {}).lower(training.like(), samples, flags).compile()


def sample_shapes(roi: tuple[int, ...], batch: int, channels: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Returns the shape and the type of each array of a batch."""
    return {"image": ((batch, *roi, channels), jnp.float32), "label": ((batch, *roi), jnp.uint8), "sample": ((batch,), jnp.int32)}


def held_and_temporary(program: jax.stages.Compiled) -> tuple[int, int]:
    """Returns the bytes of a program on each device: of arguments and results, where shared memory counts once, and of temporaries."""
    memory = program.memory_analysis()
    assert memory is not None  # the compilers for CPUs, GPUs and TPUs report it
    return memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes, memory.temp_size_in_bytes


def roofline(optimal_seconds: float) -> float:
    """Returns the fractional part of the TPU compiler's estimate of a program's seconds.

    The compiler subtracts one second for each internal call, whose number is unknown. So the result is right only for programs that take
    less than a second.
    """
    return optimal_seconds - math.floor(optimal_seconds)


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether a compiler or a device failed because its memory is too small."""
    # Other errors mention memory too, such as an illegal access, and do not mean that a smaller step would fit.
    return re.search("RESOURCE_EXHAUSTED|out of memory|bad_alloc", str(error), re.IGNORECASE) is not None


@dataclass(frozen=True)
class StepCompiler:
    """Compiles the training step of a data set and a recipe for a target, and stores its memory and time on disk.

    Attributes:
        training: the run; its network's size is replaced by that of each step.
        target: the devices.
        channels: the channels of a sample.
        spatial_shards: the devices that share each sample.
        keep: whether to store the memory and time. This is false if the recipe has functions, because a file's key cannot tell them apart.
        say: called with a sentence about each compilation.
    """

    training: Training
    target: Target
    channels: int
    spatial_shards: int
    keep: bool
    say: Callable[[str], None]

    def __call__(self, step: Step) -> StepBytes:
        """Returns the memory of a step. It is infinite if the step does not fit into the device's memory."""
        path = self._path(step)
        if path is not None and (stored := _read(path)) is not None:
            return stored
        started = time.perf_counter()
        try:
            step_bytes = self._measured(step)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            step_bytes = StepBytes(0, math.inf)
        took = time.perf_counter() - started
        self.say(f"compiled a step of {step.batch} × {by(step.roi)}, {step.network}: {gib(step_bytes.total)} ({took:.0f} s)")
        if path is not None and math.isfinite(step_bytes.total):
            _write(path, step_bytes)
        return step_bytes

    def _measured(self, step: Step) -> StepBytes:
        """Returns the memory of a step after compiling it. A GPU of this machine also runs it, when kernels choose their work space."""
        training = self._training(step.network)
        devices = self.target.devices[: self.spatial_shards]  # one group, since all groups need the same
        program = compile_step(
            training,
            devices,
            roi=step.roi,
            batch=step.batch,
            channels=self.channels,
            spatial_shards=self.spatial_shards,
            options=self.target.options,
        )
        held, temporary = held_and_temporary(program)
        if self.target.platform == "tpu":
            optimal = (program.cost_analysis() or {}).get("optimal_seconds")
            return StepBytes(held, temporary, None if optimal is None else roofline(optimal))
        if self.target.platform == "cpu" or not self.target.is_here or self.spatial_shards > 1:
            return StepBytes(held, temporary)
        peak, seconds = run_twice(program, training, devices, step, self.channels)
        return StepBytes(held, max(peak - held, temporary), seconds)

    def _training(self, network: NetworkSize) -> Training:
        assert isinstance(self.training.config, SwinUNETRConfig)  # `make_plan` refuses any other network
        return dataclasses.replace(self.training, config=self.training.config.replace(**vars(network)))

    def _path(self, step: Step) -> Path | None:
        """Returns the file for the memory and time of a step, or None if they are not stored."""
        folder = files.user_cache() if self.keep else None
        if folder is None:
            return None
        training = self._training(step.network)
        key = {
            "device": [self.target.platform, self.target.kind],
            "versions": [__version__, *(version(name) for name in ("jax", "jaxlib", "flax", "optax"))],
            "network": training.config.to_dict(),
            "run": [training.task.kind, repr(training.loss), repr(training.optim), self.channels, self.spatial_shards],
            "step": [step.roi, step.batch],
            "options": self.target.options,
        }
        return folder / "step_memory" / f"{files.digest_of_json(key)[:32]}.json"


def run_twice(
    program: jax.stages.Compiled, training: Training, devices: Sequence[Any], step: Step, channels: int
) -> tuple[float, float]:
    """Runs two steps on zeros on devices of this machine.

    Returns:
        The peak of the first device's memory in bytes, or 0 if the device does not report it or had a higher peak before; and the seconds
        of the second step.
    """
    strategy = JitStrategy(device_mesh(step.batch, 1, devices))
    before = (devices[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    state = strategy.replicate(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), training.like()))
    shapes = sample_shapes(step.roi, step.batch, channels)
    batch = strategy.shard_batch({name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()})
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        state, _numbers = program(state, batch, strategy.stop_flags(False))
        jax.block_until_ready(state)
        seconds = time.perf_counter() - started
    after = (devices[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return (after if after > before else 0), seconds


def _read(path: Path) -> StepBytes | None:
    """Returns the memory and time in a file. It is None if the file is missing or damaged, because the step can be compiled again."""
    try:
        return files.read_json(path, StepBytes, "delete it")
    except (FileNotFoundError, InputError):
        return None


def _write(path: Path, step_bytes: StepBytes) -> None:
    """Writes the memory and time of a step. If this is not possible, the next plan compiles the step again."""
    try:
        os.makedirs(path.parent, exist_ok=True)
        files.write_json(path, dataclasses.asdict(step_bytes))
    except OSError:
        return
