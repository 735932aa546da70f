"""Handles a command without --resume whose --out folder already holds a run, for example because it is given a second time.

With the same options an unfinished run continues, and for a finished run a note is printed. With other options the command is refused.
"""

from pathlib import Path
from typing import Literal

from swinunetr_jax import InputError, files
from swinunetr_jax.training import checkpoints
from swinunetr_jax.training.description import DESCRIPTION, Description, Head, read_description, read_options
from swinunetr_jax.training.recipe import Recipe
from swinunetr_jax.training.resume import FREE, changed_options
from swinunetr_jax.weights.run_folder import OUT_OF_FOLD

# The options that may differ from the stored run. The data set may not, because a command with another one means another run.
FREE_IN_REPEATED_COMMAND = tuple(name for name in FREE if name not in ("data", "base", "splits"))


def earlier_run(recipe: Recipe) -> Literal["none", "unfinished", "finished"]:
    """Returns whether the recipe's --out folder holds a run with the same options, and whether that run is finished.

    Raises:
        InputError: it holds a run with other options, or one whose description is missing or damaged.
    """
    recipe = recipe.absolute()
    folder = recipe.out
    if not files.exists(folder / DESCRIPTION):
        if checkpoints.has_steps(folder):
            raise InputError(
                f"{folder} already holds a run, but not its {DESCRIPTION}: restore the file and continue with `--resume {folder}`, or "
                "choose another --out."
            )
        return "none"
    changed_options(folder, read_description(folder, Head), recipe, free=FREE_IN_REPEATED_COMMAND)
    return "finished" if is_finished(folder) else "unfinished"


def is_finished(folder: Path) -> bool:
    """Returns whether the run in a folder, or each fold of a cross-validation, has ended and written its report.

    Raises:
        InputError: a description is damaged.
    """
    head = read_description(folder, Head)
    if "folds" in head:
        folds = [folder / f"fold{number}" for number in head["folds"]]
        return files.exists(folder / OUT_OF_FOLD) and all(files.exists(f / DESCRIPTION) and is_finished(f) for f in folds)
    if read_options(folder).fold == "all":  # a cross-validation that an earlier version started, without a list of its folds
        return False
    progress = checkpoints.newest_progress(folder)
    if progress is None or progress.validated != progress.step or not files.exists(folder / "report.html"):
        return False
    patience = read_options(folder).validation.patience
    steps = read_description(folder, Description)["steps"]
    return progress.step >= steps or (patience is not None and progress.since_best >= patience)


def finished_note(folder: Path) -> str:
    """Returns a sentence on where the result of a finished run is, and how to train longer."""
    if read_options(folder).kind == "scans":
        result = (
            f"its report is {folder / 'report.html'}, and `swinunetr train msd --data DATA --init.checkpoint {folder}` trains its network "
            "with labels"
        )
    elif "folds" in read_description(folder, Head):
        table = (folder / OUT_OF_FOLD).with_suffix(".csv")
        result = f"the scores of all cases are in {table}, and `swinunetr predict -m {folder}` uses all folds"
    else:
        progress = checkpoints.newest_progress(folder)
        score = (
            ""
            if progress is None or progress.best_score is None
            else f" with a score of {progress.best_score:.4f} in its best validation"
        )
        result = f"it ended{score}; its report is {folder / 'report.html'}, and `swinunetr predict -m {folder}` uses its network"
    return (
        f"{folder} holds a finished run of the same options: {result}. --resume {folder} --steps N continues it to N steps, and another "
        "--out starts a new run."
    )
