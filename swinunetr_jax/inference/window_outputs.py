"""The outputs of a predictor of windows: their structure and the checks of their shapes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.plan import PerAxis, Plan, importance_map, resize_nearest


def flatten(outputs: Any) -> tuple[Any, tuple[Any, ...]]:
    """Returns the sorted keys of a dict of outputs, or None, and the outputs in the order of these keys."""
    if isinstance(outputs, Mapping):
        keys = sorted(outputs)
        return keys, tuple(outputs[key] for key in keys)
    return None, tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def unflatten(keys: Any, results: Sequence[Any]) -> Any:
    """Returns the results in the structure that the predictor's outputs have; `keys` is the first result of `flatten`."""
    if keys is not None:
        return dict(zip(keys, results))
    return results[0] if len(results) == 1 else tuple(results)


def window_weights(plan: Plan, mode: str, sigma_scale: PerAxis = 0.125, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns the weight of each voxel of a window: the given weights, or else those of the mode (see `sliding_window_inference`)."""
    if weights is None:
        sigmas = np.asarray(sigma_scale).tolist()
        return importance_map(plan.roi, mode, tuple(sigmas) if isinstance(sigmas, list) else sigmas)
    weights = np.asarray(weights, np.float32)
    if weights.shape != plan.roi or not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise InputError(
            f"`roi_weight_map` has shape {weights.shape}, expected weights ≥ 0 for each voxel of a window {plan.roi}."
        )
    return weights


def output_weights(outputs: Sequence[Any], plan: Plan, batch: int, weights: np.ndarray) -> list[np.ndarray]:
    """Returns the weights of a window's voxels on the grid of each output. Raises InputError for an output with a wrong shape.

    Args:
        outputs: the outputs of the predictor's first call, or their shapes.
        plan: the positions of the windows.
        batch: the number of windows per call.
        weights: the weight of each voxel of a window.
    """
    results, resized = [], weights
    for number, output in enumerate(outputs):
        shape = getattr(output, "shape", None)
        name = f"output {number} of the predictor" if len(outputs) > 1 else "the predictor's output"
        expected = f"({', '.join(map(str, (batch, *plan.roi)))}, channels)"
        if shape is None:
            raise InputError(f"{name} is a {type(output).__name__}, expected an array of shape {expected}.")
        if len(shape) != len(plan.roi) + 2 or shape[0] != batch or 0 in shape:
            raise InputError(f"{name} has shape {tuple(shape)}, expected {expected}: one output per window, channels last.")
        if shape[1:-1] != plan.roi:
            if shape[2:] == plan.roi:
                raise InputError(f"{name} has shape {tuple(shape)}, which is channels first, expected channels last: {expected}.")
            _check_scale(name, shape, plan, expected)
            resized = resize_nearest(resized, shape[1:-1])  # from the weights of the previous output, as in MONAI
        results.append(weights if shape[1:-1] == plan.roi else resized)
    return results


def _check_scale(name: str, shape: tuple[int, ...], plan: Plan, expected: str) -> None:
    """Raises InputError if the output has a resolution at which windows would start between voxels.

    The number of voxels of an output along an axis may be a multiple or a divisor of the window's. Any other number is accepted if all
    positions of windows are integers on the output's grid.
    """
    for axis, (size, roi, starts) in enumerate(zip(shape[1:-1], plan.roi, plan.starts)):
        if size % roi and roi % size and any(start * size % roi for start in starts):
            raise InputError(
                f"{name} has shape {tuple(shape)}, expected {expected} or a grid that is finer or coarser by an integer factor: with "
                f"{size} voxels for {roi} along axis {axis}, windows would start between voxels."
            )


def check_same_shapes(outputs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> None:
    """Raises InputError if the outputs do not have the shapes of the first call's."""
    got, expected = [tuple(output.shape) for output in outputs], list(map(tuple, shapes))
    if got != expected:
        raise InputError(
            f"the predictor's outputs have the shapes {got}, but had {expected} in its first call with the same shape."
        )


def apply_reduce(reduce: Callable[[jax.Array], jax.Array], planes: jax.Array) -> jax.Array:
    """Returns `reduce(planes)`. Raises InputError if it does not have the spatial axes of `planes`."""
    part = reduce(planes)
    if getattr(part, "shape", ())[: planes.ndim - 1] != planes.shape[:-1]:
        got = getattr(part, "shape", type(part).__name__)
        raise InputError(
            f"`reduce` returned {got} for planes {planes.shape}, expected it to keep their spatial axes {planes.shape[:-1]}."
        )
    return part
