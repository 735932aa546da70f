"""What the folder of a training run stands for as a checkpoint.

RUN/best/                      the network with the best validation score, which the run stands for
RUN/last, RUN/checkpoints/N    the newest saved states, for a run that no validation has looked at yet
RUN/run.json                   what the run is; that of a cross-validation lists its folds, RUN/fold0, RUN/fold1, …
RUN/out_of_fold.json           the last file that a cross-validation writes
"""

import os
import re
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from swinunetr_jax import files
from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.checkpoint import is_checkpoint

RUN = "run.json"
_STEP = re.compile(r"\d{8}")


class _Run(TypedDict):
    """What is read of RUN/run.json."""

    recipe: dict[str, Any]
    steps: NotRequired[int]


def network_of_run(path: str | os.PathLike) -> tuple[Path, str | None]:
    """The checkpoint that a path stands for, and a sentence where that is not what a user would expect.

    A run stands for its best network; before its first validation, for its newest one. Any other path stands for itself.

    Raises:
        InputError: it is a run that has not saved a network yet, or its run.json is damaged.
    """
    path = Path(path)
    if is_checkpoint(path):
        return path, None
    if is_checkpoint(path / "best"):
        return path / "best", None
    description = _read(path)
    if description is None:
        return path, None
    newest = _newest(path)
    if newest is None:
        raise InputError(
            f"{path} is a training run that has not saved a network yet: continue it with `swinunetr train --resume {path}`, or give "
            "another checkpoint."
        )
    end = f" of {description['steps']}" if "steps" in description else ""
    return newest, (
        f"{path} is a training run that no validation has looked at yet, so there is no best network: its newest one, of step "
        f"{int(newest.name)}{end}, is used; `swinunetr train --resume {path}` continues the run."
    )


def _read(run: Path) -> _Run | None:
    """RUN/run.json, or None where there is none."""
    if not files.exists(run / RUN):
        return None
    return files.read_json(run / RUN, _Run, "restore it, or give the checkpoint folder itself, such as RUN/best")


def _newest(run: Path) -> Path | None:
    """The newest saved network of a run."""
    folder = run / "checkpoints"
    names = os.listdir(folder) if files.is_folder(folder) else []
    steps = sorted((folder / name for name in names if _STEP.fullmatch(name)), reverse=True)
    return next((step for step in steps if is_checkpoint(step)), None)
