"""dataset.json of the Decathlon and of nnU-Net, and MONAI's datalists: their fields, checked before anybody relies on them."""

import json
import os
from pathlib import Path
from typing import Any

from swinunetr_jax.data.channels import canonical_channel
from swinunetr_jax.errors import InputError

MAX_BYTES = 64 << 20


def load(path: Path) -> dict[str, Any]:
    """The JSON object in `path`."""
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES >> 20} MiB, expected a list of cases; split it.")
    try:
        info = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error}), expected a list of cases; correct it.") from error
    if not isinstance(info, dict):
        raise InputError(f'{path}: holds a {type(info).__name__}, expected an object such as {{"training": [...]}}; correct it.')
    return info


def channel_names(info: dict[str, Any], path: Path) -> tuple[str, ...] | None:
    """Canonical names from nnU-Net's `channel_names` or the Decathlon's `modality`, {"0": name, …}, by their numbers."""
    key = "channel_names" if "channel_names" in info else "modality"
    names = info.get(key)
    if isinstance(names, str):
        names = [names]
    if isinstance(names, list):
        names = {str(i): name for i, name in enumerate(names)}
    if names is None:
        return None
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))} or not names:
        raise InputError(f'{path}: {key} is {names!r}, expected {{"0": name, "1": name, …}}; correct it.')
    return tuple(canonical_channel(str(names[str(i)])) for i in range(len(names)))


def label_values(info: dict[str, Any], path: Path) -> dict[str, int | list[int]] | None:
    """Name → value, or values of a region, from {"0": name} (Decathlon) or {name: value or values} (nnU-Net)."""
    labels = info.get("labels")
    if labels is None:
        return None
    if isinstance(labels, dict):
        if all(isinstance(v, str) and k.isdecimal() for k, v in labels.items()) and len(set(labels.values())) == len(labels):
            return {name: int(value) for value, name in labels.items()}
        if all(_is_label(v) or (isinstance(v, list) and v and all(map(_is_label, v))) for v in labels.values()):
            return dict(labels)
    raise InputError(f'{path}: labels is {labels!r}, expected {{"0": name}}, {{name: 1}} or {{name: [1, 2]}}; correct it.')


def regions_class_order(info: dict[str, Any], path: Path) -> tuple[int, ...] | None:
    """The values that nnU-Net writes its regions as, first to last."""
    order = info.get("regions_class_order")
    if order is None:
        return None
    if not isinstance(order, list) or not all(map(_is_label, order)):
        raise InputError(f"{path}: regions_class_order is {order!r}, expected a list of label values; correct it.")
    return tuple(order)


def paths(entry: Any, root: Path, where: str) -> tuple[Path, ...]:
    """The path or paths of an entry below `root`, which they may not leave by their own words; links are the user's doing."""
    top, found = os.path.abspath(root), []
    for text in entry if isinstance(entry, list) else [entry]:
        if not isinstance(text, str) or not text.strip() or "\0" in text:
            raise InputError(f"{where}: {text!r} is not a path, expected the path of an image below {root}; correct it.")
        full = os.path.normpath(os.path.join(top, text))
        if full == top or os.path.commonpath([top, full]) != top:
            raise InputError(
                f"{where}: the path {text!r} leads out of {root} and is refused; move the file or give another base folder."
            )
        found.append(root / os.path.relpath(full, top))
    return tuple(found)


def _is_label(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
