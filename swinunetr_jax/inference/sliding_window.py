"""Sliding-window inference: applies a function of patches to complete volumes, with MONAI's results and in bounded memory.

Windows are processed in row-major order of their positions, so that all planes before the current position along the first axis are
finished. Therefore the device needs only the sums of one slab, which is as deep as a window. When the position along the first axis
increases, the finished planes are copied a few at a time into the result on the host, and the other planes move up in place.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swinunetr_jax.console import Progress as Bar
from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.plan import PADDINGS, PerAxis, Plan, RoiSize, importance_map, resize_nearest
from swinunetr_jax.inference.slab_sum import Planes, SlabSum

Predictor = Callable[[jax.Array], Any]
Progress = Callable[[int, int], None]


def sliding_window_inference(
    inputs: np.ndarray | jax.Array,
    roi_size: RoiSize,
    sw_batch_size: int,
    predictor: Predictor,
    overlap: PerAxis = 0.25,
    mode: str = "constant",
    sigma_scale: PerAxis = 0.125,
    padding_mode: str = "constant",
    cval: float = 0.0,
    *,
    progress: bool | Progress = False,
    roi_weight_map: np.ndarray | None = None,
    reduce: Callable[[jax.Array], jax.Array] | None = None,
) -> Any:
    """Returns the outputs for complete volumes, the weighted averages of the windows' outputs.

    The arguments have the same names and meanings as in MONAI's function of this name, but the channels are the last axis. MONAI's
    `sw_device`, `device`, `buffer_steps` and `buffer_dim` have no counterpart, because slabs are always buffered (see Memory).
    `process_fn` and `with_coord` have none either. Use `functools.partial` for further arguments of the predictor.

    Args:
        inputs: [b, *grid, c].
        roi_size: the size of a window, for all axes or for each. None, 0 and negative numbers stand for the size of the volume. A volume
            that is smaller than a window is padded on both sides, and the result is cropped.
        sw_batch_size: the number of windows per call of `predictor`.
        predictor: [n, *roi, c] → [n, *roi, c_out]. Compile it with `jax.jit` for speed; all calls have the same shape. It may also return
            several outputs in a tuple, list or dict, and outputs on a finer or coarser grid than the window's. A window that starts
            between two voxels of such a grid is placed on the lower one, as in MONAI.
        overlap: the fraction by which neighbouring windows overlap, at least 0 and less than 1, for all axes or for each.
        mode: "constant" or "gaussian", the weights within a window.
        sigma_scale: the standard deviation of the Gaussian as a fraction of the window, for all axes or for each.
        padding_mode: "constant", "reflect", "replicate" or "circular".
        cval: the value of constant padding.
        progress: True to show a progress bar, or a function that is called with the number of finished windows and the number of all
            windows of each volume.
        roi_weight_map: the weights within a window [*roi], instead of those of `mode`.
        reduce: a function that is applied on the device to finished planes [k, *rest, c_out] of each output. It must keep the spatial
            axes, for example as an argmax over the last axis. Its results are returned instead of the outputs, so that the complete
            outputs are never in memory.

    Returns:
        [b, *grid, c_out] float32 on the host, or the result of `reduce`. If the predictor returns several outputs, a tuple or dict of them.

    Memory:
        The host needs memory for the input and one result. The device needs memory for the predictor, for a slab of the input and a slab of
        the sums that are as deep as a window, and for at most 64 MB (or one plane) of averages.

    Raises:
        InputError: an argument is out of range, or an output has a wrong shape.
    """
    inputs = inputs if isinstance(inputs, (np.ndarray, jax.Array)) else np.asarray(inputs)
    spatial = inputs.ndim - 2
    roi_sizes = np.asarray(roi_size, dtype=object)
    if spatial < 1 or (roi_sizes.ndim == 1 and len(roi_sizes) != spatial):
        sizes = f" and `roi_size` {len(roi_sizes)} sizes" if roi_sizes.ndim == 1 else ""
        raise InputError(
            f"`inputs` has shape {inputs.shape}{sizes}, expected a batch axis first, channels last, and one size for each axis between."
        )
    if len(inputs) == 0:
        raise InputError(f"`inputs` has shape {inputs.shape}, expected at least one volume.")
    plan = Plan.of(inputs.shape[1:-1], roi_size, overlap)
    weights = {"mode": mode, "sigma_scale": sigma_scale, "roi_weight_map": roi_weight_map}
    padding = {"padding_mode": padding_mode, "cval": cval}
    structure: list[Any] = [None]

    def flat(patches: jax.Array) -> tuple[Any, ...]:
        structure[0], outputs = _flatten(predictor(patches))
        return outputs

    results: dict[int, np.ndarray] = {}
    with Bar("sliding window", unit="window", silent=progress is not True) as bar:
        for index in range(len(inputs)):

            def count(done: int, total: int, index: int = index) -> None:
                bar(index * total + done, len(inputs) * total)

            report = progress if callable(progress) else count
            for planes in predict_slabs(inputs[index], plan, sw_batch_size, flat, **weights, **padding, progress=report):
                part = planes.array if reduce is None else _apply_reduce(reduce, planes.array)
                box = plan.unpadded_box(planes.scale)
                if planes.output not in results:
                    shape = tuple(side.stop - side.start for side in box)
                    results[planes.output] = np.empty((len(inputs), *shape, *part.shape[spatial:]), part.dtype)
                planes.write(part, results[planes.output][index], box)
    return _unflatten(structure[0], [results[output] for output in sorted(results)])


def predict_slabs(
    volume: np.ndarray | jax.Array,
    plan: Plan,
    batch: int,
    predictor: Callable[[jax.Array], Sequence[jax.Array]],
    *,
    mode: str = "constant",
    sigma_scale: PerAxis = 0.125,
    roi_weight_map: np.ndarray | None = None,
    padding_mode: str = "constant",
    cval: float = 0.0,
    progress: Progress | None = None,
) -> Iterator[Planes]:
    """Yields the averaged outputs of a volume [*grid, c], a few finished planes along the first axis at a time.

    The arguments are those of `sliding_window_inference`, except that `predictor` returns a sequence of outputs. `progress` reports the
    windows of a call only after the next call was started, so that the device never waits for the host.
    """
    if batch < 1:
        raise InputError(f"`sw_batch_size` must be at least 1, got {batch}.")
    if padding_mode not in PADDINGS:
        raise InputError(f"`padding_mode` must be one of {', '.join(PADDINGS)}, got {padding_mode!r}.")
    importance = _importance(plan, mode, sigma_scale, roi_weight_map)
    starts = np.stack(np.meshgrid(*plan.starts[1:], indexing="ij"), -1).reshape(-1, len(plan.roi) - 1)
    starts = np.concatenate([np.zeros((len(starts), 1), starts.dtype), starts], 1).astype(np.int32)
    batch = min(batch, len(starts))
    rows, depth = plan.starts[0], plan.roi[0]
    sums: list[SlabSum] = []
    done, previous = 0, None
    for index, row in enumerate(rows):
        slab = jnp.asarray(plan.pad(np.asarray(volume[row : row + depth]), padding_mode, cval))
        for first in range(0, len(starts), batch):
            batch_starts = starts[first : first + batch]
            count = len(batch_starts)
            if count < batch:
                # The last batch is filled with copies, which are not added, so that the network is compiled for only one shape.
                batch_starts = np.concatenate([batch_starts, np.repeat(batch_starts[-1:], batch - count, 0)])
            outputs = predictor(_cut(slab, batch_starts, plan.roi))
            if not sums:
                sums = _sums(outputs, plan, batch, importance)
            _check_outputs(outputs, sums)
            for sum_, output in zip(sums, outputs):
                sum_.add(output, batch_starts, count)
            if progress and done:
                jax.block_until_ready(previous)
                progress(done, plan.windows)
            previous = outputs
            done += count
        next_row = rows[index + 1] if index + 1 < len(rows) else row + depth
        for number, sum_ in enumerate(sums):
            yield from sum_.pop_finished(number, row, next_row)
    if progress:
        progress(done, plan.windows)


def _importance(plan: Plan, mode: str, sigma_scale: PerAxis, weights: np.ndarray | None) -> np.ndarray:
    """Returns the weight of each voxel of a window: the given weights, or else those of the mode."""
    if weights is None:
        sigmas = np.asarray(sigma_scale).tolist()
        return importance_map(plan.roi, mode, tuple(sigmas) if isinstance(sigmas, list) else sigmas)
    weights = np.asarray(weights, np.float32)
    if weights.shape != plan.roi or not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise InputError(
            f"`roi_weight_map` has shape {weights.shape}, expected weights ≥ 0 for each voxel of a window {plan.roi}."
        )
    return weights


def _sums(outputs: Sequence[jax.Array], plan: Plan, batch: int, importance: np.ndarray) -> list[SlabSum]:
    """Returns an empty sum for each output of the predictor. Raises InputError for an output with a wrong shape.

    Args:
        outputs: the outputs of the predictor's first call.
        plan: the positions of the windows.
        batch: the number of windows per call.
        importance: the weight of each voxel of a window.
    """
    sums, resized = [], importance
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
        sums.append(SlabSum(output, plan, importance if shape[1:-1] == plan.roi else resized))
    return sums


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


def _check_outputs(outputs: Sequence[jax.Array], sums: list[SlabSum]) -> None:
    """Raises InputError if the outputs do not have the shapes of the first call's."""
    shapes, expected = [tuple(output.shape) for output in outputs], [tuple(sum_.shape) for sum_ in sums]
    if shapes != expected:
        raise InputError(
            f"the predictor's outputs have the shapes {shapes}, but had {expected} in its first call with the same shape."
        )


def _flatten(outputs: Any) -> tuple[Any, tuple[Any, ...]]:
    """Returns the sorted keys of a dict of outputs, or None, and the outputs in the order of these keys."""
    if isinstance(outputs, Mapping):
        keys = sorted(outputs)
        return keys, tuple(outputs[key] for key in keys)
    return None, tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def _unflatten(keys: Any, results: list[np.ndarray]) -> Any:
    """Returns the results in the structure that the predictor's outputs have; `keys` is the first result of `_flatten`."""
    if keys is not None:
        return dict(zip(keys, results))
    return results[0] if len(results) == 1 else tuple(results)


def _apply_reduce(reduce: Callable[[jax.Array], jax.Array], planes: jax.Array) -> jax.Array:
    """Returns `reduce(planes)`. Raises InputError if it does not have the spatial axes of `planes`."""
    part = reduce(planes)
    if getattr(part, "shape", ())[: planes.ndim - 1] != planes.shape[:-1]:
        got = getattr(part, "shape", type(part).__name__)
        raise InputError(
            f"`reduce` returned {got} for planes {planes.shape}, expected it to keep their spatial axes {planes.shape[:-1]}."
        )
    return part


@functools.partial(jax.jit, static_argnames="roi")
def _cut(slab: jax.Array, offsets: np.ndarray, roi: tuple[int, ...]) -> jax.Array:
    """Returns the windows [n, *roi, c] of a slab [*grid, c] at the positions `offsets` [n, axes]."""
    sizes = (*roi, slab.shape[-1])
    return jax.vmap(lambda offset: jax.lax.dynamic_slice(slab, (*offset, 0), sizes))(offsets)
