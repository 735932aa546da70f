"""`python -m train RECIPE [--field value …]`, `python -m train --resume RUN [--field value …]`."""

import dataclasses
import importlib
import pkgutil
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro

import train.recipes
from swinunetr_jax import InputError
from swinunetr_jax.data.pipeline import SampleError
from train.config import Recipe
from train.folds import train_folds
from train.loop import Stopped
from train.loop import train as train_one
from train.start import read_recipe

DEFAULT = "phantom"
EXIT_ERROR, EXIT_INTERRUPTED = 2, 130


@dataclass(frozen=True)
class Resume:
    """Go on with a run where it stopped; what is given beside it changes where things lie, and no number."""

    resume: Path
    """The run's folder."""
    data: Path | None = None
    """Where the data set is now."""
    cache: Path | None = None
    """Where prepared cases are now."""
    workers: int | None = None
    """Processes that read and augment."""
    keep: int | None = None
    """Saved states to keep."""
    save_every: int | None = None
    """Steps between saved states."""

    def recipe(self) -> Recipe:
        given = {name: value for name, value in vars(self).items() if name != "resume" and value is not None}
        return dataclasses.replace(read_recipe(self.resume), **given)


def main(arguments: list[str] | None = None) -> None:
    """0 finished; 2 bad input, a sample or loss that cannot be used; 130 and 143 stopped by SIGINT and SIGTERM with the state saved."""
    code, recipe = 0, None
    try:
        recipe, resume = parse(sys.argv[1:] if arguments is None else arguments)
        _keep_programs()
        (train_folds if recipe.fold == "all" else train_one)(recipe, resume=resume)
    except (InputError, SampleError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_ERROR
    except OSError as error:
        print(
            f"error: {error.filename or recipe.out}: {error.strerror or error}; check the folder and its free space",
            file=sys.stderr,
        )
        code = EXIT_ERROR
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        print(
            "error: the device's memory does not hold a step: take a smaller --batch or --roi, --optim.accumulate, "
            "--network.use-checkpoint or --network.dtype bfloat16",
            file=sys.stderr,
        )
        code = EXIT_ERROR
    except Stopped as stopped:
        print(f"stopped by {stopped}; go on with: python -m train --resume {recipe.out}", file=sys.stderr)
        code = 128 + stopped.number
    except KeyboardInterrupt:
        print("interrupted; what was saved is kept", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.exit(code)


def parse(arguments: list[str]) -> tuple[Recipe, bool]:
    """(recipe, whether to go on) from the command line. Raises InputError for a value that no run can have."""
    if any(argument.split("=")[0] == "--resume" for argument in arguments):
        recipe = tyro.cli(Resume, args=arguments, prog="python -m train").recipe()
        recipe.check()
        return recipe, True
    name, rest = (arguments[0], arguments[1:]) if arguments and not arguments[0].startswith("-") else (DEFAULT, arguments)
    known = sorted(module.name for module in pkgutil.iter_modules(train.recipes.__path__))
    if name not in known:
        raise InputError(f"there is no recipe {name!r}: take one of {', '.join(known)}, or write train/recipes/{name}.py.")
    module = importlib.import_module(f"train.recipes.{name}")
    about = f"{module.__doc__ or name}\nRecipes: {', '.join(known)}.\npython -m train --resume RUN goes on with a run that was stopped."
    recipe = tyro.cli(Recipe, default=module.RECIPE, args=rest, prog=f"python -m train {name}", description=about)
    recipe.check()
    return recipe, False


def _keep_programs() -> None:
    """Compiled programs are kept between runs, so that going on does not compile again."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "swinunetr_jax"))


if __name__ == "__main__":
    main()
