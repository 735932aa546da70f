"""Sliding-window inference: applies a function of patches to complete volumes, with MONAI's results and in bounded memory.

Windows are processed in row-major order of their positions, so that all planes before the current position along the first axis are
finished. Therefore the device needs only the sums of one slab, which is as deep as a window. When the position along the first axis
increases, the finished planes are copied a few at a time into the result on the host, and the other planes move up in place.

Under a transformation of JAX nothing can be copied to the host, and `traced_window` computes the same in one function of JAX.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from swinunetr_jax.console import Progress as Bar
from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.plan import PADDINGS, PerAxis, Plan, RoiSize
from swinunetr_jax.inference.slab_sum import Planes, SlabSum
from swinunetr_jax.inference.traced_window import predict_traced
from swinunetr_jax.inference.window_outputs import (
    apply_reduce,
    check_same_shapes,
    flatten,
    output_weights,
    unflatten,
    window_weights,
)

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

    Transformations:
        Under a transformation of JAX (`jax.jit`, `jax.grad`, …) of the inputs or of the predictor's weights, the results are the same, but
        arrays of JAX. They and the sums of the whole volume are then in the device's memory, `reduce` is applied to complete outputs, and
        `progress` is ignored. In a backward pass the predictor is called again for each batch of windows.

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
    if inputs.shape[0] == 0:
        raise InputError(f"`inputs` has shape {inputs.shape}, expected at least one volume.")
    plan = Plan.of(inputs.shape[1:-1], roi_size, overlap)
    _check_options(sw_batch_size, padding_mode)
    structure: list[Any] = [None]

    def flat(patches: jax.Array) -> tuple[Any, ...]:
        structure[0], outputs = flatten(predictor(patches))
        return outputs

    def reduced(planes: jax.Array) -> jax.Array:
        return planes if reduce is None else apply_reduce(reduce, planes)

    weights = window_weights(plan, mode, sigma_scale, roi_weight_map)
    options = {"padding_mode": padding_mode, "cval": cval}
    results = None
    if not isinstance(inputs, Tracer):
        with contextlib.suppress(_TracedOutputs):  # the predictor's weights may be traced although the inputs are not
            slabs = functools.partial(predict_slabs, plan=plan, batch=sw_batch_size, predictor=_untraced(flat), weights=weights)
            results = _on_host(jax.device_get(inputs), plan, functools.partial(slabs, **options), reduced, progress)
    if results is None:
        outputs = [predict_traced(jnp.asarray(volume), plan, sw_batch_size, flat, weights, **options) for volume in inputs]
        results = [jnp.stack(list(map(reduced, volumes))) for volumes in zip(*outputs, strict=True)]
    return unflatten(structure[0], results)


class _TracedOutputs(Exception):
    """The outputs of a predictor are traced by a transformation of JAX, so that they have no values that could be copied to the host."""


def _untraced(predictor: Callable[[jax.Array], tuple[Any, ...]]) -> Callable[[jax.Array], tuple[Any, ...]]:
    """Returns the same predictor, which raises _TracedOutputs for outputs without values."""

    def predict(patches: jax.Array) -> tuple[Any, ...]:
        outputs = predictor(patches)
        if any(isinstance(output, Tracer) for output in outputs):
            raise _TracedOutputs
        return outputs

    return predict


def _on_host(
    inputs: np.ndarray,
    plan: Plan,
    slabs: Callable[..., Iterator[Planes]],
    reduce: Callable[[jax.Array], jax.Array],
    progress: bool | Progress,
) -> list[np.ndarray]:
    """Returns the results for all volumes, one for each output. `slabs` is `predict_slabs` with its arguments except two."""
    results: dict[int, np.ndarray] = {}
    with Bar("sliding window", unit="window", silent=progress is not True) as bar:
        for index in range(len(inputs)):

            def count(done: int, total: int, index: int = index) -> None:
                bar(index * total + done, len(inputs) * total)

            for planes in slabs(inputs[index], progress=progress if callable(progress) else count):
                part = reduce(planes.array)
                box = plan.unpadded_box(planes.scale)
                if planes.output not in results:
                    shape = tuple(side.stop - side.start for side in box)
                    results[planes.output] = np.empty((len(inputs), *shape, *part.shape[len(shape) :]), part.dtype)
                planes.write(part, results[planes.output][index], box)
    return [results[output] for output in sorted(results)]


def predict_slabs(
    volume: np.ndarray,
    plan: Plan,
    batch: int,
    predictor: Callable[[jax.Array], Sequence[jax.Array]],
    weights: np.ndarray,
    *,
    padding_mode: str = "constant",
    cval: float = 0.0,
    background: np.ndarray | None = None,
    progress: Progress | None = None,
) -> Iterator[Planes]:
    """Yields the averaged outputs of a volume [*grid, c], a few finished planes along the first axis at a time.

    The arguments are those of `sliding_window_inference`, except that `predictor` returns a sequence of outputs and `weights` are those
    within a window, as `window_weights` returns them. `background`, bool [rows, calls in a row], states which calls receive equal windows:
    their outputs are computed once, so `predictor` must be deterministic. `progress` reports the windows of a call only after the next
    call was started, so that the device never waits for the host.
    """
    _check_options(batch, padding_mode)
    starts = np.array(list(itertools.product((0,), *plan.starts[1:])), np.int32)  # [n, axes], in each row of windows
    batch = min(batch, len(starts))
    rows, depth = plan.starts[0], plan.roi[0]
    sums: list[SlabSum] = []
    done, previous, background_outputs = 0, None, None
    for index, row in enumerate(rows):
        slab = jax.device_put(plan.pad(volume[row : row + depth], padding_mode, cval))
        for number, first in enumerate(range(0, len(starts), batch)):
            batch_starts = starts[first : first + batch]
            count = len(batch_starts)
            if count < batch:
                # The last batch is filled with copies, which are not added, so that the network is compiled for only one shape.
                batch_starts = np.concatenate([batch_starts, np.repeat(batch_starts[-1:], batch - count, 0)])
            is_background = background is not None and background[index, number]
            outputs = background_outputs if is_background else None
            if outputs is None:
                outputs = predictor(_cut(slab, jax.device_put(batch_starts), plan.roi))
            if is_background:
                background_outputs = outputs
            if not sums:
                sums = list(map(SlabSum, outputs, [plan] * len(outputs), output_weights(outputs, plan, batch, weights)))
            check_same_shapes(outputs, [sum_.shape for sum_ in sums])
            for sum_, output in zip(sums, outputs):
                sum_.add(output, batch_starts, count)
            if progress and done:
                jax.block_until_ready(previous)
                progress(done, plan.windows)
            previous = outputs
            done += count
        next_row = rows[index + 1] if index + 1 < len(rows) else None
        for number, sum_ in enumerate(sums):
            yield from sum_.pop_finished(number, row, next_row)
    if progress:
        progress(done, plan.windows)


def _check_options(batch: int, padding_mode: str) -> None:
    if batch < 1:
        raise InputError(f"`sw_batch_size` must be at least 1, got {batch}.")
    if padding_mode not in PADDINGS:
        raise InputError(f"`padding_mode` must be one of {', '.join(PADDINGS)}, got {padding_mode!r}.")


@functools.partial(jax.jit, static_argnames="roi")
def _cut(slab: jax.Array, offsets: jax.Array, roi: tuple[int, ...]) -> jax.Array:
    """Returns the windows [n, *roi, c] of a slab [*grid, c] at the positions `offsets` [n, axes]."""
    sizes = (*roi, slab.shape[-1])
    return jax.vmap(lambda offset: jax.lax.dynamic_slice(slab, (*offset, jnp.zeros_like(offset[0])), sizes))(offsets)
