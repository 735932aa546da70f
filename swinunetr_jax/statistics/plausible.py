"""Sentences on results that are implausible: nothing is labelled, or much of the background is."""

from collections.abc import Iterable

import numpy as np

from swinunetr_jax.task import Task

MAX_BACKGROUND = 0.2  # the largest plausible share of the background that is labelled


def implausible(labels: np.ndarray, task: Task, channels: Iterable[np.ndarray]) -> tuple[str, ...]:
    """Returns warnings on a label map.

    - No voxel has a label other than the background's, 0.
    - More than a fifth of the scan's background has such a label. The background of a scan are the voxels that show nothing in any
      channel: those that are 0 in all channels or, for a task that clips intensities to a window, at most the window's lower end. A scan
      without such voxels has no background, and neither has a task of classes of which none has the value 0.

    Args:
        labels: the label map [x, y, z].
        task: the meaning of the labels.
        channels: the images [x, y, z] as they were read.
    """
    if task.kind == "classes" and all(output.value for output in task.outputs):
        return ()
    labelled = labels != 0
    if not labelled.any():
        return ("nothing is labelled",)
    background = None
    for channel in channels:
        empty = channel <= task.window[0] if task.window else channel == 0
        background = empty if background is None else background & empty
    count = 0 if background is None else int(np.count_nonzero(background))
    share = int(np.count_nonzero(labelled & background)) / count if count else 0.0
    if share <= MAX_BACKGROUND:
        return ()
    return (
        f"{100 * share:.0f} % of the scan's background (voxels that show nothing) is labelled, which is not plausible: check the order of "
        "the channels, the task and the result",
    )
