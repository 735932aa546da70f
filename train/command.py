"""`swinunetr train RECIPE [--field value …]`, `swinunetr train --resume RUN [--field value …]`; in a clone also `python -m train`."""

import ast
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

from swinunetr_jax import InputError, __version__, console, files
from swinunetr_jax import arguments as command_line
from swinunetr_jax.data.pipeline import SampleError
from swinunetr_jax.files import local_path
from swinunetr_jax.training import processes, recipes
from swinunetr_jax.training.config import Options, Phantom
from swinunetr_jax.training.folds import train_folds
from swinunetr_jax.training.loop import Stopped
from swinunetr_jax.training.loop import train as train_one
from swinunetr_jax.training.processes import Launch
from swinunetr_jax.training.recipe import Recipe, load_recipe
from swinunetr_jax.training.rerun import earlier_run, finished_note
from swinunetr_jax.training.start import read_recipe

DEFAULT = "phantom"
EXIT_FAULT, EXIT_ERROR, EXIT_LOST, EXIT_INTERRUPTED = 1, 2, 3, 130
LOST = ("Gloo", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "onnection")  # how the runtime tells that one no longer answers


@dataclass(frozen=True)
class Command:
    """A recipe with its options, and which of several processes this one is."""

    recipe: Annotated[Options, arg(name="")]
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
    recipe: Path | None = None
    """Where the recipe's file is now, for a run that was started with one; it is executed."""
    launch: Annotated[Launch, arg(name="")] = field(default_factory=Launch)

    def changed_recipe(self) -> Recipe:
        """The run's recipe with these changes. Raises InputError if there is no run, or for two lengths."""
        apart = ("resume", "recipe", "launch")
        given = {name: value for name, value in vars(self).items() if name not in apart and value is not None}
        if "steps" in given and "epochs" in given:
            raise InputError("--steps and --epochs both say how long the run is: give one of them.")
        if "epochs" in given:
            given["steps"] = None
        devices = {name: given.pop(name) for name in ("depth", "pmap") if name in given}
        recipe = read_recipe(local_path(self.resume), self.recipe)
        return dataclasses.replace(recipe, **given, devices=dataclasses.replace(recipe.devices, **devices))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of `swinunetr train` and `python -m train`.

    Exit codes: 0 the run is finished (or was before); 1 a fault of the program; 2 bad input, a sample or loss that cannot be used; 3
    another process was lost; 130 and 143 stopped by SIGINT and SIGTERM with the state saved. A stdout that cannot be written ends no run
    and changes no code.
    """
    code, recipe = 0, None
    console.configure_streams()
    try:
        recipe, resume, launch = parse(sys.argv[1:] if arguments is None else arguments)
        _keep_programs()
        processes.initialize(launch)
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
        elif processes.is_distributed() and any(word in str(error) for word in LOST):
            reason = str(error).strip().partition("\n")[0]
            code = _say(
                f"error: another process of this run was lost ({reason[:200]}); start all of them again with --resume {recipe.out}",
                EXIT_LOST,
            )
        else:
            code = _trace()
    except Stopped as stopped:
        code = _say(
            f"stopped by {stopped}; go on with: {_program()} --resume {console.literal(recipe.out)}", 128 + stopped.number
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
    """(recipe, whether to continue its run, which process this is) from the command line.

    Raises:
        InputError: there is no such recipe, or an option has a value that no run can have.
    """
    if any(argument.split("=")[0] == "--resume" for argument in arguments):
        _check_resume_options(arguments)
        resume = command_line.parse(Resume, arguments, prog=_program())
        recipe = resume.changed_recipe()
        recipe.check()
        return recipe, True, resume.launch
    if "--version" in arguments:
        console.say(f"swinunetr_jax {__version__}")
        sys.exit(0)
    name, rest = (arguments[0], arguments[1:]) if arguments and not arguments[0].startswith("-") else (DEFAULT, arguments)
    base, about = _recipe(name)
    options = base.options()
    default: Command = Command(options)
    if base.kind == "phantom":
        default = PhantomCommand(options, phantom=options.phantom)
    known = f"Recipes: {', '.join(_shipped())}, or any Python file that defines RECIPE."
    about = f"{about}\n{known}\n{_program()} --resume RUN continues a run that was stopped."
    command = command_line.parse(type(default), rest, prog=f"{_program()} {name}", description=about, default=default)
    changed = dataclasses.replace(command.recipe, name=base.name)
    if isinstance(command, PhantomCommand):
        changed = dataclasses.replace(changed, phantom=command.phantom)
    recipe = base.with_options(changed)
    recipe.check()
    if recipe.kind != "phantom" and recipe.data is None:
        raise InputError(f"the recipe {name} needs a data set: name its folder or list with --data.")
    return recipe, False, command.launch


def _recipe(name: str) -> tuple[Recipe, str]:
    """The recipe of a name or a Python file, and what its docstring says. Raises InputError if there is none."""
    if name in _shipped():
        module = importlib.import_module(f"{recipes.__name__}.{name}")
        return dataclasses.replace(module.RECIPE, name=name), module.__doc__ or name
    if name.endswith(".py") or files.is_file(name):
        recipe = load_recipe(local_path(Path(name)))
        return recipe, ast.get_docstring(ast.parse(recipe.file.text)) or f"The recipe {recipe.file.path}."
    meant = command_line.closest(name, _shipped())
    hint = f"did you mean {meant}? Else " if meant else ""
    raise InputError(
        f"there is no recipe {console.literal(name)}: {hint}take one of {', '.join(_shipped())}, or a Python file that defines RECIPE."
    )


def _shipped() -> list[str]:
    """Names of the recipes that come with the trainer."""
    return sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))


def _program() -> str:
    """The command as it was typed, for messages."""
    return "python -m train" if Path(sys.argv[0]).name == "__main__.py" else "swinunetr train"


def _check_resume_options(arguments: list[str]) -> None:
    """Raises InputError for an option that no run that continues may have; it says which ones it may."""
    recipe = [option.names[0] for option in command_line.options(Command, Command(Options(kind="labels")))]
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
