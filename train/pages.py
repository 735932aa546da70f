"""Viewer pages of validation cases, which `report.html` links to: the scan, the prediction, the reference and their difference."""

from pathlib import Path

from swinunetr_jax import Task
from swinunetr_jax.training.validation import CaseScore, ScanGrid
from swinunetr_jax.viewer import LabelMap, viewer_contents, write_page


def write_case_page(path: Path, score: CaseScore, task: Task, metric: str) -> None:
    """Writes the page of a validation case with all channels of its scan. `metric` is the name of the score.

    Raises:
        InputError: the file cannot be written, or the scan is too large for browsers.
    """
    assert score.prediction is not None  # the scores of cases that are shown hold their predictions
    case, grid = score.case, ScanGrid.of(score.case, task)
    count = case.image.shape[-1]
    names = task.channels or tuple(f"channel {number}" for number in range(1, count + 1))
    channels = {name: grid.image(case, channel) for channel, name in enumerate(names)}
    maps = [LabelMap("prediction", score.prediction), LabelMap("reference", grid.reference(case))]
    write_page(path, viewer_contents(channels, grid.affine, maps, title=f"{case.name}, {metric} {score.mean:.3f}", task=task))
