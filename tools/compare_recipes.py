"""Compares training recipes by their Dice on cases that none of them was trained on, as paired differences with intervals.

    python -m tools.compare_recipes --data Task04_Hippocampus --out comparison
    python -m tools.compare_recipes --data Task04_Hippocampus --out comparison --cross-validation

The first form chooses the test cases once, and then a random set of labelled cases for each draw. Every recipe is trained on the labelled
cases of every draw, and predicts the test cases. The second form trains every recipe on the folds of all cases, and
each case is scored by the network of its fold. Differences are to the first recipe. The same command continues after an interruption, and
the table is rewritten after each training. A training whose scores exist is not repeated, so further recipes or draws can be added.
"""

import contextlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from swinunetr_jax import console, files
from swinunetr_jax.errors import InputError
from tools.paired_differences import Scores, paired_difference, score_array

LABELLED, TEST, RESULTS = "labelled.json", "test.json", "comparison.json"


@dataclass
class Options:
    """The comparison."""

    data: Path
    """A data set with a dataset.json whose list `training` names an image and a label map per case, such as a task of the Decathlon."""
    out: Path
    """Folder for runs, predictions, the table (comparison.md) and the numbers (comparison.json)."""
    recipes: tuple[str, ...] = ("msd", "tools/recipes/msd_augmented.py", "strong")
    """Recipes by name or file. Differences are to the first one."""
    cross_validation: bool = False
    """Train each recipe on all folds of all cases instead of on draws of labelled cases."""
    labelled: int = 20
    """Labelled cases of a draw; a fifth of them is used to choose the best network."""
    test: int = 60
    """Test cases, which are the same for all draws."""
    test_seed: int = 0
    """Seed of the choice of test cases."""
    draws: int = 4
    """Draws of labelled cases. The number of a draw is also the seed of its trainings."""
    steps: int = 4000
    """Steps of each training."""
    train: str = ""
    """Further options of all trainings in one text, such as `--train="--network.feature-size 12 --batch 2"`."""
    jobs: int = 1
    """Trainings that run at the same time, for a GPU that one training does not fill. If there are several, the messages of each one are
    written to a file next to its folder, such as comparison/draw0/msd.log."""


SAME = ("data", "labelled", "test", "test_seed", "steps", "train")  # options on which the trainings in a folder depend


@dataclass(frozen=True)
class Split:
    """Entries of a dataset.json: test cases, and the labelled cases of each draw."""

    test: list[Any]
    labelled: list[list[Any]]


@dataclass(frozen=True)
class Comparison:
    """The results so far: the scores of each recipe by the name of the draw."""

    options: Options
    scores: dict[str, dict[str, Scores]]

    def table(self) -> str:
        """Returns the table as Markdown: the mean Dice of each recipe, and its differences to the first one in points of Dice."""
        some = next(iter(next(iter(self.scores.values())).values()))
        names = list(next(iter(some.values())))
        columns: list[str | None] = [None, *names]
        head = ["recipe", "draws", "cases", "mean Dice", *names, *(f"Δ {name or 'mean'}" for name in columns)]
        lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        first = self.scores.get(self.options.recipes[0], {})
        for recipe, draws in self.scores.items():
            scores = list(draws.values())
            means = [f"{np.nanmean(score_array(scores, name)):.4f}" for name in columns]
            common = [draw for draw in draws if draw in first and draws is not first]
            changes = ["" for _ in columns]
            if common:
                new, old = [draws[draw] for draw in common], [first[draw] for draw in common]
                changes = [str(paired_difference(score_array(new, name), score_array(old, name))) for name in columns]
            lines.append(f"| {' | '.join([recipe, str(len(scores)), str(len(some)), *means, *changes])} |")
        resampled = "cases" if self.options.cross_validation else "draws and cases"
        note = f"Δ: difference to the first recipe in points of Dice, with a 95 % bootstrap interval over {resampled}."
        return "\n".join([*lines, "", note, ""])

    def write(self) -> None:
        """Writes and prints the table."""
        out = self.options.out
        files.write_text(out / "comparison.md", self.table())
        files.write_json(out / RESULTS, {"options": _plain(vars(self.options)), "dice": self.scores})
        console.say(self.table())


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
    work = list(cross_validations(options) if options.cross_validation else draws(options))
    results: dict[tuple[str, Path], Scores] = {}
    seconds: list[float] = []
    failures = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = {pool.submit(finish, options, recipe, run): (recipe, run) for recipe, run in work}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                try:
                    results[futures[future]], spent = future.result()
                except InputError as error:  # the other trainings do not depend on this one
                    failures += 1
                    console.say(f"error: {error}", sys.stderr)
                    continue
                seconds += [spent] if spent is not None else []
                Comparison(options, by_recipe(work, results)).write()
                remaining = (len(work) - done) / options.jobs
                minutes = f", about {remaining * np.mean(seconds) / 60:.0f} minutes remain" if seconds else ""
                console.say(f"{done - failures} of {len(work)} trainings are finished{minutes}")
        finally:
            pool.shutdown(cancel_futures=True)
    if failures:
        raise InputError(f"{failures} of {len(work)} trainings failed: see their messages, and run this command again.")


def by_recipe(work: list[tuple[str, Path]], results: dict[tuple[str, Path], Scores]) -> dict[str, dict[str, Scores]]:
    """Returns the scores so far by recipe and name of the draw, in the order of the work."""
    scores: dict[str, dict[str, Scores]] = {}
    for recipe, run in work:
        if (recipe, run) in results:
            scores.setdefault(recipe, {})[run.parent.name] = results[recipe, run]
    return scores


def check_folder(options: Options) -> None:
    """Raises InputError if the folder has results of trainings with other options."""
    path = options.out / RESULTS
    if not files.exists(path):
        return
    stored = files.read_json(path, dict, "use another --out.")["options"]
    given = _plain(vars(options))
    for name in SAME:
        if stored.get(name) != given[name]:
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{options.out} has trainings with {option} {console.literal(str(stored.get(name)))}, and {option} "
                f"{console.literal(str(given[name]))} was given: give the same options, or another --out."
            )


def finish(options: Options, recipe: str, run: Path) -> tuple[Scores, float | None]:
    """Returns the scores of a training and the seconds that it took; None if its scores existed."""
    started, exists = time.monotonic(), files.exists(scores_file(options, run))
    if options.cross_validation:
        return cross_validate(options, recipe, run), None if exists else time.monotonic() - started
    return train_and_test(options, recipe, run), None if exists else time.monotonic() - started


def draws(options: Options) -> Iterator[tuple[str, Path]]:
    """Writes the lists of cases, and yields each training as a recipe and its folder: all recipes of a draw, then the next draw."""
    description = read_dataset(options.data)
    split = split_cases(description["training"], options)
    write_list(options.out / TEST, description, split.test)
    for draw, labelled in enumerate(split.labelled):
        folder = files.make_folder(options.out / f"draw{draw}")
        write_list(folder / LABELLED, description, labelled)
        for recipe in options.recipes:
            yield recipe, folder / Path(recipe).stem


def cross_validations(options: Options) -> Iterator[tuple[str, Path]]:
    """Yields each cross-validation as a recipe and its folder."""
    for recipe in options.recipes:
        yield recipe, options.out / "folds" / Path(recipe).stem


def read_dataset(data: Path) -> dict[str, Any]:
    """Returns the dataset.json of a data set. Raises InputError if it has no list of training cases."""
    path = data / "dataset.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        cases = description["training"]
        if not all(isinstance(case["image"], str) and isinstance(case["label"], str) for case in cases):
            raise TypeError
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise InputError(
            f"{path} cannot be used: expected a dataset.json whose list `training` names an image and a label map of each case, as "
            "in the Medical Segmentation Decathlon."
        ) from error
    return description


def split_cases(cases: list[Any], options: Options) -> Split:
    """Returns the test cases, which depend only on `test_seed`, and the labelled cases of each draw, which are never test cases."""
    if options.test + options.labelled > len(cases):
        raise InputError(
            f"--test {options.test} and --labelled {options.labelled} need {options.test + options.labelled} cases, but there are "
            f"{len(cases)}: take fewer."
        )
    order = np.random.default_rng(options.test_seed).permutation(len(cases))
    test, remaining = np.sort(order[: options.test]), np.sort(order[options.test :])
    chosen = [
        np.sort(np.random.default_rng([options.test_seed, draw]).choice(remaining, options.labelled, replace=False))
        for draw in range(options.draws)
    ]
    return Split([cases[i] for i in test], [[cases[i] for i in draw] for draw in chosen])


def write_list(path: Path, description: dict[str, Any], cases: list[Any]) -> None:
    """Writes a dataset.json with some of the cases."""
    files.write_json(path, description | {"training": cases, "numTraining": len(cases), "test": [], "numTest": 0})


def scores_file(options: Options, run: Path) -> Path:
    """Returns the file that a finished training has, with the scores of its cases."""
    return run / "out_of_fold.json" if options.cross_validation else run.parent / f"{run.name}_test" / "scores.json"


def train_and_test(options: Options, recipe: str, run: Path) -> Scores:
    """Trains a recipe on the labelled cases of a draw, unless this is finished, and returns the Dice of each test case."""
    path = scores_file(options, run)
    if not files.exists(path):
        draw, base = int(run.parent.name.removeprefix("draw")), ["--base", options.data]
        labelled, test, results = run.parent / LABELLED, options.out / TEST, path.parent
        given = ["--out", run, "--steps", options.steps, "--seed", draw, *shlex.split(options.train)]
        log = log_file(options, run)
        command(log, "train", recipe, "--data", labelled, *base, *given)
        command(log, "predict", "-i", test, *base, "-m", run, "-o", results)
        command(log, "evaluate", results, test, *base)
    scores = json.loads(path.read_text(encoding="utf-8"))
    return {name: {output: values["dice_brats"] for output, values in case.items()} for name, case in scores["cases"].items()}


def cross_validate(options: Options, recipe: str, run: Path) -> Scores:
    """Trains a recipe on all folds that are not finished, and returns the Dice of each case by the network of its fold."""
    path = scores_file(options, run)
    if not files.exists(path):
        given = ["--out", run, "--steps", options.steps, "--fold", "all", *shlex.split(options.train)]
        command(log_file(options, run), "train", recipe, "--data", options.data, *given)
    scores = json.loads(path.read_text(encoding="utf-8"))["cases"]
    return {name: {output: dice for output, dice in case.items() if output != "fold"} for name, case in scores.items()}


def log_file(options: Options, run: Path) -> Path | None:
    """Returns the file for the messages of a training. None stands for the terminal, if only one training runs at a time."""
    return None if options.jobs == 1 else run.with_name(f"{run.name}.log")


def command(log: Path | None, *arguments: object) -> None:
    """Runs a command of this project in a process of its own. Raises InputError if it fails."""
    words = [str(argument) for argument in arguments]
    console.say(f"$ swinunetr {' '.join(words)}")
    with contextlib.nullcontext() if log is None else files.make_folder(log.parent).joinpath(log.name).open("ab") as output:
        code = subprocess.run(
            [sys.executable, "-m", "swinunetr_jax.cli", *words], stdout=output, stderr=None if log is None else subprocess.STDOUT
        ).returncode
    if code:
        where = "above" if log is None else f"at the end of {log}"
        raise InputError(f"`swinunetr {words[0]}` ended with exit code {code}: see its message {where}.")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Returns options as JSON values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


if __name__ == "__main__":
    console.configure_streams()
    try:
        main(tyro.cli(Options, description=__doc__))
    except InputError as error:
        console.say(f"error: {error}", sys.stderr)
        sys.exit(2)
