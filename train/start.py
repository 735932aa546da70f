"""Starts or resumes a run: collects its cases, makes its network, and restores the newest intact state."""

import dataclasses
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from swinunetr_jax import InputError, SwinUNETRConfig, Task, __version__, console, open_checkpoint
from swinunetr_jax.buckets import shown
from swinunetr_jax.data.discovery.channels import channel_key
from swinunetr_jax.losses import Loss
from swinunetr_jax.runtime.sharding import device_mesh
from swinunetr_jax.runtime.strategies import JitStrategy, ParallelStrategy, PmapStrategy
from swinunetr_jax.training import checkpoints, processes, restore, watchdog
from swinunetr_jax.training.checkpoints import Progress
from swinunetr_jax.training.config import Network
from swinunetr_jax.training.crop_size import crop_size
from swinunetr_jax.training.data import Cases, collect_cases
from swinunetr_jax.training.description import (
    Description,
    Part,
    read_description,
    stored_network,
    stored_task,
    write_description,
)
from swinunetr_jax.training.log import Log
from swinunetr_jax.training.options import flatten
from swinunetr_jax.training.plan.plan_file import check_plan
from swinunetr_jax.training.prepared import is_prepared
from swinunetr_jax.training.pretrain.objectives import few_views_note
from swinunetr_jax.training.recipe import Recipe
from swinunetr_jax.training.resume import FREE, LENGTH, changed_options, changed_recipe_file, check_same_task, missing_cache
from swinunetr_jax.training.sources import source_of
from swinunetr_jax.training.step import State, Training
from swinunetr_jax.training.store import Store
from swinunetr_jax.training.trackers import make_trackers
from swinunetr_jax.training.validation import CONVENTION
from swinunetr_jax.weights.load import RUNTIME_FIELDS, read_task
from swinunetr_jax.weights.model_path import model_exists
from swinunetr_jax.weights.params import NetworkConfig


@dataclass
class Run:
    """A run in progress: its recipe, folder, cases and network, which are fixed, and its state, progress and log, which change."""

    recipe: Recipe
    folder: Path
    cases: Cases
    training: Training
    strategy: ParallelStrategy
    state: State
    progress: Progress
    log: Log
    store: Store

    @property
    def total(self) -> int:
        """The number of steps of the run."""
        return self.training.steps


def start(recipe: Recipe, store: Store, *, resume: bool) -> Run:
    """Collects the cases, makes the network, restores the newest intact state, and prints a summary.

    Raises:
        InputError: the folder holds a run and `resume` is false, or it holds one with other cases or options; or the data, the states or
            the checkpoint to start from cannot be used.
    """
    processes.check_joined()
    folder = store.folder
    strategy = _parallel_strategy(recipe)
    if not resume and checkpoints.has_steps(folder):
        raise InputError(f"{folder} already holds a run: continue it with `--resume {folder}`, or choose another --out.")
    earlier = read_description(folder, Description) if resume else None
    changes = {} if earlier is None else changed_options(folder, earlier, recipe, free=(*FREE, *LENGTH))
    file_notes = [] if earlier is None else changed_recipe_file(folder, earlier, recipe)
    restores = earlier is not None and checkpoints.has_steps(folder)
    source = recipe.init.checkpoint
    if source is not None and not restores and not model_exists(source):
        raise InputError(f"{shown(source)} does not exist: give an existing checkpoint with --init.checkpoint.")
    if earlier is not None and processes.is_leader() and (note := missing_cache(folder, recipe)):
        console.warn(note)
    # A resumed run has the options of the plan, whose file may have been removed. Prepared data are compared with the options.
    if recipe.plan is not None and not resume and not is_prepared(recipe.data):
        check_plan(recipe.plan, source_of(recipe).dataset(recipe, folder), recipe.channels)
    if recipe.kind == "scans" and processes.is_leader() and (few := few_views_note(recipe.task, recipe.batch)):
        console.warn(few)
    cases = collect_cases(recipe, folder)
    if earlier is not None and earlier["cases"] != cases.names:
        raise InputError(
            f"{folder} was trained on other cases than the data set has now: restore the data set, or start a new run."
        )
    if earlier is not None:
        check_same_task(folder, stored_task(folder, earlier), cases.task)
    if isinstance(recipe.loss, Loss) and recipe.objective is None and recipe.kind != "scans":
        recipe.loss.check(cases.task)
    steps = recipe.total_steps(len(cases.train))
    options = {name: value for name, value in recipe.to_dict().items() if name not in ("data", "base", "splits", "cache", "out")}
    text = recipe.file and recipe.file.text
    processes.check_same([options, cases.names, cases.task.to_dict(), steps, text], "cases, options or recipe")
    weights = None
    if earlier is not None and restores:  # the checkpoint that the run started from is not read, because it may no longer exist
        config = stored_network(folder, earlier, recipe.custom_network)
    else:
        config, weights = _network(recipe, cases)
    _check_crop(recipe, cases, config)
    training = Training(
        config,
        cases.task,
        recipe.loss,
        recipe.optim,
        steps,
        recipe.seed,
        objective=recipe.objective_factory,
        optimizer=recipe.optimizer,
    )
    restored = _restore(store, training) if resume else None
    state, progress, warnings = restored or (training.init(weights or training.random_weights()), Progress(), [])
    if progress.step > steps:
        raise InputError(
            f"{folder} has finished {progress.step} steps, which is more than {steps}: give --steps {progress.step} or more, or choose "
            "another --out."
        )
    store.check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(state)), recipe.keep)
    leads = processes.is_leader()
    extended = earlier is not None and earlier["steps"] != steps
    if extended and progress.since_best:  # otherwise a run that `validation.patience` has stopped would immediately stop again
        progress = dataclasses.replace(progress, since_best=0)
        if leads and checkpoints.has_steps(folder):
            checkpoints.write_progress(folder, progress)
            store.progress_saved(progress.step)
    if leads:
        _describe(folder, recipe, cases, training, earlier, progress.step, changes)
        store.sync()
    log = Log(folder, step=progress.step, total=steps, batch=recipe.batch, validated=progress.validated, silent=not leads)
    for warning in (*file_notes, *warnings):
        log.say(f"warning: {warning}")
    if leads:
        log.start_trackers(make_trackers(recipe.tracker, recipe.trackers), flatten(recipe.to_dict()))
    if earlier is not None and extended:
        log.say(
            f"the run ends after {steps} steps instead of {earlier['steps']}: from here on the learning rate follows the schedule of a run "
            f"of {steps} steps"
        )
    run = Run(recipe, folder, cases, training, strategy, strategy.replicate(state), progress, log, store)
    parameters = sum(np.size(value) for value in jax.tree.leaves(state.params))
    _print_summary(run, parameters, f"continuing after step {progress.step}" if restored else "from the start")
    return run


def _parallel_strategy(recipe: Recipe) -> ParallelStrategy:
    """Returns the strategy by which the devices share a batch."""
    mesh = device_mesh(recipe.batch, recipe.devices.spatial_shards)
    samples = recipe.batch // mesh.size
    if recipe.devices.pmap and samples % recipe.optim.accumulate:
        raise InputError(
            f"a device's {samples} samples of a batch of {recipe.batch} cannot be split into {recipe.optim.accumulate} parts, and with "
            "`devices.pmap` each device splits its own samples: choose another batch or `optim.accumulate`."
        )
    return PmapStrategy(tuple(mesh.devices.flat)) if recipe.devices.pmap else JitStrategy(mesh)


def _check_crop(recipe: Recipe, cases: Cases, config: NetworkConfig) -> None:
    """Raises InputError unless the network takes crops of the task's size, channels and outputs, and the devices can share them."""
    roi, shards = crop_size(cases.task), recipe.devices.spatial_shards
    config.check_spatial(roi)
    if roi[0] % shards:
        raise InputError(
            f"{shards} devices cannot share crops of {'×'.join(map(str, roi))} evenly along the first axis: choose another number of "
            "spatial shards, or another roi."
        )
    cases.task.check(config)


def _network(recipe: Recipe, cases: Cases) -> tuple[NetworkConfig, dict[str, np.ndarray] | None]:
    """Returns the network's configuration, and the initial weights if a checkpoint was given."""
    init, outputs = recipe.init, len(cases.task.outputs)
    if init.checkpoint is None:
        return recipe.network_config(cases.in_channels, outputs), None
    fields: dict[str, Any] = {}
    if isinstance(recipe.network, Network) and recipe.custom_network is None:
        fields |= {name: value for name, value in vars(recipe.network).items() if name in RUNTIME_FIELDS}
        if recipe.network.hyena_stages is not None:  # a PyTorch file does not state the padding
            fields |= {name: value for name, value in vars(recipe.network).items() if name.startswith("hyena_")}
    if init.downsample:
        fields["downsample"] = init.downsample
    if init.encoder_only or init.adapt_channels:
        fields |= {"out_channels": outputs} | ({"in_channels": cases.in_channels} if init.adapt_channels else {})
    loaded = open_checkpoint(
        init.checkpoint,
        key=init.key,
        network=recipe.custom_network,
        encoder_only=init.encoder_only,
        adapt_channels=init.adapt_channels,
        seed=recipe.seed,
        **fields,
    )
    if processes.is_leader():
        size = f"{loaded.config.feature_size} features" if isinstance(loaded.config, SwinUNETRConfig) else loaded.config.name
        sizes = {name: array.size for name, array in loaded.params.items()}
        console.say(loaded.report.transfer(init.checkpoint, sizes))
        console.say(f"the network is that of {console.literal(init.checkpoint)}, {size}")
    if (loaded.config.in_channels, loaded.config.out_channels) != (cases.in_channels, outputs):
        raise InputError(
            f"{init.checkpoint} takes {loaded.config.in_channels} channels and has {loaded.config.out_channels} outputs, but the data have "
            f"{cases.in_channels} and {outputs}: give --init.adapt-channels to initialise the layers that differ randomly."
        )
    stated = read_task(init.checkpoint)  # `loaded.task` is None if channels or outputs were adapted
    task = stated if stated and stated.kind == "images" else loaded.task
    _check_channels(init.checkpoint, task, cases)
    if processes.is_leader() and (note := intensity_note(init.checkpoint, task, cases.task)):
        console.warn(note)
    return loaded.config, loaded.params


def _check_channels(checkpoint: Path, task: Task | None, cases: Cases) -> None:
    """Raises InputError if the data have other channels than the checkpoint's task, or have them in another order.

    A network that was pre-trained without labels may be trained for other channels, but not for the same ones in another order.
    """
    taken, given = task.channels if task else (), cases.task.channels
    keys, given_keys = list(map(channel_key, taken)), list(map(channel_key, given))
    if task is not None and task.kind == "images" and sorted(keys) != sorted(given_keys):
        return
    if keys and given_keys and keys != given_keys:
        raise InputError(
            f"{checkpoint} takes {', '.join(taken)}, but the data have {', '.join(given)}: give --channels {' '.join(taken)}."
        )


def intensity_note(checkpoint: Path, stored: Task | None, task: Task) -> str | None:
    """Returns a sentence if a network was trained with other intensities than those of a task, or None."""
    if stored is None or (stored.intensity, stored.window) == (task.intensity, task.window):
        return None

    def description(task: Task) -> str:
        return f"{task.window[0]:g} to {task.window[1]:g} scaled to 0 to 1" if task.window else "a z-score of each scan"

    return (
        f"{console.literal(checkpoint)} was trained with other intensities ({description(stored)}) than those of this run "
        f"({description(task)}), so that its first layers have to learn again; --window chooses the intensities."
    )


@watchdog.phase(watchdog.RESTORING)
def _restore(store: Store, training: Training) -> tuple[State, Progress, list[str]] | None:
    """Returns the newest intact state. The leader searches for it and renames damaged states; the other processes read the same state."""
    folder, like, config = store.folder, training.like(), training.config
    restored = None
    if processes.is_leader():
        restored = restore.restore(folder, like, config, fetch=store.fetch_state, set_aside=store.set_aside)
    step = int(processes.from_process(np.array(restored[1].step if restored else 0, np.int32), 0))
    if processes.is_leader() or not step:
        return restored
    store.fetch_state(step)
    return *restore.read(folder, step, like, config), []


def _describe(
    folder: Path,
    recipe: Recipe,
    cases: Cases,
    training: Training,
    earlier: Description | None,
    step: int,
    changes: dict[str, list[Any]],
) -> None:
    """Writes run.json: everything that is needed to resume the run, and the history of the run."""
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
        "parts": [*(earlier["parts"] if earlier else []), part],
    }
    write_description(folder, values, recipe.file)


def _print_summary(run: Run, parameters: int, where: str) -> None:
    """Prints the sizes of the run, its devices and where it starts."""
    recipe, cases, used_devices = run.recipe, run.cases, run.strategy.size
    device = f"{used_devices} × {jax.devices()[0].device_kind}" if used_devices > 1 else jax.devices()[0].device_kind
    if processes.is_distributed():
        device += f" of {jax.process_count()} processes"
    run.log.say(
        f"{len(cases.train)} training and {len(cases.validation)} validation cases; {parameters / 1e6:.1f} M parameters, crops of "
        f"{'×'.join(map(str, crop_size(cases.task)))}, {recipe.batch} per step, {run.total} steps on {device}, {where}"
    )
    if used_devices < jax.device_count():
        shards = recipe.devices.spatial_shards
        sharing = f" with {shards} for each volume" if shards > 1 else ""
        run.log.say(
            f"a batch of {recipe.batch}{sharing} uses {used_devices} of {jax.device_count()} devices; another --batch may use more"
        )
