"""`python -m train RECIPE [--field value …]`, `python -m train --resume RUN [--field value …]`."""

import dataclasses
import errno
import importlib
import os
import pkgutil
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import jax
from tyro.conf import arg

import train.recipes
from swinunetr_jax import InputError, __version__, console, files
from swinunetr_jax import arguments as command_line
from swinunetr_jax.data.pipeline import SampleError
from swinunetr_jax.files import local_path
from train import processes
from train.config import Phantom, Recipe
from train.folds import train_folds
from train.loop import Stopped
from train.loop import train as train_one
from train.processes import Launch
from train.rerun import earlier_run, finished_note
from train.start import read_recipe

DEFAULT = "phantom"
EXIT_FAULT, EXIT_ERROR, EXIT_LOST, EXIT_INTERRUPTED = 1, 2, 3, 130
LOST = ("Gloo", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "onnection")  # how the runtime tells that one no longer answers


@dataclass(frozen=True)
class Command:
    """A recipe with its options, and which of several processes this one is."""

    recipe: Annotated[Recipe, arg(name="")]
    launch: Annotated[Launch, arg(name="")] = field(default_factory=Launch)


@dataclass(frozen=True)
class PhantomCommand(Command):
    """The same for a recipe that makes its data."""

    phantom: Phantom = field(default_factory=Phantom)


@dataclass(frozen=True)
class Resume:
    """Continue a run where it stopped. --steps or --epochs move its end; the other options change where files are, and no number."""

    resume: Path
    """The run's folder."""
    steps: int | None = None
    """Train to so many steps in all: from here on the learning rate follows the schedule of a run of that length."""
    epochs: int | None = None
    """Train to so many passes over the training cases in all, likewise."""
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
    depth: int | None = None
    """Devices that share each volume."""
    pmap: bool | None = None
    """True or False: whether each device runs a program of its own."""
    launch: Annotated[Launch, arg(name="")] = field(default_factory=Launch)

    def recipe(self) -> Recipe:
        """The run's recipe with these changes. Raises InputError if there is no run, or for two lengths."""
        given = {name: value for name, value in vars(self).items() if name not in ("resume", "launch") and value is not None}
        if "steps" in given and "epochs" in given:
            raise InputError("--steps and --epochs both say how long the run is: give one of them.")
        if "epochs" in given:
            given["steps"] = None
        devices = {name: given.pop(name) for name in ("depth", "pmap") if name in given}
        recipe = read_recipe(local_path(self.resume))
        return dataclasses.replace(recipe, **given, devices=dataclasses.replace(recipe.devices, **devices))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `python -m train`.

    Exit codes: 0 the run is finished (or was before); 1 a fault of the program; 2 bad input, a sample or loss that cannot be used; 3
    another process was lost; 130 and 143 stopped by SIGINT and SIGTERM with the state saved. A stdout that cannot be written ends no run
    and changes no code.
    """
    code, recipe = 0, None
    console.configure_streams()
    try:
        recipe, resume, launch = parse(sys.argv[1:] if arguments is None else arguments)
        _keep_programs()
        processes.join(launch)
        found = "unfinished" if resume else earlier_run(recipe)
        processes.barrier("the folder was looked at")  # before the leader writes into it
        if found == "finished":
            if processes.is_leader():
                console.say(finished_note(recipe.out))
        else:
            if found == "unfinished" and not resume and processes.is_leader():
                console.say(f"{console.literal(recipe.out)} holds an unfinished run of the same options: it continues")
            (train_folds if recipe.fold == "all" else train_one)(recipe, resume=found == "unfinished")
    except (InputError, SampleError) as error:
        code = _say(f"error: {console.literal_lines(error)}", EXIT_ERROR)
    except OSError as error:
        place = console.literal(error.filename or (recipe.out if recipe else "the system"))
        code = _say(f"error: {place}: {error.strerror or error}; check the folder and its free space", EXIT_ERROR)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error):
            code = _say(
                "error: the device's memory does not hold a step: take a smaller --batch or --roi, --optim.accumulate, "
                "--network.use-checkpoint, --network.dtype bfloat16 or, with several devices, --devices.depth (with --resume: --depth)",
                EXIT_ERROR,
            )
        elif processes.several() and any(word in str(error) for word in LOST):
            reason = str(error).strip().partition("\n")[0]
            code = _say(
                f"error: another process of this run was lost ({reason[:200]}); start all of them again with --resume {recipe.out}",
                EXIT_LOST,
            )
        else:
            code = _trace()
    except Stopped as stopped:
        code = _say(
            f"stopped by {stopped}; go on with: python -m train --resume {console.literal(recipe.out)}", 128 + stopped.number
        )
    except KeyboardInterrupt:
        code = _say("interrupted; what was saved is kept", EXIT_INTERRUPTED)
    except Exception:
        code = _trace()
    console.finish()
    processes.leave(code)


def _trace() -> int:
    """What is not the user's to mend. Printed here, for Python's own end would wait for other processes."""
    return _say(traceback.format_exc().rstrip(), EXIT_FAULT)


def _say(text: str, code: int) -> int:
    console.say(text, sys.stderr)
    return code


def parse(arguments: list[str]) -> tuple[Recipe, bool, Launch]:
    """(recipe, whether to go on, which process this is) from the command line. Raises InputError for a value that no run can have."""
    if any(argument.split("=")[0] == "--resume" for argument in arguments):
        _check_resume_options(arguments)
        resume = command_line.parse(Resume, arguments, prog="python -m train")
        recipe = resume.recipe()
        recipe.check()
        return recipe, True, resume.launch
    if "--version" in arguments:
        console.say(f"swinunetr_jax {__version__}")
        sys.exit(0)
    name, rest = (arguments[0], arguments[1:]) if arguments and not arguments[0].startswith("-") else (DEFAULT, arguments)
    known = sorted(module.name for module in pkgutil.iter_modules(train.recipes.__path__))
    if name not in known:
        meant = command_line.closest(name, known)
        hint = f"did you mean {meant}? Else " if meant else ""
        raise InputError(
            f"there is no recipe {console.literal(name)}: {hint}take one of {', '.join(known)}, or write train/recipes/NAME.py."
        )
    module = importlib.import_module(f"train.recipes.{name}")
    about = f"{module.__doc__ or name}\nRecipes: {', '.join(known)}.\npython -m train --resume RUN goes on with a run that was stopped."
    default: Command = Command(module.RECIPE)
    if module.RECIPE.kind == "phantom":
        default = PhantomCommand(module.RECIPE, phantom=module.RECIPE.phantom)
    command = command_line.parse(type(default), rest, prog=f"python -m train {name}", description=about, default=default)
    recipe = dataclasses.replace(command.recipe, name=name)
    if isinstance(command, PhantomCommand):
        recipe = dataclasses.replace(recipe, phantom=command.phantom)
    recipe.check()
    if recipe.kind != "phantom" and recipe.data is None:
        raise InputError(f"the recipe {name} needs a data set: name its folder or list with --data.")
    return recipe, False, command.launch


def _check_resume_options(arguments: list[str]) -> None:
    """Raises InputError for an option that no run that continues may have; it says which ones it may."""
    recipe = [option.names[0] for option in command_line.options(Command, Command(Recipe(kind="labels")))]
    known = [option.names[0] for option in command_line.options(Resume)]
    changing = [name for name in known if name not in ("--resume", "--distributed", "--processes", "--process")]
    for argument in arguments:
        name = argument.split("=")[0].replace("_", "-")
        if name in recipe and name not in known:
            raise InputError(
                f"{name} cannot change in a run that continues, only {', '.join(changing[:-1])} and {changing[-1]} can: leave it out, or "
                "start a new run with another --out."
            )
    if arguments and not arguments[0].startswith("-"):
        raise InputError(f"--resume takes the recipe from the run's folder: leave out {console.literal(arguments[0])}.")


def _keep_programs() -> None:
    """Keeps compiled programs between runs, so that a run that continues does not compile again; says where that is not possible.

    In a container there may be no home: HOME unset and no such user, or a folder that cannot be made.
    """
    if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swinunetr_jax"
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (RuntimeError, OSError) as error:  # RuntimeError: there is no home
        why = files.reason(error).rstrip(".")
        console.say(f"compiled programs are not kept for the next run ({why}): JAX_COMPILATION_CACHE_DIR names a folder for them")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


if __name__ == "__main__":
    main()
