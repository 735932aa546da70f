"""Estimates the memory and the time of training on a TPU pod: compiles the trainer's step for a topology, without TPUs.

    pip install libtpu                                             # it compiles without a TPU
    python -m tools.pod_plan --topology v5e:16x16 v6e:16x16
    python -m tools.pod_plan --topology v5e:2x4 --roi 192 192 192 --spatial-shards 8
    python -m tools.pod_plan --topology v5e:16x16 --slices 4       # also for several slices
    python -m tools.pod_plan --topology v5e:16x16 --fit            # also the largest batch and crop; many compilations
    python -m tools.pod_plan --topology v5e:16x16 --objective mim --roi 96 96 96    # pre-training without labels

The step is that of `python -m train`, on the same mesh. Memory, operations, collectives and their bytes are those of the compiled program.
Seconds are the compiler's estimates ("schedule" and "roofline", see `aot_report`) of computation only. The expected time of a step on
another number of chips is the time of computing one chip's share plus the time of summing the gradients over all chips, by a ring
all-reduce at the bandwidth in `LINK_BYTES`. This is an upper bound, because the compiled program sends gradients while it computes.
With --slices, the step is compiled for two slices, and the sums over slices are estimated from its schedule (`tools/pod_slices.py`).
"""

import json
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to query

import jax
import tyro

from swinunetr_jax import InputError, SwinUNETRConfig, Task, console
from swinunetr_jax.arguments import rename_options
from swinunetr_jax.losses import Loss
from swinunetr_jax.training.config import Network, Optim
from swinunetr_jax.training.plan.compile import compile_step as training_program
from swinunetr_jax.training.plan.compile import held_and_temporary, is_out_of_memory, roofline
from swinunetr_jax.training.plan.devices import CHIP_BYTES, topology_devices
from swinunetr_jax.training.plan.search import search
from swinunetr_jax.training.recipes.pretrain import RECIPE as MIM
from swinunetr_jax.training.recipes.pretrain_swin3 import RECIPE as SWIN3
from swinunetr_jax.training.step import Training
from tools import pod_slices
from tools.gpu_program import BYTES
from tools.pod_slices import HOST_BYTES, Slice, Transfer, read_backward, read_transfers
from tools.tpu_estimate import CYCLES_PER_SECOND, estimate

# Bytes per second over all links of a chip in one direction: half of the 1600 and 3584 Gbit/s that Google states for both directions.
LINK_BYTES = {"v5e": 100e9, "v6e": 224e9}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
SIZES = (64, 96, 128, 160, 192, 224, 256)  # edges of the crops that --fit tries


@dataclass
class Options:
    """The training to plan."""

    topology: tuple[str, ...] = ("v5e:16x16",)
    """Chip and grid of chips, such as v5e:16x16 or v6e:4x4."""
    objective: Literal["supervised", "mim", "swin3"] = "supervised"
    """Training with labels on four channels and three regions, or a task of pre-training on one channel."""
    feature_size: int = 48
    roi: tuple[int, int, int] = (128, 128, 128)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    batch_per_chip: int = 1
    """Samples for each chip, or for each group of chips that shares a volume."""
    spatial_shards: int = 1
    """Chips that share a volume."""
    remat: bool = False
    """Recompute blocks in the backward pass."""
    chips: tuple[int, ...] = (1, 4, 16, 64, 256)
    """The numbers of chips for which to print the expected time."""
    slices: int = 1
    """Also print the expected time for up to this number of slices of the topology."""
    fit: bool = False
    """Search for the largest batch and the largest crop that fit."""
    out: Path | None = None
    """Also write the figures as JSON here."""


@dataclass
class Program:
    """The figures of a compiled step, per chip."""

    topology: str
    chips: int
    batch: int
    spatial_shards: int
    roi: tuple[int, ...]
    held_bytes: int
    """Arguments and results. Memory that they share counts once."""
    temporary_bytes: int
    flops: float
    schedule_seconds: float
    roofline_seconds: float
    collectives: dict[str, tuple[int, int]]
    """By kind: the number of collectives, and the bytes that a chip receives."""
    gradient_bytes: int
    compile_seconds: float
    slices: int = 1
    """The number of slices for which the step was compiled; `chips` and `batch` are the numbers for all slices together."""
    transfers: tuple[Transfer, ...] = ()
    """The arrays that each chip sums over the slices."""
    backward: tuple[float, float] = (0.0, 0.0)
    """Between which seconds of computation the gradients are computed."""

    @property
    def chip(self) -> str:
        return self.topology.partition(":")[0]

    @property
    def memory(self) -> int:
        return self.held_bytes + self.temporary_bytes


def compile_step(
    topology: str, options: Options, *, roi: tuple[int, ...], batch_per_chip: int, chips: int | None = None, slices: int = 1
) -> Program:
    """Compiles the train step for a topology, for several slices of it, or for its first chips.

    Raises:
        InputError: the topology is not known.
        jax.errors.JaxRuntimeError: the compiler fails, for example because the memory of a chip is too small.
    """
    kind = topology.partition(":")[0]
    if kind not in CHIP_BYTES or kind not in LINK_BYTES:
        raise InputError(
            f"the chip of {topology} is not known: take one of {', '.join(LINK_BYTES)}, such as {next(iter(LINK_BYTES))}:4x4."
        )
    devices = topology_devices(topology, slices)[:chips]
    batch = len(devices) // options.spatial_shards * batch_per_chip
    training = training_of(options, roi)
    channels = training.config.in_channels
    started = time.perf_counter()
    program = training_program(training, devices, roi=roi, batch=batch, channels=channels, spatial_shards=options.spatial_shards)
    held, temporary = held_and_temporary(program)
    cost, text = program.cost_analysis() or {}, program.as_text()
    assert text is not None  # the compiler for TPUs reports it
    return Program(
        topology=topology,
        chips=len(devices),
        batch=batch,
        spatial_shards=options.spatial_shards,
        roi=tuple(roi),
        held_bytes=held,
        temporary_bytes=temporary,
        flops=cost.get("flops", 0.0),
        schedule_seconds=estimate(text).cycles / CYCLES_PER_SECOND[kind],
        roofline_seconds=roofline(cost["optimal_seconds"]),
        collectives=read_collectives(text),
        gradient_bytes=sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(training.like().params)),
        compile_seconds=time.perf_counter() - started,
        slices=slices,
        transfers=read_transfers(text, CYCLES_PER_SECOND[kind]),
        backward=read_backward(text, CYCLES_PER_SECOND[kind]),
    )


def training_of(options: Options, roi: tuple[int, ...]) -> Training:
    """Returns the training whose step is compiled: the paper's with labels, or that of the recipe for pre-training."""
    shared: dict[str, Any] = {"feature_size": options.feature_size, "dtype": options.dtype, "use_checkpoint": options.remat}
    if options.objective == "supervised":
        config = SwinUNETRConfig(in_channels=4, out_channels=3, **shared)
        return Training(config, Task.brats(), Loss(), Optim(), steps=1000, seed=0)
    recipe = SWIN3 if options.objective == "swin3" else MIM
    assert isinstance(recipe.network, Network)
    config = replace(recipe.network, **shared).config(1, 1)
    task = Task.images(("image",), roi=roi)
    return Training(config, task, Loss(), recipe.optim, steps=1000, seed=0, objective=recipe.objective_factory)


def read_collectives(text: str) -> dict[str, tuple[int, int]]:
    """Returns the collective operations of a compiled program by kind: their number, and the bytes of their results."""
    count, size = Counter(), Counter()
    for result, kind, start in re.findall(rf"= (\(.*?\)|\S+) ({'|'.join(COLLECTIVES)})(-start)?\(", text):
        shapes = [(name, [int(n) for n in sizes.split(",") if n]) for name, sizes in re.findall(r"(\w+)\[([\d,]*)\]", result)]
        result_bytes = [BYTES.get(name, 0) * math.prod(sizes) for name, sizes in shapes]
        # The start of an asynchronous operation has its inputs among its results.
        count[kind] += 1
        size[kind] += max(result_bytes, default=0) if start and kind != "all-reduce" else sum(result_bytes)
    return {kind: (count[kind], size[kind]) for kind in COLLECTIVES if count[kind]}


def between_chips(program: Program, chips: int) -> float:
    """Returns the seconds that the sum of the gradients over a number of chips takes, if no computation overlaps with it."""
    return 2 * program.gradient_bytes * (chips - 1) / chips / LINK_BYTES[program.chip]


def fits(topology: str, options: Options, roi: tuple[int, ...], batch_per_chip: int) -> bool:
    """Returns whether the step fits into the memory of one group of chips. It is compiled for one group, since all groups need the same."""
    try:
        program = compile_step(topology, options, roi=roi, batch_per_chip=batch_per_chip, chips=options.spatial_shards)
    except jax.errors.JaxRuntimeError as error:
        if is_out_of_memory(error):
            return False
        raise
    return program.memory <= CHIP_BYTES[program.chip]


def largest(program: Program, options: Options) -> tuple[int, int]:
    """Returns (largest batch per group for the crop of the options, edge of the largest cube for batch 1); 0 means that none fits.

    Temporaries are nearly proportional to the voxels of a step, so those of the compiled step give a first guess, from which the search
    starts. More than the guess may fit, because a compiler that is short of memory saves memory at the cost of time.
    """
    sample_bytes = program.temporary_bytes / (program.batch * program.spatial_shards / program.chips)
    guess = (CHIP_BYTES[program.chip] - program.held_bytes) / sample_bytes
    topology = program.topology

    def batch_fits(batch: int) -> bool:
        return _print_fit(f"{topology}: batch {batch}", fits(topology, options, options.roi, batch))

    def cube_fits(index: int) -> bool:
        return index <= len(SIZES) and _print_fit(
            f"{topology}: {SIZES[index - 1]}³", fits(topology, options, (SIZES[index - 1],) * 3, 1)
        )

    cubes = search(cube_fits, sum(size**3 <= guess * math.prod(program.roi) for size in SIZES))
    return search(batch_fits, int(guess)), SIZES[cubes - 1] if cubes else 0


def _print_fit(trial: str, fit: bool) -> bool:
    print(f"{trial} {'fits' if fit else 'does not fit'}", file=sys.stderr, flush=True)
    return fit


def table(programs: list[Program]) -> str:
    """Returns the programs as a Markdown table."""
    head = ["topology", "crop", "batch", "chips per volume", "held GB", "temporaries GB", "of a chip's memory", "TFLOP per chip"]
    head += ["schedule ms", "roofline ms", "collectives: number, MB per chip", "compiled in s"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for p in programs:
        collectives = "; ".join(f"{kind} {count}, {size / 1e6:.1f}" for kind, (count, size) in p.collectives.items()) or "none"
        cells = [
            p.topology if p.slices == 1 else f"{p.slices} × {p.topology}",
            "×".join(map(str, p.roi)),
            p.batch,
            p.spatial_shards,
            f"{p.held_bytes / 1e9:.2f}",
            f"{p.temporary_bytes / 1e9:.2f}",
        ]
        cells += [f"{p.memory / CHIP_BYTES[p.chip]:.0%}", f"{p.flops / 1e12:.2f}", f"{p.schedule_seconds * 1e3:.1f}"]
        cells += [f"{p.roofline_seconds * 1e3:.1f}", collectives, f"{p.compile_seconds:.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def expectation(program: Program, chips: tuple[int, ...]) -> str:
    """Returns a Markdown table of the expected times for other numbers of chips, with the same number of samples per chip."""
    head = ["chips", "batch", "compute ms", "gradients between chips ms", "crops per second", "of perfect scaling"]
    lines = [f"{program.topology}, expected:", "", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for count in chips:
        groups = max(count // program.spatial_shards, 1)
        batch = groups * program.batch * program.spatial_shards // program.chips
        gradient_seconds = between_chips(program, count)
        step = program.schedule_seconds + gradient_seconds
        cells = [count, batch, f"{program.schedule_seconds * 1e3:.1f}", f"{gradient_seconds * 1e3:.2f}", f"{batch / step:.1f}"]
        lines.append(f"| {' | '.join(map(str, [*cells, f'{program.schedule_seconds / step:.1%}']))} |")
    return "\n".join(lines)


def one_slice(program: Program) -> Slice:
    """Returns one of the slices of a program that was compiled for several."""
    chips = program.chips // program.slices
    return Slice(
        topology=program.topology,
        chips=chips,
        batch=program.batch // program.slices,
        compute_seconds=program.schedule_seconds,
        gradient_seconds=between_chips(program, chips),
        gradient_bytes=program.gradient_bytes,
        transfers=program.transfers,
        backward=program.backward,
        host_bytes=HOST_BYTES[program.chip],
    )


def parse(arguments: Sequence[str]) -> Options:
    """Returns the options of a command line. The old name of --spatial-shards works for one more version."""
    renamed = rename_options(arguments, {"--depth": "--spatial-shards"})
    return tyro.cli(Annotated[Options, tyro.conf.arg(name="")], args=renamed, description=__doc__)


def main(options: Options) -> None:
    programs, largest_fits = [], {}
    if options.slices < 1:
        raise InputError(f"--slices is {options.slices}, expected 1 or more.")
    slices = min(options.slices, 2)  # a chip's program is the same for two and for more
    for topology in options.topology:
        print(f"compiling the train step for {topology} …", file=sys.stderr, flush=True)
        programs.append(compile_step(topology, options, roi=options.roi, batch_per_chip=options.batch_per_chip, slices=slices))
        print("\n" + table(programs[-1:]), flush=True)
        print("\n" + expectation(programs[-1], options.chips), flush=True)
        if slices > 1:
            print("\n" + pod_slices.expectation(one_slice(programs[-1]), options.slices), flush=True)
        if options.fit:
            batch, edge = largest_fits[topology] = largest(programs[-1], options)
            print(
                f"\n{topology}: a {'group' if options.spatial_shards > 1 else 'chip'} holds a batch of {batch} crops of "
                f"{'×'.join(map(str, options.roi))}, or one of {edge}³.",
                flush=True,
            )
    if options.out:
        values = {"programs": [asdict(program) for program in programs], "largest": largest_fits}
        options.out.write_text(json.dumps(values, indent=1))


if __name__ == "__main__":
    console.configure_streams()
    try:
        main(parse(sys.argv[1:]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
