"""Whole validation scans through the library's sliding window, and their Dice: what `predict --crop` and `evaluate` give."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from swinunetr_jax import SwinUNETRConfig, Task
from swinunetr_jax.data.cache import PreparedCase
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.inference.prepare import normalized
from swinunetr_jax.metrics import dice, masks
from swinunetr_jax.weights.params import build
from train.config import Validation
from train.step import Weights

CONVENTION = "brats"  # an empty reference counts 1 where the prediction is empty too, else 0


@dataclass(frozen=True)
class CaseScore:
    """Dice of each output of one case; scan [x, y, z, c], reference and prediction [x, y, z] on the task's whole grid."""

    case: PreparedCase
    dice: dict[str, float]
    image: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.dice.values())))


@dataclass(frozen=True)
class Scores:
    """Scores of all validation cases; `mean` is over cases and outputs, the number by which networks are compared."""

    cases: tuple[CaseScore, ...]

    @property
    def mean(self) -> float:
        return float(np.mean([case.mean for case in self.cases]))

    @property
    def by_output(self) -> dict[str, float]:
        return {name: float(np.mean([case.dice[name] for case in self.cases])) for name in self.cases[0].dice}

    @property
    def ranked(self) -> list[CaseScore]:
        """Worst first."""
        return sorted(self.cases, key=lambda case: case.mean)


def validate(
    config: SwinUNETRConfig,
    network: Weights,
    cases: Sequence[PreparedCase],
    task: Task,
    options: Validation,
    progress: Callable[[int, int], None],
) -> Scores:
    """Segments and scores the cases.

    Args:
        network: weights by dotted path.
        progress: called with windows done and windows in all of the case at hand; what it raises comes through.
    """
    segmenter = Segmenter(
        [build(config, network)], task, overlap=options.overlap, blend=options.blend, batch=options.batch, crop=can_crop(task)
    )
    scores = []
    for case in cases:
        image, reference = whole(case)
        labels, _, _ = segmenter.run(normalized(image, task), progress=progress)
        scores.append(CaseScore(case, case_dice(labels, reference, task), image, reference, labels))
    return Scores(tuple(scores))


def can_crop(task: Task) -> bool:
    """Whether zeros around a scan may be left out: not where intensities are windowed, nor where nothing stands for background."""
    return task.intensity == "zscore" and (task.kind == "regions" or any(output.value == 0 for output in task.outputs))


def whole(case: PreparedCase) -> tuple[np.ndarray, np.ndarray]:
    """Scan and label map on the whole grid, of which the cache holds the box that is not empty."""
    box = tuple(slice(low, high) for low, high in case.box)
    image = np.zeros((*case.shape, case.image.shape[-1]), np.float32)
    label = np.zeros(case.shape, np.uint8)
    image[box], label[box] = case.image, case.label
    return image, label


def case_dice(labels: np.ndarray, reference: np.ndarray, task: Task) -> dict[str, float]:
    """Dice of each region, or of each class but the background."""
    found, wanted = masks(labels, task), masks(reference, task)
    return {name: dice(found[name], wanted[name], empty=CONVENTION) for name in wanted}
