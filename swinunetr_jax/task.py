"""What a network was trained for: the meaning of its channels and outputs, and how a scan must be prepared for it.

It travels with a checkpoint, so that `predict` needs no options.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swinunetr_jax.config import SIZE_MULTIPLE, SwinUNETRConfig
from swinunetr_jax.errors import InputError

INTENSITIES = ("zscore", "window", "none")


@dataclass(frozen=True, kw_only=True)
class Output:
    """One output channel: its name, the label value it is written as, and (regions) the label values it is made of."""

    name: str
    value: int
    members: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Task:
    """How to use a network.

    Args:
        kind: "regions" (overlapping, a sigmoid and a threshold for each channel) or "classes" (one of them per voxel).
        outputs: one per output channel. Regions are painted in the order of `paint`, later over earlier.
        paint: order of painting regions, as channel numbers; empty for classes.
        channels: names of the input channels in the network's order, empty where unknown.
        orientation: axes the network was trained in, such as "LPS"; None takes scans as they are stored.
        intensity: "zscore" (per channel over non-zero voxels), "window" (clip to `window` and scale to 0 … 1) or "none".
        window: low and high intensity, for "window".
        roi: patch size to predict with, None for the default.
    """

    kind: str
    outputs: tuple[Output, ...]
    paint: tuple[int, ...] = ()
    channels: tuple[str, ...] = ()
    orientation: str | None = None
    intensity: str = "zscore"
    window: tuple[float, float] | None = None
    roi: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("regions", "classes"):
            raise InputError(f"`kind` must be 'regions' or 'classes', got {self.kind!r}.")
        if self.kind == "regions" and sorted(self.paint) != list(range(len(self.outputs))):
            raise InputError(f"`paint` must order the {len(self.outputs)} regions, got {self.paint!r}.")
        if any(not 0 <= output.value <= 255 for output in self.outputs):
            raise InputError("label values must lie in 0 … 255, the range of the uint8 label maps that are written.")
        if self.intensity not in INTENSITIES:
            raise InputError(f"`intensity` must be one of {', '.join(INTENSITIES)}, got {self.intensity!r}.")
        if (self.intensity == "window") != (self.window is not None):
            raise InputError("`window` (low and high) goes with the intensity 'window', and only with it.")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise InputError(f"`window` must hold a low value and a higher one, got {self.window}.")
        if self.orientation is not None and not _is_orientation(self.orientation):
            raise InputError(f"`orientation` must name one direction per axis, such as 'RAS' or 'LPS', got {self.orientation!r}.")
        if self.roi is not None and any(size < SIZE_MULTIPLE or size % SIZE_MULTIPLE for size in self.roi):
            raise InputError(f"`roi` must hold multiples of {SIZE_MULTIPLE}, got {self.roi}.")

    def check(self, config: SwinUNETRConfig) -> None:
        """Raises InputError unless the channels and outputs are as many as the network's."""
        for name, got, want in (
            ("channels", len(self.channels) or config.in_channels, config.in_channels),
            ("outputs", len(self.outputs), config.out_channels),
        ):
            if got != want:
                raise InputError(f"the task names {got} {name}, the network has {want}.")

    def with_et_label(self, label: int) -> "Task":
        """The same regions with the enhancing tumour under another label: 4 up to BraTS 2022, 3 from 2023. Others stay as they are."""
        old = next((output.value for output in self.outputs if output.name == "ET" and output.value in (3, 4)), label)

        def swap(value: int) -> int:
            return label if value == old else value

        outputs = tuple(Output(name=o.name, value=swap(o.value), members=tuple(map(swap, o.members))) for o in self.outputs)
        return dataclasses.replace(self, outputs=outputs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Task":
        """The reverse of `to_dict`, JSON included."""
        try:
            outputs = tuple(Output(name=o["name"], value=o["value"], members=tuple(o["members"])) for o in values["outputs"])
            lists = {k: tuple(values[k]) for k in ("paint", "channels", "window", "roi") if values.get(k) is not None}
            return cls(**{**values, **lists, "outputs": outputs})
        except (KeyError, TypeError) as error:
            raise InputError(f"the description of the task cannot be read: {error}.") from error

    @classmethod
    def brats(cls, *, et_label: int = 4, channels: tuple[str, ...] = ("FLAIR", "T1ce", "T1", "T2"), **changes: Any) -> "Task":
        """BraTS: tumour core, whole tumour, enhancing tumour; the enhancing tumour is label 4 up to 2022 and 3 from 2023."""
        outputs = (
            Output(name="TC", value=1, members=(1, et_label)),
            Output(name="WT", value=2, members=(1, 2, et_label)),
            Output(name="ET", value=et_label, members=(et_label,)),
        )
        fields = {"kind": "regions", "outputs": outputs, "paint": (1, 0, 2), "channels": channels, "orientation": "LPS"}
        return cls(**{**fields, **changes})

    @classmethod
    def classes(cls, count: int, names: tuple[str, ...] = (), **changes: Any) -> "Task":
        """Exclusive classes 0 … count - 1, the first the background."""
        names = names or ("background", *(f"class {value}" for value in range(1, count)))
        outputs = tuple(Output(name=name, value=value) for value, name in enumerate(names))
        return cls(**{"kind": "classes", "outputs": outputs, **changes})

    @classmethod
    def default(cls, config: SwinUNETRConfig) -> "Task":
        """For a checkpoint that says nothing: 4 inputs and 3 outputs are BraTS, anything else is classes."""
        if (config.in_channels, config.out_channels) == (4, 3) and config.spatial_dims == 3:
            return cls.brats()
        return cls.classes(config.out_channels)


def _is_orientation(codes: str) -> bool:
    pairs = [{"R", "L"}, {"A", "P"}, {"S", "I"}]
    return len(codes) == 3 and all(len(pair & set(codes)) == 1 for pair in pairs)
