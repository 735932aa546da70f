"""Comparisons of what a reader of `tools.fuzz_targets` returned with the result of another reader, or with a type."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import torch


def differences(ours: Any, theirs: Any, path: str = "") -> str | None:
    """Returns a text that says where a tree of arrays differs from a tree of tensors, or None if they are equal."""
    if isinstance(theirs, torch.Tensor):
        same = isinstance(ours, np.ndarray) and ours.shape == tuple(theirs.shape) and _bytes(ours) == _bytes(theirs)
        return None if same else f"the tensor {path} differs from that of the other reader"
    if isinstance(theirs, Mapping):
        if not isinstance(ours, Mapping) or list(map(str, ours)) != list(map(str, theirs)):
            return f"{path} has keys that differ from those of the other reader"
        return next(filter(None, (differences(ours[key], theirs[key], f"{path}.{key}") for key in theirs)), None)
    if isinstance(theirs, list | tuple):
        if not isinstance(ours, list | tuple) or len(ours) != len(theirs):
            return f"{path} is not the sequence of the other reader"
        return next(filter(None, (differences(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(ours, theirs)))), None)
    both_nan = isinstance(ours, float) and isinstance(theirs, float) and math.isnan(ours) and math.isnan(theirs)
    return (
        None if both_nan or ours == theirs or not isinstance(theirs, int | float | str) else f"{path} is {ours!r}, not {theirs!r}"
    )


def _bytes(array: np.ndarray | torch.Tensor) -> bytes:
    if isinstance(array, torch.Tensor):
        return array.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b""
    return np.ascontiguousarray(array).tobytes()


def of_type(kind: Any) -> Callable[[Any], str | None]:
    """Returns a function that returns a text if a value is not of a type, and None otherwise."""

    def fault(value: Any) -> str | None:
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            return f"the value is not of the type {kind} ({error})"
        return None

    return fault
