"""Reads from the text of a program compiled for a GPU how many bytes it moves, and which kernels are next to its convolutions.

Each instruction of the entry computation is a kernel or a library call (bitcasts and similar instructions are free), which reads its
operands from memory and writes its results to memory. The text contains bytes but no times.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any

# The bytes of an element of each type; other types count as 0 bytes.
BYTES = {
    "f64": 8,
    "s64": 8,
    "u64": 8,
    "f32": 4,
    "s32": 4,
    "u32": 4,
    "bf16": 2,
    "f16": 2,
    "s16": 2,
    "u16": 2,
    "s8": 1,
    "u8": 1,
    "pred": 1,
}
FREE = {"parameter", "constant", "bitcast", "get-tuple-element", "tuple", "after-all"}
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\((?:[^()]|\([^()]*\))*\)|\S+) ([\w\-]+)\((.*)$")
SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclass
class Instruction:
    """An instruction, with the types and shapes of its results, the names of its operands and users, and the rest of its line."""

    name: str
    shapes: list[tuple[str, tuple[int, ...]]]
    opcode: str
    operands: list[str]
    rest: str
    users: list[str] = field(default_factory=list)

    @property
    def sizes(self) -> list[int]:
        """The bytes of each result."""
        return [BYTES.get(kind, 0) * math.prod(dims) for kind, dims in self.shapes]

    @property
    def is_conv(self) -> bool:
        return "__cudnn$conv" in self.rest

    @property
    def called(self) -> str | None:
        match = re.search(r"calls=%?([\w.\-]+)", self.rest)
        return match[1] if match else None


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Returns the instructions of every computation by name, and the name of the entry."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head and not line.startswith(" "):
            current = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif current is not None and (match := INSTRUCTION.match(line)):
            name, shape, opcode, rest = match.groups()
            shapes = [(kind, tuple(int(n) for n in dims.split(",") if n)) for kind, dims in SHAPE.findall(shape)]
            operand_text = re.split(r"\)(?:,|$)", rest, maxsplit=1)[0]
            current[name] = Instruction(name, shapes, opcode, re.findall(r"%([\w.\-]+)", operand_text), rest)
    for instructions in computations.values():
        for instruction in instructions.values():
            for operand in instruction.operands:
                if operand in instructions:
                    instructions[operand].users.append(instruction.name)
    return computations, entry


def read(text: str) -> dict[str, Any]:
    """Returns the facts about a program for a row of the report."""
    computations, entry_name = parse(text)
    entry = computations[entry_name]
    kernels = [i for i in entry.values() if i.opcode not in FREE]
    convs = [i for i in kernels if i.is_conv]
    transposes = {name for conv in convs for name in _neighbours(conv, entry) if _transposes_a_volume(entry[name], computations)}
    attention_weights = [
        (kind, dims)
        for i in kernels
        for kind, dims in i.shapes
        if len(dims) >= 3 and dims[-1] >= 128 and abs(dims[-1] - dims[-2]) <= 8 and math.prod(dims) > 40 * dims[-1] * dims[-2]
    ]
    size, shape = max((size, f"{k}[{','.join(map(str, d))}]") for i in kernels for size, (k, d) in zip(i.sizes, i.shapes))
    return {
        "convolutions": len(convs),
        "transposes_next_to_convolutions": len(transposes),
        "attention_weights_in_memory": len(attention_weights),
        "largest_result_mb": size / 1e6,
        "largest_result": shape,
        "kernels": len(kernels),
        "traffic_gb": sum(traffic(i, entry) for i in kernels) / 1e9,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows of GPU programs as a Markdown table."""
    columns = {
        "target": lambda row: row["target"],
        "work": lambda row: row["work"],
        "size": lambda row: f"{row['size']}³",
        "temporaries GB": lambda row: f"{row['temporaries_gb']:.2f}",
        "arguments GB": lambda row: f"{row['held_gb']:.2f}",
        "largest result": lambda row: f"{row['largest_result']} {row['largest_result_mb']:.0f} MB",
        "convolutions": lambda row: str(row["convolutions"]),
        "transposes next to them": lambda row: str(row["transposes_next_to_convolutions"]),
        "t × t tensors": lambda row: str(row["attention_weights_in_memory"]),
        "kernels": lambda row: str(row["kernels"]),
        "GB moved at most": lambda row: f"{row['traffic_gb']:.1f}",
    }
    lines = [columns.keys(), ["---"] * len(columns), *([cell(row) for cell in columns.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def traffic(instruction: Instruction, entry: dict[str, Instruction]) -> int:
    """Returns the bytes of all operands and results, an upper bound, since a kernel may read only a part of an operand."""
    read_bytes = 0
    for operand in dict.fromkeys(instruction.operands):
        if operand in entry:
            read_bytes += sum(entry[operand].sizes)
    return read_bytes + sum(instruction.sizes)


def _neighbours(conv: Instruction, entry: dict[str, Instruction]) -> set[str]:
    """Returns the kernels that compute a convolution's operands and those that read its results, skipping free instructions."""
    kernels, visited = set(), set()
    todo = [(name, "operands") for name in conv.operands] + [(name, "users") for name in conv.users]
    while todo:
        name, side = todo.pop()
        if name in visited or name not in entry:
            continue
        visited.add(name)
        if entry[name].opcode in FREE:
            todo += [(other, side) for other in getattr(entry[name], side)]
        else:
            kernels.add(name)
    return kernels


def _transposes_a_volume(instruction: Instruction, computations: dict[str, dict[str, Instruction]]) -> bool:
    """Returns whether a kernel moves the channels of a volume; a depth-to-space moves whole voxels and does not count."""
    body = computations[instruction.called].values() if instruction.called in computations else [instruction]
    return any(i.opcode in ("transpose", "copy") and any(map(_is_volume, i.shapes)) and not _keeps_last(i) for i in body)


def _is_volume(shape: tuple[str, tuple[int, ...]]) -> bool:
    """Returns whether a shape is a grid of at least 12³ voxels with channels; the kernel of a convolution has smaller axes."""
    return len(shape[1]) >= 4 and sum(n >= 12 for n in shape[1]) >= 4


def _keeps_last(transpose: Instruction) -> bool:
    order = re.search(r"dimensions={([\d,]*)}", transpose.rest)
    return order is not None and order[1].split(",")[-1] == str(len(transpose.shapes[0][1]) - 1)
