"""plan.json: the planned options with their reasons, and the fingerprint of the data set that they are for."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from swinunetr_jax import InputError, files
from swinunetr_jax.buckets import shown
from swinunetr_jax.buckets.fetch import optional_file
from swinunetr_jax.console import Progress
from swinunetr_jax.data.discovery.cases import Dataset
from swinunetr_jax.training import processes
from swinunetr_jax.training.options import Options
from swinunetr_jax.training.plan.decisions import Decision, Roi, Spacing
from swinunetr_jax.training.plan.fingerprint import Fingerprint
from swinunetr_jax.training.plan.measure import Measured, Sources, measure
from swinunetr_jax.training.plan.search import NetworkSize

VERSION: Literal[1] = 1
_REMEDY = "make the plan again with `swinunetr plan`"


@dataclass(frozen=True)
class PlannedOptions:
    """The options of the trainer that a plan sets."""

    roi: Roi
    batch: int
    spacing: Spacing
    orientation: str
    window: tuple[float, float] | None
    network: NetworkSize


@dataclass(frozen=True)
class Need:
    """The device that a plan is for, and what its training step needs there.

    Attributes:
        device: the kind of device.
        count: the number of devices.
        limit_bytes: the bytes that a step may need on a device.
        step_bytes: the bytes that the compiled step needs.
        seconds: the seconds of a step, or None if they are not known.
        hours: the hours of all steps, or None.
    """

    device: str
    count: int
    limit_bytes: float
    step_bytes: float
    seconds: float | None
    hours: float | None


@dataclass(frozen=True)
class Plan:
    """The content of plan.json.

    Attributes:
        version: the version of the format.
        swinunetr_jax: the version of this project that made the plan.
        data: the data set.
        recipe: the recipe that the plan changes: a name or a file.
        options: the planned options.
        decisions: every decision with its reason and the runner-up.
        notes: sentences about the data.
        need: the device and the memory.
        digest: the digest of the fingerprint.
        fingerprint: the facts of the data set.
        sources: the files that were measured, so that they are not read again while they are unchanged.
    """

    version: Literal[1]
    swinunetr_jax: str
    data: str
    recipe: str
    options: PlannedOptions
    decisions: tuple[Decision, ...]
    notes: tuple[str, ...]
    need: Need
    digest: str
    fingerprint: Fingerprint
    sources: Sources

    @property
    def measured(self) -> Measured:
        """The fingerprint with its files."""
        return Measured(self.fingerprint, self.sources)


def write_plan(path: Path, plan: Plan) -> None:
    """Writes plan.json atomically. Raises InputError if this is not possible."""
    try:
        files.write_json(path, dataclasses.asdict(plan))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({files.reason(error)}); give another file with --out.") from error


def read_plan(path: Path) -> Plan:
    """Returns the plan in a file, or at an address in a bucket.

    Raises:
        InputError: the file does not exist or is damaged, for example because its fingerprint does not have its digest.
    """
    try:
        plan = files.read_json(optional_file(path) or path, Plan, _REMEDY)
    except FileNotFoundError as error:
        raise InputError(f"{shown(path)} does not exist: {_REMEDY}, or give another --plan.") from error
    if plan.fingerprint.digest != plan.digest:
        raise InputError(f"{path} is damaged (its fingerprint has another digest): {_REMEDY}.")
    return plan


def apply_plan(options: Options, plan: Plan, path: Path) -> Options:
    """Returns the options with those of a plan.

    Args:
        options: the options of a recipe.
        plan: the plan.
        path: its file, which the options name.
    """
    planned = plan.options
    network = dataclasses.replace(options.network, **vars(planned.network))
    changed: dict[str, Any] = {name: getattr(planned, name) for name in ("roi", "batch", "spacing", "orientation", "window")}
    return dataclasses.replace(options, **changed, network=network, plan=path)


def check_plan(path: Path, dataset: Dataset, channels: tuple[str, ...]) -> None:
    """Raises InputError unless a plan was made for this data set. Files that have not changed since are not read again.

    Args:
        path: the file of the plan.
        dataset: the data set of a run.
        channels: the names of the input channels, by default those of the data set.
    """
    plan = read_plan(path)
    with Progress("comparing the data set with the plan", "case", silent=not processes.is_leader()) as progress:
        measured = measure(
            dataset, channels=channels, orientation=plan.fingerprint.orientation, known=plan.measured, progress=progress
        )
    if measured.fingerprint.digest != plan.digest:
        raise InputError(
            f"{shown(path)} was made for another data set than {dataset.root} ({plan.data}, {len(plan.fingerprint.cases)} cases; now "
            f"{len(measured.fingerprint.cases)}): {_REMEDY} {dataset.root}."
        )
