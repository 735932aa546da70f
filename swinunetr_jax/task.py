"""What a network was trained for: the meaning of its channels and outputs, and how a scan must be prepared for it.

It travels with a checkpoint, so that `predict` needs no options.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from swinunetr_jax.config import SIZE_MULTIPLE, SwinUNETRConfig
from swinunetr_jax.data import brats
from swinunetr_jax.errors import InputError

INTENSITIES = ("zscore", "window", "none")
IGNORE = "ignore"  # nnU-Net's name in a dataset.json for voxels that nobody annotated


@dataclass(frozen=True, kw_only=True)
class Output:
    """One output channel: its name, the label value it is written as, and (regions) the label values it is made of."""

    name: str
    value: int
    members: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"`name` of an output must be text, got {self.name!r}.")
        _set_tuple(self, "members", "label values", _is_label)
        if not _is_label(self.value):
            raise InputError(
                f"`value` of {self.name} must be an integer in 0 … 255, the range of the uint8 label maps that are written, got "
                f"{self.value!r}."
            )
        object.__setattr__(self, "value", int(self.value))


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
        spacing: voxel size in mm along each axis of `orientation`, to which scans are resampled; None takes them as stored.
    """

    kind: str
    outputs: tuple[Output, ...]
    paint: tuple[int, ...] = ()
    channels: tuple[str, ...] = ()
    orientation: str | None = None
    intensity: str = "zscore"
    window: tuple[float, float] | None = None
    roi: tuple[int, ...] | None = None
    spacing: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("regions", "classes"):
            raise InputError(f"`kind` must be 'regions' or 'classes', got {self.kind!r}.")
        _set_tuple(self, "outputs", "Output, one for each output channel", lambda value: isinstance(value, Output))
        _set_tuple(self, "paint", "channel numbers", _is_int)
        _set_tuple(self, "channels", "names", lambda value: isinstance(value, str) and value != "")
        if self.window is not None:
            _set_tuple(self, "window", "two intensities, a low and a high one", _is_number)
        if self.roi is not None:
            _set_tuple(self, "roi", f"multiples of {SIZE_MULTIPLE}", _is_size)
        if self.spacing is not None:
            _set_tuple(self, "spacing", "three voxel sizes in mm", _is_number)
            if len(self.spacing) != 3 or not all(0 < size < math.inf for size in self.spacing):
                raise InputError(f"`spacing` must hold three voxel sizes in mm, all above 0, got {self.spacing}.")
        names = [output.name for output in self.outputs]
        if not names or len(set(names)) < len(names):
            raise InputError(f"`outputs` must hold one or more, each with a name of its own, got {names}.")
        if self.kind == "classes" and len(names) < 2:
            raise InputError("`outputs` must hold two classes or more, as they exclude one another, got 1: make it a region.")
        if sorted(self.paint) != (list(range(len(self.outputs))) if self.kind == "regions" else []):
            want = f"order the {len(self.outputs)} regions" if self.kind == "regions" else "be empty for classes"
            raise InputError(f"`paint` must {want}, got {self.paint!r}.")
        if self.kind == "regions":
            self._check_region_values()
        if self.intensity not in INTENSITIES:
            raise InputError(f"`intensity` must be one of {', '.join(INTENSITIES)}, got {self.intensity!r}.")
        if (self.intensity == "window") != (self.window is not None):
            raise InputError(
                "`window` (low and high) goes with the intensity 'window', and only with it: got intensity "
                f"{self.intensity!r} and window {self.window}."
            )
        if self.window is not None and not (len(self.window) == 2 and -math.inf < self.window[0] < self.window[1] < math.inf):
            raise InputError(f"`window` must hold a low value and a higher one, got {self.window}.")
        if self.orientation is not None and not _is_orientation(self.orientation):
            raise InputError(f"`orientation` must name one direction per axis, such as 'RAS' or 'LPS', got {self.orientation!r}.")

    def check(self, config: SwinUNETRConfig) -> None:
        """Raises InputError unless the channels and outputs are as many as the network's."""
        for name, got, want in (
            ("channels", len(self.channels) or config.in_channels, config.in_channels),
            ("outputs", len(self.outputs), config.out_channels),
        ):
            if got != want:
                raise InputError(f"the task names {got} {name}, the network has {want}: name as many.")
        if self.roi is not None:
            config.check_spatial(self.roi)

    def _check_region_values(self) -> None:
        """A label map must say which region a voxel is in, so each region needs a value of its own among its members."""
        taken: dict[int, str] = {}
        for output in self.outputs:
            first = taken.setdefault(output.value, output.name)
            if output.value == 0 or first != output.name:
                other = "the background" if output.value == 0 else first
                raise InputError(
                    f"`value` of {output.name} is {output.value}, that of {other}: give each region a value of its own."
                )
            if output.members and output.value not in output.members:
                raise InputError(
                    f"`value` of {output.name} is {output.value}, which is not among its `members` {output.members}: a region is "
                    "written as one of the labels that it is made of."
                )

    def labels_of(self, output: Output) -> tuple[int, ...]:
        """The label values that count as an output in a label map: a region's members, else its value alone."""
        return output.members if self.kind == "regions" and output.members else (output.value,)

    @property
    def et_label(self) -> int | None:
        """The label of the output ET where BraTS data of another year may use the other number for it: 4 up to 2022, 3 from 2023.

        None where the two numbers cannot be confused: no output is called ET, its label is neither 3 nor 4, or both are labels of
        this task, each with a meaning of its own (BraTS 2024: enhancing tumour 3, resection cavity 4).
        """
        used = set(brats.ET_LABELS) & {value for output in self.outputs for value in (output.value, *output.members)}
        value = next((output.value for output in self.outputs if output.name == "ET"), None)
        return value if used == {value} else None

    def with_et_label(self, label: int) -> "Task":
        """The same outputs with the enhancing tumour as label 3 or 4; this task itself where `et_label` is None.

        Raises:
            InputError: `label` is neither 3 nor 4.
        """
        if label not in brats.ET_LABELS:
            raise InputError(f"the enhancing tumour's label is {label!r}, expected 4 (BraTS up to 2022) or 3 (since 2023).")
        old = self.et_label
        if old is None:
            return self

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
            outputs = tuple(Output(**output) for output in values["outputs"])
            return cls(**{**values, "outputs": outputs})
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise InputError(
                f"the description of the task cannot be read ({error}): expected what `Task.to_dict` gives."
            ) from error

    @classmethod
    def brats(cls, *, et_label: int = 4, channels: tuple[str, ...] = brats.CHANNELS, **changes: Any) -> "Task":
        """BraTS: tumour core, whole tumour, enhancing tumour; the enhancing tumour is label 4 up to 2022 and 3 from 2023."""
        written = {"TC": 1, "WT": 2, "ET": et_label}  # each region is written as the label that no smaller region has
        outputs = tuple(Output(name=n, value=written[n], members=members) for n, members in brats.regions(et_label).items())
        fields = {"kind": "regions", "outputs": outputs, "paint": (1, 0, 2), "channels": channels, "orientation": "LPS"}
        return cls(**{**fields, **changes})

    @classmethod
    def classes(cls, count: int, names: tuple[str, ...] = (), **changes: Any) -> "Task":
        """Exclusive classes 0 … count - 1, the first the background."""
        names = names or ("background", *(f"class {value}" for value in range(1, count)))
        if len(names) != count:
            raise InputError(f"`names` must name {count} classes, got {len(names)}: {', '.join(names)}.")
        outputs = tuple(Output(name=name, value=value) for value, name in enumerate(names))
        return cls(**{"kind": "classes", "outputs": outputs, **changes})

    @classmethod
    def from_labels(
        cls, labels: Mapping[str, int | list[int]] | None, order: tuple[int, ...] | None = None, **changes: Any
    ) -> "Task | None":
        """What a dataset.json describes, None where it names no label: regions where a label is a list of values, else classes.

        `order` is nnU-Net's regions_class_order, the values that regions are written as and the order in which they are painted;
        without it, larger regions are painted first, each as a label that no later one has. A label `ignore` is no output.

        Raises:
            InputError: a region would be written as a label that is not its own.
        """
        values = {name: value for name, value in (labels or {}).items() if value not in (0, [0]) and name != IGNORE}
        if not values:
            return None
        if not any(isinstance(value, list) for value in values.values()):
            ordered = sorted(values.items(), key=lambda item: item[1])
            outputs = [Output(name="background", value=0), *(Output(name=name, value=value) for name, value in ordered)]
            return cls(**{"kind": "classes", "outputs": tuple(outputs), **changes})
        members = [tuple(value) if isinstance(value, list) else (value,) for value in values.values()]
        paint = tuple(range(len(members)))
        if order is not None and len(order) == len(members):
            written = list(order)
        else:
            paint = tuple(sorted(paint, key=lambda region: -len(members[region])))
            written = [value for value, *_ in members]
            later: set[int] = set()
            for region in reversed(paint):
                written[region] = next((value for value in members[region] if value not in later), written[region])
                later |= set(members[region])
        outputs = [Output(name=name, value=value, members=inside) for name, value, inside in zip(values, written, members)]
        return cls(**{"kind": "regions", "outputs": tuple(outputs), "paint": paint, **changes})

    @classmethod
    def default(cls, config: SwinUNETRConfig) -> "Task":
        """For a checkpoint that says nothing: 4 inputs and 3 outputs are BraTS, one output is a region, anything else is classes."""
        if (config.in_channels, config.out_channels) == (4, 3) and config.spatial_dims == 3:
            return cls.brats()
        if config.out_channels == 1:  # a softmax over one channel would be 1 everywhere
            return cls(kind="regions", outputs=(Output(name="foreground", value=1, members=(1,)),), paint=(0,))
        return cls.classes(config.out_channels)


def _is_int(value: Any) -> bool:
    """Also for integers of numpy, which are kept as Python's."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_label(value: Any) -> bool:
    return _is_int(value) and 0 <= value <= 255


def _is_size(value: Any) -> bool:
    return _is_int(value) and value > 0 and value % SIZE_MULTIPLE == 0


def _set_tuple(owner: Any, name: str, want: str, fits: Callable[[Any], bool]) -> None:
    """Keeps a field that was given as any sequence as a tuple, so that owners are equal by value."""
    values = getattr(owner, name)
    if (
        not isinstance(values, (tuple, list, np.ndarray))
        or (isinstance(values, np.ndarray) and values.ndim != 1)
        or not all(map(fits, values))
    ):
        raise InputError(f"`{name}` must be a sequence of {want}, got {values!r}.")
    object.__setattr__(owner, name, tuple(map(_plain, values)))  # the dataclass is frozen once it is built


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's, which JSON can hold."""
    return value.item() if isinstance(value, np.generic) else value


def _is_orientation(codes: Any) -> bool:
    pairs = [{"R", "L"}, {"A", "P"}, {"S", "I"}]
    return isinstance(codes, str) and len(codes) == 3 and all(len(pair & set(codes)) == 1 for pair in pairs)
