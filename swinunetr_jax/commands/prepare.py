"""`swinunetr prepare`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from swinunetr_jax import console, files
from swinunetr_jax.buckets import MAY_BE_ADDRESS
from swinunetr_jax.errors import InputError

if TYPE_CHECKING:
    from swinunetr_jax.training.recipe import Recipe

PHANTOM = "phantom"


@dataclass(frozen=True)
class PhantomOptions:
    """The synthetic heads, if DATA is the word phantom."""

    cases: int | None = None
    """Number of heads, by default 20."""
    size: tuple[int, int, int] | None = None
    """Voxels per axis, by default 96 96 64."""
    seed: int | None = None
    """Seed of the heads and their tumours, by default 0."""


@dataclass
class Prepare:
    """Prepare a data set once, into a folder or a bucket, so that trainings with --data PLACE need no scans.

    A training with the same recipe and options has the same samples as one that reads the scans. If the command is interrupted, giving it
    again continues it, and several machines on which the same command is given share the work. Cases are uploaded one by one, so that the
    data set may be larger than the disk."""

    data: Annotated[Positional[Path], arg(metavar="DATA", help_behavior_hint="")]
    """The data set, in any layout that `swinunetr predict` reads; or the word phantom for synthetic heads."""
    place: Annotated[Positional[Path], arg(metavar="PLACE", help_behavior_hint=""), MAY_BE_ADDRESS]
    """The folder, or the address in a bucket, such as gs://bucket/data or s3://bucket/data."""
    recipe: str | None = None
    """The recipe of the training: a built-in one or a Python file, by default msd. It also gives the defaults of the following options."""
    plan: Annotated[Path | None, MAY_BE_ADDRESS] = None
    """The file of `swinunetr plan`, whose orientation, voxel size and intensities are used."""
    orientation: str | None = None
    """Orientation that scans are brought to, such as RAS."""
    spacing: tuple[float, float, float] | None = None
    """Voxel size in mm that scans are resampled to."""
    window: tuple[float, float] | None = None
    """Intensities that become 0 and 1, for CT."""
    channels: tuple[str, ...] = ()
    """Input channels by name."""
    cache_dtype: Literal["float32", "float16"] | None = None
    """Type of the prepared scans; float16 takes half the space."""
    base: Path | None = None
    """Folder that the paths of a dataset.json or datalist are relative to, by default the folder of that file."""
    phantom: PhantomOptions = field(default_factory=PhantomOptions)

    def run(self) -> int:
        from swinunetr_jax.training.prepare import prepare

        name, recipe = self._recipe()
        prepare(recipe, self.place)
        console.say(f"train with it:  {self._training(name)}")
        return 0

    def _recipe(self) -> tuple[str, Recipe]:
        """Returns the recipe with the options of this command, and its name. Raises InputError if they do not fit each other."""
        from swinunetr_jax.training.command import find_recipe
        from swinunetr_jax.training.plan.plan_file import read_plan

        makes_scans = str(self.data) == PHANTOM and self.recipe in (None, PHANTOM) and not files.exists(self.data)
        name = self.recipe or (PHANTOM if makes_scans else "msd")
        recipe, _ = find_recipe(name)
        changes: dict[str, Any] = {"data": None if makes_scans else self.data}
        plan = self.plan or recipe.plan
        if plan is not None:
            options = read_plan(plan).options
            changes |= {"spacing": options.spacing, "orientation": options.orientation, "window": options.window}
        given = {option: getattr(self, option) for option in ("orientation", "spacing", "window", "cache_dtype", "base")}
        changes |= {option: value for option, value in given.items() if value is not None}
        if self.channels:
            changes["channels"] = self.channels
        phantom = {option: value for option, value in vars(self.phantom).items() if value is not None}
        if phantom and recipe.kind != "phantom":
            raise InputError(
                f"--phantom.{next(iter(phantom))} is for the synthetic heads, and {self.data} is a data set: leave it out."
            )
        return name, replace(recipe, **changes, phantom=replace(recipe.phantom, **phantom))

    def _training(self, name: str) -> str:
        """Returns the command that trains on the prepared cases, quoted for a shell."""
        from swinunetr_jax.buckets import shown
        from swinunetr_jax.training.prepared import option_words

        given: dict[str, Any] = {"plan": None if self.plan is None else str(self.plan)}
        given |= {option: getattr(self, option) for option in ("orientation", "spacing", "window", "channels", "cache_dtype")}
        given |= {f"phantom.{option}": value for option, value in vars(self.phantom).items()}
        values = {option: list(value) if isinstance(value, tuple) else value for option, value in given.items() if value}
        words = ["swinunetr", "train", name, "--data", shown(self.place), *option_words(values)]
        return " ".join(shlex.quote(console.literal(word)) for word in words)
