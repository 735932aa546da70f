"""The saved states of a run, from which it can be resumed, and its best network.

    RUN/checkpoints/00000100/checkpoint.json, params/   an ordinary checkpoint: the network at step 100
    RUN/checkpoints/00000100/state/                     the rest of the training state: the optimizer's moments and, if there is an average
                                                        of the weights, the raw weights and their statistics
    RUN/checkpoints/00000100/training.json              step, best score; digests of the files in state/, of checkpoint.json and of itself
    RUN/last -> checkpoints/00000100                    a link to the newest state
    RUN/best/                                           the network with the best validation score
    RUN/lock                                            locked while a process trains

The leading process writes states in the background (`writer.Writer`). A saved state appears completely or not at all. `restore` reads
them.
"""

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np

from swinunetr_jax import InputError, Task, files
from swinunetr_jax.training import watchdog
from swinunetr_jax.training.step import State
from swinunetr_jax.weights.arrays import file_digests, one_line, write_arrays
from swinunetr_jax.weights.checkpoint import DESCRIPTION, write_checkpoint
from swinunetr_jax.weights.params import NetworkConfig, Weights

FOLDER, STATE, TRAINING = "checkpoints", "state", "training.json"


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


class StoredTraining(TypedDict):
    """The content of training.json; `digest` is that of all other fields."""

    progress: Progress
    files: dict[str, str]
    network: str
    digest: str


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
        write_arrays(temporary / STATE, {name: np.asarray(value) for name, value in rest_arrays(state).items()})
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
    for past in list_steps(run)[keep:]:
        shutil.rmtree(past, ignore_errors=True)
    return target


def write_progress(run: Path, progress: Progress) -> None:
    """Writes the result of a validation into the state that was saved before it. Raises InputError if it cannot be written."""
    folder = run / FOLDER / f"{progress.step:08d}"
    try:
        stored = files.read_json(folder / TRAINING, StoredTraining, "this run wrote it, and it has changed since")
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


# ---- finding


def has_steps(run: Path) -> bool:
    """Returns whether a run has a saved state or a network. Raises InputError if its folder cannot be read."""
    return bool(list_steps(run)) or files.exists(run / "best")


def newest_progress(run: Path) -> Progress | None:
    """Returns the progress in the training.json of the newest saved state, or None if there is no state or the file is damaged."""
    for folder in list_steps(run)[:1]:
        with contextlib.suppress(OSError, InputError):
            return files.read_json(folder / TRAINING, StoredTraining, "take an older step")["progress"]
    return None


def list_steps(run: Path) -> list[Path]:
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


# ---- contents


def rest_arrays(state: State) -> dict[str, Any]:
    """Returns the arrays of a state that are not in `state.network`, by dotted name."""
    leaves = jax.tree_util.tree_flatten_with_path(rest_tree(state))[0]
    return {dotted_name(path): leaf for path, leaf in leaves}


def rest_tree(state: State) -> dict[str, Any]:
    """Returns the parts of a state that are not in `state.network`."""
    raw = {"params": state.params, "stats": state.stats} if state.average else {}
    own = {"own": state.own} if state.own else {}
    return {"step": state.step, "opt": state.opt, **raw, **own}


def dotted_name(path: tuple[Any, ...]) -> str:
    """Returns the name of a leaf from its path in a tree, such as "opt.0.mu.out.kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _write_training(folder: Path, progress: Progress, digests: Mapping[str, str], network: str) -> None:
    """Writes training.json: the progress, the digests of the files in state/ and of checkpoint.json, and its own digest."""
    described = {"progress": vars(progress), "files": dict(digests), "network": network}
    files.write_json(folder / TRAINING, described | {"digest": training_digest(progress, digests, network)})


def training_digest(progress: Progress, digests: Mapping[str, str], network: str) -> str:
    """Returns the digest of the other fields of training.json."""
    return files.digest_of_json({"progress": vars(progress), "files": dict(digests), "network": network})
