"""Cross-validation: one network per fold, and the table of what each said of the cases it had not seen."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from swinunetr_jax.data.folds import with_folds
from train.config import Recipe
from train.data import find_dataset
from train.log import read_rows
from train.loop import DESCRIPTION, train

TABLE = "out_of_fold"


def train_folds(recipe: Recipe, *, resume: bool = False) -> float:
    """Trains every fold into OUT/foldK, those that are finished left as they are; writes OUT/out_of_fold.csv and .json."""
    dataset = find_dataset(recipe, recipe.out)
    names = sorted({case.fold for case in with_folds(dataset.cases, folds=recipe.folds, seed=recipe.seed)} - {None})
    shared = recipe.cache or recipe.out / "cache"
    data = recipe.data or recipe.out / "data"
    for fold in names:
        out = recipe.out / f"fold{fold}"
        print(f"== fold {fold} of {', '.join(map(str, names))} → {out}", flush=True)
        going = resume or (out / DESCRIPTION).exists()
        train(replace(recipe, fold=fold, out=out, cache=shared, data=data), resume=going)
    return write_table(recipe.out, [recipe.out / f"fold{fold}" for fold in names])


def write_table(out: Path, runs: list[Path]) -> float:
    """Each case's scores from the best network of the fold that held it out; returns the mean of all."""
    cases: dict[str, dict[str, float]] = {}
    for run in runs:
        looks = [row for row in read_rows(run) if row["kind"] == "validation"]
        best = max(looks, key=lambda row: row["score"])
        cases |= {name: {**dice, "fold": run.name} for name, dice in best["cases"].items()}
    outputs = [name for name in next(iter(cases.values())) if name != "fold"]
    means = {name: float(np.mean([case[name] for case in cases.values()])) for name in outputs}
    with open(out / f"{TABLE}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "fold", *outputs])
        writer.writerows([name, case["fold"], *(f"{case[o]:.6f}" for o in outputs)] for name, case in sorted(cases.items()))
        writer.writerow(["mean", "", *(f"{means[o]:.6f}" for o in outputs)])
    (out / f"{TABLE}.json").write_text(json.dumps({"mean": means, "cases": cases}, indent=1))
    each = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
    print(f"out of fold, {len(cases)} cases: {each} → {out / TABLE}.csv\nas an ensemble: swinunetr predict -i … -o … -m {out}")
    return float(np.mean(list(means.values())))
