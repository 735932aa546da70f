"""The crops of held-out scans on which pre-training is validated. They are the same during the whole run."""

import itertools
from collections.abc import Sequence

import numpy as np

from swinunetr_jax import Task
from swinunetr_jax.data.augment.crops import read_region
from swinunetr_jax.data.prepare.cache import PreparedCase
from swinunetr_jax.data.prepare.intensity import scale_window, zscore_nonzero
from swinunetr_jax.training.crop_size import crop_size

FIRST_NUMBER = 1 << 30  # of the samples of a validation, which no sample of a training reaches


def held_out_batch(cases: Sequence[PreparedCase], task: Task, number: int, count: int) -> dict[str, np.ndarray]:
    """Returns a batch with the most central crops of some cases.

    As few crops as possible cover the foreground, and they overlap equally. If there are fewer than `count`, they are repeated with other
    sample numbers.

    Args:
        cases: the cases.
        task: the task, with the size of the crop.
        number: the number of the batch in the validation.
        count: the number of crops of each case.
    """
    size = crop_size(task)
    crops = [
        _crop(case, task, start, size)
        for case in cases
        for start in itertools.islice(itertools.cycle(_central_first(case, size)), count)
    ]
    return {
        "image": np.stack([image for image, _ in crops]),
        "label": np.stack([label for _, label in crops]),
        "sample": FIRST_NUMBER + np.arange(number * len(crops), (number + 1) * len(crops), dtype=np.int32),
    }


def _central_first(case: PreparedCase, size: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """Returns the first voxels of crops that cover the foreground, sorted by their distance from its centre."""
    axes = []
    for (low, high), length in zip(case.foreground, size):
        number = -(-(high - low) // length)
        centred = low + (high - low - length) // 2
        axes.append([centred] if number == 1 else np.linspace(low, high - length, number).round().astype(int).tolist())
    centre = [(low + high) / 2 for low, high in case.foreground]

    def distance(start: tuple[int, ...]) -> float:
        return sum((first + length / 2 - middle) ** 2 for first, length, middle in zip(start, size, centre))

    return sorted(itertools.product(*axes), key=distance)


def _crop(case: PreparedCase, task: Task, start: tuple[int, ...], size: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the intensities [*size, c] as the network receives them, and the content map [*size]."""
    image = np.asarray(read_region(case.image, (start, size), fill=case.above), np.float32)
    if task.intensity == "zscore":
        image = zscore_nonzero(image, case.statistics)
    elif task.window is not None:
        image = scale_window(image, *task.window)
    return np.ascontiguousarray(image, np.float32), np.asarray(read_region(case.label, (start, size)))
