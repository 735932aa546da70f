"""Finds the checkpoints in the folder of a training run or of a cross-validation, on this machine or in a bucket.

RUN/best/                      the network with the best validation score, which is used if the folder RUN is given
RUN/last, RUN/checkpoints/N    the newest saved states, for a run without any validation so far; in a bucket, `last` is the newest
RUN/run.json                   the description of the run; that of a cross-validation lists its folds, RUN/fold0, RUN/fold1, …
RUN/postprocess.json           the post-processing that a cross-validation has chosen
RUN/out_of_fold.json           the last file that a cross-validation writes

MODEL.zip, MODEL.zip/fold0, …  a packed model, whose folds have weights called model.safetensors; it may also be unpacked

In a bucket, `swinunetr_jax.buckets.run_objects` describes the names of the saved states. For a path that is an address, the functions
return addresses as paths; `swinunetr_jax.weights.local_copy` copies what is there to this machine.
"""

import math
import os
import re
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from swinunetr_jax.buckets import is_address, shown
from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.checkpoint import DESCRIPTION
from swinunetr_jax.weights.model_path import model_path
from swinunetr_jax.weights.run_contents import Contents, contents
from swinunetr_jax.weights.zip_folder import MANIFEST

RUN = "run.json"
OUT_OF_FOLD = "out_of_fold.json"
PACKED_WEIGHTS = "model.safetensors"  # the weights of a fold in a packed model
_BEST = f"best/{DESCRIPTION}"
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
        InputError: the path is a run that has not saved a network yet, or its run.json is damaged; or it is an address that cannot be
            used, or in a bucket that cannot be read.
    """
    path = model_path(path)
    content = contents(path)
    if content.has(DESCRIPTION):
        return path, None
    if content.has(_BEST):
        return path / "best", None
    if is_address(path) and path.name == "last" and len(path.parts) > 3:  # a bucket has no links
        newest = contents(path.parent).newest_state()
        return (path if newest is None else path.parent / newest), None
    description = content.read_json(RUN, _Run, "restore it, or give the checkpoint folder itself, such as RUN/best")
    if description is None:
        return path, None
    name, newest = shown(path), content.newest_state()
    if newest is None:
        raise InputError(
            f"{name} is a training run that has not saved a network yet: continue it with `swinunetr train --resume {name}`, or give "
            "another checkpoint."
        )
    total = f" of {description['steps']}" if "steps" in description else ""
    step = int(Path(newest).name[:8])
    return path / newest, (
        f"{name} is a training run without any validation so far, so that there is no best network: its newest network, of step "
        f"{step}{total}, is used; `swinunetr train --resume {name}` continues the run."
    )


def ensemble_paths(path: str | os.PathLike) -> tuple[Path, ...]:
    """Returns the checkpoints that are used for a path: the folds of a cross-validation that have a network, or else the path itself.

    `missing_folds` names the other folds.

    Raises:
        InputError: the path is an address that cannot be used, or in a bucket that cannot be read.
    """
    path = model_path(path)
    return tuple(path / name for name in _folds_with_network(contents(path))) or (path,)


def missing_folds(path: str | os.PathLike) -> str | None:
    """Returns a sentence for the user if the path is an unfinished cross-validation: which folds are used and which are missing.

    A cross-validation is finished if it has written its out_of_fold.json and every fold has a network.

    Raises:
        InputError: the run.json of the cross-validation is damaged; or the errors of `ensemble_paths`.
    """
    path = model_path(path)
    content = contents(path)
    used = _folds_with_network(content)
    if not used or content.has(MANIFEST):  # a packed model is complete
        return None
    missing = [name for name in _expected_folds(content) if name not in used]
    finished = content.has(OUT_OF_FOLD)
    if finished and not missing:
        return None
    sentence = (
        f"{shown(path)} is a cross-validation that is not finished: {', '.join(used)} {'are' if len(used) > 1 else 'is'} used"
    )
    if missing:
        return f"{sentence}, and {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing."
    return f"{sentence}, and there is no {OUT_OF_FOLD} yet, so the training of the last one may not have ended."


def cross_validation_of(path: str | os.PathLike) -> Path | None:
    """Returns the folder of the cross-validation if a path is this folder, a fold or a saved network of a fold, otherwise None.

    A packed model is such a folder too, because it holds the post-processing.

    Raises:
        InputError: the errors of `ensemble_paths`.
    """
    path = model_path(path)
    path = path if is_address(path) else path.absolute()
    content = contents(path)
    if _folds_with_network(content) or content.has(MANIFEST):
        return path
    for run in (path, path.parent, path.parent.parent):  # a fold, its best or last network, and one of its saved states
        if _FOLD.fullmatch(run.name) and contents(run).has(_BEST):
            return run.parent
    return None


def _folds_with_network(content: Contents) -> list[str]:
    """Returns the names of a cross-validation's folds that have a network, in the order of their numbers; none for any other folder."""
    if content.has(DESCRIPTION) or content.has(_BEST):
        return []
    folds = [
        name for name in content.folders("fold") if content.has(f"{name}/{_BEST}") or content.has(f"{name}/{PACKED_WEIGHTS}")
    ]
    return sorted(folds, key=lambda name: (int(name[4:]) if name[4:].isdecimal() else math.inf, name))


def _expected_folds(content: Contents) -> list[str]:
    """Returns the names of the folds that the cross-validation's run.json lists or whose folder exists."""
    numbers = {int(name[4:]) for name in content.folders("fold") if name[4:].isdecimal()}
    description = content.read_json(RUN, _CrossValidation, "restore it, or name the folds one by one")
    numbers |= set((description or {}).get("folds", ()))
    return [f"fold{number}" for number in sorted(numbers)]
