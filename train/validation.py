"""Whole validation scans through the library's sliding window, and their Dice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from swinunetr_jax import SwinUNETRConfig, Task
from swinunetr_jax.data.cache import PreparedCase
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.inference.prepare import normalized
from swinunetr_jax.metrics import dice
from swinunetr_jax.weights.params import build
from train.config import Validation
from train.step import Weights

CONVENTION = "brats"  # an empty reference counts 1 where the prediction is empty too, else 0


@dataclass(frozen=True)
class CaseScore:
    """Dice of each output of one case, and what was predicted: uint8 [x, y, z] on the prepared grid."""

    case: PreparedCase
    dice: dict[str, float]
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
    segmenter = Segmenter([build(config, network)], task, overlap=options.overlap, blend=options.blend, batch=options.batch)
    scores = []
    for case in cases:
        labels, _, _ = segmenter.run(normalized(np.asarray(case.image, np.float32), task), progress=progress)
        scores.append(CaseScore(case, case_dice(labels, np.asarray(case.label), task), labels))
    return Scores(tuple(scores))


def case_dice(labels: np.ndarray, reference: np.ndarray, task: Task) -> dict[str, float]:
    """Dice of each region, or of each class but the background."""
    result = {}
    for output in task.outputs:
        if task.kind == "classes" and output.value == 0:
            continue
        values = output.members or (output.value,)
        result[output.name] = dice(np.isin(labels, values), np.isin(reference, values), empty=CONVENTION)
    return result
