"""The saved states of a run, from which it can be resumed, and its best network.

    RUN/checkpoints/00000100/checkpoint.json, params/   an ordinary checkpoint: the network at step 100
    RUN/checkpoints/00000100/state/                     the rest of the training state: the optimizer's moments and, if there is an average
                                                        of the weights, the raw weights and their statistics
    RUN/checkpoints/00000100/training.json              step, best score; digests of the files in state/, of checkpoint.json and of itself
    RUN/last -> checkpoints/00000100                    a link to the newest state
    RUN/best/                                           the network with the best validation score
    RUN/lock                                            locked while a process trains

The leading process writes states in the background (`writer.Writer`). A saved state appears completely or not at all. Reading verifies
every byte and, if a state is damaged, takes the newest intact one before it. Damaged states are renamed, not deleted.
"""

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from swinunetr_jax import InputError, Task, files
from swinunetr_jax.model.custom import CustomConfig
from swinunetr_jax.training import watchdog
from swinunetr_jax.training.step import State
from swinunetr_jax.weights.arrays import array_shapes, file_digests, one_line, read_arrays, write_arrays
from swinunetr_jax.weights.checkpoint import DESCRIPTION, OtherNetworkError, StoredCheckpoint, read_checkpoint, write_checkpoint
from swinunetr_jax.weights.params import NetworkConfig, Weights

FOLDER, STATE, TRAINING, DAMAGED = "checkpoints", "state", "training.json", "damaged-"


@dataclass(frozen=True)
class Progress:
    """The progress of a run: the number of finished steps, which is also the number of batches used, and the best score with its step.

    `validated` is the step of the last validation, and `since_best` the number of validations since the best one.
    """

    step: int = 0
    best_score: float | None = None
    best_step: int | None = None
    validated: int | None = None
    since_best: int = 0


class _Training(TypedDict):
    """The content of training.json; `digest` is that of all other fields."""

    progress: Progress
    files: dict[str, str]
    network: str
    digest: str


class _Damaged(InputError):
    """A saved state differs from what was written; an older one may be intact."""


# ---- writing


def save(run: Path, state: State, progress: Progress, config: NetworkConfig, task: Task, *, keep: int) -> Path:
    """Writes the state of a step, and removes all states but the newest `keep`. Raises InputError if it cannot be written."""
    folder = run / FOLDER
    target = folder / f"{progress.step:08d}"
    temporary, old = folder / f".{target.name}.tmp", folder / f".{target.name}.old.tmp"
    try:
        if not files.is_folder(run):
            # It is not created again, because without its run.json it could not be resumed.
            raise FileNotFoundError(f"{run} does not exist any more")
        shutil.rmtree(temporary, ignore_errors=True)
        network = {name: np.asarray(value) for name, value in state.network.items()}
        write_checkpoint(temporary, config, network, task)
        write_arrays(temporary / STATE, {name: np.asarray(value) for name, value in _rest(state).items()})
        _write_training(temporary, progress, file_digests(temporary, STATE), files.digest_of_file(temporary / DESCRIPTION))
        watchdog.check()  # if this process was suspended for long, another one may have continued the run
        if os.path.lexists(target):  # a run that continues from an older step repeats this one
            target.rename(old)
        try:
            temporary.rename(target)
        except OSError:
            if os.path.lexists(old):
                old.rename(target)
            raise
        link = run / ".last.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(target.relative_to(run))
        link.replace(run / "last")
    except Exception as error:  # OSError, and the many kinds of exceptions that Orbax raises
        raise InputError(
            f"{target} cannot be written ({one_line(error)}): free some space or check the folder, then continue with --resume {run}; the "
            "states before it are unchanged."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    for past in _steps(run)[keep:]:
        shutil.rmtree(past, ignore_errors=True)
    return target


def write_progress(run: Path, progress: Progress) -> None:
    """Writes the result of a validation into the state that was saved before it. Raises InputError if it cannot be written."""
    folder = run / FOLDER / f"{progress.step:08d}"
    try:
        stored = files.read_json(folder / TRAINING, _Training, "this run wrote it, and it has changed since")
        _write_training(folder, progress, stored["files"], stored["network"])
    except (OSError, InputError) as error:
        raise InputError(
            f"{folder / TRAINING} cannot be written ({one_line(error)}): check the folder, then continue with --resume {run}."
        ) from error


def save_best(run: Path, network: Weights, config: NetworkConfig, task: Task, *, new_names: bool = False) -> None:
    """Writes the network as the run's best one, which `predict -m RUN` uses. For `new_names` see `write_checkpoint`."""
    arrays = {name: np.asarray(value) for name, value in network.items()}
    write_checkpoint(run / "best", config, arrays, task, overwrite=True, new_names=new_names)


def snapshot(state: State) -> State:
    """Returns a copy on the host, which the next step does not change."""
    return jax.tree.map(np.array, state)


# ---- reading


def has_steps(run: Path) -> bool:
    """Returns whether a run has a saved state or a network. Raises InputError if its folder cannot be read."""
    return bool(_steps(run)) or files.exists(run / "best")


def newest_progress(run: Path) -> Progress | None:
    """Returns the progress in the training.json of the newest saved state, or None if there is no state or the file is damaged."""
    for folder in _steps(run)[:1]:
        with contextlib.suppress(OSError, InputError):
            return files.read_json(folder / TRAINING, _Training, "take an older step")["progress"]
    return None


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
    for folder in _steps(run):
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


def _steps(run: Path) -> list[Path]:
    """Returns the folders of saved steps, newest first. Raises InputError if they cannot be listed."""
    folder = run / FOLDER
    if not files.is_folder(folder):
        if os.path.lexists(folder):
            raise InputError(f"{folder} is not a folder: remove it, or choose another --out.")
        return []
    try:
        return sorted((folder / name for name in os.listdir(folder) if name.isdecimal()), reverse=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be read ({one_line(error)}): check the permissions, or choose another --out."
        ) from error


def _read(folder: Path, like: State, config: NetworkConfig) -> tuple[State, Progress]:
    """Returns the state in a folder after verifying all of it.

    Raises:
        _Damaged: it differs from what was written.
        InputError: it cannot be read, or belongs to another network or optimizer.
    """
    progress = _verified_progress(folder)
    stored = _stored_network(folder, config)
    expected = _rest(like)
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
    paths, structure = jax.tree_util.tree_flatten_with_path(_rest_tree(like))
    leaves = [jnp.asarray(arrays[_name(path)], leaf.dtype) for path, leaf in paths]
    rest = jax.tree_util.tree_unflatten(structure, leaves)
    network = {name: jnp.asarray(value) for name, value in stored.params.items()}
    params, stats = ({name: network[name] for name in names} for names in (like.params, like.stats))
    if like.average:
        return State(rest["step"], rest["params"], rest["stats"], rest["opt"], params, stats, rest.get("own", {})), progress
    return State(rest["step"], params, stats, rest["opt"], {}, {}, rest.get("own", {})), progress


def _verified_progress(folder: Path) -> Progress:
    """Returns the progress in training.json after comparing all files with the digests in it."""
    try:
        values = files.read_json(folder / TRAINING, _Training, "an older step is taken")
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
    if values["digest"] != _digest(progress, values["files"], values["network"]) or values["network"] != network:
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
        return read_checkpoint(folder, config.factory if isinstance(config, CustomConfig) else None)
    except OtherNetworkError:
        raise
    except InputError as error:
        raise _Damaged(str(error)) from error


def _rest(state: State) -> dict[str, Any]:
    """Returns the arrays of a state that are not in `state.network`, by dotted name."""
    leaves = jax.tree_util.tree_flatten_with_path(_rest_tree(state))[0]
    return {_name(path): leaf for path, leaf in leaves}


def _rest_tree(state: State) -> dict[str, Any]:
    raw = {"params": state.params, "stats": state.stats} if state.average else {}
    own = {"own": state.own} if state.own else {}
    return {"step": state.step, "opt": state.opt, **raw, **own}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _write_training(folder: Path, progress: Progress, digests: Mapping[str, str], network: str) -> None:
    """Writes training.json: the progress, the digests of the files in state/ and of checkpoint.json, and its own digest."""
    described = {"progress": vars(progress), "files": dict(digests), "network": network}
    files.write_json(folder / TRAINING, described | {"digest": _digest(progress, digests, network)})


def _digest(progress: Progress, digests: Mapping[str, str], network: str) -> str:
    return files.digest_of_json({"progress": vars(progress), "files": dict(digests), "network": network})
