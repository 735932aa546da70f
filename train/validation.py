"""Validation: whole scans are segmented by the library's sliding window, and their Dice is computed on the scans' own grids.

The scores are those of `swinunetr predict`, with the options that `predict_options` returns, and `swinunetr evaluate` for the same network:
logits are resampled to the scan's grid in the same way, and the labels are compared with the label map in its file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import jax
import numpy as np
from flax import nnx

from swinunetr_jax import InputError, Task
from swinunetr_jax.data.formats import read_geometry, read_labels
from swinunetr_jax.data.nifti import InverseReorient, on_grid_of
from swinunetr_jax.data.prepare.cache import PreparedCase
from swinunetr_jax.data.prepare.read_case import network_grid
from swinunetr_jax.data.prepare.resample import InverseResample, interpolated
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.inference.prepare import normalized
from swinunetr_jax.metrics import dice, masks
from swinunetr_jax.training import processes
from swinunetr_jax.training.config import Validation
from swinunetr_jax.weights.params import NetworkConfig, Weights, build

CONVENTION = "brats"  # the Dice of an empty reference is 1 if the prediction is empty, too, otherwise 0
FIRST, EXTREMES = 4, 2  # numbers of cases to draw: the first 4, the best 2 and the worst 2


class Interrupted(Exception):
    """The exception that a progress function raises to end a validation."""


@dataclass(frozen=True)
class CaseScore:
    """The Dice of each output of one case and, if it is drawn, the prediction, uint8 [x, y, z] on the grid of `ScanGrid`."""

    case: PreparedCase
    dice: dict[str, float]
    prediction: np.ndarray | None = None

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.dice.values())))


@dataclass(frozen=True)
class Scores:
    """The scores of all validation cases. `mean`, over cases and outputs, is the number by which networks are compared.

    `numbers` are further scores by name, and `examples` slices for pictures by case and caption, both of an objective that has them.
    """

    cases: tuple[CaseScore, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)
    examples: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        return float(np.mean([case.mean for case in self.cases]))

    @property
    def by_output(self) -> dict[str, float]:
        return {name: float(np.mean([case.dice[name] for case in self.cases])) for name in self.cases[0].dice}

    @property
    def ranked(self) -> list[CaseScore]:
        """The scores from the lowest to the highest; equal ones keep their order, as in `_drawn`."""
        return sorted(self.cases, key=lambda case: case.mean)

    @property
    def first(self) -> list[CaseScore]:
        return list(self.cases[:FIRST])

    @property
    def lowest(self) -> list[CaseScore]:
        """The cases with the lowest scores, the lowest first."""
        return self.ranked[:EXTREMES]

    @property
    def highest(self) -> list[CaseScore]:
        """The cases with the highest scores, the highest first."""
        return self.ranked[: -EXTREMES - 1 : -1]


def _drawn(means: Mapping[int, float]) -> set[int]:
    """Returns the numbers of the cases to draw among those that were scored."""
    ranked = sorted(means, key=means.__getitem__)
    return {index for index in means if index < FIRST} | {*ranked[:EXTREMES], *ranked[-EXTREMES:]}


def validate(
    config: NetworkConfig,
    network: Weights,
    cases: Sequence[PreparedCase],
    task: Task,
    options: Validation,
    progress: Callable[[int, int], None],
    spatial_shards: int = 1,
) -> Scores:
    """Segments and scores the cases. Several processes share this work, and every process returns all scores.

    Args:
        config: the configuration of the network.
        network: weights by dotted path, on this process's first device.
        cases: the prepared cases.
        task: the task of the network.
        options: the sliding window.
        progress: called with two numbers for the current case: its windows that are done, and all of its windows.
        spatial_shards: the number of this process's devices that share each window.

    Raises:
        Interrupted: `progress` raised it in one of the processes.
    """
    predict = segmenter(config, build(config, network), task, options, spatial_shards)
    names = [output.name for output in task.outputs if output.value]
    dice, predictions, interrupted = np.full((len(cases), len(names)), np.nan), dict[int, np.ndarray](), False
    process, count = jax.process_index(), jax.process_count()
    try:
        for index in range(process, len(cases), count):
            labels = segment_case(predict, cases[index], task, progress)
            case_scores = case_dice(labels, ScanGrid.of(cases[index], task).reference(cases[index]), task)
            dice[index] = [case_scores[name] for name in names]
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
            prediction = predictions.get(index)
            prediction = np.zeros(ScanGrid.of(case, task).shape, np.uint8) if prediction is None else prediction
            labels = processes.from_process(prediction, index % count)
        scores.append(CaseScore(case, dict(zip(names, dice[index].tolist())), labels))
    return Scores(tuple(scores))


def segmenter(
    config: NetworkConfig, model: nnx.Module, task: Task, options: Validation, spatial_shards: int = 1, *, crop: bool = True
) -> Segmenter:
    """Returns the sliding window of a validation with a network; `crop` permits that the zeros around a scan are excluded."""
    return Segmenter(
        [model],
        task,
        configs=[config],
        overlap=options.overlap,
        blend=options.blend,
        batch=options.batch,
        mirror=options.mirror,
        crop=crop and can_crop(task),
        spatial_shards=spatial_shards,
    )


def segment_case(predict: Segmenter, case: PreparedCase, task: Task, progress: Callable[[int, int], None]) -> np.ndarray:
    """Returns the label map of a prepared case, uint8 [x, y, z] on the grid of `ScanGrid`."""
    image = normalized(full_grid(case)[0], task)
    return predict.run(image, affine=case.affine, back=ScanGrid.of(case, task).back, progress=progress)[0]


def can_crop(task: Task) -> bool:
    """Returns whether the zeros around a scan may be excluded: normalisation keeps zeros, and the network can predict background."""
    return task.intensity == "zscore" and (task.kind == "regions" or any(output.value == 0 for output in task.outputs))


def predict_options(options: Validation, task: Task, dtype: str) -> str:
    """Returns the options, each after a space, with which `swinunetr predict` computes what a validation computes; defaults are omitted."""
    arguments = {
        " --crop": can_crop(task),
        f" --overlap {options.overlap:g}": options.overlap != 0.5,
        f" --blend {options.blend}": options.blend != "gaussian",
        " --mirror": options.mirror,
        f" --dtype {dtype}": dtype != "float32",
    }
    return "".join(text for text, differs in arguments.items() if differs)


@dataclass(frozen=True, eq=False)
class ScanGrid:
    """The grid on which a case is scored and drawn: the scan's own grid, or its reorientation.

    `back` maps the grid of the cached arrays to this grid, and is None if nothing was resampled, so that both grids are the same.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    back: InverseReorient | InverseResample | None = None

    @classmethod
    def of(cls, case: PreparedCase, task: Task) -> "ScanGrid":
        """Returns the grid of a case, from the header of the scan if the task resamples. Raises InputError if it cannot be read."""
        if task.spacing is None:
            return cls(case.shape, case.affine)
        (x, y, z, *_), affine, _ = read_geometry(case.sources[0])
        return cls((x, y, z), affine, network_grid((x, y, z), affine, task)[1])

    def reference(self, case: PreparedCase) -> np.ndarray:
        """Returns the label map [x, y, z] without resampling, from its file if the cached one is resampled.

        Raises:
            InputError: the file cannot be read.
        """
        if self.back is None:
            return full_grid(case)[1]
        labels = read_labels(case.sources[-1])
        shape = labels.array.shape
        if sorted(shape) != sorted(self.shape):
            raise InputError(
                f"{case.sources[-1]}: the label map has shape {shape} and its scan {self.shape}, which were equal when the run "
                "started; restore the file."
            )
        scan = replace(labels, array=np.broadcast_to(np.uint8(0), self.shape), affine=self.affine, path=case.sources[0])
        return on_grid_of(labels, scan).array

    def image(self, case: PreparedCase, channel: int = 0) -> np.ndarray:
        """Returns a channel [x, y, z], for pictures."""
        image = full_grid(case)[0][..., channel]
        if isinstance(self.back, InverseResample):
            return self.back.reorient.apply(interpolated(image, self.back.matrix, self.back.reorient.shape))
        return image if self.back is None else self.back.apply(image)


def full_grid(case: PreparedCase) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scan and the label map on the whole grid; the cache holds only the box that is not empty."""
    box = tuple(slice(low, high) for low, high in case.box)
    image = np.zeros((*case.shape, case.image.shape[-1]), np.float32)
    label = np.zeros(case.shape, np.uint8)
    image[box], label[box] = case.image, case.label
    return image, label


def case_dice(labels: np.ndarray, reference: np.ndarray, task: Task) -> dict[str, float]:
    """Returns the Dice of each region, or of each class except the background, over the voxels that are not ignored."""
    predicted, expected = masks(mark_ignored(labels, reference, task), task), masks(reference, task)
    return {name: dice(predicted[name], expected[name], empty=CONVENTION) for name in expected}


def mark_ignored(labels: np.ndarray, reference: np.ndarray, task: Task) -> np.ndarray:
    """Returns a label map with the label of ignored voxels where the reference has it. No output has this label."""
    return labels if task.ignore is None else np.where(reference == task.ignore, np.uint8(task.ignore), labels)
