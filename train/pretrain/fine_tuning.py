"""The options of a training that starts from a network that was pre-trained without labels."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from swinunetr_jax import InputError, console
from swinunetr_jax.buckets import is_address
from swinunetr_jax.buckets.fetch import optional_file
from swinunetr_jax.training import processes
from swinunetr_jax.training.config import Optim
from swinunetr_jax.training.description import DESCRIPTION, read_options
from swinunetr_jax.training.recipe import Recipe
from swinunetr_jax.weights.load import read_task
from swinunetr_jax.weights.model_path import model_path

LEARNING_RATE_DIVISOR = 3  # a pre-trained network needs smaller steps than random weights
WARMUP = 0.1  # the smallest fraction of the steps, during which the new layers settle
_NOT_PRETRAINED, _WHOLE, _ENCODER = range(3)  # which weights of a checkpoint were pre-trained


def fine_tuning_options(recipe: Recipe, given: Collection[str]) -> Recipe:
    """Returns the recipe with other defaults if --init.checkpoint names a network that was pre-trained without labels.

    The learning rate is a third of the recipe's, the warm-up is at least a tenth of the steps, and the numbers of channels and outputs are
    adapted. Only the encoder is taken from a network whose decoder was not trained. Options of the command line stay as they are. All
    processes call this function, and the leader decides and prints what has changed.

    Args:
        recipe: the recipe with the options of the command line.
        given: the names of the options of the command line, such as optim.lr.
    """
    if recipe.init.checkpoint is None or "init.checkpoint" not in given or recipe.kind == "scans":
        return recipe
    found = _pretrained_weights(recipe.init.checkpoint) if processes.is_leader() else _NOT_PRETRAINED
    pretrained = int(processes.from_process(np.array(found, np.int32), 0))
    if pretrained == _NOT_PRETRAINED:
        return recipe
    optim, init, changes, options = recipe.optim, recipe.init, [], []
    if recipe.optimizer is None:
        lr = optim.lr if "optim.lr" in given else optim.lr / LEARNING_RATE_DIVISOR
        warmup = optim.warmup if "optim.warmup" in given else _warmup(optim, recipe.steps)
        for name, before, now in (("lr", optim.lr, lr), ("warmup", optim.warmup, warmup)):
            if now != before:
                changes.append(f"`optim.{name}` is {now:.3g} instead of {before:.3g}")
                options.append(f"--optim.{name}")
        optim = replace(optim, lr=lr, warmup=warmup)
    adapts = recipe.custom_network is None  # only a Swin UNETR can be adapted
    for name, applies, text in (
        ("adapt_channels", adapts, "the numbers of channels and outputs are adapted"),
        ("encoder_only", adapts and pretrained == _ENCODER, "only the encoder is taken, because the decoder was not trained"),
    ):
        if applies and not getattr(init, name) and f"init.{name}" not in given:
            init = replace(init, **{name: True})
            changes.append(text)
            options.append(f"--init.no-{name.replace('_', '-')}")
    if changes and processes.is_leader():
        console.say(
            f"{console.literal(recipe.init.checkpoint)} was pre-trained without labels, so {_listed(changes)}; {_listed(options)} "
            f"choose{'s' * (len(options) == 1)} otherwise"
        )
    return replace(recipe, optim=optim, init=init)


def _pretrained_weights(checkpoint: Path) -> int:
    """Returns which weights of a checkpoint were pre-trained. Errors are left to the load, which reports them."""
    try:
        task = read_task(checkpoint)
        if task is None or task.kind != "images":
            return _NOT_PRETRAINED
        checkpoint = model_path(checkpoint)
        checkpoint = checkpoint if is_address(checkpoint) else checkpoint.absolute()
        # The run is the folder itself, that of its best or last network, or that of a saved state.
        for run in (checkpoint, checkpoint.parent, checkpoint.parent.parent):
            within = is_address(run) or not is_address(checkpoint)  # the parents of an address may not be addresses
            if within and (description := optional_file(run / DESCRIPTION)):
                return _ENCODER if read_options(description.parent).task == "swin3" else _WHOLE
    except InputError:
        return _NOT_PRETRAINED
    return _WHOLE


def _warmup(optim: Optim, steps: int | None) -> float:
    """Returns the warm-up, which is at least the fraction `WARMUP` of the steps if their number or the fraction is known."""
    if optim.warmup < 1:
        return max(optim.warmup, WARMUP)
    return WARMUP if steps is not None and optim.warmup < WARMUP * steps else optim.warmup


def _listed(texts: list[str]) -> str:
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last
