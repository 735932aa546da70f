"""Reads the saved states of a run (see `checkpoints`).

Reading verifies every byte and, if a state is damaged, takes the newest intact one before it. Damaged states are renamed, not deleted.
"""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from swinunetr_jax import InputError, files
from swinunetr_jax.model.custom import CustomConfig
from swinunetr_jax.training.checkpoints import (
    FOLDER,
    STATE,
    TRAINING,
    Progress,
    StoredTraining,
    dotted_name,
    list_steps,
    rest_arrays,
    rest_tree,
    training_digest,
)
from swinunetr_jax.training.step import State
from swinunetr_jax.weights.arrays import array_shapes, file_digests, one_line, read_arrays
from swinunetr_jax.weights.checkpoint import DESCRIPTION, OtherNetworkError, StoredCheckpoint, read_checkpoint
from swinunetr_jax.weights.params import NetworkConfig

DAMAGED = "damaged-"


class _Damaged(InputError):
    """A saved state differs from what was written; an older one may be intact."""


def restore(
    run: Path,
    like: State,
    config: NetworkConfig,
    *,
    fetch: Callable[..., bool] = lambda step, again=False: False,
    set_aside: Callable[[int, str], str] | None = None,
) -> tuple[State, Progress, list[str]] | None:
    """Returns the newest intact state with its progress, and sentences on newer ones that are damaged; None if nothing was saved.

    Args:
        run: the folder of the run.
        like: a state of the same run, whose names and shapes the stored one must have.
        config: the configuration of the run's network.
        fetch: called with a step before its state is read, to make sure that the files are in the folder. It returns whether they were
            copied. If the copy is damaged, `fetch` is called with `again=True`, which copies all of them again.
        set_aside: called with the step of a damaged state and the fault; it returns a sentence on where the state is now. By default the
            folder of the state is renamed.

    Raises:
        InputError: all states are damaged, one cannot be read, or they belong to another network.
    """
    warnings = []
    for folder in list_steps(run):
        step = int(folder.name)
        try:
            copied = fetch(step)
            try:
                state, progress = _read(folder, like, config)
            except _Damaged:
                if not copied:
                    raise
                fetch(step, again=True)
                state, progress = _read(folder, like, config)
        except _Damaged as error:
            try:
                warnings.append(f"{error} {set_aside(step, str(error)) if set_aside else rename_damaged(run, step)}")
            except OSError:
                warnings.append(str(error))
        else:
            return state, progress, warnings
    if warnings:
        raise InputError(f"{run} holds no intact state to continue from: {' '.join(warnings)}")
    return None


def rename_damaged(run: Path, step: int) -> str:
    """Renames the folder of a damaged state, and returns a sentence on its new name. Raises OSError if it cannot be renamed."""
    folder = run / FOLDER / f"{step:08d}"
    renamed = _unused(folder.with_name(f"{DAMAGED}{folder.name}"))
    folder.rename(renamed)
    return f"It was renamed to {renamed.name}."


def _unused(path: Path) -> Path:
    """Returns the path, with a number at its end if it exists already."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([path], numbered) if not os.path.lexists(candidate))


def read(run: Path, step: int, like: State, config: NetworkConfig) -> tuple[State, Progress]:
    """Returns the state of a step that `restore` found. Raises InputError if it does not exist or is damaged."""
    return _read(run / FOLDER / f"{step:08d}", like, config)


def _read(folder: Path, like: State, config: NetworkConfig) -> tuple[State, Progress]:
    """Returns the state in a folder after verifying all of it.

    Raises:
        _Damaged: it differs from what was written.
        InputError: it cannot be read, or belongs to another network or optimizer.
    """
    progress = _verified_progress(folder)
    stored = _stored_network(folder, config)
    expected = rest_arrays(like)
    try:
        stored_shapes = array_shapes(folder / STATE)
    except Exception as error:  # Orbax raises many kinds of exceptions
        raise _Damaged(f"{folder} cannot be read ({one_line(error)}).") from error
    expected_shapes = {name: np.shape(value) for name, value in expected.items()}
    faults = [
        f"{name}: got {stored_shapes.get(name, 'nothing')}, expected {expected_shapes.get(name, 'nothing')}"
        for name in sorted(expected_shapes.keys() | stored_shapes.keys())
        if stored_shapes.get(name) != expected_shapes.get(name)
    ]
    if faults or stored.config.to_dict() != config.to_dict():
        differs = "" if faults else " its configuration differs"
        raise InputError(f"{folder} is the state of another network or optimizer:{differs}", *(f"  {fault}" for fault in faults))
    try:
        arrays = read_arrays(folder / STATE, expected_shapes)
    except Exception as error:  # Orbax raises many kinds of exceptions
        raise _Damaged(f"{folder} cannot be read ({one_line(error)}).") from error
    paths, structure = jax.tree_util.tree_flatten_with_path(rest_tree(like))
    leaves = [jnp.asarray(arrays[dotted_name(path)], leaf.dtype) for path, leaf in paths]
    rest = jax.tree_util.tree_unflatten(structure, leaves)
    network = {name: jnp.asarray(value) for name, value in stored.params.items()}
    params, stats = ({name: network[name] for name in names} for names in (like.params, like.stats))
    if like.average:
        return State(rest["step"], rest["params"], rest["stats"], rest["opt"], params, stats, rest.get("own", {})), progress
    return State(rest["step"], params, stats, rest["opt"], {}, {}, rest.get("own", {})), progress


def _verified_progress(folder: Path) -> Progress:
    """Returns the progress in training.json after comparing all files with the digests in it."""
    try:
        values = files.read_json(folder / TRAINING, StoredTraining, "an older step is taken")
        network = files.digest_of_file(folder / DESCRIPTION)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _Damaged(f"{folder} is not a complete saved state ({one_line(error)}).") from error
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({one_line(error)}): check the disk and the permissions.") from error
    except InputError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, NotADirectoryError):
            raise
        raise _Damaged(f"{folder} is not a complete saved state ({str(error).rstrip('.')}).") from error
    progress = values["progress"]
    if values["digest"] != training_digest(progress, values["files"], values["network"]) or values["network"] != network:
        raise _Damaged(f"{folder} is damaged: its descriptions differ from their digests.")
    try:
        digests = file_digests(folder, STATE)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({one_line(error)}): check the disk and the permissions.") from error
    wrong = sorted(name for name in values["files"].keys() | digests.keys() if values["files"].get(name) != digests.get(name))
    if wrong:
        raise _Damaged(f"{folder} is damaged: these files differ from their digests or are missing: {', '.join(wrong[:8])}.")
    return progress


def _stored_network(folder: Path, config: NetworkConfig) -> StoredCheckpoint:
    try:
        return read_checkpoint(folder, config.network if isinstance(config, CustomConfig) else None)
    except OtherNetworkError:
        raise
    except InputError as error:
        raise _Damaged(str(error)) from error
