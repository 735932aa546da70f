"""Resuming a run: the options that may change, and the comparison of everything else with the stored run."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from swinunetr_jax import InputError, Task, files
from swinunetr_jax.buckets import MAY_BE_ADDRESS, is_address, scratch_folder
from swinunetr_jax.files import local_path
from swinunetr_jax.output import Output
from swinunetr_jax.training.bucket_store import pull
from swinunetr_jax.training.config import Devices
from swinunetr_jax.training.description import RECIPE_TEXT, Head, read_recipe, stored_options
from swinunetr_jax.training.options import flatten
from swinunetr_jax.training.places import cache_of
from swinunetr_jax.training.prepared import is_prepared
from swinunetr_jax.training.processes import Launch
from swinunetr_jax.training.recipe import Recipe


@dataclass(frozen=True)
class Resume:
    """Continue a run where it stopped. --steps or --epochs change its length; other options change its results at most by rounding."""

    resume: Annotated[Path, MAY_BE_ADDRESS]
    """The folder of the run, or its address in a bucket."""
    steps: int | None = None
    """Train to this number of steps in all; from here on the learning rate follows the schedule of a run of that length."""
    epochs: int | None = None
    """Train to this number of passes over the training cases in all, with the schedule of such a run."""
    data: Annotated[Path | None, MAY_BE_ADDRESS] = None
    """The path of the data set, if it has moved."""
    cache: Annotated[Path | None, MAY_BE_ADDRESS] = None
    """The path of the prepared cases, if they have moved."""
    workers: int | None = None
    """Processes that read and augment."""
    keep: int | None = None
    """Saved states to keep."""
    save_every: int | None = None
    """Steps between saved states."""
    save_minutes: float | None = None
    """Minutes between saved states."""
    profile: tuple[int, int] | None = None
    """STEP COUNT: write a trace of COUNT steps after step STEP for xprof into RUN/profile."""
    watchdog_minutes: float | None = None
    """Minutes without progress after which a process ends; 0 means never."""
    spatial_shards: int | None = None
    """Number of devices that share each volume."""
    pmap: bool | None = None
    """True or False: whether each device runs a separate program."""
    recipe: Path | None = None
    """The path of the recipe's file, if it has moved. The file is executed."""
    launch: Annotated[Launch, arg(name="")] = field(default_factory=Launch)

    def changed_recipe(self) -> Recipe:
        """Returns the run's recipe with these changes. Raises InputError if there is no run, or if both steps and epochs are given."""
        given = {name: getattr(self, name) for name in CHANGEABLE if getattr(self, name) is not None}
        if "steps" in given and "epochs" in given:
            raise InputError("--steps and --epochs both state the length of the run: give one of them.")
        if "epochs" in given:
            given["steps"] = None
        devices = {name: given.pop(name) for name in _DEVICES & given.keys()}
        folder = scratch_folder(self.resume, shared=False) if is_address(self.resume) else local_path(self.resume)
        pull(folder)
        recipe = read_recipe(folder, self.recipe)
        return dataclasses.replace(recipe, **given, devices=dataclasses.replace(recipe.devices, **devices))


# Names of the options that may change when a run is resumed. Those other than its length change its results only by rounding errors.
CHANGEABLE = tuple(f.name for f in dataclasses.fields(Resume) if f.name not in ("resume", "recipe", "launch"))
LENGTH = ("steps", "epochs")
_DEVICES = {f.name for f in dataclasses.fields(Devices)}
_PLACES = ("base", "splits", "plan", "out")  # these move with the data set and with the run
_OBSERVERS = ("tracker",)  # these receive the numbers and do not change them
# All options that may change, except for the length, by their dotted names.
FREE = (*_PLACES, *_OBSERVERS, *(f"devices.{name}" if name in _DEVICES else name for name in CHANGEABLE if name not in LENGTH))


def changed_options(folder: Path, description: Head, recipe: Recipe, *, free: Collection[str]) -> dict[str, list[Any]]:
    """Returns the options that differ from those of the run in a folder: dotted name -> [before, now].

    Raises:
        InputError: one of them is not in `free`; the message states which options may change.
    """
    stored, now = flatten(stored_options(folder, description).to_dict()), flatten(recipe.to_dict())
    changes = {name: [stored[name], now[name]] for name in now if stored[name] != now[name] and name != "out"}
    refused = [f"{name} was {before} and is {new}" for name, (before, new) in changes.items() if name not in free]
    if refused:
        listed = "; ".join(refused[:4]) + (f"; and {len(refused) - 4} more" if len(refused) > 4 else "")
        *names, last = (f"--{name.replace('_', '-')}" for name in CHANGEABLE)
        raise InputError(
            f"{folder} holds a run with other options ({listed}): give the same ones, or choose another --out; --resume {folder} continues "
            f"the run with its own options, of which {', '.join(names)} and {last} may change."
        )
    return changes


def changed_recipe_file(folder: Path, description: Head, recipe: Recipe) -> list[str]:
    """Returns sentences on how the recipe's file differs from that of the run in a folder.

    Raises:
        InputError: only one of the two recipes has a file.
    """
    stored = description.get("recipe_file")
    if (stored is None) != (recipe.file is None):
        before, now = ("none", str(recipe.file.path)) if recipe.file else (stored, "none")
        raise InputError(
            f"{folder} holds a run with another recipe file ({before}, now {now}): give the same one, or choose another --out."
        )
    if recipe.file is None:
        return []
    try:
        stored_text = (folder / RECIPE_TEXT).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return [
            f"{folder / RECIPE_TEXT} cannot be read, so it is not known whether {recipe.file.path} has changed since the run started."
        ]
    if stored_text == recipe.file.text:
        return []
    return [
        f"{recipe.file.path} has changed since the run started; the run continues with the file as it is now, and the text at its start is "
        f"in {folder / RECIPE_TEXT}."
    ]


def check_same_task(folder: Path, stored: Task, task: Task) -> None:
    """Raises InputError unless the data set defines the task that the run in a folder was trained for.

    The window size is not compared: it is fitted to the same cases, but another version of this project may choose another size.
    """
    names = [f.name for f in dataclasses.fields(Task) if f.compare and f.name != "roi"]
    differing = [name for name in names if getattr(stored, name) != getattr(task, name)]
    if differing:
        listed = "; ".join(
            f"`{name}` was {_shown(getattr(stored, name))} and is {_shown(getattr(task, name))}" for name in differing[:2]
        )
        raise InputError(
            f"{folder} was trained for another task than the data set defines now ({listed}): restore the data set, or start a new run "
            "with another --out."
        )


def missing_cache(folder: Path, recipe: Recipe) -> str | None:
    """Returns a sentence if the folder of a resumed run's prepared cases does not exist, and None if it does."""
    cache = cache_of(recipe, folder)
    if is_prepared(recipe.data) or is_address(cache) or files.is_folder(cache):  # a bucket has no empty folders
        return None
    return f"the run's prepared cases are not in {cache} any more, so all cases are prepared again; --cache names the folder they are in."


def _shown(value: Any) -> str:
    """Returns a value of a task as short text."""
    if isinstance(value, tuple) and all(isinstance(item, Output) for item in value):
        value = ", ".join(f"{item.name} ({', '.join(map(str, item.members or (item.value,)))})" for item in value)
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
