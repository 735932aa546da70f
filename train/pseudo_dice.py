"""The pseudo-Dice: a cheap estimate of the course of a training, from patches of validation cases.

Voxels are counted over all patches together, and each output's 2 TP / (2 TP + FP + FN) is computed from the sums, as in nnU-Net. It is not
the Dice of scans: patches are not whole scans, every voxel counts the same in all cases, and half of the patches are around labels. It has
no influence on the run: the best network is chosen by validations on whole scans. The patches are the same during the whole run.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from swinunetr_jax import Task
from swinunetr_jax.data.augment.crops import read_region
from swinunetr_jax.data.prepare.cache import PreparedCase
from swinunetr_jax.data.prepare.intensity import scale_window, zscore_nonzero
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.metrics import masks
from swinunetr_jax.training import processes, watchdog
from swinunetr_jax.training.crop_size import crop_size
from swinunetr_jax.training.log import PSEUDO_DICE
from swinunetr_jax.training.start import Run
from swinunetr_jax.training.validation import mark_ignored, segmenter
from swinunetr_jax.weights.params import build

DECAY = 0.9  # of the moving average, as in nnU-Net
TRIES = 4096  # number of random voxels among which a labelled one is searched for


def has_pseudo_dice(run: Run) -> bool:
    """Returns whether the log holds the pseudo-Dice of the current step, from before the run was resumed."""
    return any(row["kind"] == PSEUDO_DICE and row["step"] == run.progress.step for row in run.log.rows)


@watchdog.phase(watchdog.VALIDATION)
def log_pseudo_dice(run: Run, patches: int, stop: object) -> None:
    """Computes and logs the pseudo-Dice of the network, unless a signal interrupts it; `stop` is true after a signal."""

    def stopped() -> bool:
        watchdog.beat()
        return bool(stop)

    started, task, options = time.perf_counter(), run.cases.task, run.recipe.validation
    model = build(run.training.config, run.strategy.unreplicate(run.state.network))
    # A patch is one window, so that the network's program is that of the validations. Mirroring would multiply the cost of a cheap score.
    predict = segmenter(
        run.training.config, model, task, replace(options, mirror=False), run.recipe.devices.spatial_shards, crop=False
    )
    by_output = pseudo_dice(predict, run.cases.validation, task, crop_size(task), patches, run.recipe.seed, stopped)
    if by_output is None:
        return
    row = row_of(by_output, patches, run.log.rows, started)
    run.log.pseudo_dice(
        run.progress.step,
        row,
        f"step {run.progress.step}/{run.total}  pseudo-Dice of {patches} patches {row['mean']:.3f}, moving average {row['average']:.3f}, "
        f"which is not the Dice of scans; {row['took']:.0f} s",
    )


def pseudo_dice(
    predict: Segmenter,
    cases: Sequence[PreparedCase],
    task: Task,
    size: tuple[int, int, int],
    patches: int,
    seed: int,
    stop: Callable[[], bool],
) -> dict[str, float] | None:
    """Returns the pseudo-Dice of each output that occurs, or None if a signal has stopped one of the processes, which share the patches.

    Args:
        predict: the network with windows of the size of a patch.
        cases: the validation cases, which are used in turn.
        task: the meaning of the labels.
        size: the size of a patch.
        patches: the number of patches.
        seed: the seed of their positions.
        stop: returns whether a signal has arrived.
    """
    names = [output.name for output in task.outputs if output.value]
    counts, stopped = np.zeros((len(names), 3), np.int64), stop()  # TP, predicted voxels, voxels of the reference
    for number in range(jax.process_index(), patches, jax.process_count()):
        if stopped := stop():
            break
        image, reference = patch(cases[number % len(cases)], task, size, np.random.default_rng([seed, number]), number % 2 == 1)
        predicted, expected = masks(mark_ignored(predict.run(image)[0], reference, task), task), masks(reference, task)
        counts += [
            [np.count_nonzero(mask) for mask in (predicted[name] & expected[name], predicted[name], expected[name])]
            for name in names
        ]
    if processes.gather(np.array(stopped)).any():
        return None
    total = processes.gather(counts).sum(axis=0)
    return {
        name: 2 * int(overlap) / int(predicted + expected)
        for name, (overlap, predicted, expected) in zip(names, total)
        if predicted + expected
    }


def patch(
    case: PreparedCase, task: Task, size: tuple[int, int, int], rng: np.random.Generator, labelled: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a patch [*size, c] with the intensities of the whole scan, as in a validation, and its label map [*size].

    Args:
        case: the case.
        task: the task, which states how intensities are normalised.
        size: the size of the patch. A smaller scan is padded with zeros.
        rng: random numbers for the position.
        labelled: whether a labelled voxel is the centre, if one is found among many random ones; otherwise the position is random.
    """
    image, label = case.image, case.label
    start = [int(rng.integers(max(length - side, 0) + 1)) - max(side - length, 0) // 2 for length, side in zip(label.shape, size)]
    if labelled:
        voxels = np.stack([rng.integers(length, size=TRIES) for length in label.shape])
        values = label[tuple(voxels)]
        hits = np.flatnonzero((values != 0) & (values != task.ignore))
        if len(hits):
            centre = voxels[:, hits[0]]
            start = [
                int(min(max(middle - side // 2, 0), length - side)) if length >= side else random_start
                for middle, side, length, random_start in zip(centre, size, label.shape, start)
            ]
    region = tuple(start), size
    intensities = np.asarray(read_region(image, region), np.float32)
    if task.intensity == "zscore":
        intensities = zscore_nonzero(intensities, case.statistics)
    elif task.window is not None:  # a task has a window only with this intensity
        intensities = scale_window(intensities, *task.window)
    return np.ascontiguousarray(intensities, np.float32), np.asarray(read_region(label, region))


def row_of(by_output: dict[str, float], patches: int, rows: Sequence[dict[str, Any]], started: float) -> dict[str, Any]:
    """Returns the fields of a row of the log: the mean over the outputs, its moving average over the rows before, and each output.

    Args:
        by_output: the result of `pseudo_dice`.
        patches: the number of patches.
        rows: the rows of the log so far.
        started: the time of the start on `time.perf_counter`.
    """
    mean = float(np.mean(list(by_output.values()))) if by_output else float("nan")
    averages = [
        row["average"]
        for row in rows
        if row["kind"] == PSEUDO_DICE and row["average"] is not None and np.isfinite(row["average"])
    ]
    average = DECAY * averages[-1] + (1 - DECAY) * mean if averages and np.isfinite(mean) else averages[-1] if averages else mean
    return {"mean": mean, "average": average, "outputs": by_output, "patches": patches, "took": time.perf_counter() - started}
