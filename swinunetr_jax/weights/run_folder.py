"""Finds the checkpoints in the folder of a training run or of a cross-validation.

RUN/best/                      the network with the best validation score, which is used if the folder RUN is given
RUN/last, RUN/checkpoints/N    the newest saved states, for a run without any validation so far
RUN/run.json                   the description of the run; that of a cross-validation lists its folds, RUN/fold0, RUN/fold1, …
RUN/postprocess.json           the post-processing that a cross-validation has chosen
RUN/out_of_fold.json           the last file that a cross-validation writes
"""

import contextlib
import math
import os
import re
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from swinunetr_jax import files
from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.checkpoint import is_checkpoint

RUN = "run.json"
OUT_OF_FOLD = "out_of_fold.json"
_STEP = re.compile(r"\d{8}")
_FOLD = re.compile(r"fold\d+")


class _Run(TypedDict):
    """The part of a run's run.json that is read here."""

    recipe: dict[str, Any]
    steps: NotRequired[int]


class _CrossValidation(TypedDict, total=False):
    """The part of a cross-validation's run.json that is read here: the numbers of the folds."""

    folds: list[int]


def network_of_run(path: str | os.PathLike) -> tuple[Path, str | None]:
    """Returns the checkpoint that is used for a path, and a sentence for the user if it is not the best network of a run.

    For a training run, it is the run's best network or, before its first validation, the newest one. Any other path is returned as it is.

    Raises:
        InputError: the path is a run that has not saved a network yet, or its run.json is damaged.
    """
    path = Path(path)
    if is_checkpoint(path):
        return path, None
    if is_checkpoint(path / "best"):
        return path / "best", None
    description = _read_description(path)
    if description is None:
        return path, None
    newest = _newest_network(path)
    if newest is None:
        raise InputError(
            f"{path} is a training run that has not saved a network yet: continue it with `swinunetr train --resume {path}`, or give "
            "another checkpoint."
        )
    total = f" of {description['steps']}" if "steps" in description else ""
    return newest, (
        f"{path} is a training run without any validation so far, so that there is no best network: its newest network, of step "
        f"{int(newest.name)}{total}, is used; `swinunetr train --resume {path}` continues the run."
    )


def ensemble_paths(path: str | os.PathLike) -> tuple[Path, ...]:
    """Returns the checkpoints that are used for a path: the folds of a cross-validation that have a network, or else the path itself.

    `missing_folds` names the other folds.
    """
    return _folds_with_network(Path(path)) or (Path(path),)


def missing_folds(path: str | os.PathLike) -> str | None:
    """Returns a sentence for the user if the path is an unfinished cross-validation: which folds are used and which are missing.

    A cross-validation is finished if it has written its out_of_fold.json and every fold has a network.

    Raises:
        InputError: the run.json of the cross-validation is damaged.
    """
    path = Path(path)
    used = [run.name for run in _folds_with_network(path)]
    if not used:
        return None
    finished = files.exists(path / OUT_OF_FOLD)
    missing = [name for name in _expected_folds(path) if name not in used]
    if finished and not missing:
        return None
    sentence = f"{path} is a cross-validation that is not finished: {', '.join(used)} {'are' if len(used) > 1 else 'is'} used"
    if missing:
        return f"{sentence}, and {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing."
    return f"{sentence}, and there is no {OUT_OF_FOLD} yet, so the training of the last one may not have ended."


def cross_validation_of(path: str | os.PathLike) -> Path | None:
    """Returns the folder of the cross-validation if a path is this folder, a fold or a saved network of a fold, otherwise None."""
    path = Path(path).absolute()
    if _folds_with_network(path):
        return path
    for run in (path, path.parent, path.parent.parent):  # a fold, its best or last network, and one of its saved states
        if _FOLD.fullmatch(run.name) and is_checkpoint(run / "best"):
            return run.parent
    return None


def _read_description(run: Path) -> _Run | None:
    """Returns the content of RUN/run.json, or None if it does not exist."""
    if not files.exists(run / RUN):
        return None
    return files.read_json(run / RUN, _Run, "restore it, or give the checkpoint folder itself, such as RUN/best")


def _newest_network(run: Path) -> Path | None:
    """Returns the newest saved network of a run, or None if there is none. Raises InputError if the folder cannot be read."""
    folder = run / "checkpoints"
    try:
        names = os.listdir(folder) if files.is_folder(folder) else []
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({files.reason(error)}): check its permissions.") from error
    steps = sorted((folder / name for name in names if _STEP.fullmatch(name)), reverse=True)
    return next((step for step in steps if is_checkpoint(step)), None)


def _folds_with_network(path: Path) -> tuple[Path, ...]:
    """Returns the runs of a cross-validation that have a network, in the order of their numbers; none for any other path."""
    if is_checkpoint(path) or is_checkpoint(path / "best"):
        return ()
    runs = [run for run in path.glob("fold*") if is_checkpoint(run / "best")]
    return tuple(sorted(runs, key=lambda run: (int(run.name[4:]) if run.name[4:].isdecimal() else math.inf, run.name)))


def _expected_folds(path: Path) -> list[str]:
    """Returns the names of the folds that the cross-validation's run.json lists or whose folder exists."""
    numbers = {int(run.name[4:]) for run in path.glob("fold*") if run.name[4:].isdecimal() and files.is_folder(run)}
    with contextlib.suppress(FileNotFoundError):
        numbers |= set(files.read_json(path / RUN, _CrossValidation, "restore it, or name the folds one by one").get("folds", ()))
    return [f"fold{number}" for number in sorted(numbers)]
