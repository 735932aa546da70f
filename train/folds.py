"""Cross-validation: one network per fold, and a table of the scores of each case by the network that was not trained on it."""

import csv
import io
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from swinunetr_jax import InputError, files
from swinunetr_jax.console import csv_cell, literal, say, warn
from swinunetr_jax.data.discovery.folds import fold_numbers
from swinunetr_jax.postprocess import POSTPROCESS, Postprocess, write_postprocess
from swinunetr_jax.training import fold_labels, processes
from swinunetr_jax.training.bucket_store import store_of
from swinunetr_jax.training.choose_postprocess import choose_postprocess, pairs_of
from swinunetr_jax.training.data import assign_folds
from swinunetr_jax.training.description import DESCRIPTION, Head, read_description, write_description
from swinunetr_jax.training.html_report import scoring_note
from swinunetr_jax.training.log import LOG, best_validation, read_rows
from swinunetr_jax.training.loop import train
from swinunetr_jax.training.places import cache_of, phantom_of
from swinunetr_jax.training.recipe import Recipe
from swinunetr_jax.training.resume import FREE, LENGTH, changed_options, changed_recipe_file
from swinunetr_jax.training.sources import source_of
from swinunetr_jax.training.store import Store

TABLE = "out_of_fold"


def train_folds(recipe: Recipe, *, resume: bool = False) -> float:
    """Trains each unfinished fold K in OUT/foldK, writes OUT/out_of_fold.csv and .json, and returns the mean score.

    OUT/run.json lists the folds from the start, so that `predict -m OUT` knows which ones are missing.

    Raises:
        InputError: as in `train`; or OUT holds a run and `resume` is false, or it holds one with other options or folds.
    """
    recipe.check()
    recipe = recipe.absolute()
    store = store_of(files.make_folder(recipe.out))
    # In a local cross-validation, each fold has a lock.
    with store.owned() if store.is_remote else nullcontext():
        return _train_folds(recipe, store, resume)


def _train_folds(recipe: Recipe, store: Store, resume: bool) -> float:
    out = store.folder
    if not resume and files.exists(out / DESCRIPTION):
        raise InputError(f"{out} already holds a run: continue it with `--resume {out}`, or choose another --out.")
    before = read_description(out, Head) if resume else None
    changes = {} if before is None else changed_options(out, before, recipe, free=(*FREE, *LENGTH))
    notes = [] if before is None else changed_recipe_file(out, before, recipe)
    numbers = fold_numbers(assign_folds(recipe, source_of(recipe).dataset(recipe, out)))
    if before is not None and (stored := before.get("folds", numbers)) != numbers:
        raise InputError(
            f"{out} has the folds {stored}, and the data set now has {numbers}: restore the data set, or start a new run."
        )
    processes.barrier("every process has read the folder")
    if processes.is_leader():
        for note in notes:
            warn(note)
        files.remove_stale_temporaries(out)
        if changes.keys() & set(LENGTH):  # the tables mark the cross-validation as finished, which it no longer is
            for name in (f"{TABLE}.csv", f"{TABLE}.json", POSTPROCESS):
                store.remove(name)
        write_description(out, {"recipe": recipe.to_dict(), "folds": numbers}, recipe.file)
        store.sync()
    labels: list[fold_labels.FoldLabels | None] = []
    for fold in numbers:
        run = out / f"fold{fold}"
        if processes.is_leader():
            say(f"== fold {fold} of {', '.join(map(str, numbers))} → {literal(run)}")
        fold_recipe = replace(
            recipe, fold=fold, out=run, cache=cache_of(recipe, out), data=recipe.data or phantom_of(recipe, out)
        )
        started = bool(processes.from_process(np.array(files.exists(run / DESCRIPTION)), 0))
        processes.barrier(f"fold {fold} starts")  # every process must look for run.json before the leader writes it
        train(fold_recipe, resume=started, at_end=lambda run, stop: labels.append(fold_labels.write_fold_labels(run, stop)))
    processes.barrier("all label maps are written")
    if not processes.is_leader():
        return 0.0
    _choose_postprocess(out, labels)
    score = write_table(out, [out / f"fold{fold}" for fold in numbers])
    store.sync()
    say(f"each case was scored by the network of its fold; {scoring_note(read_description(out / f'fold{numbers[0]}'))}")
    return score


def _choose_postprocess(out: Path, folds: list[fold_labels.FoldLabels | None]) -> None:
    """Chooses the post-processing on the validation cases of all folds, prints every decision, and writes OUT/postprocess.json."""
    segmented = [fold for fold in folds if fold is not None]
    if len(segmented) < len(folds):
        say("post-processing is not chosen, because a fold has no best network, or its objective defines its own validation")
        return
    if any(fold.task.outputs != segmented[0].task.outputs for fold in segmented):
        say("post-processing is not chosen, because the folds have different labels")
        return
    chosen = choose_postprocess(pairs_of(segmented), segmented[0].task)
    for decision in chosen.decisions:
        say(f"post-processing: {literal(decision)}")
    write_postprocess(out / POSTPROCESS, chosen)
    say(_result(chosen, out))


def _result(chosen: Postprocess, out: Path) -> str:
    """Returns a sentence on what was chosen."""
    if not chosen.steps:
        return f"post-processing: nothing is chosen, so that `predict` does not change label maps → {literal(out / POSTPROCESS)}"
    after = ", ".join(f"{literal(name)} {value:.4f}" for name, value in (chosen.after or {}).items())
    return (
        f"post-processing: `predict` will {literal(chosen)}; mean Dice out of fold with it: {after}, measured on the cases it was chosen "
        f"on → {literal(out / POSTPROCESS)}"
    )


def write_table(out: Path, runs: list[Path]) -> float:
    """Writes the scores of each case by the best network of its fold, and returns the mean of all scores.

    Raises:
        InputError: the log of a fold holds no validation, or has other outputs than the log of another fold.
    """
    cases: dict[str, dict[str, float]] = {}
    fold_of: dict[str, str] = {}
    outputs: list[str] = []
    for run in runs:
        validations = [row for row in read_rows(run) if row["kind"] == "validation"]
        if not validations or (outputs and set(validations[0]["dice"]) != set(outputs)):
            fault = "other outputs than the folds before it" if validations else "no validation"
            raise InputError(
                f"{run / LOG} holds {fault}, so there is no table of all folds: restore it, or train that fold again."
            )
        outputs = outputs or list(validations[0]["dice"])
        best = best_validation(validations)
        cases |= best["cases"]
        fold_of |= dict.fromkeys(best["cases"], run.name)
    means = {name: float(np.mean([case[name] for case in cases.values()])) for name in outputs}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "fold", *map(csv_cell, outputs)])
    for name, case in sorted(cases.items()):
        writer.writerow([csv_cell(name), fold_of[name], *(f"{case[output]:.6f}" for output in outputs)])
    writer.writerow(["mean", "", *(f"{means[output]:.6f}" for output in outputs)])
    files.write_text(out / f"{TABLE}.csv", text.getvalue())
    table = {"mean": means, "cases": {name: {**case, "fold": fold_of[name]} for name, case in cases.items()}}
    files.write_json(out / f"{TABLE}.json", table)
    each = ", ".join(f"{literal(name)} {value:.4f}" for name, value in means.items())
    say(f"out of fold, {len(cases)} cases, without post-processing: {each} → {literal(out / TABLE)}.csv")
    say(f"as an ensemble: swinunetr predict -i … -o … -m {literal(out)}")
    return float(np.mean(list(means.values())))
