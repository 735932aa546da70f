"""Scores each case and computes the means. No case is omitted silently.

Cases without a counterpart, cases that cannot be scored and scores that do not exist (NaN) are reported separately and counted.
"""

import csv
import io
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from swinunetr_jax import console, files
from swinunetr_jax.data import brats
from swinunetr_jax.data.formats import read_labels
from swinunetr_jax.data.nifti import Volume, on_grid_of
from swinunetr_jax.errors import InputError
from swinunetr_jax.evaluation import challenge as brats2026
from swinunetr_jax.evaluation.challenge_metrics import convention
from swinunetr_jax.evaluation.et_labels import EtLabels
from swinunetr_jax.evaluation.pairs import References, label_values
from swinunetr_jax.metrics import score_case
from swinunetr_jax.task import Task
from swinunetr_jax.version import __version__

CONVENTIONS = {
    "dice_brats": "BraTS: if the reference is empty, 1 if the prediction is empty too, otherwise 0",
    "dice_monai": "MONAI: empty references are left out",
    "dice_nnunet": "nnU-Net: left out if both are empty",
    "hd95_brats": "BraTS: mm, 95 % of the surface's area, the larger of both directions; 374 if one side is empty, 0 if both are",
    "hd95_monai": "MONAI: mm, 95 % of the surface's voxels, the larger of both directions; left out if one side is empty",
    "surface_dice": "surface-distance: share of both surfaces' area within the tolerance; 0 if one side is empty, left out if both are",
    "volume_ml": "predicted volume, ml",
    "reference_ml": "volume of the reference, ml",
    "lesion_dice": "BraTS since 2023: mean over lesions above 50 mm³ and false positives, which are 0; three dilations merge lesions",
    "lesion_hd95": "BraTS since 2023: mm, the same mean, 374 for missed lesions and false positives",
    "lesions": "BraTS since 2023: lesions of the reference above 50 mm³",
    "missed": "BraTS since 2023: lesions of the reference above 50 mm³ that no predicted component touches",
    "false_positives": "BraTS since 2023: predicted components that touch no lesion",
}


Scores = dict[str, dict[str, float]]  # output → metric → value


@dataclass(frozen=True)
class Mean:
    """The mean of the scores that are not NaN: their number is `cases`, and `left_out` is the number of those that are NaN."""

    value: float
    cases: int
    left_out: int


@dataclass(frozen=True)
class Evaluation:
    """The scores of all cases, and the cases that could not be scored."""

    task: Task
    tolerance_mm: float
    ignore: int | None = None  # the label of voxels that do not affect any score
    scores: dict[str, Scores] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    missing_predictions: tuple[str, ...] = ()
    missing_references: tuple[str, ...] = ()
    challenge: brats2026.ChallengeScores | None = None

    @property
    def complete(self) -> bool:
        refused = self.challenge is not None and self.challenge.failed
        return not (self.failed or self.missing_predictions or self.missing_references or refused)

    def convention(self, metric: str) -> str:
        """Returns the sentence on the convention of a metric."""
        if self.challenge is None or metric in CONVENTIONS:
            return CONVENTIONS[metric]
        return convention(metric.removeprefix(brats2026.PREFIX), self.challenge.ranking)

    def means(self) -> dict[str, dict[str, Mean]]:
        """Returns metric → output → mean over the cases; the output "mean" is the mean over outputs."""
        metrics = next((list(values) for case in self.scores.values() for values in case.values()), [])
        outputs = [output.name for output in self.task.outputs if output.value]
        means: dict[str, dict[str, Mean]] = {}
        for metric in metrics:
            row = {name: _mean([case[name][metric] for case in self.scores.values()]) for name in outputs}
            across = _mean([mean.value for mean in row.values()])
            means[metric] = row | {"mean": across}
        return means


def evaluate(
    predictions: Mapping[str, Path],
    references: References,
    task: Task,
    *,
    record: Mapping[str, Any] | None = None,
    refused: Mapping[str, str] | None = None,
    tolerance_mm: float = 1.0,
    lesion_wise: bool = False,
    challenge: brats2026.Challenge | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> Evaluation:
    """Scores every case that has a prediction and a reference. A case that cannot be scored does not stop the others.

    Predictions and references are matched by their names, which `pair_cases` makes equal.

    Args:
        predictions: label maps by case name.
        references: the references.
        task: the meaning of the labels.
        record: the result of `read_record`, which states the images of each case, and which label maps are from an older run.
        refused: cases that are not scored, with the reasons.
        tolerance_mm: the tolerance of the surface Dice.
        lesion_wise: whether to score each lesion too.
        challenge: the program of BraTS 2026, which then scores every case too.
        progress: called before each case with the number of cases done, the number of all cases, and the name.

    Raises:
        InputError: no prediction has a reference, a label of the task means `ignore` in the data set, or the challenge's program expects
            other labels or failed.
    """
    record = record or {}
    cases = dict(references.cases)
    paired = [name for name in cases if name in predictions]
    if not paired and not refused:
        raise InputError(
            f"no prediction has a reference of the same name: the predictions are {console.name_list(predictions, 3)}, the references "
            f"{console.name_list(cases, 3)}; rename them."
        )
    if references.ignore is None and task.ignore is not None:
        references = replace(references, ignore=task.ignore)
    if references.ignore is not None and task.et_label == references.ignore:
        task = task.with_et_label(brats.other_et_label(references.ignore))  # 3 or 4 is ignored, so the tumour has the other one
    _check_ignore(task, references.ignore)
    if challenge is not None:
        challenge.check(task)
    evaluation = Evaluation(
        task,
        tolerance_mm,
        references.ignore,
        failed=dict(refused or {}),
        missing_predictions=tuple(name for name in cases if name not in predictions and name not in (refused or {})),
        missing_references=tuple(name for name in predictions if name not in cases),
    )
    entries = {name: record.get("cases", {}).get(name, {}) for name in paired}
    settings = files.digest_of_json(record.get("settings"))
    labels = EtLabels(task, references, [(predictions[name], cases[name], entries[name]) for name in paired])
    for number, name in enumerate(paired):
        progress(number, len(paired), name)
        try:
            if "error" in entries[name]:
                raise InputError(f"{predictions[name]}: is from an older run, because the last run failed; run predict again.")
            pred, ref = read_labels(predictions[name], may_be_part=True), read_labels(cases[name].path)
            pred_notes, pred = pred.notes, on_grid_of(pred, ref)
            pred, case_task, notes = labels.align(pred, ref, cases[name], entries[name])
            if entries[name].get("key", settings) != settings:
                notes.append(
                    "it was predicted under other settings than those in predict.json, which define the meaning of the labels"
                )
            notes += pred_notes
            notes += _unused_labels(pred.array, ref, case_task, references.ignore)
            options = {"tolerance_mm": tolerance_mm, "lesion_wise": lesion_wise, "ignore": references.ignore}
            scores = score_case(pred.array, ref.array, ref.spacing, case_task, **options)
            if challenge is not None:
                notes += challenge.add(name, pred.array, ref, case_task, references.ignore)
        except InputError as error:
            evaluation.failed[name] = str(error)
            continue
        evaluation.scores[name] = scores
        if notes:
            evaluation.notes[name] = notes
    if challenge is None or not evaluation.scores:
        return evaluation
    challenge_scores = challenge.run(
        lambda done, total: progress(done, total, f"{challenge.names[done]}, by the program of BraTS 2026")
    )
    return replace(evaluation, scores=brats2026.merged(evaluation.scores, challenge_scores), challenge=challenge_scores)


def _check_ignore(task: Task, ignore: int | None) -> None:
    """Raises InputError if the task gives the label `ignore` a meaning."""
    for output in task.outputs:
        if output.value and ignore in task.labels_of(output):
            raise InputError(
                f"label {ignore} means `ignore` in the data set and {output.name} in the task, expected one meaning: renumber one of "
                "them, or choose another --task."
            )


def _unused_labels(labels: np.ndarray, ref: Volume, task: Task, ignore: int | None) -> list[str]:
    """Returns sentences on voxels that are ignored and on labels that belong to no output."""
    notes = []
    known = {0}.union(*map(task.labels_of, task.outputs))
    scored = labels if ignore is None else labels[ref.array != ignore]
    unknown = {"prediction": label_values(scored) - known, "reference": label_values(ref.array) - known - {ignore}}
    for map_name, values in unknown.items():
        if values:
            named = ", ".join(map(str, sorted(values)))
            notes.append(f"label {named} of the {map_name} belongs to no output and counts as background")
    if ignore is not None and (count := int(np.count_nonzero(ref.array == ignore))):
        milliliters = count * math.prod(ref.spacing) / 1000
        notes.append(f"{milliliters:.3g} ml of the reference has the label {ignore} (ignore) and does not affect the scores")
    return notes


# Results


def write_scores(evaluation: Evaluation, out: str | os.PathLike, **head: Any) -> tuple[Path, Path]:
    """Writes OUT/scores.csv and OUT/scores.json, each completely or not at all, and returns their paths.

    Args:
        evaluation: the scores.
        out: the folder; it is created if necessary.
        head: further fields for the top of scores.json.

    Raises:
        InputError: the files cannot be written.
    """
    out = Path(out)
    means = evaluation.means()
    cell = console.csv_cell
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["case", "output", *means])
    for name, case in evaluation.scores.items():
        rows = ([cell(name), cell(output), *(_number(values[metric]) for metric in means)] for output, values in case.items())
        writer.writerows(rows)
    for output in next(iter(means.values()), {}):
        writer.writerow(["(mean)", cell(output), *(_number(means[metric][output].value) for metric in means)])
    for output in next(iter(means.values()), {}):
        writer.writerow(["(left out)", cell(output), *(means[metric][output].left_out for metric in means)])
    content = {
        "swinunetr_jax": __version__,
        **head,
        "task": evaluation.task.to_dict(),
        "tolerance_mm": evaluation.tolerance_mm,
        "ignore": evaluation.ignore,
        "conventions": {metric: evaluation.convention(metric) for metric in means},
        "cases": evaluation.scores,
        "means": {metric: {output: vars(mean) for output, mean in row.items()} for metric, row in means.items()},
        "notes": evaluation.notes,
        "failed": evaluation.failed,
        "missing_predictions": evaluation.missing_predictions,
        "missing_references": evaluation.missing_references,
        **({} if evaluation.challenge is None else {"brats2026": vars(evaluation.challenge)}),
    }
    paths = out / "scores.csv", out / "scores.json"
    try:
        files.make_folder(out)
        files.remove_stale_temporaries(out)
        with files.locked(out):  # so that both files are written by the same evaluation if two of them run at once
            files.write_text(paths[0], table.getvalue())
            files.write_json(paths[1], content)
    except OSError as error:
        where = error.filename or out
        raise InputError(f"{where}: cannot be written ({error.strerror or error}); give a folder with write access.") from error
    return paths


def _mean(values: list[float]) -> Mean:
    finite = [value for value in values if not math.isnan(value)]
    return Mean(sum(finite) / len(finite) if finite else math.nan, len(finite), len(values) - len(finite))


def _number(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:.10g}"
