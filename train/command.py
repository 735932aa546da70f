"""`swinunetr train RECIPE [--field value …]`, `swinunetr train --resume RUN [--field value …]`; in a clone also `python -m train`."""

import ast
import dataclasses
import importlib
import itertools
import pkgutil
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
from tyro.conf import arg

from swinunetr_jax import InputError, __version__, console, files
from swinunetr_jax import arguments as command_line
from swinunetr_jax.buckets import BucketError, address_of
from swinunetr_jax.data.pipeline import SampleError
from swinunetr_jax.files import local_path
from swinunetr_jax.training import processes, recipes
from swinunetr_jax.training.bucket_store import pull
from swinunetr_jax.training.config import Phantom, Pretrain
from swinunetr_jax.training.folds import train_folds
from swinunetr_jax.training.loop import train as train_one
from swinunetr_jax.training.options import Options, PretrainTask
from swinunetr_jax.training.plan.automatic import plan_of_run
from swinunetr_jax.training.plan.plan_file import apply_plan, read_plan
from swinunetr_jax.training.pretrain.fine_tuning import fine_tuning_options
from swinunetr_jax.training.processes import Launch
from swinunetr_jax.training.programs import keep_programs
from swinunetr_jax.training.recipe import Recipe, load_recipe
from swinunetr_jax.training.rerun import earlier_run, finished_note
from swinunetr_jax.training.resume import Resume
from swinunetr_jax.training.sources import source_of
from swinunetr_jax.training.stop import Stopped
from swinunetr_jax.training.watchdog import EXIT_HUNG

DEFAULT = "phantom"
EARLIER: tuple[Literal["none", "unfinished", "finished"], ...] = ("none", "unfinished", "finished")  # see `rerun.earlier_run`
PRETRAINING = {"mim": "pretrain", "swin3": "pretrain_swin3"}  # the recipe of each task
EXIT_FAULT, EXIT_ERROR, EXIT_LOST, EXIT_INTERRUPTED = 1, 2, EXIT_HUNG, 130
# Words in the runtime's errors if another process no longer answers; "onnection" is in "Connection" and "connection".
LOST = ("Gloo", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "onnection")
# Options that had another name until version 0.1. The old names work for one more version.
RENAMED_OPTIONS = {"--devices.depth": "--devices.spatial-shards"}
RENAMED_RESUME_OPTIONS = RENAMED_OPTIONS | {"--depth": "--spatial-shards"}


@dataclass(frozen=True)
class Command:
    """The options of a recipe, and the number of this process."""

    recipe: Annotated[Options, arg(name="")]
    launch: Annotated[Launch, arg(name="")] = field(default_factory=Launch)


@dataclass(frozen=True)
class PretrainCommand(Command):
    """The options of a recipe for pre-training, and the number of this process."""

    task: PretrainTask = "mim"
    """mim: fill in masked blocks of scans, which trains the whole network. swin3: rotation, contrast and inpainting, as in the paper, which
    trains the encoder."""
    pretrain: Pretrain = field(default_factory=Pretrain)


@dataclass(frozen=True)
class PhantomCommand(Command):
    """The options of a recipe that makes its own data, and the number of this process."""

    phantom: Phantom = field(default_factory=Phantom)


def main(arguments: list[str] | None = None) -> None:
    """The entry point of `swinunetr train` and `python -m train`.

    Exit codes: 0 the run is finished, or had been finished before; 1 an unexpected exception; 2 bad input, or a sample or loss that cannot
    be used; 3 another process was lost or cannot be reached, the bucket of the run cannot be reached, or this process made no progress
    (see `watchdog`); 130 and 143 the run was stopped by SIGINT and SIGTERM and its state is saved. If stdout cannot be written, the run
    continues and the code is the same.
    """
    code, recipe, out = 0, None, "RUN"
    console.configure_streams()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        recipe, resume, launch = parse(arguments)
        recipe = recipe.in_scratch()
        out = console.literal(recipe.out)
        pull(recipe.out)
        keep_programs(address_of(recipe.out))
        processes.initialize(launch)
        if recipe.planned and recipe.plan is None and not resume:
            plan = plan_of_run(recipe, given_options(arguments))
            recipe, _, _ = parse([*arguments, "--plan", str(plan)])  # options that were given replace those of the plan
            recipe = recipe.in_scratch()
        if not resume:  # before the comparison with an earlier run, which has these options
            recipe = fine_tuning_options(recipe, given_options(arguments))
        earlier = "unfinished" if resume else earlier_run(recipe)
        # An earlier start of the run that is just ending may change the folder while the processes read it.
        earlier = EARLIER[int(processes.from_process(np.array(EARLIER.index(earlier)), 0))]
        processes.barrier("every process has read the folder")  # before the leader writes into it
        if earlier == "finished":
            if processes.is_leader():
                console.say(finished_note(recipe.out))
        else:
            if earlier == "unfinished" and not resume and processes.is_leader():
                console.say(f"{out} holds an unfinished run of the same options: it continues")
            (train_folds if recipe.fold == "all" else train_one)(recipe, resume=earlier == "unfinished")
    except processes.UnreachableError as error:  # launchers try again after this code, since a host may have been lost
        code = print_error(console.literal_lines(error), EXIT_LOST)
    except (InputError, SampleError) as error:
        lost = isinstance(error, BucketError) and error.lost
        code = print_error(console.literal_lines(error), EXIT_LOST if lost else EXIT_ERROR)
    except OSError as error:
        file = console.literal(error.filename or (recipe.out if recipe else "the system"))
        code = print_error(f"{file}: {error.strerror or error}; check the folder and its free space", EXIT_ERROR)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error):
            code = print_error(
                "a training step does not fit into the device's memory: use a smaller --batch or --roi, --optim.accumulate, "
                "--network.use-checkpoint, --network.dtype bfloat16 or, with several devices, --devices.spatial-shards (with --resume: "
                "--spatial-shards)",
                EXIT_ERROR,
            )
        elif processes.is_distributed() and any(word in str(error) for word in LOST):
            reason = str(error).strip().partition("\n")[0]
            code = print_error(
                f"another process of this run was lost ({reason[:200]}); start all of them again with --resume {out}", EXIT_LOST
            )
        else:
            code = print_traceback()
    except Stopped as stopped:
        console.say(f"stopped by {stopped}; continue with: {_program()} --resume {out}", sys.stderr)
        code = 128 + stopped.number
    except KeyboardInterrupt:
        console.say("interrupted; the saved states are kept", sys.stderr)
        code = EXIT_INTERRUPTED
    except Exception:
        code = print_traceback()
    console.finish()
    processes.leave(code)


def print_error(text: str, code: int) -> int:
    """Prints an error in one sentence, and returns the exit code."""
    console.say(f"error: {text}", sys.stderr)
    return code


def print_traceback() -> int:
    """Prints the traceback of an unexpected exception. Python itself would print it only after waiting for other processes."""
    console.say(traceback.format_exc().rstrip(), sys.stderr)
    return EXIT_FAULT


def parse(arguments: list[str]) -> tuple[Recipe, bool, Launch]:
    """Returns the recipe of a command line, whether to resume its run, and the number of this process.

    Raises:
        InputError: there is no such recipe, or an option has a value that no run can have.
    """
    if any(argument.split("=")[0] == "--resume" for argument in arguments):
        arguments = command_line.rename_options(arguments, RENAMED_RESUME_OPTIONS)
        _check_resume_options(arguments)
        resume = command_line.parse(Resume, arguments, prog=_program())
        recipe = resume.changed_recipe()
        recipe.check()
        return recipe, True, resume.launch
    if "--version" in arguments:
        console.say(f"swinunetr_jax {__version__}")
        sys.exit(0)
    name, rest = (arguments[0], arguments[1:]) if arguments and not arguments[0].startswith("-") else (DEFAULT, arguments)
    rest = command_line.rename_options(rest, RENAMED_OPTIONS)
    base, help_text = find_recipe(_of_task(name, rest))
    options = base.options()
    default: Command = Command(options)
    if source_of(base).is_synthetic:
        default = PhantomCommand(options, phantom=options.phantom)
    if base.kind == "scans":
        default = PretrainCommand(options, task=options.task, pretrain=options.pretrain)
    recipe_names = f"Recipes: {', '.join(_shipped())}, or any Python file that defines RECIPE."
    help_text = f"{help_text}\n{recipe_names}\n{_program()} --resume RUN continues a run that was stopped."
    if replaced := [f"--{prefix.replace('_', '-')}" for prefixes in base.replaced_options().values() for prefix in prefixes]:
        help_text += (
            f"\nThe functions of this recipe replace the options that begin with {', '.join(replaced)}, which are refused."
        )
    base.check_effect(given_options(rest))
    command = command_line.parse(type(default), rest, prog=f"{_program()} {name}", description=help_text, default=default)
    if command.recipe.plan is not None:  # parsed again, so that options that were given replace those of the plan
        default = dataclasses.replace(default, recipe=_planned(base, command.recipe.plan))
        command = command_line.parse(type(default), rest, prog=f"{_program()} {name}", description=help_text, default=default)
    changed = dataclasses.replace(command.recipe, name=base.name)
    if isinstance(command, PretrainCommand):
        changed = dataclasses.replace(changed, task=command.task, pretrain=command.pretrain)
    if isinstance(command, PhantomCommand):
        changed = dataclasses.replace(changed, phantom=command.phantom)
    recipe = base.with_options(changed)
    recipe.check()
    if recipe.data is None and not source_of(recipe).is_synthetic:
        raise InputError(f"the recipe {name} needs a data set: name its folder or list with --data.")
    return recipe, False, command.launch


def _of_task(name: str, arguments: list[str]) -> str:
    """Returns the name of the recipe for the pre-training task of a command line, whose defaults differ; otherwise the name itself."""
    given = [word.removeprefix("--task=") for word in arguments if word.startswith("--task=")]
    given += [value for word, value in itertools.pairwise(arguments) if word == "--task"]
    task = given[-1] if given else None
    return PRETRAINING[task] if name in PRETRAINING.values() and task in PRETRAINING else name


def given_options(arguments: list[str]) -> set[str]:
    """Returns the names of the options of a command line as paths of fields, such as network.use_v2 for --network.no-use-v2."""
    paths = {word[2:].partition("=")[0].replace("-", "_") for word in arguments if word.startswith("--")}
    return paths | {path.replace(".no_", ".").removeprefix("no_") for path in paths}


def _planned(base: Recipe, file: Path) -> Options:
    """Returns the options of a recipe with those of a plan. Raises InputError if the plan is damaged, or the recipe has its own network."""
    if base.custom_network is not None:
        raise InputError("a plan is for a Swin UNETR, but the recipe has another network: leave out the plan.")
    return apply_plan(base.options(), read_plan(file), file)


def find_recipe(name: str) -> tuple[Recipe, str]:
    """Returns the recipe with a name or in a Python file, and its docstring. Raises InputError if there is none."""
    if name in _shipped():
        module = importlib.import_module(f"{recipes.__name__}.{name}")
        recipe = dataclasses.replace(module.RECIPE, name=name)
        if recipe.functions() and module.__file__:  # they are read from the file again when the run is resumed
            recipe = load_recipe(module.__file__)
        return recipe, module.__doc__ or name
    if name.endswith(".py") or files.is_file(name):
        recipe = load_recipe(local_path(Path(name)))
        text = recipe.file.text if recipe.file else ""
        return recipe, ast.get_docstring(ast.parse(text)) or f"The recipe {name}."
    suggestion = command_line.closest(name, _shipped())
    hint = f"did you mean {suggestion}? Otherwise " if suggestion else ""
    raise InputError(
        f"there is no recipe {console.literal(name)}: {hint}use one of {', '.join(_shipped())}, or a Python file that defines RECIPE."
    )


def _shipped() -> list[str]:
    """Returns the names of the recipes that are part of the trainer."""
    return sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))


def _program() -> str:
    """Returns the command as it was typed, for messages."""
    return "python -m train" if Path(sys.argv[0]).name == "__main__.py" else "swinunetr train"


def _check_resume_options(arguments: list[str]) -> None:
    """Raises InputError for an option that cannot change when a run is resumed; the message states which options can."""
    recipe_options = [option.names[0] for option in command_line.options(Command, Command(Options(kind="labels")))]
    resume_options = [option.names[0] for option in command_line.options(Resume)]
    changeable = [name for name in resume_options if name not in ("--resume", "--distributed", "--processes", "--process")]
    for argument in arguments:
        name = argument.split("=")[0].replace("_", "-")
        if name in recipe_options and name not in resume_options:
            raise InputError(
                f"{name} cannot change when a run is resumed, only {', '.join(changeable[:-1])} and {changeable[-1]} can: leave it out, or "
                "start a new run with another --out."
            )
    if arguments and not arguments[0].startswith("-"):
        raise InputError(f"--resume takes the recipe from the run's folder: leave out {console.literal(arguments[0])}.")
