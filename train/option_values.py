"""Converts options to and from JSON values, including the names that they had in earlier versions."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

from swinunetr_jax.buckets import shown

# Renamed options, old name to new name; runs that an earlier version stored have the old ones.
RENAMED = {"devices.depth": "devices.spatial_shards"}


def renamed(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested options in which those of `RENAMED` have their new names."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        old = f"{prefix}{name}"
        result[RENAMED.get(old, old).removeprefix(prefix)] = renamed(value, f"{old}.") if isinstance(value, Mapping) else value
    return result


def is_field(kind: type, name: str) -> bool:
    """Returns whether a dotted name is that of a field of a dataclass, or of a field of one of its groups."""
    first, _, rest = name.partition(".")
    hint = get_type_hints(kind).get(first)
    return hint is not None and (not rest or (isinstance(hint, type) and dataclasses.is_dataclass(hint) and is_field(hint, rest)))


def json_value(value: Any) -> Any:
    """Returns a value that JSON can hold: tuples become lists, and paths become text, which is the address for a copy of one."""
    if isinstance(value, dict):
        return {name: json_value(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [json_value(item) for item in value]
    return shown(value) if isinstance(value, Path) else value


def decode_path(kind: type, value: Any) -> Any:
    """Returns a path from its text, because msgspec does not decode paths itself."""
    if kind is not Path or not isinstance(value, str):
        raise ValueError(f"expected `{kind.__name__}`, got {type(value).__name__}")
    return Path(value)
