"""The fields of dataset.json (Decathlon, nnU-Net) and of MONAI's datalists, checked before they are used."""

import json
import os
from pathlib import Path
from typing import Any

from swinunetr_jax.data.discovery.channels import canonical_channel
from swinunetr_jax.errors import InputError

MAX_BYTES = 64 << 20
MAX_LABEL = 255  # label maps are stored and written as uint8


def load(path: Path) -> dict[str, Any]:
    """Returns the JSON object in `path`."""
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: is larger than {MAX_BYTES >> 20} MiB, expected a list of cases; split it.")
    try:
        info = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}), expected a list of cases; correct it.") from error
    if not isinstance(info, dict):
        raise InputError(f'{path}: holds a {type(info).__name__}, expected an object such as {{"training": [...]}}; correct it.')
    return info


def channel_names(info: dict[str, Any], path: Path) -> tuple[str, ...] | None:
    """Returns the canonical names from nnU-Net's `channel_names` or the Decathlon's `modality`, {"0": name, …}, in order."""
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
    return tuple(canonical_channel(_text(names[str(i)], key, path)) for i in range(len(names)))


def label_values(info: dict[str, Any], path: Path) -> dict[str, int | list[int]] | None:
    """Returns name → value, or name → values of a region, from {"0": name} (Decathlon) or {name: value or values} (nnU-Net)."""
    labels = info.get("labels")
    if labels is None:
        return None
    if isinstance(labels, dict):
        for name, value in labels.items():
            _text(name, "labels", path)
            _text(value if isinstance(value, str) else "", "labels", path)
        values: dict[str, int | list[int]] | None = None
        # a longer number is not a label, and int() refuses a number of thousands of digits
        numbered = all(isinstance(value, str) and key.isdecimal() and len(key) < 10 for key, value in labels.items())
        if numbered and len(set(labels.values())) == len(labels):
            values = {name: int(value) for value, name in labels.items()}
        elif all(
            _is_label(value) or (isinstance(value, list) and value and all(map(_is_label, value))) for value in labels.values()
        ):
            values = dict(labels)
        if values is not None:
            _check_range(values, path)
            return values
    raise InputError(f'{path}: labels is {labels!r}, expected {{"0": name}}, {{name: 1}} or {{name: [1, 2]}}; correct it.')


def regions_class_order(info: dict[str, Any], path: Path) -> tuple[int, ...] | None:
    """Returns the label that nnU-Net writes for each region, in the order of writing."""
    order = info.get("regions_class_order")
    if order is None:
        return None
    if not isinstance(order, list) or not all(map(_is_label, order)):
        raise InputError(f"{path}: regions_class_order is {order!r}, expected a list of label values; correct it.")
    _check_range({"regions_class_order": order}, path)
    return tuple(order)


def paths(entry: Any, root: Path, where: str) -> tuple[Path, ...]:
    """Returns the paths of an entry, each beginning with `root`, which relative paths start from.

    A symbolic link inside `root` may lead outside, because the user made it.

    Raises:
        InputError: a path is malformed or outside `root`.
    """
    top, result = os.path.abspath(root), []
    for text in entry if isinstance(entry, list) else [entry]:
        if not isinstance(text, str) or not text.strip() or "\0" in text:
            raise InputError(f"{where}: {text!r} is not a path, expected the path of an image below {root}; correct it.")
        try:
            os.fsencode(text)
        except UnicodeEncodeError as error:
            raise InputError(f"{where}: {text!r} has a character that no file name can have; correct the path.") from error
        full = os.path.normpath(os.path.join(top, text))
        if full == top or os.path.commonpath([top, full]) != top:
            raise InputError(
                f"{where}: the path {text!r} leads out of {root}, which is not allowed; move the file or give another base folder (--base)."
            )
        result.append(root / os.path.relpath(full, top))
    return tuple(result)


def _check_range(labels: dict[str, int | list[int]], path: Path) -> None:
    for name, value in labels.items():
        for number in value if isinstance(value, list) else [value]:
            if number > MAX_LABEL:
                raise InputError(f"{path}: the label {name} is {number}, expected at most {MAX_LABEL}; renumber it.")


def _text(value: Any, key: str, path: Path) -> str:
    """Returns `value` as text. Raises InputError for a lone surrogate, which cannot be written to a file."""
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path}: {key} has the name {text!r}, which is not valid text; correct it.") from error
    return text


def _is_label(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
