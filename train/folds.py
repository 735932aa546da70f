"""Cross-validation: one network per fold, and the table of what each said of the cases it had not seen."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from swinunetr_jax import InputError
from swinunetr_jax.data.folds import fold_numbers
from train import processes
from train.config import Recipe
from train.data import find_dataset, folded
from train.log import read_rows
from train.loop import train
from train.start import DESCRIPTION, write_description

TABLE = "out_of_fold"


def train_folds(recipe: Recipe, *, resume: bool = False) -> float:
    """Trains every fold into OUT/foldK, those that are finished left as they are; writes OUT/out_of_fold.csv and .json."""
    recipe.check()
    recipe = recipe.absolute()
    out = recipe.out
    out.mkdir(parents=True, exist_ok=True)
    if not resume and (out / DESCRIPTION).exists():
        raise InputError(f"{out} holds a run already: go on with `--resume {out}`, or choose another --out.")
    cases = folded(recipe, find_dataset(recipe, out))
    processes.barrier("the folder was looked at")
    if processes.is_leader():
        write_description(out, {"recipe": recipe.to_dict()})
    names = fold_numbers(cases)
    for fold in names:
        run = out / f"fold{fold}"
        if processes.is_leader():
            print(f"== fold {fold} of {', '.join(map(str, names))} → {run}", flush=True)
        one = replace(recipe, fold=fold, out=run, cache=recipe.cache or out / "cache", data=recipe.data or out / "data")
        begun = (run / DESCRIPTION).exists()
        processes.barrier(f"fold {fold} begins")  # before the leader describes it
        train(one, resume=begun)
    return write_table(out, [out / f"fold{fold}" for fold in names]) if processes.is_leader() else 0.0


def write_table(out: Path, runs: list[Path]) -> float:
    """Each case's scores from the best network of the fold that held it out; returns the mean of all."""
    cases: dict[str, dict[str, float]] = {}
    for run in runs:
        looks = [row for row in read_rows(run) if row["kind"] == "validation"]
        best = max(looks, key=lambda row: row["score"])
        cases |= {name: {**dice, "fold": run.name} for name, dice in best["cases"].items()}
    outputs = [name for name in next(iter(cases.values())) if name != "fold"]
    means = {name: float(np.mean([case[name] for case in cases.values()])) for name in outputs}
    temporary = out / f".{TABLE}.tmp"
    with open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "fold", *outputs])
        writer.writerows([name, case["fold"], *(f"{case[o]:.6f}" for o in outputs)] for name, case in sorted(cases.items()))
        writer.writerow(["mean", "", *(f"{means[o]:.6f}" for o in outputs)])
    temporary.replace(out / f"{TABLE}.csv")
    (out / f"{TABLE}.json").write_text(json.dumps({"mean": means, "cases": cases}, indent=1))
    each = ", ".join(f"{name} {value:.4f}" for name, value in means.items())
    print(f"out of fold, {len(cases)} cases: {each} → {out / TABLE}.csv\nas an ensemble: swinunetr predict -i … -o … -m {out}")
    return float(np.mean(list(means.values())))
