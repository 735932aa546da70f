"""What a load did: for each part of the network how much was read, left in the file, adapted or made up."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class LoadReport:
    """Names by what became of them; `read`, `adapted` and `made` are our paths, `left` are the file's names."""

    read: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = {"read": self.read, "adapted": list(self.adapted), "made up": self.made}
        counts = {kind: Counter(map(_group, names)) for kind, names in kinds.items()}
        groups = sorted(set().union(*counts.values()), key=_order)
        lines = [f"{'part':<16}" + "".join(f"{kind:>9}" for kind in kinds)]
        lines += [f"{group:<16}" + "".join(f"{counts[kind][group]:>9}" for kind in kinds) for group in groups]
        lines += [f"adapted {name}: {how}" for name, how in self.adapted.items()]
        if self.left:
            parts = Counter(name.split(".")[0] for name in self.left)
            lines.append(f"left in the file: {', '.join(f'{part} ({parts[part]})' for part in sorted(parts))}")
        return "\n".join(lines + self.notes)


def _group(path: str) -> str:
    parts = path.split(".")
    return ".".join(parts[: 3 if parts[1] in ("stages", "convs") else 2] if parts[0] == "swin" else parts[:1])


def _order(group: str) -> tuple[int, str]:
    kinds = ("swin", "encoder", "decoder", "out")
    return next(i for i, kind in enumerate(kinds) if group.startswith(kind)), group
