"""Reads the time estimates that the TPU compiler leaves in the text of a compiled program.

Every instruction that the compiler schedules carries `estimated_cycles`, its cost model's answer for the tiling and the layout it chose.
Their sum over the program, a loop's body as often as the loop runs, is the estimate here. It takes copies between layouts, padding of
channels to 128 lanes and a matrix unit that is only partly filled for what they cost, which `cost_analysis()["optimal_seconds"]` does
not: that is a roofline, per instruction the larger of operations and bytes at the chip's peaks. Copies that run beside other work
(`copy-start`, `copy-done`) carry no cycles and cost nothing in either.

Kernels written by hand (custom calls) and fusions of gathers and scatters carry no cycles: they are counted in `left_out`, so that an
estimate that leaves something out can be told from one that does not. `optimal_seconds` holds -1 for each kernel.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

# v5e: its peak of 197 TFLOP/s by the 131,072 operations a cycle of its matrix units. v6e: assumed, its peak does not tell; between two
# programs for a v6e only the ratio counts.
CYCLES_PER_SECOND = {"v5e": 1.5e9, "v6e": 1.75e9}

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(", re.MULTILINE)


@dataclass
class Estimate:
    """Cycles of a program and where they go."""

    cycles: int = 0
    left_out: int = 0
    """Instructions that do work and carry no cycles."""
    costs: Counter = field(default_factory=Counter)
    """Cycles by instruction: (name, opcode, shape with layout, source operation)."""

    def top(self, count: int) -> list[tuple[int, str]]:
        """The most expensive instructions, as (cycles, line)."""
        return [(cycles, " | ".join(key)) for key, cycles in self.costs.most_common(count)]


def estimate(text: str) -> Estimate:
    """The estimate of a whole compiled program."""
    computations, entry = _computations(text)
    result = Estimate()
    _add(result, computations, entry, 1)
    return result


def _add(result: Estimate, computations: dict[str, list[str]], name: str, times: int) -> None:
    for line in computations.get(name, []):
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        instruction, shape, opcode = match.groups()
        if opcode == "while":
            condition, body = (re.search(rf"{part}=%?([\w.\-]+)", line)[1] for part in ("condition", "body"))
            _add(result, computations, body, times * _trips(computations[condition]))
            continue
        if opcode in ("call", "conditional", "async-start"):
            for part in re.findall(r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)", line):
                _add(result, computations, part, times)
        cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
        silent = opcode in ("fusion", "gather", "scatter") or 'custom_call_target="tpu_custom_call"' in line
        result.left_out += times * (silent and not cycles)
        if cycles:
            source = re.search(r'op_name="([^"]*)"', line)
            key = instruction, opcode, shape, source[1] if source else ""
            result.costs[key] += times * int(cycles[1])
            result.cycles += times * int(cycles[1])


def _trips(condition: list[str]) -> int:
    """How often a loop runs: jax counts from 0 while below a constant."""
    limits = [int(n) for n in re.findall(r" = s32\[\]\S* constant\((\d+)\)", "\n".join(condition))]
    return max(limits, default=1)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by its name, and the entry's name."""
    found, entry, lines = {}, "", []
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" ") and (head := _COMPUTATION.match(line)):
            lines = found[head[2]] = []
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    return found, entry
