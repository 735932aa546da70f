"""Saliency maps of whole scans: Grad-CAM through the sliding window of a prediction.

The scan is one image, and the network with its sliding window is one function of it. The score of an output is the sum of its averaged
logits over the voxels that the prediction assigns to it. A voxel's averaged logit contains the logits of all windows around it with their
weights, so the score has a gradient with respect to the intermediate of each window. As in Grad-CAM on one image, the weight of a channel
is the mean of its gradient over all windows and places, and is the same everywhere. Each window's map is interpolated to the voxels, and
the maps are averaged like logits. With one window this is exactly `swinunetr_jax.grad_cam`.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from swinunetr_jax import saliency
from swinunetr_jax.alarm import quiet_compilation
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.nifti import InverseReorient, Volume
from swinunetr_jax.data.prepare.resample import InverseResample
from swinunetr_jax.inference.plan import Plan, importance_map
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.inference.prepare import Prepared
from swinunetr_jax.inference.scan_grid import Coverage
from swinunetr_jax.inference.sliding_window import Progress, predict_slabs
from swinunetr_jax.inference.window_outputs import window_weights
from swinunetr_jax.model.intermediates import check_name
from swinunetr_jax.runtime.memory import release_compile_memory
from swinunetr_jax.runtime.xla import compiler_options
from swinunetr_jax.task import Task
from swinunetr_jax.weights.params import NetworkConfig

PASSES = 3  # a prediction, the gradients, the maps


@dataclass(frozen=True)
class SaliencyMaps:
    """The result for a case.

    Attributes:
        maps: float32 [x, y, z, n] ≥ 0 on the scan's own grid, one for each of n outputs; not scaled.
        voxels: for each output, the number of voxels of the network's grid that the prediction assigns to it.
        scan: the first channel's file.
        windows: the number of windows.
        notes: sentences for the user.
    """

    maps: np.ndarray
    voxels: tuple[int, ...]
    scan: Volume
    windows: int
    notes: tuple[str, ...]


class SaliencyMapper:
    """Computes Grad-CAM maps of scans for one network.

    Args:
        model: the network, which has named intermediates as a Swin UNETR has.
        task: the task that it was trained for.
        config: its configuration, by default its attribute `config`.
        outputs: the names of the outputs to map; by default all except the background.
        layer: the name of an intermediate of `SwinUNETR.forward`.
        roi, overlap, blend, batch, crop: the arguments of `Segmenter`.

    Raises:
        InputError: as for `Segmenter`; or an output or the intermediate does not exist, or the network has no named intermediates.
    """

    def __init__(
        self,
        model: nnx.Module,
        task: Task,
        *,
        config: NetworkConfig | None = None,
        outputs: Sequence[str] = (),
        layer: str = saliency.DEFAULT_LAYER,
        roi: int | tuple[int, ...] | None = None,
        overlap: float = 0.5,
        blend: str = "gaussian",
        batch: int = 1,
        crop: bool = False,
    ):
        self.segmenter = Segmenter(
            [model],
            task,
            configs=None if config is None else [config],
            roi=roi,
            overlap=overlap,
            blend=blend,
            batch=batch,
            crop=crop,
        )
        self.task, self.layer = task, layer
        outputs = outputs or [output.name for output in task.outputs if task.kind == "regions" or output.value]
        self.channels = tuple(dict.fromkeys(saliency.output_channel(task, name) for name in outputs))
        self.outputs = tuple(task.outputs[channel].name for channel in self.channels)
        saliency.check_explainable(model)
        patch = jax.ShapeDtypeStruct((1, *self.segmenter.roi, self.segmenter.in_channels), jnp.float32)
        check_name(layer, jax.eval_shape(lambda model, x: model.forward(x)[1], model, patch))
        structure, self._state = nnx.split(model)
        self._gradients, self._maps = _programs(structure, layer, self.channels)

    def explain(self, case: Case, progress: Progress | None = None) -> SaliencyMaps:
        """Reads a case and computes its maps. Raises InputError if the case has a fault."""
        return self.explain_prepared(self.segmenter.prepare(case), progress)

    def explain_prepared(self, prepared: Prepared, progress: Progress | None = None) -> SaliencyMaps:
        """Computes the maps of a case that was prepared."""
        maps, voxels, windows = self.run(prepared.array, back=prepared.back, progress=progress)
        notes = list(prepared.notes)
        for name, count, top in zip(self.outputs, voxels, maps.max((0, 1, 2))):
            if not count:
                notes.append(f"the network assigns no voxel to {name}, so its map is 0 everywhere")
            elif not top:
                notes.append(f"no place of {self.layer} speaks for {name}, so its map is 0 everywhere")
        return SaliencyMaps(maps, voxels, prepared.scan, windows, tuple(notes))

    def run(
        self, array: np.ndarray, *, back: InverseReorient | InverseResample | None = None, progress: Progress | None = None
    ) -> tuple[np.ndarray, tuple[int, ...], int]:
        """Computes the maps of a normalised scan.

        Args:
            array: the scan [x, y, z, c].
            back: the transformation from the grid of `array` to the scan's, on which the maps then are; linear if the scan was resampled.
            progress: a function that is called with the number of finished steps and the number of all steps.

        Returns:
            Maps float32 [x, y, z, n], the number of voxels that are assigned to each output, and the number of windows.
        """
        scan = self.segmenter.passes(array, back, self.task)
        covered, windows = array[scan.coverage.covered], scan.plan.windows

        def step(number: int) -> Progress:
            return lambda done, _: progress and progress(number * windows + done, PASSES * windows)

        mask = self._assigned(covered, scan.plan, scan.coverage, step(0))
        voxels = tuple(int(count) for count in np.count_nonzero(mask, axis=(0, 1, 2)))
        weights = self._channel_weights(covered, scan.plan, mask, step(1))
        maps = np.zeros((*scan.shape, len(self.channels)), np.float32)
        if np.any(weights):
            for piece in scan.planes(lambda patches: self._maps(self._state, patches, weights), step(2)):
                piece.write(piece.array, maps)
        if progress:
            progress(PASSES * windows, PASSES * windows)
        return scan.oriented(maps), voxels, windows

    def _assigned(self, array: np.ndarray, plan: Plan, coverage: Coverage, progress: Progress) -> np.ndarray:
        """Returns the voxels that the prediction assigns to each of the outputs: bool [x, y, z, n], on the grid of the windows."""
        mask = np.zeros((*plan.image, len(self.channels)), bool)
        assign = _assign(self.task, self.channels)

        def predictor(patches: jax.Array) -> tuple[jax.Array]:
            return (self.segmenter.logits(patches),)

        weights = window_weights(plan, self.segmenter.blend)
        for planes in predict_slabs(array, plan, self.segmenter.batch, predictor, weights, progress=progress):
            planes.write(assign(planes.array), mask, plan.unpadded_box(planes.scale))
        inside = np.zeros(plan.image, bool)
        inside[tuple(slice(b.start - c.start, b.stop - c.start) for b, c in zip(coverage.box, coverage.covered))] = True
        return mask & inside[..., None]

    def _channel_weights(self, array: np.ndarray, plan: Plan, mask: np.ndarray, progress: Progress) -> np.ndarray:
        """Returns the weight of each channel of the intermediate for each output, [n, c]."""
        importance = importance_map(plan.roi, self.segmenter.blend)
        boxes = [
            tuple(slice(start, start + size) for start, size in zip(starts, plan.roi))
            for starts in itertools.product(*plan.starts)
        ]
        total = np.zeros(plan.padded, np.float32)
        for box in boxes:
            total[box] += importance
        padded, mask = plan.pad(array), plan.pad(mask)
        boxes = [box for box in boxes if mask[box].any()]  # the score does not depend on the other windows
        batch = min(self.segmenter.batch, len(boxes))
        weights: np.ndarray | float = 0.0
        for first in range(0, len(boxes), max(batch, 1)):
            group = boxes[first : first + batch]
            filled = group + group[-1:] * (batch - len(group))  # all calls have one shape, so that one program is compiled
            shares = np.stack([mask[box] * (importance / total[box])[..., None] for box in filled])
            shares[len(group) :] = 0
            weights += np.asarray(self._gradients(self._state, np.stack([padded[box] for box in filled]), shares))
            progress(first + len(group), len(boxes))
        return np.asarray(weights / plan.windows)


Gradients = Callable[[nnx.State, np.ndarray, np.ndarray], jax.Array]
Maps = Callable[[nnx.State, jax.Array, np.ndarray], jax.Array]


@functools.lru_cache(maxsize=8)  # because new functions would be compiled again for every case
def _programs(structure: nnx.GraphDef, layer: str, channels: tuple[int, ...]) -> tuple[Gradients, Maps]:
    """Returns the compiled functions of the gradients and of the maps of n outputs.

    The first one is (state, patches [b, *roi, c_in], shares [b, *roi, n] of the score) -> the mean gradient of each channel, summed over
    the patches, [n, c]. The second one is (state, patches, weights [n, c]) -> maps [b, *roi, n].
    """
    release_compile_memory()

    def gradients(state: nnx.State, patches: jax.Array, shares: jax.Array) -> jax.Array:
        logits, _, gradient_of = saliency.run(nnx.merge(structure, state), patches, layer)

        def of_output(channel_and_share: tuple[jax.Array, jax.Array]) -> jax.Array:
            channel, share = channel_and_share
            cotangent = jnp.zeros_like(logits).at[..., channel].set(share.astype(logits.dtype))
            return saliency.channel_weights(gradient_of(cotangent)).sum(0)

        return jax.lax.map(of_output, (jnp.array(channels), jnp.moveaxis(shares, -1, 0)))

    def maps(state: nnx.State, patches: jax.Array, weights: jax.Array) -> jax.Array:
        activations = nnx.merge(structure, state).forward(patches)[1][layer]
        coarse = [saliency.weighted_map(activations, weights[number]) for number in range(len(channels))]
        return jnp.stack([saliency.resized(cam, patches.shape[1:-1]) for cam in coarse], axis=-1)

    options = compiler_options()
    return (
        quiet_compilation(jax.jit(gradients, compiler_options=options)),
        quiet_compilation(jax.jit(maps, compiler_options=options)),
    )


@functools.lru_cache(maxsize=8)
def _assign(task: Task, channels: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
    """Returns the compiled function that maps averaged logits [..., c] to the voxels of n outputs, bool [..., n]."""
    return jax.jit(lambda logits: saliency.assigned(logits, task)[..., np.array(channels)])
