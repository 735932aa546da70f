"""Segments a scan with one or several networks. The label map has the scan's own grid."""

import functools
import itertools
import math
import operator
import warnings
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from swinunetr_jax.config import SIZE_MULTIPLE
from swinunetr_jax.data.augment import sides
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.nifti import InverseReorient
from swinunetr_jax.data.prepare.resample import InverseResample
from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.crop import expand_box, foreground_box
from swinunetr_jax.inference.members import check_dropout, members
from swinunetr_jax.inference.mirroring import mirrored_axes, sided_axes
from swinunetr_jax.inference.passes import ScanPasses, segment_with_uncertainty
from swinunetr_jax.inference.plan import BLENDS, Plan
from swinunetr_jax.inference.prepare import Prepared, prepare
from swinunetr_jax.inference.programs import compiled_network
from swinunetr_jax.inference.scan_grid import Coverage
from swinunetr_jax.inference.segmentation import Segmentation
from swinunetr_jax.inference.sliding_window import Progress
from swinunetr_jax.postprocess import Step
from swinunetr_jax.runtime.sharding import device_mesh
from swinunetr_jax.task import Task
from swinunetr_jax.weights.params import NetworkConfig, config_of

DEFAULT_ROI = (96, 96, 96)


class Segmenter:
    """Applies networks to scans.

    Args:
        models: one 3-D network, or several as an ensemble whose logits are averaged. All have the task's channels and outputs.
        task: the task that the networks were trained for.
        configs: the configurations of the networks, by default their attribute `config`, which a Swin UNETR has.
        roi: the size of a window, multiples of 32, for all axes or for each; by default the task's, otherwise 96³.
        overlap: the fraction by which neighbouring windows overlap, at least 0 and less than 1.
        blend: "gaussian" or "constant", the weights within a window.
        batch: the number of windows per call of the network.
        mirror: also apply the networks to each window mirrored along all combinations of axes, and average the logits, which takes 8 times
            as long. Axes along which labels name sides, such as "left kidney", are not mirrored, and a note reports this.
        crop: predict only inside the bounding box of the foreground, the voxels that are not zero in all prepared channels. The result is
            background outside of this box. This needs fewer windows, at other positions.
        whole: give the network the whole scan at once instead of windows, padded with zeros to a size that the network accepts.
        spatial_shards: the number of this process's devices among which each window is divided along its first axis.
        depth: the old name of `spatial_shards`, which works for one more version.
        uncertainty: also measure the disagreement of the members, see `swinunetr_jax.uncertainty`. The members are the networks and, with
            `mirror`, each of their mirrored passes. The label map is the same as without, apart from rounding: members are averaged
            in another order.
        mc_dropout: the number of draws of dropout for each network, 0 for none. The members are then these draws, whereas the label map
            remains that of the networks without dropout. Each window has random numbers of its own.
        seed: the seed of the draws. They also depend on `batch`.
        postprocess: operations on the label maps, which `swinunetr_jax.segment` applies.

    Raises:
        InputError: an argument is out of range, a network does not fit the task or was only pre-trained without labels, `crop` is set and
            no class is background, or there are fewer than two members or no dropout.
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
        spatial_shards: int = 1,
        depth: int | None = None,
        uncertainty: bool = False,
        mc_dropout: int = 0,
        seed: int = 0,
        postprocess: Sequence[Step] = (),
    ):
        if depth is not None:
            warnings.warn("`depth` is renamed: use `spatial_shards`", DeprecationWarning, stacklevel=2)
            spatial_shards = depth
        if task.kind == "images":
            raise InputError(
                "the network was pre-trained without labels and returns images, so it cannot segment: train it with labels first "
                "(`swinunetr train msd --data DATA --init.checkpoint RUN`), and predict with the new run."
            )
        configs = [config_of(model, "configs") for model in models] if configs is None else configs
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
        if spatial_shards < 1 or (self.roi[0] % spatial_shards and not whole):
            raise InputError(
                f"{spatial_shards} devices cannot share windows of {self.roi} evenly along the first axis: choose another number of "
                "spatial shards."
            )
        if whole and roi is not None:
            raise InputError(f"`whole` uses no windows, but the roi {roi} is the size of one: give only one of the two.")
        if batch < 1:
            raise InputError(f"the batch must be at least 1, got {batch}.")
        if not 0 <= overlap < 1:
            raise InputError(f"the overlap must be at least 0 and less than 1, got {overlap}.")
        if crop and task.kind == "classes" and all(output.value for output in task.outputs):
            names = ", ".join(output.name for output in task.outputs)
            raise InputError(f"a crop is surrounded by background, but none of the classes {names} has the value 0: do not crop.")
        self.overlap, self.blend, self.batch, self.crop = overlap, blend, batch, crop
        self.postprocess = tuple(postprocess)
        self.whole, self.spatial_shards = whole, spatial_shards
        self.in_channels = configs[0].in_channels
        mesh = device_mesh(1, spatial_shards, jax.local_devices()) if spatial_shards > 1 else None
        self._networks = [compiled_network(model, mesh) for model in models]
        self.mirror, self.uncertainty, self.mc_dropout, self.seed = mirror, uncertainty or mc_dropout > 0, mc_dropout, seed
        if not (0 <= seed < 2**32 and mc_dropout >= 0):
            raise InputError(
                f"`mc_dropout` must be at least 0, got {mc_dropout}, and `seed` at least 0 and below 2**32, got {seed}."
            )
        if mc_dropout:
            for model, config in zip(models, configs):
                check_dropout(model, config, (1, *self.roi, self.in_channels))
        if self.uncertainty and len(models) * max(mc_dropout, 1) < 2 and not mirror:
            raise InputError(
                "uncertainty is the disagreement of at least two members: give several networks, --mirror, or at least two draws of "
                "dropout with --mc-dropout."
            )

    def plan(self, shape: tuple[int, ...]) -> Plan:
        """Returns the positions of the windows on a volume of this shape."""
        return Plan.of(shape, self._whole_roi(shape) if self.whole else self.roi, self.overlap)

    def _whole_roi(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the size of one window that contains the volume and that can be divided among the devices."""
        multiples = (math.lcm(SIZE_MULTIPLE, self.spatial_shards), SIZE_MULTIPLE, SIZE_MULTIPLE)
        roi = [-(-size // multiple) * multiple for size, multiple in zip(shape, multiples)]
        if all(size == SIZE_MULTIPLE for size in roi):  # the only size that is too small for the network
            roi[-1] *= 2
        return tuple(roi)

    def logits(self, patches: jax.Array, *, affine: np.ndarray | None = None) -> jax.Array:
        """Returns the averaged logits of the ensemble for patches [n, *roi, c]; `affine` is that of `run`, which `mirror` may need."""
        return self._averaged(patches, self._flips(affine))

    def _averaged(self, patches: jax.Array, flips: Sequence[tuple[int, ...]]) -> jax.Array:
        """Returns the logits averaged over the networks and over `flips`, combinations of axes along which patches are mirrored."""
        results = (
            jnp.flip(network(jnp.flip(patches, axes)), axes) if axes else network(patches)
            for network, axes in itertools.product(self._networks, flips)
        )
        total = functools.reduce(operator.add, results)
        count = len(self._networks) * len(flips)
        return total if count == 1 else total / count

    def _flips(self, affine: np.ndarray | None) -> list[tuple[int, ...]]:
        """Returns the combinations of axes of patches [n, x, y, z, c] along which a scan with this affine is mirrored."""
        return mirrored_axes(self.task, affine) if self.mirror else [()]

    def prepare(self, case: Case) -> Prepared:
        """Reads a case in the form that the networks need. Raises InputError if it has a fault."""
        return prepare(case, self.task, self.in_channels)

    def segment(
        self, case: Case, *, probabilities: bool = False, et_label: int | None = None, progress: Progress | None = None
    ) -> Segmentation:
        """Reads and segments a case.

        Args:
            case: the case.
            probabilities: also return the probability of each output, by the sigmoid for regions and by the softmax for classes.
            et_label: the label of the enhancing tumour for BraTS, by default the task's.
            progress: a function that is called with the number of finished windows and the number of all windows.

        Raises:
            InputError: the case has a fault.
        """
        return self.segment_prepared(
            self.prepare(case),
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
        """Segments a case that was prepared, with the arguments of `segment`."""
        if self.mirror:
            sided = sided_axes(self.task, prepared.scan.affine)
            note = f"windows are not mirrored along {sides.describe(sided)}, because these labels name sides"
            prepared = replace(prepared, notes=(*prepared.notes, *([note] if sided else [])))
        task = self.task if et_label is None else self.task.with_et_label(et_label)
        scan, flips = self.passes(prepared.array, prepared.back, task), self._flips(prepared.scan.affine)
        uncertainty = None
        if self.uncertainty:
            if self.mirror and len(flips) == len(self._networks) == 1 and not self.mc_dropout:
                raise InputError(
                    "the labels name sides along every axis, so that windows are not mirrored and the only network has nothing to disagree "
                    "with: give several networks, or --mc-dropout."
                )
            labels, probability_maps, uncertainty = segment_with_uncertainty(
                scan,
                members(self._networks, flips, draws=self.mc_dropout, seed=self.seed),
                average=(lambda x: self._averaged(x, flips)) if self.mc_dropout else None,
                probabilities=probabilities,
                progress=progress,
            )
        else:
            labels, probability_maps = scan.segment(
                lambda x: self._averaged(x, flips), probabilities=probabilities, progress=progress
            )
        return Segmentation(
            labels,
            probability_maps,
            prepared.scan,
            task,
            scan.plan.windows,
            prepared.notes,
            uncertainty,
            background_windows=scan.background_windows,
            channels=prepared.channels,
            warnings=prepared.warnings,
        )

    def run(
        self,
        array: np.ndarray,
        *,
        affine: np.ndarray | None = None,
        back: InverseReorient | InverseResample | None = None,
        task: Task | None = None,
        probabilities: bool = False,
        progress: Progress | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None, int]:
        """Segments a normalised scan.

        Args:
            array: the scan [x, y, z, c].
            affine: the affine [4, 4] of the scan, which `mirror` needs if labels name sides and the task has no orientation.
            back: the transformation from the grid of `array` to the scan's. If it is given, the results have the scan's grid, otherwise the
                grid of `array`. If the scan was resampled, the logits are interpolated on the scan's grid, and labels and probabilities
                are computed from the interpolated logits.
            task: a task with the same outputs, possibly with other label values; by default the networks' own.
            probabilities: also return the probability of each output.
            progress: a function that is called with the number of finished windows and the number of all windows.

        Returns:
            Labels uint8 [x, y, z], probabilities float32 [x, y, z, c] or None, and the number of windows.

        Raises:
            InputError: `affine` is needed and None.
        """
        scan, flips = self.passes(array, back, task or self.task), self._flips(affine)
        labels, maps = scan.segment(lambda x: self._averaged(x, flips), probabilities=probabilities, progress=progress)
        return labels, maps, scan.plan.windows

    def passes(self, array: np.ndarray, back: InverseReorient | InverseResample | None, task: Task) -> ScanPasses:
        """Returns the windows on a normalised scan [x, y, z, c], to which networks are applied, with the arguments of `run`."""
        grid = array.shape[:3]
        box = foreground_box(array) if self.crop else tuple(slice(0, size) for size in grid)
        covered = expand_box(box, self.plan(array[box].shape[:3]).max_extent(self.overlap), grid) if self.crop else box
        plan = self.plan(array[covered].shape[:3])
        coverage = Coverage(box, covered, tuple(low for low, _ in plan.pads))
        return ScanPasses(array, plan, coverage, back, task, self.batch, self.blend)


def _roi(roi: int | Sequence[int]) -> tuple[int, ...]:
    """Returns the three sizes of a window. Raises InputError for sizes that the network does not accept."""
    sizes = (int(roi),) * 3 if isinstance(roi, int | np.integer) else tuple(roi)
    if len(sizes) != 3 or any(size < SIZE_MULTIPLE or size % SIZE_MULTIPLE for size in sizes):
        got = " ".join(map(str, sizes)) or "none"
        raise InputError(f"the roi must be three multiples of {SIZE_MULTIPLE}, such as 96 96 96, got {got}.")
    return sizes
