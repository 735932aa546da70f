"""`python -m train RECIPE [--field value …]`, `python -m train --resume RUN`."""

import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Annotated

import tyro

DEFAULT = "phantom"
EXIT_ERROR, EXIT_INTERRUPTED = 2, 130


def main(arguments: list[str] | None = None) -> None:
    """0 finished, 2 bad input or a loss that is not finite, 130 and 143 stopped by SIGINT and SIGTERM with the state saved."""
    arguments = sys.argv[1:] if arguments is None else arguments
    from swinunetr_jax import InputError
    from train.loop import Stopped

    code = 0
    try:
        recipe, resume = parse(arguments)
        _keep_programs()
        from train.folds import train_folds
        from train.loop import train

        (train_folds if recipe.fold == "all" else train)(recipe, resume=resume)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_ERROR
    except Stopped as stopped:
        print(f"stopped by {stopped}; go on with: python -m train --resume {recipe.out}", file=sys.stderr)
        code = 128 + stopped.number
    except KeyboardInterrupt:
        print("interrupted; the last saved state is kept", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.exit(code)


def parse(arguments: list[str]):
    """(recipe, whether to go on) from the command line."""
    from swinunetr_jax import InputError
    from train.loop import read_recipe

    if "--resume" in arguments:
        folder = tyro.cli(_resume, args=arguments, prog="python -m train")
        return read_recipe(folder), True
    name, rest = (arguments[0], arguments[1:]) if arguments and not arguments[0].startswith("-") else (DEFAULT, arguments)
    known = recipes()
    if name not in known:
        raise InputError(f"there is no recipe {name!r}: take one of {', '.join(known)}, or write train/recipes/{name}.py.")
    module = importlib.import_module(f"train.recipes.{name}")
    listing = "".join(f"\n  {other:<9} {line}" for other, line in known.items())
    about = f"{module.__doc__}\nRecipes:{listing}\n\npython -m train --resume RUN goes on with a run that was stopped."
    recipe = tyro.cli(type(module.RECIPE), default=module.RECIPE, args=rest, prog=f"python -m train {name}", description=about)
    recipe.check()
    return recipe, False


def recipes() -> dict[str, str]:
    """The recipes by name, each with the first line of its description."""
    import train.recipes

    names = sorted(module.name for module in pkgutil.iter_modules(train.recipes.__path__))
    return {name: importlib.import_module(f"train.recipes.{name}").__doc__.splitlines()[0] for name in names}


def _resume(resume: Annotated[Path, tyro.conf.arg(metavar="RUN")]) -> Path:
    """Go on with a run where it stopped.

    Args:
        resume: The run's folder.
    """
    return resume


def _keep_programs() -> None:
    """Compiled programs are kept between runs, so that going on does not compile again."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "swinunetr_jax"))


if __name__ == "__main__":
    main()
