"""Scores of each case and their means, with nothing left out silently.

Cases without a counterpart, cases that cannot be scored and scores that do not exist (NaN) are kept apart and counted.
"""

import csv
import io
import json
import math
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from swinunetr_jax.data.cases import Case, brats_era
from swinunetr_jax.data.nifti import check_same_grid, read_labels
from swinunetr_jax.errors import InputError
from swinunetr_jax.evaluation.pairs import References, label_values
from swinunetr_jax.metrics import score_case
from swinunetr_jax.task import Task
from swinunetr_jax.version import __version__

CONVENTIONS = {
    "dice_brats": "BraTS: with an empty reference 1 if the prediction is empty too, else 0",
    "dice_monai": "MONAI: empty references are left out",
    "dice_nnunet": "nnU-Net: left out where both are empty",
    "hd95_brats": "BraTS: mm, 95 % of the surface's area, the larger of both directions; one side empty 374, both 0",
    "hd95_monai": "MONAI: mm, 95 % of the surface's voxels, the larger of both directions; left out where one side is empty",
    "surface_dice": "surface-distance: share of both surfaces' area within the tolerance; one side empty 0, left out if both",
    "volume_ml": "predicted volume, ml",
    "reference_ml": "volume of the reference, ml",
    "lesion_dice": "BraTS since 2023: mean over lesions above 50 mm³ and false positives (0), lesions merged by dilating thrice",
    "lesion_hd95": "BraTS since 2023: mm, the same mean, 374 for missed lesions and false positives",
    "lesions": "BraTS since 2023: lesions of the reference above 50 mm³",
    "missed": "BraTS since 2023: of those, the ones that no predicted component touches",
    "false_positives": "BraTS since 2023: predicted components that touch no lesion",
}

Scores = dict[str, dict[str, float]]  # output → metric → value


@dataclass(frozen=True)
class Mean:
    """Over `cases` finite scores; `left_out` others were NaN."""

    value: float
    cases: int
    left_out: int


@dataclass(frozen=True)
class Evaluation:
    """What was scored, what was not and why."""

    task: Task
    tolerance_mm: float
    scores: dict[str, Scores] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    missing_predictions: tuple[str, ...] = ()
    missing_references: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return not (self.failed or self.missing_predictions or self.missing_references)

    def means(self) -> dict[str, dict[str, Mean]]:
        """metric → output → mean over the cases; "mean" is the mean of those means over outputs."""
        metrics = next((list(values) for case in self.scores.values() for values in case.values()), [])
        outputs = [output.name for output in self.task.outputs if output.value]
        found: dict[str, dict[str, Mean]] = {}
        for metric in metrics:
            row = {name: _mean([case[name][metric] for case in self.scores.values()]) for name in outputs}
            across = _mean([mean.value for mean in row.values()])
            found[metric] = row | {"mean": across}
        return found


def evaluate(
    predictions: Mapping[str, Path],
    references: References,
    task: Task,
    *,
    record: Mapping[str, Any] | None = None,
    tolerance_mm: float = 1.0,
    lesion_wise: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> Evaluation:
    """Scores every case that has both; one that cannot be scored does not stop the others.

    One prediction and one reference belong together whatever their names; others go by name.

    Args:
        record: of `read_record`, tells which label maps are left from an older run, and images' names.
        progress: called before each case with the number done, the number of all, and the name.

    Raises:
        InputError: no prediction has a reference.
    """
    record = record or {}
    cases = dict(references.cases)
    if len(predictions) == len(cases) == 1:
        cases = dict(zip(predictions, cases.values()))
    both = [name for name in cases if name in predictions]
    if not both:
        raise InputError(
            f"no prediction has a reference of its name: predictions are {_some(predictions)}, references {_some(cases)}; rename."
        )
    found = Evaluation(
        task,
        tolerance_mm,
        missing_predictions=tuple(name for name in cases if name not in predictions),
        missing_references=tuple(name for name in predictions if name not in cases),
    )
    for number, name in enumerate(both):
        progress(number, len(both), name)
        entry = record.get("cases", {}).get(name, {})
        try:
            if "error" in entry:
                raise InputError(f"{predictions[name]}: is from an older run, the last one failed; run predict again.")
            inputs = tuple(Path(file["path"]) for file in entry.get("inputs", ()))
            era = brats_era(Case(name, cases[name].images or inputs))
            scores, notes = _score(predictions[name], cases[name].path, task, era, tolerance_mm, lesion_wise)
        except InputError as error:
            found.failed[name] = str(error)
            continue
        found.scores[name] = scores
        if notes:
            found.notes[name] = notes
    return found


def _score(
    prediction: Path, reference: Path, task: Task, era: int | None, tolerance_mm: float, lesion_wise: bool
) -> tuple[Scores, list[str]]:
    pred, ref = read_labels(prediction), read_labels(reference)
    check_same_grid([ref, pred])
    notes, labels = [], pred.array
    values = {"prediction": label_values(pred.array), "reference": label_values(ref.array)}
    if any(output.name == "ET" and output.value in (3, 4) for output in task.outputs):
        ours, theirs = (_et_label(v, era, path) for v, path in zip(values.values(), (prediction, reference)))
        if era is not None and 7 - era in values["prediction"] - values["reference"] and era not in values["prediction"]:
            raise InputError(
                f"{prediction}: has label {7 - era} and no {era}, but in this data set enhancing tumour is {era}; relabel."
            )
        if ours and theirs and ours != theirs:
            labels = np.where(labels == ours, np.array(theirs, labels.dtype), labels)
            values["prediction"] = values["prediction"] - {ours} | {theirs}
            notes.append(f"the enhancing tumour is label {ours} in the prediction and {theirs} in the reference")
        task = task.with_et_label(theirs or ours or 4)
    known = {0}.union(*(output.members or (output.value,) for output in task.outputs))
    for which, present in values.items():
        if strange := sorted(present - known):
            notes.append(f"label {', '.join(map(str, strange))} of the {which} belongs to no output and counts as background")
    return score_case(labels, ref.array, ref.spacing, task, tolerance_mm=tolerance_mm, lesion_wise=lesion_wise), notes


def _et_label(values: set[int], era: int | None, path: Path) -> int | None:
    """The label of the enhancing tumour, by the era of BraTS or else by what occurs; None where there is none."""
    present = {3, 4} & values
    if era is None and len(present) == 2:
        raise InputError(f"{path}: has labels 3 and 4, and file names do not tell which is enhancing tumour; keep one of them.")
    return era or (present.pop() if present else None)


# Results


def write_scores(evaluation: Evaluation, out: str | os.PathLike, **head: Any) -> tuple[Path, Path]:
    """Writes OUT/scores.csv and OUT/scores.json, cases first, then means; each appears whole. InputError if it cannot."""
    out = Path(out)
    means = evaluation.means()
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["case", "output", *means])
    for name, case in evaluation.scores.items():
        writer.writerows([name, output, *(_number(values[m]) for m in means)] for output, values in case.items())
    for output in next(iter(means.values()), {}):
        writer.writerow(["(mean)", output, *(_number(means[m][output].value) for m in means)])
    for output in next(iter(means.values()), {}):
        writer.writerow(["(left out)", output, *(means[m][output].left_out for m in means)])
    report = {
        "swinunetr_jax": __version__,
        **head,
        "task": evaluation.task.to_dict(),
        "tolerance_mm": evaluation.tolerance_mm,
        "conventions": {metric: CONVENTIONS[metric] for metric in means},
        "cases": {
            name: {output: {m: _plain(v) for m, v in values.items()} for output, values in case.items()}
            for name, case in evaluation.scores.items()
        },
        "means": {m: {o: vars(mean) | {"value": _plain(mean.value)} for o, mean in row.items()} for m, row in means.items()},
        "notes": evaluation.notes,
        "failed": evaluation.failed,
        "missing_predictions": evaluation.missing_predictions,
        "missing_references": evaluation.missing_references,
    }
    paths = out / "scores.csv", out / "scores.json"
    for path, text in zip(paths, (table.getvalue(), json.dumps(report, indent=1, allow_nan=False))):
        _write(path, text)
    return paths


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(text)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); give a folder with write access.") from error


def _mean(values: list[float]) -> Mean:
    there = [value for value in values if not math.isnan(value)]
    return Mean(sum(there) / len(there) if there else math.nan, len(there), len(values) - len(there))


def _number(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:.10g}"


def _plain(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def _some(names: Any) -> str:
    names = list(names)
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)}"
