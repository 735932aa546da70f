"""What a run leaves on disk so that it can go on, be stopped at any moment, and be used.

    RUN/checkpoints/00000100/checkpoint.json, params/   a checkpoint like any other: the network at step 100
    RUN/checkpoints/00000100/state/                     the rest of the training state: moments; with an average also the raw weights
                                                        and their statistics
    RUN/checkpoints/00000100/training.json              step, best score; digests of the files in state/, of checkpoint.json and of itself
    RUN/last -> checkpoints/00000100                    the newest
    RUN/best/                                           the network with the best validation score
    RUN/lock                                            held while a process trains

States are written in the background (`Writer`) by the leading process. A saved step appears whole or not at all. Reading verifies
every byte, and walks back to the newest step that is sound; what is not is set aside under another name, never deleted.
"""

import contextlib
import fcntl
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from swinunetr_jax import InputError, Task, files
from swinunetr_jax.model.custom import CustomConfig
from swinunetr_jax.training.step import State
from swinunetr_jax.weights.arrays import file_digests, read_arrays, reason, write_arrays
from swinunetr_jax.weights.checkpoint import DESCRIPTION, OtherNetworkError, read_checkpoint, write_checkpoint
from swinunetr_jax.weights.params import NetworkConfig, Weights

FOLDER, STATE, TRAINING, DAMAGED = "checkpoints", "state", "training.json", "damaged-"
# What a killed process of a run can have been writing, beside the files of `files.atomic_path`; other hidden names are the user's.
_UNFINISHED = re.compile(r"\.(last|\d{8}(\.old)?|best\.[0-9a-f]{8})\.tmp")


@dataclass(frozen=True)
class Progress:
    """Where a run stands, beside its state: finished steps, which are also the batches taken, and the best score with its step.

    `validated` is the step that was looked at last, `since_best` the number of looks since the best one.
    """

    step: int = 0
    best_score: float | None = None
    best_step: int | None = None
    validated: int | None = None
    since_best: int = 0


def save(run: Path, state: State, progress: Progress, config: NetworkConfig, task: Task, *, keep: int) -> Path:
    """Writes the state of a step, and removes all but the newest `keep`. Raises InputError where it cannot be written."""
    folder = run / FOLDER
    target = folder / f"{progress.step:08d}"
    temporary, old = folder / f".{target.name}.tmp", folder / f".{target.name}.old.tmp"
    try:
        if not run.is_dir():
            raise FileNotFoundError(f"{run} is gone")  # and with it what a run needs to go on
        shutil.rmtree(temporary, ignore_errors=True)
        network = {name: np.asarray(value) for name, value in state.network.items()}
        write_checkpoint(temporary, config, network, task)
        write_arrays(temporary / STATE, {name: np.asarray(value) for name, value in _rest(state).items()})
        values = {
            "files": file_digests(temporary, STATE),
            "network": files.digest_of_file(temporary / DESCRIPTION),
        }
        _write_training(temporary, progress, values)
        if target.exists():  # a run that went back to an older step comes by again
            target.rename(old)
        temporary.rename(target)
        link = run / ".last.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(target.relative_to(run))
        link.replace(run / "last")
    except Exception as error:  # the system's and Orbax's, which raises many kinds
        raise InputError(
            f"{target} cannot be written ({reason(error)}): free some space or check the folder, then go on with --resume {run}; the "
            "steps before it are untouched."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    for past in _steps(run)[keep:]:
        shutil.rmtree(past, ignore_errors=True)
    return target


def read(run: Path, step: int, like: State, config: NetworkConfig) -> tuple[State, Progress]:
    """The state of a step that `restore` found. Raises InputError where it is not there or not sound."""
    return _read(run / FOLDER / f"{step:08d}", like, config)


class Writer:
    """Writes one thing after the other in the background; what fails is raised by whatever is called next."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: Future | None = None

    def start(self, write: Callable[[], Any]) -> None:
        """Begins to write once what was begun before is written."""
        self.wait()
        self._pending = self._thread.submit(write)

    def check(self) -> None:
        """Raises what the last write raised, if it is over."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Until the last write is over; raises what it raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Until the last write is over, whatever comes of it."""
        self._thread.shutdown(wait=True)


def snapshot(state: State) -> State:
    """A copy on the host, which the next step does not touch."""
    return jax.tree.map(np.array, state)


def note(run: Path, progress: Progress) -> None:
    """Writes what a validation changed into the step that was saved before it. Raises InputError where it cannot be written."""
    folder = run / FOLDER / f"{progress.step:08d}"
    try:
        values = files.read_json(folder / TRAINING, _Training, "it was written by this run and has changed since")
        _write_training(folder, progress, {"files": values["files"], "network": values["network"]})
    except (OSError, InputError) as error:
        raise InputError(
            f"{folder / TRAINING} cannot be written ({reason(error)}): check the folder, then --resume {run}."
        ) from error


def newest_progress(run: Path) -> Progress | None:
    """How far the newest saved step is, by its own description alone; None where there is none, or a damaged one."""
    for folder in _steps(run)[:1]:
        with contextlib.suppress(OSError, InputError):
            return files.read_json(folder / TRAINING, _Training, "take an older step")["progress"]
    return None


def has_steps(run: Path) -> bool:
    """Whether a run left anything to go on from, or a network."""
    return bool(_steps(run)) or files.exists(run / "best")


def restore(run: Path, like: State, config: NetworkConfig) -> tuple[State, Progress, list[str]] | None:
    """The newest sound state under `run`, and what was wrong with newer ones; None where nothing was saved.

    Args:
        like: a state of the same run, whose names and shapes the stored one must have.

    Raises:
        InputError: steps are there and none is sound, one cannot be read, or they are those of another network.
    """
    warnings = []
    for folder in _steps(run):
        try:
            state, progress = _read(folder, like, config)
        except _Damaged as error:
            aside = folder.with_name(f"{DAMAGED}{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            try:
                folder.rename(aside)
                warnings.append(f"{error} It was set aside as {aside.name}.")
            except OSError:
                warnings.append(str(error))
        else:
            return state, progress, warnings
    if warnings:
        raise InputError(f"{run} holds no sound state to go on from: {' '.join(warnings)}")
    return None


def save_best(run: Path, network: Weights, config: NetworkConfig, task: Task) -> None:
    """The network becomes the run's best, and so what `predict -m RUN` uses."""
    write_checkpoint(run / "best", config, {name: np.asarray(value) for name, value in network.items()}, task, overwrite=True)


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the run's folder, which is made, and sweeps what a killed process left half-written in it.

    Raises:
        InputError: another process has it, or it cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = open(run / "lock", "w")  # noqa: SIM115 - held for the length of the block
    except OSError as error:
        raise InputError(f"{run} cannot be used for a run ({reason(error)}): choose a folder that can be written.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{run} is in use by another training process: wait for it, or choose another --out.") from error
        except OSError as error:
            raise InputError(
                f"{run} cannot be locked ({reason(error)}): choose --out on a file system that has locks."
            ) from error
        _remove_unfinished(run)
        yield


def _remove_unfinished(run: Path) -> None:
    """Removes what killed processes of this run left; this one holds the run's lock, so nobody is writing."""
    for left in (*run.glob(".*.tmp*"), *(run / FOLDER).glob(".*.tmp*")):
        if _UNFINISHED.fullmatch(left.name) or files.is_temporary(left.name):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


class _Training(TypedDict):
    """TRAINING of a saved step; `digest` is that of all the rest."""

    progress: Progress
    files: dict[str, str]
    network: str
    digest: str


class _Damaged(InputError):
    """Not what was written; an older step may be."""


def _steps(run: Path) -> list[Path]:
    """Folders of saved steps, newest first."""
    folder = run / FOLDER
    return sorted((p for p in folder.iterdir() if p.name.isdecimal()), reverse=True) if files.is_folder(folder) else []


def _rest(state: State) -> dict[str, Any]:
    """What a state holds beyond `state.network`, under dotted names."""
    leaves = jax.tree_util.tree_flatten_with_path(_rest_tree(state))[0]
    return {_name(path): leaf for path, leaf in leaves}


def _rest_tree(state: State) -> dict[str, Any]:
    raw = {"params": state.params, "stats": state.stats} if state.average else {}
    own = {"own": state.own} if state.own else {}
    return {"step": state.step, "opt": state.opt, **raw, **own}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _read(folder: Path, like: State, config: NetworkConfig) -> tuple[State, Progress]:
    try:
        values = files.read_json(folder / TRAINING, _Training, "an older step is taken")
        network = files.digest_of_file(folder / DESCRIPTION)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _Damaged(f"{folder} is not a whole saved step ({reason(error)}).") from error
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({reason(error)}): check the disk and the permissions.") from error
    except InputError as error:
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, NotADirectoryError):
            raise
        raise _Damaged(f"{folder} is not a whole saved step ({str(error).rstrip('.')}).") from error
    progress = values["progress"]
    if values["digest"] != _digest(progress, values) or values["network"] != network:
        raise _Damaged(f"{folder} is damaged, its descriptions differ from their digests.")
    try:
        found = file_digests(folder, STATE)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({reason(error)}): check the disk and the permissions.") from error
    wrong = sorted(name for name in values["files"].keys() | found.keys() if values["files"].get(name) != found.get(name))
    if wrong:
        raise _Damaged(f"{folder} is damaged, these differ from their digests or are missing: {', '.join(wrong[:8])}.")
    try:
        stored = read_checkpoint(folder, config.factory if isinstance(config, CustomConfig) else None)
    except OtherNetworkError:
        raise
    except InputError as error:
        raise _Damaged(str(error)) from error
    try:
        arrays = read_arrays(folder / STATE)
    except Exception as error:  # Orbax raises many kinds
        raise _Damaged(f"{folder} cannot be read ({reason(error)}).") from error
    expected = _rest(like)
    faults = [
        f"{name}: got {arrays[name].shape if name in arrays else 'nothing'}, expected "
        f"{np.shape(expected[name]) if name in expected else 'nothing'}"
        for name in sorted(expected.keys() | arrays.keys())
        if name not in arrays or name not in expected or arrays[name].shape != np.shape(expected[name])
    ]
    if faults or stored.config.to_dict() != config.to_dict():
        differs = "" if faults else " its configuration differs"
        raise InputError(f"{folder} is the state of another network or optimizer:{differs}", *(f"  {fault}" for fault in faults))
    paths, structure = jax.tree_util.tree_flatten_with_path(_rest_tree(like))
    leaves = [jnp.asarray(arrays[_name(path)], leaf.dtype) for path, leaf in paths]
    rest = jax.tree_util.tree_unflatten(structure, leaves)
    network = {name: jnp.asarray(value) for name, value in stored.params.items()}
    kept, kept_stats = ({name: network[name] for name in names} for names in (like.params, like.stats))
    if like.average:
        return State(rest["step"], rest["params"], rest["stats"], rest["opt"], kept, kept_stats, rest.get("own", {})), progress
    return State(rest["step"], kept, kept_stats, rest["opt"], {}, {}, rest.get("own", {})), progress


def _write_training(folder: Path, progress: Progress, values: dict[str, Any]) -> None:
    described = {"progress": vars(progress), "files": values["files"], "network": values["network"]}
    files.write_json(folder / TRAINING, described | {"digest": _digest(progress, values)})


def _digest(progress: Progress, values: Mapping[str, Any]) -> str:
    return files.digest_of_json({"progress": vars(progress), "files": values["files"], "network": values["network"]})
