"""Writes the report of a finished run, and prints its best score and the commands that use its network."""

import shlex
from pathlib import Path

from swinunetr_jax import console
from swinunetr_jax.buckets import address_of
from swinunetr_jax.registry import is_installed
from swinunetr_jax.training import times
from swinunetr_jax.training.html_report import write_report
from swinunetr_jax.training.prepared import has_no_scans
from swinunetr_jax.training.recipe import Recipe
from swinunetr_jax.training.start import Run
from swinunetr_jax.training.step import make_objective
from swinunetr_jax.training.validation import predict_options


def report(run: Run) -> None:
    """Writes the report. A failure of any kind is only a warning, because the network is complete."""
    try:
        write_report(run.folder, run.log.rows)
    except Exception as error:
        console.warn(f"report.html was not written ({console.literal(error) or type(error).__name__}); the network is complete.")


def print_result(run: Run) -> None:
    """Prints the best score, and the commands that use the network."""
    steps = [row for row in run.log.rows if row["kind"] == "step"][1:]
    options = predict_options(run.recipe.validation, run.cases.task, run.training.config.dtype)
    share = sum(row["wait"] for row in steps) / max(sum(row["seconds"] for row in steps), 1e-9)
    console.say(
        f"best validation {make_objective(run.training).metric} {run.progress.best_score or 0.0:.4f} at step {run.progress.best_step}; "
        f"waiting for data took {100 * share:.1f} % of the steps' time\n"
        f"curves and cases:  {console.literal(run.folder)}/report.html"
    )
    spent = times.times_of(run.log.rows)
    if spent is not None:
        console.say("\n".join(filter(None, (times.sentence(spent), spent.slowest_host))))
    if run.cases.task.kind == "images":
        console.say("\n".join(pretraining_commands(run.folder)))
        return
    segment, score = usage_commands(run.recipe, run.folder, options)
    console.say(f"segment with it:   {segment}\nscore the result:  {score}")
    if has_no_scans(run.recipe, run.folder):
        console.say(
            "SCANS stands for the scans in a folder of this machine, because these commands cannot read the data of this run"
        )


def pretraining_commands(folder: Path) -> tuple[str, str]:
    """Returns lines with the commands that use a pre-trained network, quoted for a shell."""
    run = shlex.quote(console.literal(folder))
    return (
        f"train with it:     swinunetr train msd --data LABELLED --init.checkpoint {run} --out RUN",
        f"its encoder alone: swinunetr convert {run} swin_encoder.pt --write-encoder",
    )


def usage_commands(recipe: Recipe, folder: Path, options: str) -> tuple[str, str]:
    """Returns the commands that segment the run's data set with its network and score the result, quoted for a shell.

    Args:
        recipe: the recipe.
        folder: the folder of the run.
        options: the further options of `predict`, from `predict_options`.
    """

    def quoted(path: Path) -> str:
        return shlex.quote(console.literal(path))

    # Results are not written into buckets.
    results = quoted(folder / "predictions" if address_of(folder) is None else Path("predictions"))
    data = "SCANS" if has_no_scans(recipe, folder) else quoted(recipe.data or folder / "data")
    base = "" if recipe.base is None else f" --base {quoted(recipe.base)}"
    custom = recipe.custom_network
    if custom is not None and recipe.file is not None and not ("network" not in recipe.functions() and is_installed(custom.name)):
        options += f" --recipe {quoted(recipe.file.path)}"
    segment = f"swinunetr predict -i {data}{base} -o {results} -m {quoted(folder)}{options}"
    return segment, f"swinunetr evaluate {results} {data}{base}"
