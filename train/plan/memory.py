"""The memory of training steps: the compiler's figure for compiled steps, and a linear estimate from these for all others.

A step needs its arguments and its results, without those that share their memory, and its temporaries. The compiler places all of them, so
that their size is known without running the step. It is nearly linear in the voxels of the batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from swinunetr_jax.training.plan.search import NetworkSize, Sizes, Step

MARGIN = 0.1  # steps whose estimate is within this share of the limit are compiled
MARGIN_OF_ONE = 0.3  # the same while only one step of the network has been compiled


@dataclass(frozen=True)
class StepBytes:
    """The memory of a compiled step on each device, and the seconds of a step if they are known.

    Attributes:
        held: bytes of the arguments and results, without results that take the place of arguments.
        temporary: bytes of the intermediates. Infinity means that they do not fit into the device's memory.
        seconds: a step's seconds: measured on a GPU, the compiler's lower bound for a TPU, unknown for a CPU.
    """

    held: float
    temporary: float
    seconds: float | None = None

    @property
    def total(self) -> float:
        return self.held + self.temporary


class StepMemory:
    """The memory of the training step of one data set, recipe and target: (step) -> bytes on each device.

    Args:
        compile_step: compiles a step and returns its memory.
        anchor: the crop and the batch of the first step that is compiled of each network.
    """

    def __init__(self, compile_step: Callable[[Step], StepBytes], anchor: tuple[tuple[int, int, int], int]):
        self._compile, self._anchor = compile_step, anchor
        self.compiled: dict[Step, StepBytes] = {}

    def __call__(self, step: Step) -> float:
        """Returns the bytes of a step: the compiler's if it has been compiled, otherwise an estimate."""
        if step in self.compiled:
            return self.compiled[step].total
        points = self._points(step.network)
        if not points:
            anchor = Step(step.network, *self._anchor)
            if self.compile(anchor).total == math.inf:
                return math.inf
            return self(step)
        return _line(points, _voxels(step))

    def compile(self, step: Step) -> StepBytes:
        """Compiles a step, unless it has been compiled before, and returns its memory."""
        if step not in self.compiled:
            self.compiled[step] = self._compile(step)
        return self.compiled[step]

    def margin(self, network: NetworkSize) -> float:
        """Returns the share by which an estimate for a network may be wrong."""
        return MARGIN if len(self._points(network)) > 1 else MARGIN_OF_ONE

    def _points(self, network: NetworkSize) -> list[tuple[int, StepBytes]]:
        """Returns the compiled steps of a network as (voxels, memory), in the order of their voxels."""
        fitting = {step: memory for step, memory in self.compiled.items() if step.network == network and memory.total < math.inf}
        return sorted(((_voxels(step), memory) for step, memory in fitting.items()), key=lambda point: point[0])


def settle(choose: Callable[[StepMemory], Sizes], memory: StepMemory, limit: float, *, confirm_all: bool = False) -> Sizes:
    """Returns the choice whose decisive steps have all been compiled.

    A choice is first made with estimates. Then its step is compiled, and those steps that it rejects because they do not fit, if they are
    estimated to be near the limit. Each compiled step makes the estimates better, and the choice is made again until no other step has to
    be compiled.

    Args:
        choose: makes the choice with this memory.
        memory: the memory of steps.
        limit: the bytes that a step may need.
        confirm_all: whether to compile every rejected step, because the compiler uses less memory when there is too little of it.
    """
    while True:
        sizes = choose(memory)
        near = [step for step in sizes.refused if confirm_all or memory(step) <= limit * (1 + memory.margin(step.network))]
        unknown = [step for step in (sizes.step, *near) if step not in memory.compiled]
        if not unknown:
            return sizes
        memory.compile(unknown[0])


def _voxels(step: Step) -> int:
    return step.batch * math.prod(step.roi)


def _line(points: list[tuple[int, StepBytes]], voxels: int) -> float:
    """Returns the bytes for a number of voxels on the line through the two nearest points, or through one point and its held bytes at 0."""
    if len(points) == 1 or points[0][0] == points[-1][0]:
        point_voxels, memory = points[0]
        return memory.held + memory.temporary * voxels / point_voxels
    nearest = sorted(points, key=lambda point: abs(math.log(point[0] / voxels)))
    point_voxels, memory = nearest[0]
    other_voxels, other_memory = next(point for point in nearest if point[0] != point_voxels)
    slope = max((other_memory.total - memory.total) / (other_voxels - point_voxels), 0)
    return max(memory.total + slope * (voxels - point_voxels), memory.held)
