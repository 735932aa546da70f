"""Whole validation scans through the library's sliding window, and their Dice on the scans' own grids.

The numbers are those of `swinunetr predict` with the options that `predict_options` names, and `swinunetr evaluate`, for the same network:
logits come back onto the scan's grid on the same road, and are compared with the label map as it is in its file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from swinunetr_jax import InputError, Task
from swinunetr_jax.data.nifti import InverseReorient, read_geometry, read_labels
from swinunetr_jax.data.prepare.cache import PreparedCase
from swinunetr_jax.data.prepare.read_case import network_grid
from swinunetr_jax.data.prepare.resample import InverseResample, interpolated
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.inference.prepare import normalized
from swinunetr_jax.metrics import dice, masks
from swinunetr_jax.training import processes
from swinunetr_jax.training.config import Validation
from swinunetr_jax.weights.params import NetworkConfig, Weights, build

CONVENTION = "brats"  # an empty reference counts 1 where the prediction is empty too, else 0


FIRST, EXTREMES = 4, 2  # cases that are drawn: the first ones, the best and the worst


class Interrupted(Exception):
    """Ends a validation from within its progress."""


@dataclass(frozen=True)
class CaseScore:
    """Dice of each output of one case; of those that are drawn, also the prediction uint8 [x, y, z] on the grid of `ScanGrid`."""

    case: PreparedCase
    dice: dict[str, float]
    prediction: np.ndarray | None = None

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
        """Worst first; those that are equal stay in their order, as in `_drawn`."""
        return sorted(self.cases, key=lambda case: case.mean)

    @property
    def first(self) -> list[CaseScore]:
        return list(self.cases[:FIRST])

    @property
    def worst(self) -> list[CaseScore]:
        """Worst first."""
        return self.ranked[:EXTREMES]

    @property
    def best(self) -> list[CaseScore]:
        """Best first."""
        return self.ranked[: -EXTREMES - 1 : -1]


def _drawn(means: Mapping[int, float]) -> set[int]:
    """Numbers of the cases to draw, of those that were scored, in their order."""
    ranked = sorted(means, key=means.__getitem__)
    return {index for index in means if index < FIRST} | {*ranked[:EXTREMES], *ranked[-EXTREMES:]}


def validate(
    config: NetworkConfig,
    network: Weights,
    cases: Sequence[PreparedCase],
    task: Task,
    options: Validation,
    progress: Callable[[int, int], None],
    depth: int = 1,
) -> Scores:
    """Segments and scores the cases; several processes share them, and all get all scores.

    Args:
        network: weights by dotted path, on this process's first device.
        progress: called with windows done and windows in all of the case at hand. Where it raises Interrupted in one process, all do.
        depth: devices of this process that share each window.
    """
    segmenter = Segmenter(
        [build(config, network)],
        task,
        configs=[config],
        overlap=options.overlap,
        blend=options.blend,
        batch=options.batch,
        crop=can_crop(task),
        depth=depth,
    )
    names = [output.name for output in task.outputs if output.value]
    dice, predictions, interrupted = np.full((len(cases), len(names)), np.nan), {}, False
    process, count = jax.process_index(), jax.process_count()
    try:
        for index in range(process, len(cases), count):
            image, grid = whole(cases[index])[0], ScanGrid.of(cases[index], task)
            labels, _, _ = segmenter.run(normalized(image, task), back=grid.back, progress=progress)
            found = case_dice(labels, grid.reference(cases[index]), task)
            dice[index] = [found[name] for name in names]
            predictions[index] = labels
            drawn = _drawn({done: dice[done].mean() for done in range(process, index + 1, count)})
            predictions = {done: labels for done, labels in predictions.items() if done in drawn}
    except Interrupted:
        interrupted = True
    if processes.gather(np.array(interrupted)).any():
        raise Interrupted
    dice = np.array([row[index % count] for index, row in enumerate(processes.gather(dice).swapaxes(0, 1))])
    scores = []
    drawn = _drawn({index: row.mean() for index, row in enumerate(dice)})
    for index, case in enumerate(cases):
        labels = None
        if index in drawn:
            own = predictions.get(index)
            own = np.zeros(ScanGrid.of(case, task).shape, np.uint8) if own is None else own
            labels = processes.from_process(own, index % count)
        scores.append(CaseScore(case, dict(zip(names, dice[index].tolist())), labels))
    return Scores(tuple(scores))


def can_crop(task: Task) -> bool:
    """Whether zeros around a scan may be left out: not where intensities are windowed, nor where nothing stands for background."""
    return task.intensity == "zscore" and (task.kind == "regions" or any(output.value == 0 for output in task.outputs))


def predict_options(options: Validation, task: Task, dtype: str) -> str:
    """The options, each after a space, with which `swinunetr predict` does what a validation does; empty where its defaults do."""
    given = {
        " --crop": can_crop(task),
        f" --overlap {options.overlap:g}": options.overlap != 0.5,
        f" --blend {options.blend}": options.blend != "gaussian",
        f" --dtype {dtype}": dtype != "float32",
    }
    return "".join(text for text, differs in given.items() if differs)


@dataclass(frozen=True, eq=False)
class ScanGrid:
    """The grid on which a case is scored and drawn: the scan's own one, at most turned.

    `back` says how the grid of the cached arrays lies on it; None where they are on it already, since nothing was resampled.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    back: InverseReorient | InverseResample | None = None

    @classmethod
    def of(cls, case: PreparedCase, task: Task) -> "ScanGrid":
        """Reads the header of the scan, if the task resamples. Raises InputError if it cannot be read."""
        if task.spacing is None:
            return cls(case.shape, case.affine)
        shape, affine, _ = read_geometry(case.sources[0])
        return cls(shape[:3], affine, network_grid(shape[:3], affine, task)[1])

    def reference(self, case: PreparedCase) -> np.ndarray:
        """The label map [x, y, z], never resampled: read from its file if the cached one is. Raises InputError if it cannot be read."""
        if self.back is None:
            return whole(case)[1]
        labels = read_labels(case.sources[-1]).array
        if labels.shape != self.shape:
            raise InputError(
                f"{case.sources[-1]}: the label map has shape {labels.shape}, its scan {self.shape}, and they had the same when the run "
                "started; restore the file."
            )
        return labels

    def image(self, case: PreparedCase) -> np.ndarray:
        """The first channel [x, y, z], for pictures."""
        image = whole(case)[0][..., 0]
        if isinstance(self.back, InverseResample):
            return self.back.reorient.apply(interpolated(image, self.back.matrix, self.back.reorient.shape))
        return image if self.back is None else self.back.apply(image)


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
