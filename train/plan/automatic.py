"""The plan that a recipe makes for itself at the start of its run."""

from collections.abc import Collection
from pathlib import Path

from swinunetr_jax import InputError, files
from swinunetr_jax.console import Progress, literal, say
from swinunetr_jax.training import processes
from swinunetr_jax.training.config import Network
from swinunetr_jax.training.description import DESCRIPTION
from swinunetr_jax.training.plan.devices import find_target
from swinunetr_jax.training.plan.make import Given, make_plan, shown
from swinunetr_jax.training.plan.plan_file import write_plan
from swinunetr_jax.training.plan.search import Fixed
from swinunetr_jax.training.recipe import Recipe

PLAN = "plan.json"


def plan_of_run(recipe: Recipe, options: Collection[str]) -> Path:
    """Returns the plan of a run, OUT/plan.json, after making it for the devices of this machine. A run that has started keeps its plan.

    Args:
        recipe: the recipe with the options of the command line.
        options: the names of the options of the command line, such as network.feature_size, which the planner keeps as they are.

    Raises:
        InputError: the data set cannot be planned, nothing fits into the memory, or the run has several processes.
    """
    path = recipe.out / PLAN
    if files.exists(recipe.out / DESCRIPTION) and files.exists(path):
        return path
    if processes.is_distributed():
        raise InputError(
            "the recipe makes a plan first, which one process does alone: run `swinunetr plan` once, and give its file to all processes "
            "with --plan."
        )
    assert isinstance(recipe.network, Network)
    names = ("feature_size", "dtype", "use_checkpoint", "use_v2")
    sizes = {name: getattr(recipe.network, name) for name in names if f"network.{name}" in options}
    batch = recipe.batch if "batch" in options else None
    given = Given(recipe.spacing, recipe.orientation, recipe.window, Fixed(recipe.roi, batch, **sizes))
    files.make_folder(recipe.out)
    with Progress("measuring cases", "case") as progress:
        plan = make_plan(recipe, find_target(), given, progress=progress, say=say)
    write_plan(path, plan)
    for line in shown(plan):
        say(literal(line))
    say(literal(f"→ {path}"))
    return path
