"""What a run is while it goes, how it begins or is taken up again, and what its folder says of it (RUN/run.json)."""

import dataclasses
import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from swinunetr_jax import InputError, SwinUNETRConfig, __version__, open_checkpoint, parallel
from swinunetr_jax.data.channels import channel_key
from swinunetr_jax.parallel import Layout
from train import checkpoints, processes
from train.checkpoints import Progress
from train.config import Recipe
from train.data import Cases, gather
from train.log import Log
from train.step import State, Training
from train.validation import CONVENTION

DESCRIPTION = "run.json"
# What may change when a run goes on: it changes no number, or, as devices do, none beyond rounding.
FREE = ("data", "base", "splits", "cache", "out", "workers", "keep", "save_every", "devices")


@dataclass
class Run:
    """A run while it goes: what is fixed, what changes, and where it is written."""

    recipe: Recipe
    folder: Path
    cases: Cases
    training: Training
    layout: Layout
    state: State
    progress: Progress
    log: Log

    @property
    def total(self) -> int:
        return self.training.steps


def start(recipe: Recipe, folder: Path, *, resume: bool) -> Run:
    """Gathers cases, builds the network, takes up the newest sound state; says so.

    Raises:
        InputError: the folder holds a run that is not to be gone on with, or one of other cases or options; or its data, its states or
            the checkpoint to start from cannot be used.
    """
    processes.check_joined()
    layout = _layout(recipe)
    if not resume and checkpoints.has_steps(folder):
        raise InputError(f"{folder} holds a run already: go on with `--resume {folder}`, or choose another --out.")
    before = read_description(folder) if resume else None
    if before is not None:
        _check_same(folder, before["recipe"], recipe)
    taken_up, source = before is not None and checkpoints.has_steps(folder), recipe.init.checkpoint
    if source is not None and not taken_up and not source.exists():
        raise InputError(f"{source} does not exist: name a checkpoint that is there with --init.checkpoint.")
    cases = gather(recipe, folder)
    if before is not None and before.get("cases", cases.names) != cases.names:
        raise InputError(f"{folder} was trained on other cases than the data set gives now: restore them, or start a new run.")
    steps = recipe.total_steps(len(cases.train))
    told = {name: value for name, value in recipe.to_dict().items() if name not in ("data", "base", "splits", "cache", "out")}
    processes.check_same([told, cases.names, cases.task.to_dict(), steps], "cases or options")
    weights = None
    if taken_up:
        config = SwinUNETRConfig.from_dict(before["network"])  # the checkpoint that the run started from may be gone
    else:
        config, weights = _network(recipe, cases)
    config.check_spatial(cases.task.roi)
    if cases.task.roi[0] % recipe.devices.depth:
        raise InputError(
            f"{recipe.devices.depth} devices cannot share crops of {'×'.join(map(str, cases.task.roi))} evenly along the first axis: "
            "choose another depth or roi."
        )
    cases.task.check(config)
    training = Training(config, cases.task, recipe.loss, recipe.optim, steps, recipe.seed)
    found = _restore(folder, training) if resume else None
    state, progress, warnings = found or (training.init(weights or training.random_weights()), Progress(), [])
    leads = processes.is_leader()
    if leads:
        _describe(folder, recipe, cases, training, before, progress.step)
    log = Log(folder, step=progress.step, total=steps, batch=recipe.batch, validated=progress.validated, silent=not leads)
    for warning in warnings:
        log.say(f"warning: {warning}")
    where = f"going on after step {progress.step}" if found else "from the start"
    device = f"{layout.size} × {jax.devices()[0].device_kind}" if layout.size > 1 else jax.devices()[0].device_kind
    if processes.several():
        device += f" of {jax.process_count()} processes"
    count = sum(np.size(value) for value in jax.tree.leaves(state.params))
    log.say(
        f"{len(cases.train)} training and {len(cases.validation)} validation cases; {count / 1e6:.1f} M parameters, crops of "
        f"{'×'.join(map(str, cases.task.roi))}, {recipe.batch} a step, {steps} steps on {device}, {where}"
    )
    if layout.size < jax.device_count():
        shares = f" with {recipe.devices.depth} for each volume" if recipe.devices.depth > 1 else ""
        log.say(
            f"a batch of {recipe.batch}{shares} uses {layout.size} of {jax.device_count()} devices; another --batch may use more"
        )
    return Run(recipe, folder, cases, training, layout, layout.replicate(state), progress, log)


def _layout(recipe: Recipe) -> Layout:
    """How the batch is shared, by all devices there are."""
    mesh = parallel.device_mesh(recipe.batch, recipe.devices.depth)
    each = recipe.batch // mesh.size
    if recipe.devices.pmap and each % recipe.optim.accumulate:
        raise InputError(
            f"a device's {each} samples of a batch of {recipe.batch} cannot be split into {recipe.optim.accumulate} parts, and "
            "`devices.pmap` splits them on each device: choose another batch or `optim.accumulate`."
        )
    return parallel.Mapped(tuple(mesh.devices.flat)) if recipe.devices.pmap else parallel.Jitted(mesh)


def _restore(folder: Path, training: Training) -> tuple[State, Progress, list[str]] | None:
    """The newest sound state; the leader looks for it and sets aside what is not sound, the others read what it found."""
    like, config = training.like(), training.config
    found = checkpoints.restore(folder, like, config) if processes.is_leader() else None
    step = int(processes.from_process(np.array(found[1].step if found else 0, np.int32), 0))
    if processes.is_leader() or not step:
        return found
    return *checkpoints.read(folder, step, like, config), []


def read_recipe(folder: Path) -> Recipe:
    """The recipe of the run in a folder, which may have been moved. Raises InputError if there is none."""
    return dataclasses.replace(Recipe.from_dict(read_description(folder)["recipe"]), out=folder)


def read_description(folder: Path) -> dict[str, Any]:
    """RUN/run.json. Raises InputError if it is not there or cannot be read."""
    path = folder / DESCRIPTION
    try:
        values = json.loads(path.read_text())
        values["recipe"].keys()
        return values
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{folder} holds no run, it has no {DESCRIPTION}: give the --out folder of a run.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read: restore it, or start a new run.") from error


def write_description(folder: Path, values: dict[str, Any]) -> None:
    temporary = folder / f".{DESCRIPTION}.tmp"
    temporary.write_text(json.dumps(values, indent=1))
    temporary.replace(folder / DESCRIPTION)


def _check_same(folder: Path, stored: dict[str, Any], recipe: Recipe) -> None:
    before, now = Recipe.from_dict(stored).to_dict(), recipe.to_dict()
    changed = [name for name in now if name not in FREE and now[name] != before[name]]
    if changed:
        each = "; ".join(f"{name} was {before[name]} and is {now[name]}" for name in changed)
        raise InputError(f"{folder} was begun with other options ({each}): give the same, or choose another --out.")


def _network(recipe: Recipe, cases: Cases) -> tuple[SwinUNETRConfig, dict[str, np.ndarray] | None]:
    """The configuration, and weights to start from if any were given."""
    init, outputs = recipe.init, len(cases.task.outputs)
    if init.checkpoint is None:
        return recipe.network.config(cases.in_channels, outputs), None
    fields: dict[str, Any] = recipe.network.in_use()
    if init.downsample:
        fields["downsample"] = init.downsample
    if init.encoder_only or init.adapt_channels:
        fields |= {"out_channels": outputs} | ({"in_channels": cases.in_channels} if init.adapt_channels else {})
    found = open_checkpoint(
        init.checkpoint, encoder_only=init.encoder_only, adapt_channels=init.adapt_channels, seed=recipe.seed, **fields
    )
    if processes.is_leader():
        print(found.report)
        print(f"the network is that of {init.checkpoint}, {found.config.feature_size} features")
    if (found.config.in_channels, found.config.out_channels) != (cases.in_channels, outputs):
        raise InputError(
            f"{init.checkpoint} takes {found.config.in_channels} channels and has {found.config.out_channels} outputs, the data have "
            f"{cases.in_channels} and {outputs}: give --init.adapt-channels to start the layers that differ anew."
        )
    theirs, ours = found.task.channels if found.task else (), cases.task.channels
    if theirs and ours and list(map(channel_key, theirs)) != list(map(channel_key, ours)):
        raise InputError(
            f"{init.checkpoint} takes {', '.join(theirs)}, the data come as {', '.join(ours)}: give --channels {' '.join(theirs)}."
        )
    return found.config, found.params


def _describe(folder: Path, recipe: Recipe, cases: Cases, training: Training, before: dict[str, Any] | None, step: int) -> None:
    """All that is needed to go on, and to know later what was done."""
    versions = {"swinunetr_jax": __version__, "python": platform.python_version()}
    versions |= {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "grain", "numpy")}
    part = {"after_step": step, "versions": versions, "device": jax.devices()[0].device_kind}
    values = {
        "recipe": recipe.to_dict(),
        "cases": cases.names,
        "task": cases.task.to_dict(),
        "network": training.config.to_dict(),
        "steps": training.steps,
        "convention": CONVENTION,
        "parts": [*(before or {}).get("parts", []), part],
    }
    write_description(folder, values)
