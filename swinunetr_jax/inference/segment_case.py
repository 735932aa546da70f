"""Segments one case: the network, the label of the enhancing tumour in its data set, and the post-processing of the label map."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.inference.prepare import Prepared
from swinunetr_jax.inference.segmentation import Segmentation
from swinunetr_jax.inference.sliding_window import Progress
from swinunetr_jax.postprocess import Step, apply
from swinunetr_jax.statistics import implausible
from swinunetr_jax.task import Task


def segment_case(
    segmenter: Segmenter,
    case: Case,
    prepared: Prepared,
    *,
    probabilities: bool = False,
    et_label: int | None = None,
    postprocess: Sequence[Step] = (),
    progress: Progress | None = None,
) -> Segmentation:
    """Returns the segmentation of a case.

    Args:
        segmenter: the networks.
        case: the case, whose files may state the label of the enhancing tumour by their names.
        prepared: what `Segmenter.prepare` or `prepare_volumes` returns for the case.
        probabilities: also return the probability of each output, which post-processing does not change.
        et_label: the label of the enhancing tumour that the data set states, 3 or 4; by default the names of BraTS files determine it.
        postprocess: operations on the label map.
        progress: called with the number of finished windows and the number of all windows.

    Raises:
        InputError: the case has a fault.
    """
    task = _task(segmenter.task, case, et_label)
    result = segmenter.segment_prepared(prepared, probabilities=probabilities, et_label=task.et_label, progress=progress)
    result = _postprocessed(result, postprocess, task)
    warnings = (*result.warnings, *implausible(result.labels, task, result.channels.values()))
    return replace(result, notes=(*_et_note(segmenter.task, task), *result.notes), warnings=warnings)


def _task(task: Task, case: Case, et_label: int | None) -> Task:
    """Returns the task with the label of the enhancing tumour in the case's data set, if the task has such a label."""
    label = et_label or case.et_label
    return task if label is None or task.et_label is None else task.with_et_label(label)


def _postprocessed(result: Segmentation, steps: Sequence[Step], task: Task) -> Segmentation:
    """Returns the result with its label map after the steps, and with a note if they have changed any voxel."""
    labels = apply(steps, result.labels, task)
    changed = int(np.count_nonzero(labels != result.labels))
    if not changed:
        return result
    return replace(result, labels=labels, notes=(*result.notes, f"post-processing has changed {changed} voxels"))


def _et_note(network_task: Task, written_task: Task) -> list[str]:
    """Returns a note if the label of the enhancing tumour differs from the network's own."""
    if network_task.et_label == written_task.et_label:
        return []
    return [
        f"the enhancing tumour is written as label {written_task.et_label}, as in this data set, "
        f"instead of the network's {network_task.et_label}"
    ]
