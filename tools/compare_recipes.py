"""Compares training recipes by their Dice on cases that none of them was trained on, as paired differences with intervals.

    python -m tools.compare_recipes --data Task04_Hippocampus --out comparison
    python -m tools.compare_recipes --data Task04_Hippocampus --out comparison --cross-validation

The first form chooses the test cases once, and then a random set of labelled cases for each draw. Every recipe is trained on the labelled
cases of every draw, and predicts the test cases. The second form trains every recipe on the folds of all cases, and
each case is scored by the network of its fold. Differences are to the first recipe. The same command continues after an interruption, and
the table is rewritten after each training. A training whose scores exist is not repeated, so further recipes or draws can be added.
"""

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from swinunetr_jax import console, files
from swinunetr_jax.errors import InputError
from tools.experiment import RESULTS, Design, check_folder, command, log_file, plain, run_all, table, train_and_test, write_lists
from tools.paired_differences import Scores

Training = tuple[str, Path]
"""A recipe, and the folder of its run."""


@dataclass
class Options(Design):
    """The comparison."""

    recipes: tuple[str, ...] = ("msd", "tools/recipes/msd_augmented.py", "strong")
    """Recipes by name or file. Differences are to the first one."""
    cross_validation: bool = False
    """Train each recipe on all folds of all cases instead of on draws of labelled cases."""


def main(options: Options) -> None:
    """Runs all trainings that are not finished.

    Raises:
        InputError: the data set has no list of cases, or too few of them; the folder belongs to other options; or a training failed.
    """
    names = [Path(recipe).stem for recipe in options.recipes]
    if len(set(names)) < len(names):
        raise InputError(f"two of the recipes have the same name ({', '.join(names)}), which names their folders: rename a file.")
    check_folder(options)
    files.make_folder(options.out)
    train = cross_validate if options.cross_validation else train_and_test
    work = cross_validations(options) if options.cross_validation else drawn_trainings(options)
    run_all(work, lambda training: train(options, *training), options.jobs, lambda results: write(options, results))


def drawn_trainings(options: Options) -> list[Training]:
    """Writes the lists of cases, and returns the trainings: all recipes of a draw, then those of the next draw."""
    write_lists(options)
    folders = [options.out / f"draw{draw}" for draw in range(options.draws)]
    return [(recipe, folder / Path(recipe).stem) for folder in folders for recipe in options.recipes]


def cross_validations(options: Options) -> list[Training]:
    """Returns a training on all folds for each recipe."""
    return [(recipe, options.out / "folds" / Path(recipe).stem) for recipe in options.recipes]


def cross_validate(options: Options, recipe: str, run: Path) -> Scores:
    """Trains a recipe on all folds that are not finished, and returns the Dice of each case by the network of its fold."""
    path = run / "out_of_fold.json"
    if not files.exists(path):
        given = ["--out", run, "--steps", options.steps, "--fold", "all", *shlex.split(options.train)]
        command(log_file(options, run), "train", recipe, "--data", options.data, *given)
    scores = json.loads(path.read_text(encoding="utf-8"))["cases"]
    return {name: {output: dice for output, dice in case.items() if output != "fold"} for name, case in scores.items()}


def write(options: Options, results: dict[Training, Scores]) -> None:
    """Writes and prints the table of the trainings that are finished."""
    scores: dict[str, dict[str, Scores]] = {}
    for (recipe, run), values in results.items():
        scores.setdefault(recipe, {})[run.parent.name] = values
    text = table(scores, options.recipes[0], resampled="cases" if options.cross_validation else "draws and cases")
    files.write_text(options.out / "comparison.md", text)
    files.write_json(options.out / RESULTS, {"options": plain(vars(options)), "dice": scores})
    console.say(text)


if __name__ == "__main__":
    console.configure_streams()
    try:
        main(tyro.cli(Options, description=__doc__))
    except InputError as error:
        console.say(f"error: {error}", sys.stderr)
        sys.exit(2)
