"""Measures whether pre-training on scans without labels raises the Dice of a training with few labelled cases.

    python -m tools.compare_pretraining --data Task04_Hippocampus --out pretraining

The test cases are chosen once. The images of all other cases pre-train one network for each task. For each draw, a recipe is trained on a
few labelled cases from random weights ("scratch") and from each pre-trained network, with the same network, steps, warm-up and number of
learning rates. The learning rate of each of these is the one with the highest Dice on the validation cases, over all draws. The table has
the Dice on the test cases, and its paired differences to `scratch`. The same command continues after an interruption.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from swinunetr_jax import console, files
from swinunetr_jax.errors import InputError
from swinunetr_jax.training.log import best_validation, read_rows
from tools.experiment import (
    RESULTS,
    SAME,
    Design,
    check_folder,
    command,
    log_file,
    plain,
    run_all,
    table,
    train_and_test,
    write_list,
    write_lists,
)
from tools.paired_differences import Scores

SCRATCH, UNLABELLED, PRETRAINED = "scratch", "unlabelled.json", "pretrained"

SAME_HERE = ("recipe", "pretraining_steps", "feature_size", "warmup", "swin3_roi", "pretraining")

Training = tuple[str, float, Path]
"""A start of the weights, a learning rate, and the folder of the run."""


@dataclass
class Options(Design):
    """The comparison."""

    labelled: int = 10
    """Labelled cases of a draw; a fifth of them is used to choose the best network and the learning rate."""
    draws: int = 5
    """Draws of labelled cases. The number of a draw is also the seed of its trainings."""
    steps: int = 3000
    """Steps of each training with labels."""
    tasks: tuple[Literal["mim", "swin3"], ...] = ("mim", "swin3")
    """Tasks of pre-training."""
    recipe: str = "msd"
    """Recipe of the trainings with labels, by name or file."""
    rates: tuple[float, ...] = (1e-3, 3e-4)
    """Learning rates that are tried from every start."""
    pretraining_steps: int = 20_000
    """Steps of each pre-training."""
    feature_size: int = 24
    """Features of all networks. A training from a pre-trained network has the network of the pre-training."""
    warmup: float = 0.1
    """Warm-up of all trainings with labels, as a fraction of their steps."""
    swin3_roi: tuple[int, int, int] = (32, 64, 64)
    """Crop of swin3, whose second and third axis are equal. That of mim is fitted to the scans, as in the trainings with labels."""
    pretraining: str = ""
    """Further options of all pre-trainings in one text."""


def main(options: Options) -> None:
    """Runs everything that is not finished.

    Raises:
        InputError: the data set has no list of cases, or too few of them; the folder belongs to other options; or a training failed.
    """
    check_folder(options, (*SAME, *SAME_HERE))
    files.make_folder(options.out)
    description, split = write_lists(options)
    write_list(options.out / UNLABELLED, description, split.others)
    for task in options.tasks:
        pretrain(options, task)
    folders = [options.out / f"draw{draw}" for draw in range(options.draws)]
    work: list[Training] = [
        (start, rate, folder / f"{start}_{rate:g}")
        for folder in folders
        for start in (SCRATCH, *options.tasks)
        for rate in options.rates
    ]
    run_all(work, lambda training: train(options, *training), options.jobs, lambda results: write(options, results))


def pretrain(options: Options, task: str) -> None:
    """Pre-trains a network on the images of all cases that are not test cases, unless this is finished."""
    run = options.out / PRETRAINED / task
    given = ["--steps", options.pretraining_steps, "--network.feature-size", options.feature_size]
    given += ["--roi", *options.swin3_roi] if task == "swin3" else []
    given += shlex.split(options.pretraining)
    lists = ["--data", options.out / UNLABELLED, "--base", options.data]
    command(log_file(options, run), "train", "pretrain", "--task", task, *lists, "--out", run, *given)


def train(options: Options, start: str, rate: float, run: Path) -> Scores:
    """Trains on the labelled cases of a draw, unless this is finished, and returns the Dice of each test case."""
    network = ["--network.feature-size", options.feature_size]
    weights = network if start == SCRATCH else ["--init.checkpoint", options.out / PRETRAINED / start]
    return train_and_test(options, options.recipe, run, "--optim.lr", rate, "--optim.warmup", options.warmup, *weights)


def write(options: Options, results: dict[Training, Scores]) -> None:
    """Writes and prints the table of the trainings that are finished, with the learning rate of each start."""
    scores: dict[str, dict[str, Scores]] = {}
    chosen: dict[str, float] = {}
    for start in dict.fromkeys(start for start, _, _ in results):
        chosen[start] = best_rate(options, [training for training in results if training[0] == start])
        scores[start] = {
            run.parent.name: values for (name, rate, run), values in results.items() if (name, rate) == (start, chosen[start])
        }
    rates = ", ".join(f"{start} {rate:g}" for start, rate in chosen.items())
    text = table(scores, SCRATCH, kind="start") + f"Learning rates with the highest Dice on the validation cases: {rates}.\n"
    files.write_text(options.out / "comparison.md", text)
    every = {f"{start} {rate:g} {run.parent.name}": values for (start, rate, run), values in results.items()}
    files.write_json(options.out / RESULTS, {"options": plain(vars(options)), "rates": chosen, "dice": every})
    console.say(text)


def best_rate(options: Options, trainings: list[Training]) -> float:
    """Returns the learning rate with the highest mean of the best Dice on the validation cases, over the draws that have all rates."""
    best: dict[float, dict[str, float]] = {}
    for _, rate, run in trainings:
        validations = [row for row in read_rows(run) if row["kind"] == "validation"]
        best.setdefault(rate, {})[run.parent.name] = best_validation(validations)["score"]
    common = set.intersection(*(set(draws) for draws in best.values()))
    if not common:
        return next(iter(best))
    return max(best, key=lambda rate: np.mean([best[rate][draw] for draw in common]))


if __name__ == "__main__":
    console.configure_streams()
    try:
        main(tyro.cli(Options, description=__doc__))
    except InputError as error:
        console.say(f"error: {error}", sys.stderr)
        sys.exit(2)
