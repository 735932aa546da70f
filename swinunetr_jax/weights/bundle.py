"""Reads what a MONAI bundle says about its network: the arguments of the network, its task, and the order of patch merging.

    BUNDLE/configs/metadata.json                   channels, outputs, versions
    BUNDLE/configs/inference.json (or train.json)  network_def, preprocessing, inferer, postprocessing; also as .yaml or .yml
    BUNDLE/models/model.pt                         the weights, see weight_folder.py

The configuration is read as data. References such as "@feature_size" are looked up; expressions, which begin with "$", are never
evaluated, except for plain values such as "$False". What is not understood is said. A bundle of this project states everything in
metadata.json under "swinunetr_jax".
"""

import ast
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from swinunetr_jax import console, files
from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.output import Output
from swinunetr_jax.task import Task
from swinunetr_jax.weights.weight_file import printable

OURS = "swinunetr_jax"
_METADATA = "configs/metadata.json"
_CONFIGURATIONS = tuple(f"configs/{name}{end}" for name in ("inference", "train") for end in (".json", ".yaml", ".yml"))
_MAX_YAML_BYTES = 1 << 20  # the reader of YAML is slow
_REMEDY = "restore it, or give the weight file itself with --downsample"
# The fields that tensors do not determine. The others are inferred from the tensors, which a configuration cannot contradict.
_FIELDS = {
    "downsample",
    "window_size",
    "norm_name",
    "num_groups",
    "normalize",
    "drop_rate",
    "attn_drop_rate",
    "dropout_path_rate",
    "hyena_fft_padding",
    "hyena_grid_type",
    "hyena_l_cache",
    "hyena_mask_max_attenuation",
}
_FIRST_NEW_ORDER = (1, 5)  # the first version of MONAI whose "merging" is another order than that of all published weights
_LOADERS = {"LoadImaged", "EnsureChannelFirstd", "AddChanneld", "EnsureTyped", "ToTensord", "ToDeviced", "CastToTyped"}
_BRATS = {"tc": "TC", "tumorcore": "TC", "wt": "WT", "wholetumor": "WT", "et": "ET", "enhancingtumor": "ET"}
# No configuration nests references and lists deeper, or has more values in one argument; a hostile one has all of them.
_MAX_DEPTH, _MAX_VALUES = 8, 1000
_UNKNOWN = object()  # a value that is computed by an expression, or is missing


@dataclass(frozen=True)
class Bundle:
    """What a bundle says.

    Attributes:
        fields: the fields of the network's configuration that it states and that tensors do not determine.
        task: its task, or None if it does not state one.
        notes: sentences for the user on what was assumed, and on what was not understood.
    """

    fields: dict[str, Any]
    task: Task | None
    notes: tuple[str, ...] = ()

    def task_for(self, config: SwinUNETRConfig, path: Path) -> Task | None:
        """Returns the task if it fits the network, after printing the notes on the bundle at a path."""
        for note in self.notes:
            console.say(f"{console.literal(path)} is a MONAI bundle: {console.literal(note)}")
        if self.task is None:
            return None
        try:
            self.task.check(config)
        except InputError as error:
            console.warn(f"{console.literal(path)}: the task of the bundle is not used, because {console.literal(error)}")
            return None
        return self.task


def bundle_of(path: Path) -> Bundle | None:
    """Returns what the bundle at a path says, or None if the path is not the folder of a bundle, with the errors of `read_bundle`."""
    return read_bundle(path) if files.is_folder(path) else None


def read_bundle(folder: str | os.PathLike) -> Bundle | None:
    """Returns what the configuration of a bundle says, or None if the folder is not a bundle.

    Raises:
        InputError: a file is damaged, or the network is not a Swin UNETR.
    """
    folder = Path(folder)
    metadata = _read(folder / _METADATA) or {}
    configuration = next((found for name in _CONFIGURATIONS if (found := _read(folder / name))), {})
    if not metadata and not configuration:
        return None
    if isinstance(ours := metadata.get(OURS), dict):
        return _own(folder / _METADATA, ours)
    reader = _Reader(folder, metadata, configuration)
    fields = reader.network()
    return Bundle(_needed(fields), reader.task(), tuple(reader.notes))


def _own(path: Path, values: Mapping[str, Any]) -> Bundle:
    """Returns what a bundle of this project says."""
    try:
        config = SwinUNETRConfig.from_dict(values["config"])
        return Bundle(_needed(config.to_dict()), Task.from_dict(values["task"]))
    except (InputError, LookupError, TypeError, AttributeError) as error:
        reason = printable(str(error).rstrip("."))
        raise InputError(f"{path} does not describe a network and its task under {OURS} ({reason}): {_REMEDY}.") from error


def _read(path: Path) -> dict[str, Any] | None:
    if not files.exists(path):
        return None
    return files.read_json(path, dict[str, Any], _REMEDY) if path.suffix == ".json" else _read_yaml(path)


class _PlainLoader(yaml.SafeLoader):
    """Creates plain values, without aliases (*name), with which a small file can stand for more values than fit into memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases (*name), which are not supported")
        return super().compose_node(parent, index)


def _read_yaml(path: Path) -> dict[str, Any]:
    """Returns the content of a YAML file, which creates no objects but plain values. Raises InputError if it cannot be read."""
    if (size := path.stat().st_size) > _MAX_YAML_BYTES:
        raise InputError(f"{path} has {size} bytes, more than the configuration of a bundle can have: {_REMEDY}.")
    try:
        content = yaml.load(path.read_bytes(), _PlainLoader)
    except Exception as error:  # the reader raises many kinds of errors for values that do not fit their tags
        reason = printable(str(error).partition("\n")[0].rstrip("."))
        raise InputError(f"{path} cannot be read as YAML ({reason}): {_REMEDY}.") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path} must hold names with values, as a configuration of MONAI does: {_REMEDY}.")
    return content


class _Reader:
    """Reads the configuration of a bundle of another author, and collects notes."""

    def __init__(self, folder: Path, metadata: dict[str, Any], configuration: dict[str, Any]):
        self.folder, self.metadata, self.configuration = folder, metadata, configuration
        self.notes: list[str] = []
        self.visited = 0  # the number of values that the current call of `value` has looked up

    def network(self) -> dict[str, Any]:
        """Returns the fields of the configuration that `network_def` and the version of MONAI state."""
        definition = self.configuration.get("network_def")
        if not isinstance(definition, dict):
            self.notes.append("its configuration has no network_def, so that the network is inferred from the tensors")
            definition = {}
        target = str(definition.get("_target_", "SwinUNETR"))
        if target.rpartition(".")[2] != "SwinUNETR":
            raise InputError(
                f"{self.folder} is a MONAI bundle with the network {printable(target)}, expected SwinUNETR: give another one."
            )
        fields = {}
        for name in _FIELDS & definition.keys():
            stored = definition[name]
            value = self.value(stored)
            if value is not _UNKNOWN:
                fields[name] = value
            elif stored is not None:
                self.notes.append(f"its `{name}` is the expression {printable(stored)!r}, which is not executed")
        order = self._order(fields.pop("downsample", "merging"), "downsample" in definition)
        return fields | ({} if order is None else {"downsample": order})

    def _order(self, stated: Any, is_stated: bool) -> str | None:
        """Returns the order of patch merging, or None if the user has to give it."""
        if is_stated and self.value(self.configuration["network_def"]["downsample"]) is _UNKNOWN:
            return None
        if stated != "merging":
            return stated
        version = str(self.metadata.get("monai_version", ""))
        numbers = re.match(r"(\d{1,9})\.(\d{1,9})", version)
        if numbers and (int(numbers[1]), int(numbers[2])) < _FIRST_NEW_ORDER:
            self.notes.append(
                f"it is for MONAI {printable(version)}, whose patch merging has the order `legacy` (--downsample replaces it)"
            )
            return "legacy"
        return None

    def task(self) -> Task | None:
        """Returns the task, or None if the outputs or their kind are not stated."""
        names, channels = self._definitions("outputs"), self._definitions("inputs")
        kind = self._kind(names)
        if not names or kind is None:
            self.notes.append("it does not state its outputs, so that its task is assumed")
            return None
        changes = self._preparation(len(channels))
        if channels and channels not in (("image",), ("img",)):
            changes["channels"] = channels
        try:
            return _classes(names, changes) if kind == "classes" else self._regions(names, changes)
        except InputError as error:
            self.notes.append(f"its task cannot be used ({printable(str(error).rstrip('.'))})")
            return None

    def _regions(self, names: tuple[str, ...], changes: dict[str, Any]) -> Task:
        """Returns the task of regions: those of BraTS in any order, or others whose labels are 1, 2, …"""
        keys = tuple(_BRATS.get(re.sub("[^a-z]", "", name.lower().replace("tumour", "tumor")), "") for name in names)
        if sorted(keys) == ["ET", "TC", "WT"]:
            brats = Task.brats(orientation=None)
            outputs = {output.name: output for output in brats.outputs}
            paint = tuple(keys.index(name) for name in ("WT", "TC", "ET"))
            return dataclasses.replace(brats, outputs=tuple(outputs[key] for key in keys), paint=paint, **changes)
        self.notes.append(f"it does not state the labels of its regions, which are assumed to be 1 … {len(names)}")
        regions = tuple(Output(name=name, value=value, members=(value,)) for value, name in enumerate(names, 1))
        return Task(kind="regions", outputs=regions, paint=tuple(range(len(names))), **changes)

    def _definitions(self, side: str) -> tuple[str, ...]:
        """Returns the names of the first input's or output's channels in their order; none if they are not stated."""
        entries = _dict(_dict(self.metadata.get("network_data_format")).get(side))
        channels = _dict(_dict(next(iter(entries.values()), None)).get("channel_def"))
        numbers = {str(number): name for number, name in channels.items() if isinstance(name, str)}
        in_order = [numbers.get(str(number)) for number in range(len(channels))]
        return tuple(name for name in in_order if name) if all(in_order) else ()

    def _kind(self, names: tuple[str, ...]) -> str | None:
        for transform in self._transforms("postprocessing"):
            if transform["_target_"] == "Activationsd":
                if self.value(transform.get("sigmoid")) is True:
                    return "regions"
                if self.value(transform.get("softmax")) is True:
                    return "classes"
        return "classes" if len(names) > 1 and names[0].lower() == "background" else None

    def _preparation(self, channels: int) -> dict[str, Any]:
        """Returns the fields of a task on the preparation of scans."""
        fields: dict[str, Any] = {"intensity": "none"}
        ignored = []
        for transform in self._transforms("preprocessing"):
            name, value = transform["_target_"], lambda key, transform=transform: self.value(transform.get(key))
            if name == "Orientationd" and isinstance(value("axcodes"), str):
                fields["orientation"] = value("axcodes")
            elif name == "Spacingd" and _numbers(value("pixdim"), 3):
                fields["spacing"] = tuple(value("pixdim"))
            elif name == "ScaleIntensityRanged" and (value("b_min"), value("b_max"), value("clip")) == (0, 1, True):
                fields |= {"intensity": "window", "window": (value("a_min"), value("a_max"))}
            elif name == "NormalizeIntensityd" and value("nonzero") is True and (value("channel_wise") is True or channels == 1):
                fields["intensity"] = "zscore"
            elif name not in _LOADERS:
                ignored.append(name)
        if ignored:
            self.notes.append(f"its preparation with {printable(', '.join(ignored))} is not reproduced")
        roi = self.value(_dict(self.configuration.get("inferer")).get("roi_size"))
        if _numbers(roi, 3):
            fields["roi"] = tuple(roi)
        return fields

    def _transforms(self, part: str) -> Iterator[dict[str, Any]]:
        """Yields the transforms of a part of the configuration, whose `_target_` is without the names of modules."""
        found = self.configuration.get(part) or _dict(self.configuration.get("validate")).get(part)
        entries = _dict(found).get("transforms")
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and self.value(entry.get("_disabled_")) is not True:
                yield entry | {"_target_": str(entry.get("_target_")).rpartition(".")[2]}

    def value(self, stored: Any, depth: int = 0) -> Any:
        """Returns a stored value, after looking up references, or `_UNKNOWN` if it is missing, an expression, or nested too deeply."""
        self.visited = self.visited + 1 if depth else 1
        if stored is None or depth > _MAX_DEPTH or self.visited > _MAX_VALUES:
            return _UNKNOWN
        if isinstance(stored, list):
            values = [self.value(item, depth + 1) for item in stored]
            return _UNKNOWN if any(value is _UNKNOWN for value in values) else values
        if not isinstance(stored, str):
            return stored
        text = stored.removeprefix("$")
        if re.fullmatch(r"@[\w:#]+", text):
            place: Any = self.configuration
            for key in re.split("#|::", text[1:]):
                place = place.get(key) if isinstance(place, dict) else None
            return self.value(place, depth + 1)
        if not stored.startswith("$"):
            return stored
        try:
            return ast.literal_eval(text)  # it accepts only plain values
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return _UNKNOWN


def _needed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those fields of a configuration that tensors do not determine. The tensors tell an instance norm from a batch norm."""
    return {n: v for n, v in fields.items() if n in _FIELDS and v is not None and not (n == "norm_name" and isinstance(v, str))}


def _classes(names: tuple[str, ...], changes: dict[str, Any]) -> Task:
    return Task.classes(len(names), names, **changes)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _numbers(value: Any, count: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == count and all(isinstance(number, (int, float)) for number in value)
