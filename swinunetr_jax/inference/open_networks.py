"""Opens the networks of a prediction: their checkpoints, their common task, and the post-processing that was chosen for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swinunetr_jax import console
from swinunetr_jax.data.scan_range import merged
from swinunetr_jax.errors import InputError
from swinunetr_jax.model.custom import CustomNetwork
from swinunetr_jax.postprocess import POSTPROCESS, Step, check_task, read_postprocess
from swinunetr_jax.task import Task
from swinunetr_jax.weights.load import Checkpoint, open_checkpoint
from swinunetr_jax.weights.local_copy import optional_copy
from swinunetr_jax.weights.model_path import model_path
from swinunetr_jax.weights.run_folder import cross_validation_of, ensemble_paths, missing_folds


@dataclass(frozen=True)
class Networks:
    """The networks of an ensemble, or a single one.

    Attributes:
        checkpoints: their weights and configurations.
        task: their common task.
        postprocess: the operations on label maps that a cross-validation has chosen for all of them together.
    """

    checkpoints: tuple[Checkpoint, ...]
    task: Task
    postprocess: tuple[Step, ...]


def open_networks(
    models: Sequence[Path],
    task_of: Callable[[Checkpoint, Path], Task],
    *,
    postprocess: bool = True,
    network: CustomNetwork | None = None,
    **fields: Any,
) -> Networks:
    """Opens networks, and prints what is assumed about them.

    Args:
        models: checkpoints, training runs or cross-validations. All their networks make up an ensemble.
        task_of: returns the task of a checkpoint, which was read from this path.
        postprocess: whether the post-processing of a cross-validation is used.
        network, fields: the arguments of `open_checkpoint`.

    Raises:
        InputError: a checkpoint cannot be read, or the networks were trained for different tasks.
    """
    models = [model_path(model) for model in models]
    for model in models:
        if warning := missing_folds(model):
            console.warn(console.literal(warning))
    paths = [path for model in models for path in ensemble_paths(model)]
    checkpoints = [open_checkpoint(path, network=network, **fields) for path in paths]
    tasks = [task_of(checkpoint, path) for checkpoint, path in zip(checkpoints, paths)]
    for path, task in zip(paths, tasks):
        if task != tasks[0]:
            raise InputError(f"{path} was trained for another task than {paths[0]}: an ensemble needs networks of one task.")
    if len(paths) > 1:
        console.say(f"an ensemble of {len(paths)} networks, whose logits are averaged: {', '.join(map(console.literal, paths))}")
    ranges = [task.scans for task in tasks if task.scans is not None]
    task = replace(tasks[0], scans=merged(ranges)) if ranges else tasks[0]
    return Networks(tuple(checkpoints), task, chosen_postprocess(models, task) if postprocess else ())


def assumed_task(checkpoint: Checkpoint, path: Path, remedy: str) -> Task:
    """Returns the task that is assumed for a checkpoint that states none, and prints it. `remedy` says how to change it."""
    task = Task.default(checkpoint.config)
    inputs = f" from {', '.join(task.channels)}" if task.channels else ""
    names = ", ".join(console.literal(output.name) for output in task.outputs)
    console.say(f"{console.literal(path)} does not state its task, which is assumed to be {task.kind} {names}{inputs} ({remedy})")
    return task


def chosen_postprocess(models: Sequence[Path], task: Task) -> tuple[Step, ...]:
    """Returns the operations that a cross-validation has chosen for all given networks together, and prints them.

    Raises:
        InputError: the file with the operations is damaged, or was written for other labels.
    """
    steps: dict[Path | None, tuple[Step, ...]] = {}  # by the folder of the cross-validation
    for folder in {cross_validation_of(model): None for model in models}:
        steps[folder] = ()
        if folder is None:
            continue
        with optional_copy(folder / POSTPROCESS) as file:
            if file is not None:
                chosen = read_postprocess(file)
                if chosen.steps:
                    check_task(file, chosen, task)
                steps[folder] = chosen.steps
    choices = {chosen for chosen in steps.values() if chosen}
    if not choices:
        return ()
    sources = ", ".join(console.literal(folder / POSTPROCESS) for folder, chosen in steps.items() if folder and chosen)
    if len(steps) > 1:
        console.warn(f"no post-processing is applied, because the one in {sources} was chosen for only some of these networks.")
        return ()
    (chosen,) = choices
    text = ", then ".join(console.literal(step) for step in chosen)
    console.say(
        f"post-processing of the label maps: {text} (chosen on out-of-fold cases, {sources}; --no-postprocess leaves it out)"
    )
    return chosen
