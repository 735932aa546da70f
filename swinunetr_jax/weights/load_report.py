"""The report of a load: how much of each part of the network was read, adapted or initialised, and which tensors were ignored."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from swinunetr_jax.weights.weight_file import printable


@dataclass
class LoadReport:
    """A record of what a load did with each tensor.

    Attributes:
        read: our names of the parameters that were read as they are.
        adapted: our names of the parameters that were adapted to another number of channels, with a description of how.
        initialized: our names of the parameters that were initialised randomly.
        ignored: the file's names of the tensors that were not used.
        output_layer: why the output layer was initialised randomly although the decoder was read, or "".
    """

    read: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    initialized: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    output_layer: str = ""

    def __str__(self) -> str:
        """Returns a table with a row for each part of the network and a column for each action that was taken."""
        kinds = {"read": self.read, "adapted": list(self.adapted), "initialized": self.initialized}
        counts = {kind: Counter(map(_group, names)) for kind, names in kinds.items() if names}
        groups = sorted(set().union(*counts.values()), key=_order)
        lines = [f"{'part':<16}" + "".join(f"{kind:>13}" for kind in counts)]
        lines += [f"{group:<16}" + "".join(f"{counts[kind][group]:>13}" for kind in counts) for group in groups]
        lines += [f"adapted {name}: {how}" for name, how in self.adapted.items()]
        if self.ignored:
            lines.append(f"ignored in the file: {summary(self.ignored)}")
        if self.output_layer:
            lines.append(f"out is initialised randomly: {self.output_layer}")
        return "\n".join(lines)

    def transfer(self, source: object, sizes: Mapping[str, int]) -> str:
        """Returns a line on what was taken from a file, and one on what was initialised and adapted.

        Args:
            source: the file.
            sizes: the size of every parameter of the network by name.
        """
        taken, every = (sum(sizes[name] for name in names) for names in ([*self.read, *self.adapted], sizes))
        first = (
            f"taken from {printable(source)}: {len(self.read) + len(self.adapted)} of {len(sizes)} tensors ({taken / 1e6:.1f} M of "
            f"{every / 1e6:.1f} M parameters)"
        )
        if self.ignored:
            first += f"; ignored: {summary(self.ignored)}"
        parts = sorted(set(map(_group, self.initialized)), key=_order)
        reasons = {"out": f"out ({self.output_layer})"} if self.output_layer else {}
        second = f"initialised randomly: {', '.join(reasons.get(part, part) for part in parts) or 'nothing'}"
        for how in dict.fromkeys(self.adapted.values()):
            layers = ", ".join(name.removesuffix(".kernel") for name, own in self.adapted.items() if own == how)
            second += f"; adapted: {layers} ({how})"
        return f"{first}\n{second}"


def summary(names: list[str] | tuple[str, ...]) -> str:
    """Returns the number of names for each first part, such as "conv (3), rotation_head (2)"."""
    parts = Counter(name.split(".")[0] for name in names)
    listed = [f"{printable(part)} ({parts[part]})" for part in sorted(parts)]
    return ", ".join(listed[:12]) + (f" and {len(listed) - 12} more" if len(listed) > 12 else "")


def _group(path: str) -> str:
    """Returns the part of the network that a parameter belongs to, such as "swin.stages.0" or "decoder1"."""
    parts = path.split(".")
    return ".".join(parts[: 3 if parts[1] in ("stages", "convs") else 2] if parts[0] == "swin" else parts[:1])


def _order(group: str) -> tuple[int, str]:
    kinds = ("swin", "encoder", "decoder", "out")
    return next((i for i, kind in enumerate(kinds) if group.startswith(kind)), len(kinds)), group
