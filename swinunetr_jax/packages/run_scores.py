"""The scores that a training run has recorded, without the names of its cases."""

import math
from pathlib import Path
from typing import Any, TypedDict

from swinunetr_jax.buckets import is_address
from swinunetr_jax.weights.run_contents import contents
from swinunetr_jax.weights.run_folder import OUT_OF_FOLD, RUN

SCORES = "scores.json"  # in a packed model
OUT_OF_FOLD_CASES = "by the networks not trained on them (out of fold)"
VALIDATION = "of the run's validation, which chose the network"
_REMEDY = "restore it, or move it away to pack the model without scores"


class Scores(TypedDict):
    """The mean scores of the outputs over a number of cases, and which cases these are."""

    metric: str
    mean: dict[str, float | None]
    cases: int
    on: str


class _Table(TypedDict):
    """The part of out_of_fold.json that is read here."""

    mean: dict[str, float | None]
    cases: dict[str, Any]


def run_scores(path: Path) -> Scores | None:
    """Returns the recorded scores of a cross-validation, a run, or the run of a network such as RUN/best; None if there are none.

    Raises:
        InputError: a record is damaged.
    """
    packed = contents(path).read_json(SCORES, Scores, _REMEDY)
    if packed is not None:
        return packed
    table = contents(path).read_json(OUT_OF_FOLD, _Table, _REMEDY)
    if table is not None:
        return Scores(
            metric="Dice", mean=table["mean"], cases=len(table["cases"]), on="by the networks not trained on them (out of fold)"
        )
    if is_address(path):
        return None
    from swinunetr_jax.training.log import best_validation, metric_of, read_rows

    for run in (path, path.parent):
        if not contents(run).has(RUN):
            continue
        validations = [row for row in read_rows(run) if row["kind"] == "validation"]
        if validations:
            best = best_validation(validations)
            mean = {name: _finite(value) for name, value in best["dice"].items()}
            return Scores(
                metric=metric_of(best), mean=mean, cases=len(best["cases"]), on="of the run's validation, which chose the network"
            )
    return None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
