"""What a run is while it goes, how it begins or is taken up again, and what its folder says of it (RUN/run.json)."""

import dataclasses
import platform
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar

import jax
import numpy as np

from swinunetr_jax import InputError, SwinUNETRConfig, __version__, console, files, open_checkpoint
from swinunetr_jax.data.discovery.channels import channel_key
from swinunetr_jax.model.custom import NetworkFactory
from swinunetr_jax.runtime.sharding import device_mesh
from swinunetr_jax.runtime.strategies import JitStrategy, ParallelStrategy, PmapStrategy
from swinunetr_jax.training import checkpoints, processes
from swinunetr_jax.training.checkpoints import Progress
from swinunetr_jax.training.config import Network, Options, flat
from swinunetr_jax.training.data import Cases, gather
from swinunetr_jax.training.log import Log
from swinunetr_jax.training.recipe import Recipe, RecipeFile, load_recipe
from swinunetr_jax.training.step import State, Training
from swinunetr_jax.training.validation import CONVENTION
from swinunetr_jax.weights.params import NetworkConfig, read_config

DESCRIPTION = "run.json"
RECIPE_TEXT = "recipe.py"  # the text of the recipe's file when the run started: compared, never executed
REMEDY = "restore it, or start a new run with another --out"
# What may differ when a run continues: it changes no number, or, as devices do, none beyond rounding.
FREE = ("data", "base", "splits", "cache", "out", "workers", "keep", "save_every", "devices.depth", "devices.pmap")
LENGTH = ("steps", "epochs")  # what may differ too, and changes the end of the run


class Part(TypedDict):
    """One start of the program in a run: what it ran with, to which end, and what differed from the part before."""

    after_step: int
    versions: dict[str, str]
    device: str
    steps: NotRequired[int]
    changes: NotRequired[dict[str, Any]]  # dotted option: [before, now]


class Head(TypedDict):
    """What every RUN/run.json has, that of a cross-validation too.

    `folds` is a cross-validation's; `recipe_file` is the path of the recipe where that is no recipe of the trainer's own.
    """

    recipe: dict[str, Any]
    folds: NotRequired[list[int]]
    recipe_file: NotRequired[str]


class Description(Head):
    """RUN/run.json of one network."""

    cases: dict[str, list[str]]
    task: dict[str, Any]
    network: dict[str, Any]
    steps: int
    convention: str
    parts: list[Part]


D = TypeVar("D", bound=Head)


@dataclass
class Run:
    """A run while it goes: what is fixed, what changes, and where it is written."""

    recipe: Recipe
    folder: Path
    cases: Cases
    training: Training
    layout: ParallelStrategy
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
    before = read_description(folder, Description) if resume else None
    changes = {} if before is None else changed_options(folder, before, recipe, free=(*FREE, *LENGTH))
    file_notes = [] if before is None else changed_recipe_file(folder, before, recipe)
    taken_up, source = before is not None and checkpoints.has_steps(folder), recipe.init.checkpoint
    if source is not None and not taken_up and not files.exists(source):
        raise InputError(f"{source} does not exist: name a checkpoint that is there with --init.checkpoint.")
    cases = gather(recipe, folder)
    if before is not None and before["cases"] != cases.names:
        raise InputError(f"{folder} was trained on other cases than the data set gives now: restore them, or start a new run.")
    steps = recipe.total_steps(len(cases.train))
    told = {name: value for name, value in recipe.to_dict().items() if name not in ("data", "base", "splits", "cache", "out")}
    text = recipe.file and recipe.file.text
    processes.check_same([told, cases.names, cases.task.to_dict(), steps, text], "cases, options or recipe")
    weights = None
    if taken_up:
        config = _stored_network(folder, before, recipe.network_factory)  # the checkpoint that the run started from may be gone
    else:
        config, weights = _network(recipe, cases)
    config.check_spatial(cases.task.roi)
    if cases.task.roi[0] % recipe.devices.depth:
        raise InputError(
            f"{recipe.devices.depth} devices cannot share crops of {'×'.join(map(str, cases.task.roi))} evenly along the first axis: "
            "choose another depth or roi."
        )
    cases.task.check(config)
    functions = {name: function for name, function in recipe.functions().items() if name in ("objective", "optimizer")}
    training = Training(config, cases.task, recipe.loss, recipe.optim, steps, recipe.seed, **functions)
    found = _restore(folder, training) if resume else None
    state, progress, warnings = found or (training.init(weights or training.random_weights()), Progress(), [])
    if progress.step > steps:
        raise InputError(
            f"{folder} has finished {progress.step} steps, and {steps} were asked for: give --steps {progress.step} or more, or choose "
            "another --out."
        )
    leads = processes.is_leader()
    extended = before is not None and before["steps"] != steps
    if extended and progress.since_best:  # a run that patience ended would end at once
        progress = dataclasses.replace(progress, since_best=0)
        if leads and checkpoints.has_steps(folder):
            checkpoints.note(folder, progress)
    if leads:
        _describe(folder, recipe, cases, training, before, progress.step, changes)
    log = Log(folder, step=progress.step, total=steps, batch=recipe.batch, validated=progress.validated, silent=not leads)
    for warning in (*file_notes, *warnings):
        log.say(f"warning: {warning}")
    if extended:
        log.say(
            f"the run ends after {steps} steps instead of {before['steps']}: from here on the learning rate follows the schedule of a run "
            f"of {steps} steps"
        )
    where = f"going on after step {progress.step}" if found else "from the start"
    device = f"{layout.size} × {jax.devices()[0].device_kind}" if layout.size > 1 else jax.devices()[0].device_kind
    if processes.is_distributed():
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


def _layout(recipe: Recipe) -> ParallelStrategy:
    """How the batch is shared, by all devices there are."""
    mesh = device_mesh(recipe.batch, recipe.devices.depth)
    each = recipe.batch // mesh.size
    if recipe.devices.pmap and each % recipe.optim.accumulate:
        raise InputError(
            f"a device's {each} samples of a batch of {recipe.batch} cannot be split into {recipe.optim.accumulate} parts, and "
            "`devices.pmap` splits them on each device: choose another batch or `optim.accumulate`."
        )
    return PmapStrategy(tuple(mesh.devices.flat)) if recipe.devices.pmap else JitStrategy(mesh)


def _restore(folder: Path, training: Training) -> tuple[State, Progress, list[str]] | None:
    """The newest sound state; the leader looks for it and sets aside what is not sound, the others read what it found."""
    like, config = training.like(), training.config
    found = checkpoints.restore(folder, like, config) if processes.is_leader() else None
    step = int(processes.from_process(np.array(found[1].step if found else 0, np.int32), 0))
    if processes.is_leader() or not step:
        return found
    return *checkpoints.read(folder, step, like, config), []


def read_options(folder: Path) -> Options:
    """The options of the run in a folder, which may have been moved. Raises InputError if there is none."""
    return dataclasses.replace(_stored_options(folder, read_description(folder, Head)), out=folder)


def read_recipe(folder: Path, file: Path | None = None) -> Recipe:
    """The recipe of the run in a folder: its options, with the functions of the recipe's file where it came from one.

    Args:
        folder: the run's.
        file: the recipe's file, by default where it was when the run started.

    Raises:
        InputError: there is no run, or the file is no longer there or cannot be used.
    """
    options, stored = read_options(folder), read_description(folder, Head).get("recipe_file")
    if stored is None:
        if file is not None:
            raise InputError(
                f"{folder} holds a run of the recipe {options.name or options.kind}, which has no file: leave out --recipe."
            )
        return Recipe(**vars(options))
    path = Path(stored) if file is None else file
    if not files.exists(path):
        raise InputError(
            f"{folder} was started with the recipe {path}, which is not there any more: name the file with --recipe. Its text when the run "
            f"started is {folder / RECIPE_TEXT}, which is kept to compare with and is not executed from there."
        )
    return load_recipe(path).with_options(options)


def changed_recipe_file(folder: Path, description: Head, recipe: Recipe) -> list[str]:
    """Sentences that say how the recipe's file differs from that of the run in a folder.

    Raises:
        InputError: only one of them has a file.
    """
    stored = description.get("recipe_file")
    if (stored is None) != (recipe.file is None):
        had, has = ("none", str(recipe.file.path)) if recipe.file else (stored, "none")
        raise InputError(
            f"{folder} holds a run with another recipe file ({had}, now {has}): give the same, or choose another --out."
        )
    if recipe.file is None:
        return []
    try:
        kept = (folder / RECIPE_TEXT).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return [
            f"{folder / RECIPE_TEXT} cannot be read, so it is not known whether {recipe.file.path} has changed since the run started."
        ]
    if kept == recipe.file.text:
        return []
    return [
        f"{recipe.file.path} has changed since the run started; the run continues with the file as it is now, and its text of then is in "
        f"{folder / RECIPE_TEXT}."
    ]


def read_description(folder: Path, kind: type[D] = Description) -> D:
    """RUN/run.json, with the fields of `kind`. Raises InputError if it does not exist or does not hold them."""
    path = folder / DESCRIPTION
    if not files.exists(path):
        raise InputError(f"{folder} holds no run, it has no {DESCRIPTION}: give the --out folder of a run.")
    return files.read_json(path, kind, REMEDY)


def write_description(folder: Path, values: Head, file: RecipeFile | None = None) -> None:
    """Writes RUN/run.json in one step, and when the run starts also the text of the recipe's file. Raises OSError, which names it."""
    if file is not None:
        values["recipe_file"] = str(file.path)
        if not files.exists(folder / RECIPE_TEXT):
            files.write_text(folder / RECIPE_TEXT, file.text)
    files.write_json(folder / DESCRIPTION, values)


def changed_options(folder: Path, description: Head, recipe: Recipe, *, free: Collection[str]) -> dict[str, list[Any]]:
    """The options that differ from those of the run in a folder: dotted name -> [before, now].

    Raises:
        InputError: one of them is not in `free`; it says what may change.
    """
    stored, now = flat(_stored_options(folder, description).to_dict()), flat(recipe.to_dict())
    changes = {name: [stored[name], now[name]] for name in now if stored[name] != now[name] and name != "out"}
    refused = [f"{name} was {before} and is {new}" for name, (before, new) in changes.items() if name not in free]
    if refused:
        some = "; ".join(refused[:4]) + (f"; and {len(refused) - 4} more" if len(refused) > 4 else "")
        raise InputError(
            f"{folder} holds a run with other options ({some}): give the same, or choose another --out; --resume {folder} continues it "
            "with its own options, of which --steps, --epochs, --data, --cache, --workers, --keep, --save-every, --depth and --pmap may "
            "change."
        )
    return changes


def _stored_options(folder: Path, description: Head) -> Options:
    try:
        return Options.from_dict(description["recipe"])
    except InputError as error:
        raise InputError(f"{folder / DESCRIPTION}: {str(error).rstrip('.')}: {REMEDY}.") from error


def _stored_network(folder: Path, description: Description, factory: NetworkFactory | None = None) -> NetworkConfig:
    try:
        return read_config(description["network"], factory)
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"{folder / DESCRIPTION} describes no network ({str(error).rstrip('.')}): {REMEDY}.") from error


def _network(recipe: Recipe, cases: Cases) -> tuple[NetworkConfig, dict[str, np.ndarray] | None]:
    """The configuration, and weights to start from if any were given."""
    init, outputs = recipe.init, len(cases.task.outputs)
    if init.checkpoint is None:
        return recipe.network_config(cases.in_channels, outputs), None
    fields: dict[str, Any] = recipe.network.in_use() if isinstance(recipe.network, Network) else {}
    if init.downsample:
        fields["downsample"] = init.downsample
    if init.encoder_only or init.adapt_channels:
        fields |= {"out_channels": outputs} | ({"in_channels": cases.in_channels} if init.adapt_channels else {})
    found = open_checkpoint(
        init.checkpoint,
        network=recipe.network_factory,
        encoder_only=init.encoder_only,
        adapt_channels=init.adapt_channels,
        seed=recipe.seed,
        **fields,
    )
    if processes.is_leader():
        console.say(str(found.report))
        console.say(f"the network is that of {console.literal(init.checkpoint)}, {_size(found.config)}")
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


def _size(config: NetworkConfig) -> str:
    return f"{config.feature_size} features" if isinstance(config, SwinUNETRConfig) else config.name


def _describe(
    folder: Path,
    recipe: Recipe,
    cases: Cases,
    training: Training,
    before: Description | None,
    step: int,
    changes: dict[str, list[Any]],
) -> None:
    """Writes all that is needed to continue, and to know later what was done."""
    versions = {"swinunetr_jax": __version__, "python": platform.python_version()}
    versions |= {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "grain", "numpy")}
    part: Part = {"after_step": step, "versions": versions, "device": jax.devices()[0].device_kind, "steps": training.steps}
    if changes:
        part["changes"] = changes
    values: Description = {
        "recipe": recipe.to_dict(),
        "cases": cases.names,
        "task": cases.task.to_dict(),
        "network": training.config.to_dict(),
        "steps": training.steps,
        "convention": CONVENTION,
        "parts": [*(before["parts"] if before else []), part],
    }
    write_description(folder, values, recipe.file)
