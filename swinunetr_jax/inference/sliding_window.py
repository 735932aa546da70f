"""Sliding-window inference: a function of patches becomes a function of whole volumes, with MONAI's numbers, in bounded memory.

Windows are taken in row-major order of their positions, so everything above the current position of the first axis is finished. The
device therefore holds one slab of sums, as deep as a window; when the first axis moves on, the finished planes leave the device a few at
a time, are written into the one result that the host holds, and the rest moves up in place.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swinunetr_jax.console import Progress as Bar
from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.plan import PADDINGS, PerAxis, Plan, RoiSize, importance_map, resized
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
    """The outputs of whole volumes: the weighted average of the windows' outputs.

    Arguments have the names, the forms and the meaning of MONAI's function of this name, except that axes are channels-last. MONAI's
    `sw_device`, `device`, `buffer_steps` and `buffer_dim` have no counterpart, as slabs are always buffered (see Memory), nor have
    `process_fn` and `with_coord`; further arguments of the predictor are bound by `functools.partial`.

    Args:
        inputs: [b, *grid, c].
        roi_size: the window's size, for all axes or each; None, 0 and negative numbers stand for the volume's size. Where the volume is
            smaller than a window, it is padded on both sides and the result is cropped.
        sw_batch_size: windows per call of `predictor`.
        predictor: [n, *roi, c] → [n, *roi, c_out]; compile it (`jax.jit`) for speed, it only ever sees one shape. It may also return
            several outputs, as a tuple, list or dict, and outputs on a finer or coarser grid than the window's; where a window starts
            between two voxels of that grid, it is laid on the lower one, as MONAI does.
        overlap: 0 to less than 1, of neighbouring windows, for all axes or each.
        mode: "constant" or "gaussian" weights within a window.
        sigma_scale: standard deviation of the gaussian, as a share of the window, for all axes or each.
        padding_mode: "constant", "reflect", "replicate" or "circular".
        cval: the value of constant padding.
        progress: True shows a bar; a function is called with windows done and windows in all of each volume.
        roi_weight_map: weights within a window [*roi] instead of those of `mode`.
        reduce: applied on the device to finished planes [k, *rest, c_out] of each output. It must keep the spatial axes, as an argmax
            over the last one does, and its result is what is returned, so that whole logits exist nowhere.

    Returns:
        [b, *grid, c_out] float32 on the host (or what `reduce` makes of it), in a tuple or dict where the predictor returns several.

    Memory:
        On the host one result, in which finished planes are written, and the input. On the device, beside the predictor's own needs, a
        slab of the input and of the sums as deep as a window, and a piece of at most 64 MB (or one plane) of averages.

    Raises:
        InputError: an argument is out of range, or an output has a wrong shape.
    """
    inputs = inputs if isinstance(inputs, (np.ndarray, jax.Array)) else np.asarray(inputs)
    spatial = inputs.ndim - 2
    if spatial < 1 or (np.ndim(roi_size) == 1 and len(roi_size) != spatial):
        sizes = f" and `roi_size` {len(roi_size)} sizes" if np.ndim(roi_size) == 1 else ""
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

            told = progress if callable(progress) else count
            for planes in predict_slabs(inputs[index], plan, sw_batch_size, flat, **weights, **padding, progress=told):
                part = planes.array if reduce is None else _reduced(reduce, planes.array)
                box = plan.inside(planes.scale)
                if planes.output not in results:
                    shape = tuple(side.stop - side.start for side in box)
                    results[planes.output] = np.empty((len(inputs), *shape, *part.shape[spatial:]), part.dtype)
                planes.write(part, results[planes.output][index], box)
    return _packed(structure[0], [results[output] for output in sorted(results)])


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
    """Yields the averaged outputs of a volume [*grid, c], from the first axis' low end on, a few finished planes at a time.

    Arguments are those of `sliding_window_inference`, except that `predictor` returns a sequence of outputs; `progress` is called one
    call of the predictor behind the device, so that the device never waits.
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
    done, before = 0, None
    for index, row in enumerate(rows):
        slab = jnp.asarray(plan.pad(np.asarray(volume[row : row + depth]), padding_mode, cval))
        for first in range(0, len(starts), batch):
            chosen = starts[first : first + batch]
            live = len(chosen)
            if live < batch:  # the last batch is filled up with copies that then count nothing: one shape for the network
                chosen = np.concatenate([chosen, np.repeat(chosen[-1:], batch - live, 0)])
            outputs = predictor(_cut(slab, chosen, plan.roi))
            if not sums:
                sums = _sums(outputs, plan, batch, importance)
            _check_outputs(outputs, sums)
            for sum_, output in zip(sums, outputs):
                sum_.add(output, chosen, live)
            if progress and done:
                jax.block_until_ready(before)
                progress(done, plan.windows)
            before = outputs
            done += live
        following = rows[index + 1] if index + 1 < len(rows) else row + depth
        for number, sum_ in enumerate(sums):
            yield from sum_.finished(number, row, following)
    if progress:
        progress(done, plan.windows)


def _importance(plan: Plan, mode: str, sigma_scale: PerAxis, given: np.ndarray | None) -> np.ndarray:
    if given is None:
        return importance_map(plan.roi, mode, tuple(sigma_scale) if np.ndim(sigma_scale) else sigma_scale)
    given = np.asarray(given, np.float32)
    if given.shape != plan.roi or not (np.isfinite(given).all() and (given >= 0).all()):
        raise InputError(f"`roi_weight_map` has shape {given.shape}, expected weights ≥ 0 for each voxel of a window {plan.roi}.")
    return given


def _sums(outputs: Sequence[jax.Array], plan: Plan, batch: int, importance: np.ndarray) -> list[SlabSum]:
    """Room for each output of the predictor, whose first call gave these. Raises InputError for shapes that cannot be outputs."""
    sums, current = [], importance
    for number, output in enumerate(outputs):
        shape, which = (
            getattr(output, "shape", None),
            f"output {number} of the predictor" if len(outputs) > 1 else "the predictor's output",
        )
        want = f"({', '.join(map(str, (batch, *plan.roi)))}, channels)"
        if shape is None:
            raise InputError(f"{which} is a {type(output).__name__}, expected an array of shape {want}.")
        if len(shape) != len(plan.roi) + 2 or shape[0] != batch or 0 in shape:
            raise InputError(f"{which} has shape {tuple(shape)}, expected {want}: one output per window, channels last.")
        if shape[1:-1] != plan.roi:
            if shape[2:] == plan.roi:
                raise InputError(f"{which} has shape {tuple(shape)}, which is channels first, expected channels last: {want}.")
            _check_scale(which, shape, plan, want)
            current = resized(current, shape[1:-1])  # from the output before, as the reference does
        sums.append(SlabSum(output, plan, importance if shape[1:-1] == plan.roi else current))
    return sums


def _check_scale(which: str, shape: tuple[int, ...], plan: Plan, want: str) -> None:
    """An output may be a whole number of times as fine or as coarse as the window, or any other that keeps all positions whole."""
    for axis, (size, roi, starts) in enumerate(zip(shape[1:-1], plan.roi, plan.starts)):
        if size % roi and roi % size and any(start * size % roi for start in starts):
            raise InputError(
                f"{which} has shape {tuple(shape)}, expected {want} or a grid a whole number of times as fine or as coarse: {size} voxels "
                f"for {roi} along axis {axis} put windows between voxels."
            )


def _check_outputs(outputs: Sequence[jax.Array], sums: list[SlabSum]) -> None:
    shapes, want = [tuple(output.shape) for output in outputs], [tuple(sum_.shape) for sum_ in sums]
    if shapes != want:
        raise InputError(f"the predictor's outputs have the shapes {shapes}, and had {want} for windows of the same size before.")


def _flatten(outputs: Any) -> tuple[Any, tuple[Any, ...]]:
    """(keys of a dict, or None; the outputs, in the order of sorted keys)."""
    if isinstance(outputs, Mapping):
        keys = sorted(outputs)
        return keys, tuple(outputs[key] for key in keys)
    return None, tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def _packed(keys: Any, results: list[np.ndarray]) -> Any:
    if keys is not None:
        return dict(zip(keys, results))
    return results[0] if len(results) == 1 else tuple(results)


def _reduced(reduce: Callable[[jax.Array], jax.Array], planes: jax.Array) -> jax.Array:
    part = reduce(planes)
    if getattr(part, "shape", ())[: planes.ndim - 1] != planes.shape[:-1]:
        got = getattr(part, "shape", type(part).__name__)
        raise InputError(
            f"`reduce` made {got} of planes {planes.shape}, expected their spatial axes {planes.shape[:-1]} to stay."
        )
    return part


@functools.partial(jax.jit, static_argnames="roi")
def _cut(slab: jax.Array, offsets: np.ndarray, roi: tuple[int, ...]) -> jax.Array:
    sizes = (*roi, slab.shape[-1])
    return jax.vmap(lambda offset: jax.lax.dynamic_slice(slab, (*offset, 0), sizes))(offsets)
