"""Makes the plan of a training run: measures the data, decides, and compiles the training step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swinunetr_jax import InputError, SwinUNETRConfig, Task, __version__
from swinunetr_jax.buckets import shown as shown_path
from swinunetr_jax.data.discovery.cases import Case, Dataset
from swinunetr_jax.training.config import Network
from swinunetr_jax.training.plan.compile import StepCompiler
from swinunetr_jax.training.plan.decisions import (
    Decision,
    Spacing,
    batch_limit,
    decide_spacing,
    decide_window,
    first_crop,
    median_shape,
    notes,
)
from swinunetr_jax.training.plan.devices import Target
from swinunetr_jax.training.plan.fingerprint import Fingerprint
from swinunetr_jax.training.plan.measure import Measured, labelled_cases, measure
from swinunetr_jax.training.plan.memory import StepMemory, settle
from swinunetr_jax.training.plan.plan_file import VERSION, Need, Plan, PlannedOptions
from swinunetr_jax.training.plan.search import Budget, Fixed, Sizes, choose_sizes, gib
from swinunetr_jax.training.prepared import PreparedSource
from swinunetr_jax.training.recipe import Recipe
from swinunetr_jax.training.sources import channel_names, source_of
from swinunetr_jax.training.step import Training

ANCHOR_EDGE = 64  # the largest edge of the crop with which the first step of each network is compiled
TRAINING_SHARE = 0.8  # of the cases: with five folds, four are for training


@dataclass(frozen=True)
class Given:
    """The decisions that the user makes. None leaves a decision to the planner."""

    spacing: Spacing | None = None
    orientation: str | None = None
    window: tuple[float, float] | None = None
    sizes: Fixed = field(default_factory=Fixed)


def make_plan(
    recipe: Recipe,
    target: Target,
    given: Given | None = None,
    *,
    known: Measured | None = None,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Returns the plan of a run of a recipe.

    Args:
        recipe: the recipe, with the data set.
        target: the devices.
        given: the decisions that the user makes.
        known: an earlier measurement, which is used if no file has changed since.
        progress: called with the numbers of cases measured and of all cases.
        say: called with a sentence about each compilation.

    Raises:
        InputError: the data set, the recipe or the memory cannot be used.
    """
    given = given or Given()
    if not isinstance(recipe.network, Network) or recipe.custom_network is not None:
        raise InputError("the recipe has another network, and the planner plans a Swin UNETR: choose another recipe.")
    dataset = _dataset(recipe)
    cases = labelled_cases(dataset)
    orientation = given.orientation or recipe.orientation or "RAS"
    measured = measure(dataset, channels=recipe.channels, orientation=orientation, known=known, progress=progress)
    fingerprint = measured.fingerprint
    spacing, spacing_decision = decide_spacing(fingerprint, given.spacing)
    window, window_decision = decide_window(fingerprint, given.window)
    median = median_shape(fingerprint, spacing)
    task, channels = _task(recipe, dataset, cases)
    _check_labels(dataset, task, fingerprint)
    compiler = StepCompiler(
        _training(recipe, recipe.network, task, channels),
        target,
        channels,
        recipe.devices.spatial_shards,
        keep=not recipe.functions().keys() - {"augment", "transforms"},  # these are not part of the step
        say=say,
    )
    budget = Budget(
        limit=target.limit,
        groups=max(len(target.devices) // recipe.devices.spatial_shards, 1),
        parts=recipe.optim.accumulate,
        on_cpu=target.platform == "cpu",
    )
    first = given.sizes.roi or first_crop(median, spacing)
    anchor = min(first[0], ANCHOR_EDGE), min(first[1], ANCHOR_EDGE), min(first[2], ANCHOR_EDGE)
    memory = StepMemory(compiler, (anchor, budget.least_batch))

    def choose(memory: StepMemory) -> Sizes:
        return choose_sizes(memory, budget, median, first, lambda crop: batch_limit(fingerprint, median, crop), fixed=given.sizes)

    sizes = settle(choose, memory, target.limit, confirm_all=target.platform == "tpu")
    orientation_decision = Decision(
        "orientation", orientation, "all scans are reoriented to it, since voxel sizes refer to its axes", "as stored"
    )
    step_bytes = memory.compiled[sizes.step]
    steps = recipe.steps or -(-recipe.epochs * round(TRAINING_SHARE * len(cases)) // sizes.batch)
    return Plan(
        version=VERSION,
        swinunetr_jax=__version__,
        data=str(recipe.data),
        recipe=str(recipe.file.path) if recipe.file else recipe.name,
        options=PlannedOptions(sizes.step.roi, sizes.batch, spacing, orientation, window, sizes.step.network),
        decisions=(orientation_decision, spacing_decision, window_decision, *sizes.decisions),
        notes=tuple(notes(fingerprint, spacing, sizes.step.roi)),
        need=Need(
            device=target.kind,
            count=len(target.devices),
            limit_bytes=target.limit,
            step_bytes=step_bytes.total,
            seconds=step_bytes.seconds,
            hours=None if step_bytes.seconds is None else steps * step_bytes.seconds / 3600,
        ),
        digest=fingerprint.digest,
        fingerprint=fingerprint,
        sources=measured.sources,
    )


def _dataset(recipe: Recipe) -> Dataset:
    source = source_of(recipe)
    if source.is_synthetic:
        raise InputError(
            f"the recipe {recipe.name} makes its own data, which needs no plan: choose another --recipe, such as msd."
        )
    if isinstance(source, PreparedSource):
        raise InputError(
            f"{shown_path(source.path)} holds prepared cases, and a plan is made from the scans: `swinunetr plan DATA` plans for the data "
            "set, `swinunetr prepare DATA PLACE --plan plan.json` prepares it, and `swinunetr train --data PLACE --plan plan.json` trains."
        )
    return source.dataset(recipe, Path())


def _task(recipe: Recipe, dataset: Dataset, cases: list[Case]) -> tuple[Task, int]:
    """Returns the task of the run and the number of its channels. Of the task, only the outputs affect the memory of a step."""
    names, count = channel_names(dataset, cases, recipe.channels)
    fields: dict[str, Any] = {"channels": names}
    return source_of(recipe).task(dataset, cases, fields), count


def _check_labels(dataset: Dataset, task: Task, fingerprint: Fingerprint) -> None:
    """Raises InputError if a label of the task occurs in no case, or if none of the labels of a region does."""
    present = {0}.union(*(case.voxels for case in fingerprint.cases))
    missing = [output for output in task.outputs if present.isdisjoint(output.members or (output.value,))]
    if missing:
        listed = ", ".join(f"{output.name} ({', '.join(map(str, output.members or (output.value,)))})" for output in missing)
        raise InputError(
            f"{dataset.root}: some labels occur in no case: {listed}; correct the label maps, or remove these "
            "labels from the data set's list of labels."
        )


def _training(recipe: Recipe, network: Network, task: Task, channels: int) -> Training:
    """Returns the run whose step is compiled. The number of steps and the seed have no effect on the memory."""
    config = network.config(channels, len(task.outputs))
    assert isinstance(config, SwinUNETRConfig)
    return Training(
        config, task, recipe.loss, recipe.optim, 1000, 0, objective=recipe.objective_factory, optimizer=recipe.optimizer
    )


def shown(plan: Plan) -> list[str]:
    """Returns the plan as lines of text: each decision with its reason and the runner-up, the notes, and what a step needs."""
    lines = []
    for decision in plan.decisions:
        value = decision.value
        text = " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
        lines += [f"{decision.name}: {text}", f"    {decision.reason}", f"    runner-up: {decision.runner_up}"]
    need = plan.need
    hours = "" if need.hours is None else f", {need.hours:.1f} h for the whole run"
    if hours and "tpu" in need.device.lower():
        hours += " by the compiler's estimate, which is too low for a step of more than a second"
    device = f"{need.count} × {need.device}"
    return [
        *lines,
        *(f"note: {note}" for note in plan.notes),
        f"a step needs {gib(need.step_bytes)} of {gib(need.limit_bytes)} on {device}{hours}",
    ]


def recipe_text(plan: Plan, file: str) -> str:
    """Returns the text of a recipe file that uses the options of a plan. The file has to be in the same folder as the plan.

    Args:
        plan: the plan.
        file: the name of the plan's file.
    """
    if plan.recipe.endswith(".py"):
        imported, base = "from swinunetr_jax.training import load_recipe", f"load_recipe({plan.recipe!r})"
    else:
        imported, base = f"from swinunetr_jax.training.recipes.{plan.recipe} import RECIPE as BASE", "BASE"
    lines = [f'"""The recipe {plan.recipe} with the options of {file}."""', "", "from dataclasses import replace"]
    lines += ["from pathlib import Path", "", imported, "", f"RECIPE = replace({base}, plan=Path(__file__).with_name({file!r}))"]
    return "\n".join([*lines, ""])
