"""Compares training in this project with training in MONAI and PyTorch.

    python -m tools.compare_training --data Task04_Hippocampus --out comparison

Network, initial weights, cases, crops, their order, loss and optimizer are the same. Both trainings receive the same batches from this
project's pipeline, and both are scored on the whole scans of one validation fold by the Dice of each label. The networks are trained one
after the other, and the table is rewritten after each of them.
"""

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import torch
import tyro
from monai.inferers.utils import sliding_window_inference
from monai.losses.dice import DiceCELoss
from monai.networks.nets.swin_unetr import SwinUNETR

from swinunetr_jax import SwinUNETRConfig, console
from swinunetr_jax.inference.prepare import normalized
from swinunetr_jax.training import Augment, Network, Optim, Recipe
from swinunetr_jax.training.data import Cases, batches, collect_cases
from swinunetr_jax.training.optim import learning_rate
from swinunetr_jax.training.recipes import msd
from swinunetr_jax.training.step import Training
from swinunetr_jax.training.validation import case_dice, validate
from swinunetr_jax.weights.load import save_params


@dataclass
class Options:
    """The trainings to compare."""

    data: Path
    """A data set with a label map per case, such as a task of the Decathlon."""
    out: Path
    """Folder for the cache, the table (comparison.md) and the numbers (comparison.json)."""
    score_after: tuple[int, ...] = (100, 200, 400)
    """Steps after which to score the network; the training ends after the last of them."""
    seeds: tuple[int, ...] = (0, 1)
    feature_size: int = 12
    batch: int = 2
    roi: tuple[int, int, int] = (64, 64, 64)
    lr: float = 1e-3
    warmup: int = 25
    flips: tuple[int, ...] = ()
    """Axes to mirror; none by default, because labels of the hippocampus distinguish anterior and posterior."""


@dataclass(frozen=True)
class Result:
    """The result of one training.

    Attributes:
        trainer: the name of the trainer.
        seed: the seed of the initial weights and of the crops.
        dice: the Dice of each label by its name, for each number of steps.
        losses: the loss of each step.
        seconds: the median time of a step.
    """

    trainer: str
    seed: int
    dice: dict[int, dict[str, float]]
    losses: list[float]
    seconds: float


def main(options: Options) -> None:
    recipe = dataclasses.replace(
        msd.RECIPE,
        data=options.data,
        batch=options.batch,
        roi=options.roi,
        steps=max(options.score_after),
        cache=options.out / "cache",
        network=Network(feature_size=options.feature_size),
        optim=Optim(lr=options.lr, weight_decay=1e-5, warmup=options.warmup),
        augment=Augment(flips=options.flips),
    )
    cases = collect_cases(recipe, options.out)
    results = []
    for seed in options.seeds:
        for train in (train_ours, train_monai):
            results.append(train(dataclasses.replace(recipe, seed=seed), cases, options.score_after))
            write(options.out, results, cases)


def setup(recipe: Recipe, cases: Cases) -> Training:
    """Returns an object that makes the network, its initial weights and the training step of a recipe."""
    config = recipe.network_config(cases.in_channels, len(cases.task.outputs))
    assert recipe.steps is not None  # as `main` has set it
    return Training(config, cases.task, recipe.loss, recipe.optim, recipe.steps, recipe.seed)


def train_ours(recipe: Recipe, cases: Cases, score_after: tuple[int, ...]) -> Result:
    """Trains with this project."""
    training = setup(recipe, cases)
    state, step = training.init(training.random_weights()), training.compile()

    def train_step(image: np.ndarray, label: np.ndarray) -> float:
        nonlocal state
        state, metrics = step(state, {"image": image, "label": label})
        return float(metrics["loss"])

    def score() -> dict[str, float]:
        quiet = lambda done, total: None  # noqa: E731
        return validate(training.config, state.network, cases.validation, cases.task, recipe.validation, quiet).by_output

    return run("this project", recipe, cases, score_after, train_step, score)


def train_monai(recipe: Recipe, cases: Cases, score_after: tuple[int, ...]) -> Result:
    """Trains with MONAI's network and loss and PyTorch's optimizer, from the same initial weights."""
    training, roi = setup(recipe, cases), cases.task.roi
    config = training.config
    assert isinstance(config, SwinUNETRConfig) and roi is not None  # the recipe `msd` has both
    network = SwinUNETR(in_channels=cases.in_channels, out_channels=len(cases.task.outputs), feature_size=config.feature_size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "start.pt"
        save_params(path, config, training.random_weights(), to="monai")
        network.load_state_dict(torch.load(path), strict=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.optim.lr, weight_decay=recipe.optim.weight_decay)
    rate, loss_of, finished_steps = learning_rate(recipe.optim, training.steps), DiceCELoss(softmax=True, to_onehot_y=True), 0
    values = np.array([output.value for output in cases.task.outputs], np.uint8)
    class_of_value = np.zeros(256, np.int64)
    class_of_value[values] = np.arange(len(values))

    def train_step(image: np.ndarray, label: np.ndarray) -> float:
        nonlocal finished_steps
        network.train()
        classes = class_of_value[label][:, None]
        for group in optimizer.param_groups:
            group["lr"] = float(np.asarray(rate(finished_steps)))
        loss = loss_of(network(torch.from_numpy(np.moveaxis(image, -1, 1).copy())), torch.from_numpy(classes))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        finished_steps += 1
        return loss.item()

    @torch.no_grad()
    def score() -> dict[str, float]:
        network.eval()
        scores = []
        for case in cases.validation:
            image = torch.from_numpy(np.moveaxis(normalized(np.asarray(case.image), cases.task), -1, 0).copy())[None]
            logits = sliding_window_inference(image, roi, 1, network, overlap=0.5, mode="gaussian")
            assert isinstance(logits, torch.Tensor)  # the network has one output
            labels = values[logits.argmax(1)[0].numpy()]
            scores.append(case_dice(labels, np.asarray(case.label), cases.task))
        return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}

    return run("MONAI", recipe, cases, score_after, train_step, score)


def run(
    trainer: str,
    recipe: Recipe,
    cases: Cases,
    score_after: tuple[int, ...],
    train_step: Callable[[np.ndarray, np.ndarray], float],
    score: Callable[[], dict[str, float]],
) -> Result:
    """Runs the training loop, which is the same for both trainers."""
    data, dice, losses, seconds = batches(recipe, cases), {}, [], []
    for step in range(1, max(score_after) + 1):
        batch = next(data)
        started = time.perf_counter()
        losses.append(train_step(batch["image"], batch["label"]))
        seconds.append(time.perf_counter() - started)
        if step in score_after:
            dice[step] = score()
            dice_of_labels = ", ".join(f"{name} {value:.4f}" for name, value in dice[step].items())
            print(f"{trainer}, seed {recipe.seed}, step {step}: loss {losses[-1]:.4f}, Dice {dice_of_labels}", flush=True)
    data.close()
    return Result(trainer, recipe.seed, dice, losses, statistics.median(seconds))


def write(out: Path, results: list[Result], cases: Cases) -> None:
    """Writes and prints the table."""
    names = list(next(iter(results[0].dice.values())))
    steps = list(results[0].dice)
    head = ["trained", "seed", *(f"{name}, {step} steps" for step in steps for name in names), "seconds per step"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for result in results:
        cells = [f"{result.dice[step][name]:.4f}" for step in steps for name in names]
        lines.append(f"| {result.trainer} | {result.seed} | {' | '.join(cells)} | {result.seconds:.2f} |")
    text = f"{len(cases.train)} training and {len(cases.validation)} validation cases\n\n" + "\n".join(lines) + "\n"
    (out / "comparison.md").write_text(text)
    (out / "comparison.json").write_text(json.dumps([dataclasses.asdict(result) for result in results], indent=1))
    print(text, flush=True)


if __name__ == "__main__":
    console.configure_streams()
    jax.config.update("jax_compilation_cache_dir", None)
    main(tyro.cli(Options, description=__doc__))
