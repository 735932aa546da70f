"""The task of a network: the meaning of its channels and outputs, and how a scan must be prepared for it.

A task is stored with each checkpoint, so that `predict` needs no options.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from swinunetr_jax.config import SIZE_MULTIPLE
from swinunetr_jax.data import brats
from swinunetr_jax.data.scan_range import ScanRange
from swinunetr_jax.errors import InputError
from swinunetr_jax.fields import is_int, is_number, set_tuple
from swinunetr_jax.output import Output, is_label

KINDS = ("regions", "classes", "images")
INTENSITIES = ("zscore", "window", "none")
IGNORE = "ignore"  # nnU-Net's name in a dataset.json for voxels that were not annotated


class NetworkShape(Protocol):
    """The fields of a network's configuration that a task uses."""

    @property
    def in_channels(self) -> int: ...

    @property
    def out_channels(self) -> int: ...

    @property
    def spatial_dims(self) -> int: ...

    def check_spatial(self, shape: tuple[int, ...], /) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """The meaning of a network's channels and outputs, and the preparation of its scans.

    Args:
        kind: "regions" (they may overlap, and each channel has a sigmoid and a threshold), "classes" (one of them per voxel), or "images"
            (the network was pre-trained to return images, one output per input channel, and cannot segment).
        outputs: one per output channel.
        paint: the channel numbers of the regions in the order in which they are written into a label map, where later regions overwrite
            earlier ones; empty for classes.
        channels: the names of the input channels in the network's order, empty if unknown.
        orientation: the directions of the axes, such as "LPS"; None keeps the axes of each scan.
        intensity: "zscore" (per channel over non-zero voxels), "window" (clip to `window` and scale to 0 … 1) or "none".
        window: the low and the high intensity, for "window".
        roi: the size of the windows in prediction, None for the default.
        spacing: the voxel size in mm along each axis of `orientation` to which scans are resampled; None keeps that of each scan.
        ignore: the label of voxels that were not annotated, which affect neither the loss nor the scores of validation; None if there is
            no such label.
        scans: the range of the scans that the network was trained on; None if it is unknown. Tasks that differ only in it are equal.
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
    ignore: int | None = None
    scans: ScanRange | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"`kind` must be one of {', '.join(KINDS)}, got {self.kind!r}.")
        set_tuple(self, "outputs", "Output, one for each output channel", lambda value: isinstance(value, Output))
        set_tuple(self, "paint", "channel numbers", is_int)
        set_tuple(self, "channels", "names", lambda value: isinstance(value, str) and value != "")
        if self.window is not None:
            set_tuple(self, "window", "two intensities, a low and a high one", is_number)
        if self.roi is not None:
            set_tuple(self, "roi", f"multiples of {SIZE_MULTIPLE}", _is_size)
        if self.spacing is not None:
            set_tuple(self, "spacing", "three voxel sizes in mm", is_number)
            if len(self.spacing) != 3 or not all(0 < size < math.inf for size in self.spacing):
                raise InputError(f"`spacing` must hold three voxel sizes in mm, all above 0, got {self.spacing}.")
        if self.ignore is not None:
            self._check_ignore(self.ignore)
            object.__setattr__(self, "ignore", int(self.ignore))
        if not isinstance(self.scans, ScanRange | None):
            raise InputError(f"`scans` must be a ScanRange or None, got {self.scans!r}.")
        names = [output.name for output in self.outputs]
        if not names or len(set(names)) < len(names):
            raise InputError(f"`outputs` must hold at least one output, all with different names, got {names}.")
        if self.kind == "classes" and len(names) < 2:
            raise InputError(
                '`outputs` holds one class, expected at least two, of which each voxel has one: use the kind "regions" for one output.'
            )
        if sorted(self.paint) != (list(range(len(self.outputs))) if self.kind == "regions" else []):
            want = f"order the {len(self.outputs)} regions" if self.kind == "regions" else f"be empty for {self.kind}"
            raise InputError(f"`paint` must {want}, got {self.paint!r}.")
        if self.kind == "regions":
            self._check_region_values()
        if self.intensity not in INTENSITIES:
            raise InputError(f"`intensity` must be one of {', '.join(INTENSITIES)}, got {self.intensity!r}.")
        if (self.intensity == "window") != (self.window is not None):
            raise InputError(
                "`window` (low and high) must be given with the intensity 'window' and only then: got intensity "
                f"{self.intensity!r} and window {self.window}."
            )
        if self.window is not None and not (len(self.window) == 2 and -math.inf < self.window[0] < self.window[1] < math.inf):
            raise InputError(f"`window` must hold a low value and a higher one, got {self.window}.")
        if self.orientation is not None and not _is_orientation(self.orientation):
            raise InputError(f"`orientation` must name one direction per axis, such as 'RAS' or 'LPS', got {self.orientation!r}.")

    def check(self, config: NetworkShape) -> None:
        """Raises InputError unless the numbers of channels and outputs, and the window size, fit the network."""
        for name, got, want in (
            ("channels", len(self.channels) or config.in_channels, config.in_channels),
            ("outputs", len(self.outputs), config.out_channels),
        ):
            if got != want:
                raise InputError(f"the task names {got} {name}, but the network has {want}: give one name for each.")
        if self.roi is not None:
            config.check_spatial(self.roi)

    def _check_region_values(self) -> None:
        """Raises InputError unless each region has a different value, which is one of its members, so that label maps are unambiguous."""
        used: dict[int, str] = {}
        for output in self.outputs:
            first = used.setdefault(output.value, output.name)
            if output.value == 0 or first != output.name:
                other = "the background" if output.value == 0 else first
                raise InputError(
                    f"`value` of {output.name} is {output.value}, the value of {other}: give each region a different value."
                )
            if output.members and output.value not in output.members:
                raise InputError(
                    f"`value` of {output.name} is {output.value}, which is not among its `members` {output.members}: a region "
                    "must be written as one of the labels that it consists of."
                )

    def _check_ignore(self, ignore: int) -> None:
        """Raises InputError unless `ignore` is a label that neither the background nor an output has."""
        if not is_label(ignore) or ignore == 0:
            raise InputError(f"`ignore` must be a label in 1 … 255, because 0 is the background, got {ignore!r}.")
        for output in self.outputs:
            if ignore in (output.value, *self.labels_of(output)):
                raise InputError(
                    f"`ignore` is {ignore}, which is a label of {output.name}: use a separate label for ignored voxels."
                )

    def labels_of(self, output: Output) -> tuple[int, ...]:
        """Returns the labels that belong to an output in a label map: the members of a region, otherwise its value."""
        return output.members if self.kind == "regions" and output.members else (output.value,)

    @property
    def et_label(self) -> int | None:
        """The label of the enhancing tumour (the output ET), if data sets of other years may use another label for it.

        BraTS uses 4 up to 2022 and 3 since 2023. The value is None if the two labels cannot be confused: no output is called ET, its label
        is neither 3 nor 4, or both are labels of this task with different meanings (BraTS 2024: enhancing tumour 3, resection cavity 4).
        """
        used = set(brats.ET_LABELS) & {value for output in self.outputs for value in (output.value, *output.members)}
        value = next((output.value for output in self.outputs if output.name == "ET"), None)
        return value if used == {value} else None

    def with_et_label(self, label: int) -> "Task":
        """Returns a task in which the enhancing tumour has this label, or this task itself if `et_label` is None.

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

        outputs = tuple(
            dataclasses.replace(output, value=swap(output.value), members=tuple(map(swap, output.members)))
            for output in self.outputs
        )
        return dataclasses.replace(self, outputs=outputs)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values.

        `ignore` and `scans` are omitted if they are None, and a `code` if it is empty, as earlier versions have stored tasks.
        """
        values = dataclasses.asdict(self)
        for output in values["outputs"]:
            if not output["code"]:
                del output["code"]
        return {name: value for name, value in values.items() if value is not None or name not in ("ignore", "scans")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Task":
        """Returns the task that the result of `to_dict` describes. Raises InputError if it does not describe a task."""
        try:
            outputs = tuple(Output(**output) for output in values["outputs"])
            scans = None if values.get("scans") is None else ScanRange.from_dict(values["scans"])
            return cls(**{**values, "outputs": outputs, "scans": scans})
        except InputError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise InputError(
                f"the description of the task cannot be read ({error}): expected the result of `Task.to_dict`."
            ) from error

    @classmethod
    def brats(cls, *, et_label: int = 4, channels: tuple[str, ...] = brats.CHANNELS, **changes: Any) -> "Task":
        """Returns the task of BraTS: tumour core, whole tumour and enhancing tumour, whose label is 4 up to 2022 and 3 since 2023."""
        written = {"TC": 1, "WT": 2, "ET": et_label}  # each region is written as the label that no smaller region has
        outputs = tuple(Output(name=n, value=written[n], members=members) for n, members in brats.regions(et_label).items())
        fields = {"kind": "regions", "outputs": outputs, "paint": (1, 0, 2), "channels": channels, "orientation": "LPS"}
        return cls(**{**fields, **changes})

    @classmethod
    def classes(cls, count: int, names: tuple[str, ...] = (), **changes: Any) -> "Task":
        """Returns a task of exclusive classes 0 … count - 1, of which the first is the background."""
        names = names or ("background", *(f"class {value}" for value in range(1, count)))
        if len(names) != count:
            raise InputError(f"`names` must name {count} classes, got {len(names)}: {', '.join(names)}.")
        outputs = tuple(Output(name=name, value=value) for value, name in enumerate(names))
        return cls(**{"kind": "classes", "outputs": outputs, **changes})

    @classmethod
    def images(cls, names: tuple[str, ...], **changes: Any) -> "Task":
        """Returns the task of a network that is pre-trained without labels and returns images of these channels."""
        outputs = tuple(Output(name=name, value=0) for name in names)
        return cls(**{"kind": "images", "outputs": outputs, **changes})

    @classmethod
    def from_labels(
        cls, labels: Mapping[str, int | list[int]] | None, order: tuple[int, ...] | None = None, **changes: Any
    ) -> "Task | None":
        """Returns the task that a dataset.json describes, or None if it names no label.

        Args:
            labels: name → value, or a list of values for a region. If there is any list, the task has regions, otherwise classes. The
                label `ignore` is not an output, but the task's `ignore`.
            order: nnU-Net's regions_class_order, the label that is written for each region, in the order of writing. By default, larger
                regions are written first, each with a label that no later region has.
            changes: further fields of the task.

        Raises:
            InputError: a region would be written as a label that does not belong to it, or `ignore` has several values or the value of an
                output.
        """
        values = {name: value for name, value in (labels or {}).items() if value not in (0, [0]) and name != IGNORE}
        if not values:
            return None
        changes = {"ignore": ignored_label(labels or {}), **changes}
        classes = {name: value for name, value in values.items() if not isinstance(value, list)}
        if len(classes) == len(values):
            ordered = sorted(classes.items(), key=lambda item: item[1])
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
        outputs = [
            Output(name=name, value=value, members=labels_of_region)
            for name, value, labels_of_region in zip(values, written, members)
        ]
        return cls(**{"kind": "regions", "outputs": tuple(outputs), "paint": paint, **changes})

    @classmethod
    def default(cls, config: NetworkShape) -> "Task":
        """Returns the task that is assumed for a checkpoint that does not state one.

        A network with 4 inputs and 3 outputs is assumed to be for BraTS, one with a single output for a region, and any other for classes.
        """
        if (config.in_channels, config.out_channels) == (4, 3) and config.spatial_dims == 3:
            return cls.brats()
        if config.out_channels == 1:  # a softmax over one channel would be 1 everywhere
            return cls(kind="regions", outputs=(Output(name="foreground", value=1, members=(1,)),), paint=(0,))
        return cls.classes(config.out_channels)


def ignored_label(labels: Mapping[str, int | list[int]]) -> int | None:
    """Returns the value of the label `ignore` of a dataset.json, or None if it has none. Raises InputError if it has several."""
    value = labels.get(IGNORE)
    if isinstance(value, list):
        if len(value) != 1:
            raise InputError(f"the label {IGNORE} of the data set's dataset.json is {value}, expected one value; merge them.")
        return value[0]
    return value


def _is_size(value: Any) -> bool:
    return is_int(value) and value > 0 and value % SIZE_MULTIPLE == 0


def _is_orientation(codes: Any) -> bool:
    pairs = [{"R", "L"}, {"A", "P"}, {"S", "I"}]
    return isinstance(codes, str) and len(codes) == 3 and all(len(pair & set(codes)) == 1 for pair in pairs)
