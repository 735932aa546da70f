"""The command line `swinunetr COMMAND`: the choice of the command, and the messages when it fails."""

import inspect
import sys
from collections.abc import Sequence

from swinunetr_jax import arguments as command_line
from swinunetr_jax import console
from swinunetr_jax.commands.convert import Convert
from swinunetr_jax.commands.evaluate import Evaluate
from swinunetr_jax.commands.export import Export
from swinunetr_jax.commands.info import Info
from swinunetr_jax.commands.pack import Pack
from swinunetr_jax.commands.plan import PlanCommand
from swinunetr_jax.commands.predict import Predict
from swinunetr_jax.commands.prepare import Prepare
from swinunetr_jax.commands.saliency import Saliency
from swinunetr_jax.commands.validate import Validate
from swinunetr_jax.commands.view import View
from swinunetr_jax.commands.weights import Weights
from swinunetr_jax.errors import InputError
from swinunetr_jax.version import __version__

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130
COMMANDS = {
    "convert": Convert,
    "predict": Predict,
    "saliency": Saliency,
    "evaluate": Evaluate,
    "validate": Validate,
    "view": View,
    "info": Info,
    "pack": Pack,
    "export": Export,
    "weights": Weights,
    "plan": PlanCommand,
    "prepare": Prepare,
}
RENAMED_OPTIONS = {"predict": {"--depth": "--spatial-shards"}}  # the old names work for one more version
TRAIN = "train"  # its options depend on the recipe, and its exit codes differ from those of the other commands
ABOUT_TRAIN = "Train a network with a recipe: a built-in one, or your own Python file."
ABOUT = """Swin UNETR in JAX: train networks, convert weights, segment scans, score the results, check data sets.

`swinunetr --version` prints the version."""
EXIT_CODES = """Exit codes: 0 success; 1 some cases failed or are faulty; 2 bad input, a file that cannot be read or written, or text that
cannot be printed; 130 interrupted."""


def main(arguments: list[str] | None = None) -> None:
    """The entry point of the command `swinunetr`. See `EXIT_CODES`; if stdout fails, all other work is done nevertheless."""
    console.configure_streams()
    console.set_amount()
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as stop:  # after --help
        code = stop.code or 0
    except InputError as error:
        code = _fail(console.literal_lines(error))
    except OSError as error:
        prefix = f"{console.literal(error.filename)}: " if error.filename else ""
        code = _fail(f"{prefix}{error.strerror or error}; check the path, its permissions and the free space.")
    except KeyboardInterrupt:
        console.say("interrupted; finished results are kept, and the same command continues from there", sys.stderr)
        code = EXIT_INTERRUPTED
    if not console.finish():
        code = code or EXIT_ERROR
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    """Runs the command that the arguments name, and returns its exit code."""
    if not arguments:
        raise InputError(f"a command is missing: give one of {', '.join(_names())}, or --help.")
    name, *rest = arguments
    if name == "--version":
        console.say(f"swinunetr_jax {__version__}")
        return 0
    if name in ("-h", "--help"):
        return _overview()
    if name in COMMANDS:
        rest = command_line.rename_options(rest, RENAMED_OPTIONS.get(name, {}))
        about = f"{inspect.getdoc(COMMANDS[name])}\n\n{EXIT_CODES}"
        return command_line.parse(COMMANDS[name], rest, prog=f"swinunetr {name}", description=about).run()
    if name == TRAIN:
        from swinunetr_jax.training.command import main as train

        train(rest)
    if name.startswith("-"):
        meant = command_line.closest(name, ["--help", "--version"])
        hint = f"did you mean {meant}? Otherwise give" if meant else "give"
        raise InputError(
            f"{console.literal(name)} is not an option of swinunetr itself: {hint} the command first, one of {', '.join(_names())}."
        )
    meant = command_line.closest(name, _names())
    hint = f"did you mean {meant}? The" if meant else "the"
    raise InputError(f"there is no command {console.literal(name)}: {hint} commands are {', '.join(_names())}.")


def _names() -> list[str]:
    return [TRAIN, *COMMANDS]


def _fail(text: str) -> int:
    console.say(f"error: {text}", sys.stderr)
    return EXIT_ERROR


def _overview() -> int:
    """Prints the help of `swinunetr` itself."""
    about = {TRAIN: ABOUT_TRAIN} | {name: (kind.__doc__ or "").partition("\n")[0] for name, kind in COMMANDS.items()}
    lines = [f"  {name:<10}{text}" for name, text in about.items()]
    lines = [
        "usage: swinunetr COMMAND …",
        "",
        ABOUT,
        "",
        *lines,
        "",
        EXIT_CODES,
        "",
        "swinunetr COMMAND --help shows the options of a command.",
    ]
    console.say("\n".join(lines))
    return 0


if __name__ == "__main__":
    main()
