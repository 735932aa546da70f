"""What a load did: for each part of the network how much was read, adapted or initialized, and what in the file was ignored."""

from collections import Counter
from dataclasses import dataclass, field

from swinunetr_jax.weights.weight_file import shown


@dataclass
class LoadReport:
    """Names by what became of them; `read`, `adapted` and `initialized` are our paths, `ignored` are the file's names."""

    read: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    initialized: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """A table of the parts, with a column only for what happened."""
        kinds = {"read": self.read, "adapted": list(self.adapted), "initialized": self.initialized}
        counts = {kind: Counter(map(_group, names)) for kind, names in kinds.items() if names}
        groups = sorted(set().union(*counts.values()), key=_order)
        lines = [f"{'part':<16}" + "".join(f"{kind:>13}" for kind in counts)]
        lines += [f"{group:<16}" + "".join(f"{counts[kind][group]:>13}" for kind in counts) for group in groups]
        lines += [f"adapted {name}: {how}" for name, how in self.adapted.items()]
        if self.ignored:
            lines.append(f"ignored in the file: {summary(self.ignored)}")
        return "\n".join(lines + self.notes)


def summary(names: list[str] | tuple[str, ...]) -> str:
    """Names of a file by their first part, such as "conv (3), rotation_head (2)"."""
    parts = Counter(name.split(".")[0] for name in names)
    some = [f"{shown(part)} ({parts[part]})" for part in sorted(parts)]
    return ", ".join(some[:12]) + (f" and {len(some) - 12} more" if len(some) > 12 else "")


def _group(path: str) -> str:
    parts = path.split(".")
    return ".".join(parts[: 3 if parts[1] in ("stages", "convs") else 2] if parts[0] == "swin" else parts[:1])


def _order(group: str) -> tuple[int, str]:
    kinds = ("swin", "encoder", "decoder", "out")
    return next((i for i, kind in enumerate(kinds) if group.startswith(kind)), len(kinds)), group
