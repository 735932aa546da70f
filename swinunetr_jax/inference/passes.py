"""The windows of one scan, to which one network or several are applied, and the uncertainty that follows from their disagreement."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swinunetr_jax.data.nifti import InverseReorient
from swinunetr_jax.data.prepare.resample import InverseResample
from swinunetr_jax.inference.background import background_calls, background_windows
from swinunetr_jax.inference.plan import Plan
from swinunetr_jax.inference.programs import output_functions
from swinunetr_jax.inference.scan_grid import Coverage, ScanPlanes, on_scan_grid
from swinunetr_jax.inference.sliding_window import Progress, predict_slabs
from swinunetr_jax.inference.window_outputs import window_weights
from swinunetr_jax.task import Task
from swinunetr_jax.uncertainty import RunningAgreement, RunningUncertainty, UncertaintyMaps, summarize

Network = Callable[[jax.Array], jax.Array]
"""patches [n, *roi, c] -> logits [n, *roi, c_out]"""


@dataclass(frozen=True)
class ScanPasses:
    """A normalised scan and the positions of its windows.

    Attributes:
        array: the scan [x, y, z, c].
        plan: the windows on `array[coverage.covered]`.
        coverage: the part of the scan that the windows cover.
        back: the transformation from the grid of `array` to the scan's, or None.
        task: the meaning of the outputs.
        batch: the number of windows per call of a network.
        blend: the weights within a window.
    """

    array: np.ndarray
    plan: Plan
    coverage: Coverage
    back: InverseReorient | InverseResample | None
    task: Task
    batch: int
    blend: str

    @property
    def reorientation(self) -> InverseReorient | None:
        """The reorientation of results to the scan's axes."""
        return self.back.reorient if isinstance(self.back, InverseResample) else self.back

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of results before their reorientation."""
        return self.array.shape[:3] if self.reorientation is None else self.reorientation.shape

    @functools.cached_property
    def background(self) -> np.ndarray:
        """Which calls of a network receive only background, see `background_calls`."""
        return background_calls(self.array[self.coverage.covered], self.plan, self.batch)

    @property
    def background_windows(self) -> int:
        """The number of windows of background in these calls."""
        return background_windows(self.background, self.plan, self.batch)

    def planes(self, network: Network, progress: Progress | None = None, *, deterministic: bool = False) -> Iterator[ScanPlanes]:
        """Yields the logits of a network on the scan's voxels, a few planes at a time.

        If the network is `deterministic`, so that equal windows have equal results, the result for windows of background is computed once.
        """
        inside = self.array[self.coverage.covered]
        weights = window_weights(self.plan, self.blend)
        background = self.background if deterministic else None
        planes = predict_slabs(
            inside, self.plan, self.batch, lambda x: (network(x),), weights, background=background, progress=progress
        )
        return on_scan_grid(planes, self.coverage, self.back)

    def new_labels(self) -> np.ndarray:
        """Returns a label map [x, y, z] of background."""
        return np.zeros(self.shape, np.uint8)

    def new_probabilities(self) -> np.ndarray:
        """Returns probabilities [x, y, z, c] that are those of background outside of the windows and undefined inside."""
        maps = np.empty((*self.shape, len(self.task.outputs)), np.float32)
        if self.coverage.box != tuple(slice(0, size) for size in self.array.shape[:3]):
            maps[...] = [float(self.task.kind == "classes" and output.value == 0) for output in self.task.outputs]
        return maps

    def oriented(self, result: np.ndarray) -> np.ndarray:
        """Returns a result with the scan's axes."""
        return result if self.reorientation is None else self.reorientation.apply(result)

    def segment(
        self, network: Network, *, probabilities: bool, progress: Progress | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the label map and, if requested, the probabilities of a network."""
        labels, maps = self.new_labels(), self.new_probabilities() if probabilities else None
        probabilities_of, labels_of = output_functions(self.task)
        for piece in self.planes(network, progress, deterministic=True):
            part = probabilities_of(piece.array)
            piece.write(labels_of(part), labels)
            if maps is not None:
                piece.write(part, maps)
        return self.oriented(labels), None if maps is None else self.oriented(maps)


@dataclass(frozen=True)
class Uncertainty:
    """The uncertainty of a segmentation: the measures per voxel on the scan's grid, and the numbers of the case as JSON values."""

    maps: UncertaintyMaps
    summary: dict[str, Any]


def segment_with_uncertainty(
    scan: ScanPasses,
    members: Sequence[Network],
    *,
    average: Network | None,
    probabilities: bool,
    progress: Progress | None = None,
) -> tuple[np.ndarray, np.ndarray | None, Uncertainty]:
    """Returns the label map, the probabilities if requested, and the uncertainty.

    Members are applied to the whole scan one after the other, so that each has the probabilities that it would have alone. The host keeps
    running sums, and nothing that grows with the number of members except one bit per voxel and output.

    Args:
        scan: the scan.
        members: the members, whose disagreement is measured.
        average: the network that determines the label map, if the members are draws of dropout; by default it is that of the members'
            averaged logits.
        probabilities: whether to return the probabilities that belong to the label map.
        progress: called with the number of finished windows of all passes, and the number of all of them.
    """
    task, windows, total = scan.task, scan.plan.windows, scan.plan.windows * (len(members) + (average is not None))
    probabilities_of, labels_of = output_functions(task)

    def passes_done(number: int) -> Progress | None:
        if progress is None:
            return None
        report = progress
        return lambda done, _: report(number * windows + done, total)

    running, agreement = RunningUncertainty(task.kind), RunningAgreement(task)
    member_maps, member_labels = scan.new_probabilities(), scan.new_labels()
    labels, maps = scan.new_labels(), scan.new_probabilities() if probabilities else None
    logits = np.zeros((*scan.shape, len(task.outputs)), np.float32) if average is None else None
    for number, member in enumerate(members):
        for piece in scan.planes(member, passes_done(number), deterministic=average is None):
            part = probabilities_of(piece.array)
            piece.write(part, member_maps)
            piece.write(labels_of(part), member_labels)
            if logits is None:
                continue
            piece.add(piece.array, logits)
            if number == len(members) - 1:
                part = probabilities_of(jnp.asarray(piece.read(logits)) / len(members))
                piece.write(labels_of(part), labels)
                if maps is not None:
                    piece.write(part, maps)
        running.add(member_maps)
        agreement.add(member_labels)
    labels, maps = scan.oriented(labels), None if maps is None else scan.oriented(maps)
    if average is not None:
        labels, maps = scan.segment(average, probabilities=probabilities, progress=passes_done(len(members)))
    measured = running.maps()
    measured = UncertaintyMaps(*(scan.oriented(values) for values in vars(measured).values()))
    summary = {"members": len(members), **summarize(measured, agreement, labels)}
    return labels, maps, Uncertainty(measured, summary)
