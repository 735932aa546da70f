"""Uncertainty of a segmentation from the disagreement of several predictions, its members, such as networks or draws of dropout.

Members p_1 … p_n are probabilities of the same voxels, and p̄ is their mean. With the entropy H of a distribution, per voxel and in nats:

    predictive entropy    H[p̄]
    mutual information    H[p̄] - (1/n) Σ H[p_i], the part of the entropy that more knowledge of the network would remove (BALD)
    variance              (1/n) Σ |p_i - p̄|²

The members of Gal and Ghahramani (2016, arXiv 1506.02142) are draws of dropout, and those of Lakshminarayanan et al. (2017, arXiv
1612.01474) are networks of an ensemble. Kendall and Gal (2017, arXiv 1703.04977) separate the uncertainty about the network from that of
the data; the mutual information measures the first (Houlsby et al. 2011, arXiv 1112.5745). The numbers of a whole structure are those of
Roy et al. (2019, NeuroImage 195): the coefficient of variation of its volume, the Dice among members, their intersection over union, and
the mean uncertainty of its voxels.

For classes, H is the entropy of one distribution per voxel, at most log c. For regions, which may overlap, each output is a distribution of
its own, yes or no, with an entropy of at most log 2.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import entr

from swinunetr_jax.errors import InputError
from swinunetr_jax.metrics import masks
from swinunetr_jax.task import Task

KINDS = ("classes", "regions")
MEASURES = ("entropy", "mutual_information", "variance")
_CHUNK_BYTES = 16 << 20  # the size of the planes that are processed at a time, which limits the memory of intermediate results
_ROUNDING = 0.01  # how far probabilities may be outside of 0 … 1, because some types have few digits


def entropy(probabilities: np.ndarray, kind: str) -> np.ndarray:
    """Returns the entropy in nats: for classes [...] of probabilities [..., c], for regions [..., c].

    Raises:
        InputError: `kind` is neither "classes" nor "regions", or a number is not a probability.
    """
    _check_kind(kind)
    p = np.asarray(probabilities)
    if p.size and (p.min() < -_ROUNDING or p.max() > 1 + _ROUNDING):
        raise InputError(
            f"probabilities must be at least 0 and at most 1, got numbers from {p.min():g} to {p.max():g}: apply a softmax or a sigmoid "
            "to logits first."
        )
    p = np.clip(p, 0, 1)  # beyond this range the logarithm is not defined
    return entr(p).sum(-1) if kind == "classes" else entr(p) + entr(1 - p)


@dataclass(frozen=True)
class UncertaintyMaps:
    """The measures per voxel, float32 [...] for classes and [..., c] for regions. The variance of classes is summed over the classes."""

    entropy: np.ndarray
    mutual_information: np.ndarray
    variance: np.ndarray


class RunningUncertainty:
    """The measures of members that are added one after the other. The memory does not depend on their number.

    Args:
        kind: "classes" or "regions".

    Raises:
        InputError: `kind` is another one, no member was added, the members have different shapes, or a number is not a probability.
    """

    def __init__(self, kind: str):
        _check_kind(kind)
        self.kind, self.count = kind, 0
        self._mean = self._squares = self._entropy = np.zeros(0, np.float32)

    def add(self, probabilities: np.ndarray) -> None:
        """Adds the probabilities [..., c] of a member."""
        p = np.asarray(probabilities)
        if self.count == 0:
            shape = p.shape[:-1] if self.kind == "classes" else p.shape
            self._mean = np.zeros(p.shape, np.float32)
            self._squares, self._entropy = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        if p.shape != self._mean.shape:
            raise InputError(f"the probabilities of a member have shape {p.shape}, expected {self._mean.shape} as before.")
        self.count += 1
        for part in _chunks(p):
            # Welford's algorithm: sums of squares would lose the digits of small variances.
            difference = p[part] - self._mean[part]
            self._mean[part] += difference / self.count
            squares = difference * (p[part] - self._mean[part])
            self._squares[part] += squares.sum(-1) if self.kind == "classes" else squares
            self._entropy[part] += (entropy(p[part], self.kind) - self._entropy[part]) / self.count

    @property
    def mean(self) -> np.ndarray:
        """The mean of the members' probabilities [..., c]."""
        return self._mean

    def maps(self) -> UncertaintyMaps:
        """Returns the measures of the members so far."""
        if self.count == 0:
            raise InputError("no member was added, so there is no uncertainty.")
        predictive = np.empty_like(self._entropy)
        for part in _chunks(self._mean):
            predictive[part] = entropy(self._mean[part], self.kind)
        information = np.maximum(predictive - self._entropy, 0)  # rounding may give a negative number
        return UncertaintyMaps(np.maximum(predictive, 0), information, self._squares / self.count)


def uncertainty_maps(members: Iterable[np.ndarray], kind: str) -> UncertaintyMaps:
    """Returns the measures of members, each with probabilities [..., c] of the same voxels.

    Args:
        members: the members, for example an array [n, ..., c] or a generator, of which one member is in memory at a time.
        kind: "classes" if each voxel has one of the outputs, "regions" if outputs may overlap.

    Raises:
        InputError: there is no member, the shapes differ, a number is not a probability, or `kind` is another one.
    """
    running = RunningUncertainty(kind)
    for member in members:
        running.add(member)
    return running.maps()


@dataclass(frozen=True)
class Agreement:
    """The agreement of the members about one output (Roy et al. 2019).

    Attributes:
        volume_cv: the standard deviation of the members' volumes (divided by n) over their mean, or None if all volumes are 0.
        pairwise_dice: the mean Dice of all pairs of members, without pairs that are both empty; None if there is no other pair.
        iou: the voxels of all members over those of any member, or None if there are no voxels.
    """

    volume_cv: float | None
    pairwise_dice: float | None
    iou: float | None


class RunningAgreement:
    """The agreement of label maps that are added one after the other. One bit per voxel, output and member is kept.

    Args:
        task: the outputs and their labels.
    """

    def __init__(self, task: Task):
        self.task = task
        self._bits: dict[str, list[np.ndarray]] = {output.name: [] for output in task.outputs if output.value}

    def add(self, labels: np.ndarray) -> None:
        """Adds the label map of a member."""
        for name, mask in masks(labels, self.task).items():
            self._bits[name].append(np.packbits(mask))

    def by_output(self) -> dict[str, Agreement]:
        """Returns the agreement about each output except the background."""
        return {name: _agreement(bits) for name, bits in self._bits.items()}


def _agreement(bits: list[np.ndarray]) -> Agreement:
    """Returns the agreement of masks that are packed into bits."""
    volumes = np.array([_count(mask) for mask in bits], float)
    if not volumes.any():
        return Agreement(None, None, None)
    dice = [
        2 * _count(bits[i] & bits[j]) / (volumes[i] + volumes[j])
        for i, j in itertools.combinations(range(len(bits)), 2)
        if volumes[i] + volumes[j]
    ]
    union = _count(np.bitwise_or.reduce(bits))
    return Agreement(
        float(volumes.std() / volumes.mean()),
        float(np.mean(dice)) if dice else None,
        _count(np.bitwise_and.reduce(bits)) / union,
    )


def summarize(maps: UncertaintyMaps, agreement: RunningAgreement, labels: np.ndarray) -> dict[str, Any]:
    """Returns the numbers of a case as JSON values.

    Args:
        maps: the measures per voxel.
        agreement: that of the members.
        labels: the label map of the segmentation.

    Returns:
        "foreground" with the mean of each measure over the voxels with a label, for regions also over the outputs; and "outputs" with the
        mean over the voxels of each output and the fields of `Agreement`. A mean over no voxel is None.
    """
    task, foreground, outputs = agreement.task, labels > 0, {}
    channel = {output.name: number for number, output in enumerate(task.outputs)}
    regions = task.kind == "regions"
    by_output, label_masks = agreement.by_output(), masks(labels, task)
    for name, scores in by_output.items():
        means = {
            measure: _mean(getattr(maps, measure)[..., channel[name]] if regions else getattr(maps, measure), label_masks[name])
            for measure in MEASURES
        }
        outputs[name] = means | {field: _rounded(value) for field, value in vars(scores).items()}
    return {"foreground": {measure: _mean(getattr(maps, measure), foreground) for measure in MEASURES}, "outputs": outputs}


def _mean(values: np.ndarray, where: np.ndarray) -> float | None:
    selected = values[where]
    return _rounded(float(selected.mean(dtype=np.float64))) if selected.size else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _count(bits: np.ndarray) -> int:
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def _chunks(array: np.ndarray) -> Iterable[slice]:
    """Yields slices of the first axis that together cover the array."""
    step = max(_CHUNK_BYTES // max(array[:1].nbytes, 1), 1)
    return (slice(first, first + step) for first in range(0, len(array), step))


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}.")
