"""Reads the time estimates of the TPU compiler from the text of a compiled program.

Every instruction that the compiler schedules has `estimated_cycles`, the result of its cost model for the tiling and the layout that it
chose. The estimate here is their sum over the program, with a loop's body counted for each iteration. It includes the cost of copies
between layouts, of padding channels to 128 lanes and of a matrix unit that is only partly filled. `cost_analysis()["optimal_seconds"]`
does not: it is a roofline, where an instruction takes the time of its operations or that of its bytes at the chip's peak rates, whichever
is longer. Copies that run in parallel with other work (`copy-start`, `copy-done`) have no cycles and cost nothing in either estimate.

Kernels written by hand (custom calls) and fusions of gathers and scatters have no cycles. They are counted in `without_estimate`, which
shows whether an estimate is complete. `optimal_seconds` contains -1 for each kernel.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

# For a v5e it is the peak of 197 TFLOP/s divided by the 131,072 operations per cycle of the matrix units. For a v6e it is assumed, since it
# does not follow from the peak, so only ratios between two programs are meaningful.
CYCLES_PER_SECOND = {"v5e": 1.5e9, "v6e": 1.75e9}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(", re.MULTILINE)


@dataclass
class Estimate:
    """The cycles of a program and of its instructions."""

    cycles: int = 0
    without_estimate: int = 0
    """The number of instructions that take time and have no cycles."""
    costs: Counter = field(default_factory=Counter)
    """Cycles by instruction: (name, opcode, shape with layout, source operation)."""

    def top(self, count: int) -> list[tuple[int, str]]:
        """Returns the most expensive instructions, as (cycles, line)."""
        return [(cycles, " | ".join(key)) for key, cycles in self.costs.most_common(count)]


def estimate(text: str) -> Estimate:
    """Returns the estimate of a whole compiled program."""
    computations, entry = _computations(text)
    result = Estimate()
    _add(result, computations, entry, 1)
    return result


def schedule(text: str) -> list[tuple[str, int]]:
    """Returns the instructions of a compiled program, each a line of its text, in the order in which they run, with their cycles."""
    computations, entry = _computations(text)
    lines = []
    for line in computations.get(entry, []):
        result = Estimate()
        _add_line(result, computations, line, 1)
        lines.append((line, result.cycles))
    return lines


def _add(result: Estimate, computations: dict[str, list[str]], name: str, times: int) -> None:
    for line in computations.get(name, []):
        _add_line(result, computations, line, times)


def _add_line(result: Estimate, computations: dict[str, list[str]], line: str, times: int) -> None:
    match = _INSTRUCTION.match(line)
    if not match:
        return
    instruction, shape, opcode = match.groups()
    if opcode == "while":
        parts = dict(re.findall(r"(condition|body)=%?([\w.\-]+)", line))
        _add(result, computations, parts["body"], times * _trips(computations[parts["condition"]]))
        return
    if opcode in ("call", "conditional", "async-start"):
        for part in re.findall(r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)", line):
            _add(result, computations, part, times)
    cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
    takes_time = opcode in ("fusion", "gather", "scatter") or 'custom_call_target="tpu_custom_call"' in line
    result.without_estimate += times * (takes_time and not cycles)
    if cycles:
        source = re.search(r'op_name="([^"]*)"', line)
        key = instruction, opcode, shape, source[1] if source else ""
        result.costs[key] += times * int(cycles[1])
        result.cycles += times * int(cycles[1])


def _trips(condition: list[str]) -> int:
    """Returns the number of iterations of a loop; JAX counts from 0 to a constant."""
    limits = [int(n) for n in re.findall(r" = s32\[\]\S* constant\((\d+)\)", "\n".join(condition))]
    return max(limits, default=1)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of each computation by its name, and the name of the entry."""
    computations, entry, lines = {}, "", []
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" ") and (head := _COMPUTATION.match(line)):
            lines = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    return computations, entry
