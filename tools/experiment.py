"""The common parts of experiments that compare trainings: draws of labelled cases, runs at the same time, and scores on test cases."""

import contextlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from swinunetr_jax import console, files
from swinunetr_jax.errors import InputError
from tools.paired_differences import Scores, paired_difference, score_array

LABELLED, TEST, RESULTS = "labelled.json", "test.json", "comparison.json"
T = TypeVar("T")


@dataclass
class Design:
    """The cases, and the trainings of each draw of labelled cases."""

    data: Path
    """A data set with a dataset.json whose list `training` names an image and a label map per case, such as a task of the Decathlon."""
    out: Path
    """Folder for runs, predictions, the table (comparison.md) and the numbers (comparison.json)."""
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


def check_folder(options: Design, same: Sequence[str] = SAME) -> None:
    """Raises InputError if the folder has results of trainings with other options."""
    path = options.out / RESULTS
    if not files.exists(path):
        return
    stored = files.read_json(path, dict, "use another --out.")["options"]
    given = plain(vars(options))
    for name in same:
        if stored.get(name) != given[name]:
            option = f"--{name.replace('_', '-')}"
            raise InputError(
                f"{options.out} has trainings with {option} {console.literal(str(stored.get(name)))}, and {option} "
                f"{console.literal(str(given[name]))} was given: give the same options, or another --out."
            )


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
            f"{path} cannot be used: expected a dataset.json whose list `training` names an image and a label map of each case, as in "
            "the Medical Segmentation Decathlon."
        ) from error
    return description


@dataclass(frozen=True)
class Split:
    """Entries of a dataset.json: test cases, all other cases, and the labelled cases of each draw."""

    test: list[Any]
    others: list[Any]
    labelled: list[list[Any]]


def split_cases(cases: list[Any], options: Design) -> Split:
    """Returns the test cases, which depend only on `test_seed`, and the labelled cases of each draw, which are never test cases."""
    if options.test + options.labelled > len(cases):
        raise InputError(
            f"--test {options.test} and --labelled {options.labelled} need {options.test + options.labelled} cases, but there are "
            f"{len(cases)}: take fewer."
        )
    order = np.random.default_rng(options.test_seed).permutation(len(cases))
    test, others = np.sort(order[: options.test]), np.sort(order[options.test :])
    chosen = [
        np.sort(np.random.default_rng([options.test_seed, draw]).choice(others, options.labelled, replace=False))
        for draw in range(options.draws)
    ]
    return Split([cases[i] for i in test], [cases[i] for i in others], [[cases[i] for i in draw] for draw in chosen])


def write_lists(options: Design) -> tuple[dict[str, Any], Split]:
    """Writes the list of test cases, and the list of labelled cases of each draw. Returns the dataset.json and the cases."""
    description = read_dataset(options.data)
    split = split_cases(description["training"], options)
    write_list(options.out / TEST, description, split.test)
    for draw, labelled in enumerate(split.labelled):
        write_list(files.make_folder(options.out / f"draw{draw}") / LABELLED, description, labelled)
    return description, split


def write_list(path: Path, description: dict[str, Any], cases: list[Any]) -> None:
    """Writes a dataset.json with some of the cases."""
    files.write_json(path, description | {"training": cases, "numTraining": len(cases), "test": [], "numTest": 0})


def scores_file(run: Path) -> Path:
    """Returns the file that a training of a draw has after its predictions were scored."""
    return run.parent / f"{run.name}_test" / "scores.json"


def train_and_test(options: Design, recipe: str, run: Path, *more: object) -> Scores:
    """Trains a recipe on the labelled cases of a draw, unless this is finished, and returns the Dice of each test case.

    Args:
        options: the design.
        recipe: the recipe by name or file.
        run: the folder of the run, which is in the folder of the draw.
        more: further options of the training.
    """
    path = scores_file(run)
    if not files.exists(path):
        draw, base = int(run.parent.name.removeprefix("draw")), ["--base", options.data]
        labelled, test, results = run.parent / LABELLED, options.out / TEST, path.parent
        given = ["--out", run, "--steps", options.steps, "--seed", draw, *shlex.split(options.train), *more]
        log = log_file(options, run)
        command(log, "train", recipe, "--data", labelled, *base, *given)
        command(log, "predict", "-i", test, *base, "-m", run, "-o", results)
        command(log, "evaluate", results, test, *base)
    scores = json.loads(path.read_text(encoding="utf-8"))
    return {name: {output: values["dice_brats"] for output, values in case.items()} for name, case in scores["cases"].items()}


def log_file(options: Design, run: Path) -> Path | None:
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


def run_all(work: Sequence[T], finish: Callable[[T], Scores], jobs: int, finished: Callable[[dict[T, Scores]], None]) -> None:
    """Runs all trainings that are not finished.

    Args:
        work: the trainings.
        finish: returns the scores of a training after running it, unless it is finished.
        jobs: the number of trainings at the same time.
        finished: called with the scores so far, in the order of `work`, after each training.

    Raises:
        InputError: trainings failed. The others are finished before.
    """
    results: dict[int, Scores] = {}
    seconds: list[float] = []
    failures = 0

    def timed(training: T) -> tuple[Scores, float]:
        started = time.monotonic()
        return finish(training), time.monotonic() - started

    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(timed, training): number for number, training in enumerate(work)}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                try:
                    results[futures[future]], spent = future.result()
                except InputError as error:  # the other trainings do not depend on this one
                    failures += 1
                    console.say(f"error: {error}", sys.stderr)
                    continue
                seconds += [spent] if spent > 1 else []  # the scores of the others existed
                finished({work[number]: results[number] for number in sorted(results)})
                remaining = (len(work) - done) / jobs
                minutes = f", about {remaining * np.mean(seconds) / 60:.0f} minutes remain" if seconds else ""
                console.say(f"{done - failures} of {len(work)} trainings are finished{minutes}")
        finally:
            pool.shutdown(cancel_futures=True)
    if failures:
        raise InputError(f"{failures} of {len(work)} trainings failed: see their messages, and run this command again.")


def table(
    scores: dict[str, dict[str, Scores]], reference: str, *, kind: str = "recipe", resampled: str = "draws and cases"
) -> str:
    """Returns a Markdown table: the mean Dice of each kind of training, and its differences to a reference in points of Dice.

    Args:
        scores: the scores of each kind of training by the name of the draw.
        reference: the kind of training that the others are compared with.
        kind: the title of the first column.
        resampled: what the bootstrap resamples, for the note below the table.
    """
    some = next(iter(next(iter(scores.values())).values()))
    names = list(next(iter(some.values())))
    columns: list[str | None] = [None, *names]
    head = [kind, "draws", "cases", "mean Dice", *names, *(f"Δ {name or 'mean'}" for name in columns)]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    first = scores.get(reference, {})
    for name_of_row, draws in scores.items():
        means = [f"{np.nanmean(score_array(list(draws.values()), name)):.4f}" for name in columns]
        common = [draw for draw in draws if draw in first and draws is not first]
        changes = ["" for _ in columns]
        if common:
            new, old = [draws[draw] for draw in common], [first[draw] for draw in common]
            changes = [str(paired_difference(score_array(new, name), score_array(old, name))) for name in columns]
        lines.append(f"| {' | '.join([name_of_row, str(len(draws)), str(len(some)), *means, *changes])} |")
    note = f"Δ: difference to {reference} in points of Dice, with a 95 % bootstrap interval over {resampled}."
    return "\n".join([*lines, "", note, ""])


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Returns options as JSON values."""
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    return {name: str(value) if isinstance(value, Path) else value for name, value in listed.items()}
