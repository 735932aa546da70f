"""RUN/run.json: the description of a run, from which it is resumed and evaluated."""

import dataclasses
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar

from swinunetr_jax import InputError, Task, files
from swinunetr_jax.model.custom import CustomNetwork
from swinunetr_jax.training.options import Options
from swinunetr_jax.training.recipe import Recipe, RecipeFile, load_recipe
from swinunetr_jax.weights.params import NetworkConfig, read_config

DESCRIPTION = "run.json"
RECIPE_TEXT = "recipe.py"  # the text of the recipe's file when the run started, which is compared and never executed
_REMEDY = "restore it, or start a new run with another --out"


class Part(TypedDict):
    """One start or resumption of a run: the versions and the device, the number of steps, and the options that changed."""

    after_step: int
    versions: dict[str, str]
    device: str
    steps: NotRequired[int]
    changes: NotRequired[dict[str, Any]]  # dotted option: [before, now]


class Head(TypedDict):
    """The fields of every run.json. The run.json of a cross-validation has only these, including `folds`.

    `recipe_file` is the path of the recipe, unless the recipe is one of the trainer's own.
    """

    recipe: dict[str, Any]
    folds: NotRequired[list[int]]
    recipe_file: NotRequired[str]


class Description(Head):
    """The run.json of one network."""

    cases: dict[str, list[str]]
    task: dict[str, Any]
    network: dict[str, Any]
    steps: int
    convention: str
    parts: list[Part]


D = TypeVar("D", bound=Head)


def read_description(folder: Path, kind: type[D] = Description) -> D:
    """Returns RUN/run.json with the fields of `kind`. Raises InputError if it does not exist or does not hold them."""
    path = folder / DESCRIPTION
    if not files.exists(path):
        raise InputError(f"{folder} holds no run, because it has no {DESCRIPTION}: give the --out folder of a run.")
    return files.read_json(path, kind, _REMEDY)


def write_description(folder: Path, values: Head, file: RecipeFile | None = None) -> None:
    """Writes RUN/run.json atomically and, if it does not exist yet, the text of the recipe's file. Raises OSError, which names the file."""
    if file is not None:
        values["recipe_file"] = str(file.path)
        if not files.exists(folder / RECIPE_TEXT):
            files.write_text(folder / RECIPE_TEXT, file.text)
    files.write_json(folder / DESCRIPTION, values)


def stored_options(folder: Path, description: Head) -> Options:
    """Returns the options in a description. Raises InputError if they are damaged."""
    try:
        return Options.from_dict(description["recipe"])
    except InputError as error:
        raise InputError(f"{folder / DESCRIPTION}: {str(error).rstrip('.')}: {_REMEDY}.") from error


def stored_network(folder: Path, description: Description, network: CustomNetwork | None = None) -> NetworkConfig:
    """Returns the configuration of the network in a description. Raises InputError if it is damaged."""
    try:
        return read_config(description["network"], network)
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"{folder / DESCRIPTION} describes no network ({str(error).rstrip('.')}): {_REMEDY}.") from error


def stored_task(folder: Path, description: Description) -> Task:
    """Returns the task in a description. Raises InputError if it is damaged."""
    try:
        return Task.from_dict(description["task"])
    except InputError as error:
        raise InputError(f"{folder / DESCRIPTION} describes no task ({str(error).rstrip('.')}): {_REMEDY}.") from error


def read_options(folder: Path) -> Options:
    """Returns the options of the run in a folder, which may have been moved. Raises InputError if there is none."""
    return dataclasses.replace(stored_options(folder, read_description(folder, Head)), out=folder)


def read_recipe(folder: Path, file: Path | None = None) -> Recipe:
    """Returns the recipe of the run in a folder: its options, and the functions of the recipe's file if it has one.

    Args:
        folder: the folder of the run.
        file: the recipe's file, by default where it was when the run started.

    Raises:
        InputError: there is no run, or the recipe's file no longer exists or cannot be used.
    """
    options, stored = read_options(folder), read_description(folder, Head).get("recipe_file")
    if stored is None:
        if file is not None:
            raise InputError(
                f"{folder} holds a run of the recipe {options.name or options.kind}, which has no file: leave out --recipe."
            )
        return Recipe(**vars(options))
    path = _stored_file(Path(stored)) if file is None else file
    if not files.exists(path):
        raise InputError(
            f"{folder} was started with the recipe {path}, which does not exist any more: name the file with --recipe. Its text at the "
            f"start of the run is in {folder / RECIPE_TEXT}, which is only compared with the file and not executed."
        )
    return load_recipe(path).with_options(options)


def _stored_file(path: Path) -> Path:
    """Returns the path of a recipe's file, or of this installation's recipe if the file was the same recipe in another installation."""
    shipped = Path(__file__).parent / "recipes" / path.name
    was_shipped = path.parent.name == shipped.parent.name and path.parent.parent.name in ("training", "train")
    return shipped if was_shipped and not files.exists(path) and files.exists(shipped) else path
