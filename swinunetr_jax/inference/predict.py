"""A prepared scan in, a label map on the scan's own grid out."""

import functools
import itertools
import math
import numbers
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from swinunetr_jax.alarm import quiet_compilation
from swinunetr_jax.config import SIZE_MULTIPLE
from swinunetr_jax.data.augment import sides
from swinunetr_jax.data.boxes import bounding_box, slices, whole_box
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.nifti import InverseReorient, Volume
from swinunetr_jax.data.prepare.resample import InverseResample
from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.plan import BLENDS, Plan
from swinunetr_jax.inference.prepare import Prepared, prepare
from swinunetr_jax.inference.scan_grid import Seen, on_scan_grid
from swinunetr_jax.inference.sliding_window import Progress, predict_slabs
from swinunetr_jax.runtime.memory import release_compile_memory
from swinunetr_jax.runtime.sharding import device_mesh, replicate, spatially_sharded
from swinunetr_jax.runtime.xla import compiler_options
from swinunetr_jax.task import Task
from swinunetr_jax.weights.params import NetworkConfig

DEFAULT_ROI = (96, 96, 96)


@dataclass(frozen=True)
class Segmentation:
    """Arrays lie on the scan's own grid: `labels` uint8 [x, y, z], `probabilities` float32 [x, y, z, c] or None."""

    labels: np.ndarray
    probabilities: np.ndarray | None
    scan: Volume
    windows: int
    notes: tuple[str, ...]


class Segmenter:
    """Networks, and how they are run over a scan.

    Args:
        models: one network, or several as an ensemble whose logits are averaged; 3-D, all with the task's channels and outputs.
        configs: their configurations, by default their attribute `config`, which a Swin UNETR has.
        task: what they were trained for.
        roi: window size, multiples of 32, one number for all axes or three; by default the task's, else 96³.
        overlap: of neighbouring windows, 0 to less than 1.
        blend: "gaussian" or "constant" weights within a window.
        batch: windows per call of the network.
        mirror: also run every window mirrored along all combinations of axes, and average the logits (8 times the work). An axis along
            which names of labels tell sides, such as "left kidney", is left out, and a note says so.
        crop: look only inside the box of voxels that are not background, zero in every prepared channel; all around it is background.
            Fewer windows, at other places than without.
        whole: the network sees the whole scan at once, filled up with zeros to the sizes it takes, instead of windows.
        depth: this process's devices that share each window, divided along its first axis.

    Raises:
        InputError: an argument out of range, networks that do not fit the task, or a crop where no class is background.
    """

    def __init__(
        self,
        models: Sequence[nnx.Module],
        task: Task,
        *,
        configs: Sequence[NetworkConfig] | None = None,
        roi: int | tuple[int, ...] | None = None,
        overlap: float = 0.5,
        blend: str = "gaussian",
        batch: int = 1,
        mirror: bool = False,
        crop: bool = False,
        whole: bool = False,
        depth: int = 1,
    ):
        configs = [model.config for model in models] if configs is None else configs
        for config in configs:
            if config.spatial_dims != 3:
                raise InputError("a 2-D network cannot segment volumes; predict takes 3-D networks.")
            task.check(config)
            if config.in_channels != configs[0].in_channels:
                raise InputError("the networks of an ensemble must take the same input channels.")
        self.task = task
        self.roi = _roi(roi if roi is not None else task.roi or DEFAULT_ROI)
        configs[0].check_spatial(self.roi)
        if blend not in BLENDS:
            raise InputError(f"the blend must be one of {', '.join(BLENDS)}, got {blend!r}.")
        if depth < 1 or (self.roi[0] % depth and not whole):
            raise InputError(
                f"{depth} devices cannot share windows of {self.roi} evenly along the first axis: choose another number of "
                "spatial shards."
            )
        if whole and roi is not None:
            raise InputError(f"the whole scan at once has no windows, and the roi {roi} is one: give one of the two.")
        if batch < 1:
            raise InputError(f"the batch must be at least 1, got {batch}.")
        if not 0 <= overlap < 1:
            raise InputError(f"the overlap must be at least 0 and less than 1, got {overlap}.")
        if crop and task.kind == "classes" and all(output.value for output in task.outputs):
            names = ", ".join(output.name for output in task.outputs)
            raise InputError(f"a crop leaves background around it, and none of the classes {names} has the value 0: do not crop.")
        self.overlap, self.blend, self.batch, self.crop = overlap, blend, batch, crop
        self.whole, self.depth = whole, depth
        self.in_channels = configs[0].in_channels
        mesh = device_mesh(1, depth, jax.local_devices()) if depth > 1 else None
        self._networks = [_network(model, mesh) for model in models]
        self.mirror, self._flips = mirror, _flips(sides.sided_axes(task, [])) if mirror else [()]

    def plan(self, shape: tuple[int, ...]) -> Plan:
        """Where the windows lie on a volume of this shape."""
        return Plan.of(shape, self._whole_roi(shape) if self.whole else self.roi, self.overlap)

    def _whole_roi(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """One window that holds the volume and that devices can share."""
        multiples = (math.lcm(SIZE_MULTIPLE, self.depth), SIZE_MULTIPLE, SIZE_MULTIPLE)
        roi = [-(-size // multiple) * multiple for size, multiple in zip(shape, multiples)]
        if all(size == SIZE_MULTIPLE for size in roi):  # the one size that is too small
            roi[-1] *= 2
        return tuple(roi)

    def logits(self, patches: jax.Array) -> jax.Array:
        """The ensemble's averaged logits of patches [n, *roi, c]."""
        total = None
        for network, axes in itertools.product(self._networks, self._flips):
            y = jnp.flip(network(jnp.flip(patches, axes)), axes) if axes else network(patches)
            total = y if total is None else total + y
        count = len(self._networks) * len(self._flips)
        return total if count == 1 else total / count

    def segment(
        self, case: Case, *, probabilities: bool = False, et_label: int | None = None, progress: Progress | None = None
    ) -> Segmentation:
        """Reads and segments a case.

        Args:
            probabilities: also return each output's probability (regions) or the softmax (classes).
            et_label: for BraTS, the value to write for the enhancing tumour, by default the task's.
            progress: called with windows done and windows in all.

        Raises:
            InputError: the case is unsound; nothing is returned.
        """
        return self.segment_prepared(
            prepare(case, self.task, self.in_channels),
            probabilities=probabilities,
            et_label=et_label,
            progress=progress,
        )

    def segment_prepared(
        self,
        prepared: Prepared,
        *,
        probabilities: bool = False,
        et_label: int | None = None,
        progress: Progress | None = None,
    ) -> Segmentation:
        """As `segment`, for a case that was prepared already."""
        if self.mirror:
            sided = sides.sided_axes(self.task, [prepared.scan.affine])
            self._flips = _flips(sided)
            note = f"windows are not mirrored along {sides.describe(sided)}: these labels name sides along it"
            prepared = replace(prepared, notes=(*prepared.notes, *([note] if sided else [])))
        task = self.task if et_label is None else self.task.with_et_label(et_label)
        labels, likely, windows = self.run(
            prepared.array, back=prepared.back, task=task, probabilities=probabilities, progress=progress
        )
        return Segmentation(labels, likely, prepared.scan, windows, prepared.notes)

    def run(
        self,
        array: np.ndarray,
        *,
        back: InverseReorient | InverseResample | None = None,
        task: Task | None = None,
        probabilities: bool = False,
        progress: Progress | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None, int]:
        """Labels uint8 [x, y, z], probabilities [x, y, z, c] if asked for, and the number of windows of a normalised scan [x, y, z, c].

        Args:
            back: how the grid of `array` lies on the scan's; results are then on the scan's grid, otherwise on that of `array`. On a
                scan's grid of other voxels the logits are interpolated, and labels and probabilities are both computed from those.
            task: may write the same outputs as other values than the networks' own.
            probabilities: also return each output's probability.
            progress: called with windows done and windows in all.
        """
        task, grid = task or self.task, array.shape[:3]
        turn = back.reorient if isinstance(back, InverseResample) else back
        box = foreground_box(array) if self.crop else tuple(slice(0, size) for size in grid)
        part = grown(box, self.plan(array[box].shape[:3]).reach(self.overlap), grid) if self.crop else box
        plan = self.plan(array[part].shape[:3])
        planes = predict_slabs(array[part], plan, self.batch, lambda x: (self.logits(x),), mode=self.blend, progress=progress)
        seen = Seen(box, part, tuple(low for low, _ in plan.pads))
        shape = grid if turn is None else turn.shape
        labels = np.zeros(shape, np.uint8)  # the label of background
        likely = np.empty((*shape, len(task.outputs)), np.float32) if probabilities else None
        if likely is not None and box != tuple(slice(0, size) for size in grid):
            likely[...] = [float(task.kind == "classes" and output.value == 0) for output in task.outputs]
        probabilities_of, labels_of = _finish(task)
        for piece in on_scan_grid(planes, seen, back):
            found = probabilities_of(piece.array)
            piece.write(labels_of(found), labels)
            if likely is not None:
                piece.write(found, likely)
        if turn is not None:
            labels, likely = turn.apply(labels), None if likely is None else turn.apply(likely)
        return labels, likely, plan.windows


def foreground_box(array: np.ndarray) -> tuple[slice, ...]:
    """The smallest box of [x, y, z, c] that holds every voxel which is not zero in all channels; the whole grid where none is."""
    return slices(bounding_box((array != 0).any(-1)) or whole_box(array.shape[:3]))


def grown(box: tuple[slice, ...], sizes: tuple[int, ...], grid: tuple[int, ...]) -> tuple[slice, ...]:
    """A box grown on both sides to these sizes, as far as the grid allows.

    What windows of a small box cover anyway is taken from the scan instead of padding, and boxes of different cases get the same few
    shapes, for each of which programs are compiled.
    """
    result = []
    for part, size, whole in zip(box, sizes, grid):
        size = min(max(size, part.stop - part.start), whole)
        start = part.start - (size - (part.stop - part.start)) // 2
        start = min(max(start, 0), whole - size)
        result.append(slice(start, start + size))
    return tuple(result)


def _roi(roi: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (roi,) * 3 if isinstance(roi, numbers.Integral) else tuple(roi)
    if len(sizes) != 3 or any(size < SIZE_MULTIPLE or size % SIZE_MULTIPLE for size in sizes):
        got = " ".join(map(str, sizes)) or "none"
        raise InputError(f"the roi must be three multiples of {SIZE_MULTIPLE}, such as 96 96 96, got {got}.")
    return sizes


def _flips(sided: Collection[int]) -> list[tuple[int, ...]]:
    """The combinations of axes of [n, x, y, z, c] that windows are mirrored along, without array axes along which there are sides."""
    axes = [axis + 1 for axis in range(3) if axis not in sided]
    return [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]


def _network(model: nnx.Module, mesh: Mesh | None) -> Callable[[jax.Array], jax.Array]:
    structure, state = nnx.split(model)
    state = state if mesh is None else replicate(state, mesh)
    run = quiet_compilation(_compiled(structure, mesh))
    return lambda patches: run(state, patches)


@functools.lru_cache(maxsize=8)
def _compiled(structure: nnx.GraphDef, mesh: Mesh | None) -> Callable[[nnx.State, jax.Array], jax.Array]:
    release_compile_memory()

    # the parameters are an argument, so that networks of one structure share one program
    def run(state: nnx.State, patches: jax.Array) -> jax.Array:
        return nnx.merge(structure, state)(patches)

    if mesh is not None:
        return spatially_sharded(run, mesh, compiler_options())
    return jax.jit(run, compiler_options=compiler_options())


@functools.lru_cache(maxsize=8)  # a new function would be compiled again for every case
def _finish(task: Task) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """(probabilities from averaged logits [..., c], labels from probabilities), both on the device.

    Two programs: labels are read off the very numbers that are written, so that both agree in every voxel.
    """
    values = np.array([output.value for output in task.outputs], np.uint8)

    @jax.jit
    def probabilities(logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits, axis=-1) if task.kind == "classes" else jax.nn.sigmoid(logits)

    @jax.jit
    def labels(probabilities: jax.Array) -> jax.Array:
        if task.kind == "classes":
            return jnp.asarray(values)[jnp.argmax(probabilities, axis=-1)]
        labels = jnp.zeros(probabilities.shape[:-1], jnp.uint8)
        for channel in task.paint:
            labels = jnp.where(probabilities[..., channel] > 0.5, values[channel], labels)
        return labels

    return probabilities, labels
