"""The memory of training steps: that of compiled steps, and a line through these for all others.

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
        temporary: bytes of the intermediates. Infinity means that the compiler found no place for them.
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
        """Compiles a step, unless it has been, and returns its memory."""
        if step not in self.compiled:
            self.compiled[step] = self._compile(step)
        return self.compiled[step]

    def margin(self, network: NetworkSize) -> float:
        """Returns the share by which an estimate for a network may be wrong."""
        return MARGIN if len(self._points(network)) > 1 else MARGIN_OF_ONE

    def _points(self, network: NetworkSize) -> list[tuple[int, StepBytes]]:
        """Returns the compiled steps of a network as (voxels, memory), in the order of their voxels."""
        found = [(_voxels(s), one) for s, one in self.compiled.items() if s.network == network and one.total < math.inf]
        return sorted(found, key=lambda point: point[0])


def settle(choose: Callable[[StepMemory], Sizes], memory: StepMemory, limit: float, *, confirm_all: bool = False) -> Sizes:
    """Returns the choice whose decisive steps have all been compiled.

    A choice is first made with estimates. Then its step is compiled, and those steps that it rejects because they do not fit, if they are
    estimated to be near the limit. Each compiled step makes the estimates better, and the choice is made again until nothing is to be
    compiled.

    Args:
        choose: makes the choice with this memory.
        memory: the memory of steps.
        limit: the bytes that a step may need.
        confirm_all: whether to compile every rejected step, for a compiler that takes less memory where it is short of it.
    """
    while True:
        sizes = choose(memory)
        near = [one for one in sizes.refused if confirm_all or memory(one) <= limit * (1 + memory.margin(one.network))]
        unknown = [step for step in (sizes.step, *near) if step not in memory.compiled]
        if not unknown:
            return sizes
        memory.compile(unknown[0])


def _voxels(step: Step) -> int:
    return step.batch * math.prod(step.roi)


def _line(points: list[tuple[int, StepBytes]], voxels: int) -> float:
    """Returns the bytes for a number of voxels on the line through the two nearest points, or through one point and what it holds."""
    if len(points) == 1 or points[0][0] == points[-1][0]:
        at, one = points[0]
        return one.held + one.temporary * voxels / at
    nearest = sorted(points, key=lambda point: abs(math.log(point[0] / voxels)))
    at, one = nearest[0]
    other_at, other = next(point for point in nearest if point[0] != at)
    slope = max((other.total - one.total) / (other_at - at), 0)
    return max(one.total + slope * (voxels - at), one.held)
