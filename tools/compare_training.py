"""Training here beside training with MONAI and PyTorch: the same network and starting weights, cases, crops, order, loss and optimizer.

    python -m tools.compare_training --data Task04_Hippocampus --out comparison

Both see the very same batches, from this project's pipeline; both are scored on the whole scans of one validation fold, by Dice of each
label. Every network is trained in turn, and the table is written anew after each.
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
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import SwinUNETR

from swinunetr_jax import console
from swinunetr_jax.inference.prepare import normalized
from swinunetr_jax.training import Augment, Network, Optim, Recipe
from swinunetr_jax.training.data import Cases, batches, gather
from swinunetr_jax.training.optim import learning_rate
from swinunetr_jax.training.recipes import msd
from swinunetr_jax.training.step import Training
from swinunetr_jax.training.validation import case_dice, validate
from swinunetr_jax.weights.load import save_params


@dataclass
class Options:
    """What to compare."""

    data: Path
    """A data set with a label map per case, such as a task of the Decathlon."""
    out: Path
    """Folder for the cache, the table (comparison.md) and the numbers (comparison.json)."""
    looks: tuple[int, ...] = (100, 200, 400)
    """Steps after which to score; the last one ends the training."""
    seeds: tuple[int, ...] = (0, 1)
    feature_size: int = 12
    batch: int = 2
    roi: tuple[int, int, int] = (64, 64, 64)
    lr: float = 1e-3
    warmup: int = 25
    flips: tuple[int, ...] = ()
    """Axes to mirror along; by default none, for a mirrored hippocampus has its front behind."""


@dataclass(frozen=True)
class Result:
    """Dice of each label at each look, and the median seconds of a step."""

    who: str
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
        steps=max(options.looks),
        cache=options.out / "cache",
        network=Network(feature_size=options.feature_size),
        optim=Optim(lr=options.lr, weight_decay=1e-5, warmup=options.warmup),
        augment=Augment(flips=options.flips),
    )
    cases = gather(recipe, options.out)
    results = []
    for seed in options.seeds:
        for train in (train_ours, train_monai):
            results.append(train(dataclasses.replace(recipe, seed=seed), cases, options.looks))
            write(options.out, results, cases)


def setup(recipe: Recipe, cases: Cases) -> Training:
    config = recipe.network.config(cases.in_channels, len(cases.task.outputs))
    return Training(config, cases.task, recipe.loss, recipe.optim, recipe.steps, recipe.seed)


def train_ours(recipe: Recipe, cases: Cases, looks: tuple[int, ...]) -> Result:
    training = setup(recipe, cases)
    state, step = training.init(training.random_weights()), training.compile()

    def one(image: np.ndarray, label: np.ndarray) -> float:
        nonlocal state
        state, metrics = step(state, {"image": image, "label": label})
        return float(metrics["loss"])

    def score() -> dict[str, float]:
        quiet = lambda done, total: None  # noqa: E731
        return validate(training.config, state.network, cases.validation, cases.task, recipe.validation, quiet).by_output

    return run("here", recipe, cases, looks, one, score)


def train_monai(recipe: Recipe, cases: Cases, looks: tuple[int, ...]) -> Result:
    training = setup(recipe, cases)
    network = SwinUNETR(
        in_channels=cases.in_channels, out_channels=len(cases.task.outputs), feature_size=training.config.feature_size
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "start.pt"
        save_params(path, training.config, training.random_weights(), to="monai")
        network.load_state_dict(torch.load(path), strict=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.optim.lr, weight_decay=recipe.optim.weight_decay)
    rate, loss_of, done = learning_rate(recipe.optim, recipe.steps), DiceCELoss(softmax=True, to_onehot_y=True), 0
    values = np.array([output.value for output in cases.task.outputs], np.uint8)
    numbers = np.zeros(256, np.int64)
    numbers[values] = np.arange(len(values))

    def one(image: np.ndarray, label: np.ndarray) -> float:
        nonlocal done
        network.train()
        classes = numbers[label][:, None]
        for group in optimizer.param_groups:
            group["lr"] = float(rate(done))
        loss = loss_of(network(torch.from_numpy(np.moveaxis(image, -1, 1).copy())), torch.from_numpy(classes))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done += 1
        return loss.item()

    @torch.no_grad()
    def score() -> dict[str, float]:
        network.eval()
        scores = []
        for case in cases.validation:
            image = torch.from_numpy(np.moveaxis(normalized(np.asarray(case.image), cases.task), -1, 0).copy())[None]
            logits = sliding_window_inference(image, cases.task.roi, 1, network, overlap=0.5, mode="gaussian")
            labels = values[logits.argmax(1)[0].numpy()]
            scores.append(case_dice(labels, np.asarray(case.label), cases.task))
        return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}

    return run("MONAI", recipe, cases, looks, one, score)


def run(
    who: str,
    recipe: Recipe,
    cases: Cases,
    looks: tuple[int, ...],
    one: Callable[[np.ndarray, np.ndarray], float],
    score: Callable[[], dict[str, float]],
) -> Result:
    """The loop that both share."""
    data, dice, losses, seconds = batches(recipe, cases), {}, [], []
    for step in range(1, recipe.steps + 1):
        batch = next(data)
        started = time.perf_counter()
        losses.append(one(batch["image"], batch["label"]))
        seconds.append(time.perf_counter() - started)
        if step in looks:
            dice[step] = score()
            each = ", ".join(f"{name} {value:.4f}" for name, value in dice[step].items())
            print(f"{who}, seed {recipe.seed}, step {step}: loss {losses[-1]:.4f}, Dice {each}", flush=True)
    data.close()
    return Result(who, recipe.seed, dice, losses, statistics.median(seconds))


def write(out: Path, results: list[Result], cases: Cases) -> None:
    names = list(next(iter(results[0].dice.values())))
    looks = list(results[0].dice)
    head = ["trained", "seed", *(f"{name}, {look} steps" for look in looks for name in names), "s a step"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for result in results:
        cells = [f"{result.dice[look][name]:.4f}" for look in looks for name in names]
        lines.append(f"| {result.who} | {result.seed} | {' | '.join(cells)} | {result.seconds:.2f} |")
    text = f"{len(cases.train)} training and {len(cases.validation)} validation cases\n\n" + "\n".join(lines) + "\n"
    (out / "comparison.md").write_text(text)
    (out / "comparison.json").write_text(json.dumps([dataclasses.asdict(result) for result in results], indent=1))
    print(text, flush=True)


if __name__ == "__main__":
    console.configure_streams()
    jax.config.update("jax_compilation_cache_dir", None)
    main(tyro.cli(Options, description=__doc__))
