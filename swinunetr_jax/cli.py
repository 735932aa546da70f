"""The command line, `swinunetr COMMAND`: which command runs, and what a user sees when it fails."""

import os
import sys

import tyro

from swinunetr_jax.commands.convert import Convert
from swinunetr_jax.commands.evaluate import Evaluate
from swinunetr_jax.commands.info import Info
from swinunetr_jax.commands.predict import Predict
from swinunetr_jax.commands.validate import Validate
from swinunetr_jax.errors import InputError

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `swinunetr` command: 0 all well, 1 some cases failed or are faulty, 2 bad input, 130 interrupted."""
    commands = {"convert": Convert, "predict": Predict, "evaluate": Evaluate, "validate": Validate, "info": Info}
    about = "Swin UNETR in JAX: convert weights, segment scans, score the results, check data sets."
    try:
        code = tyro.extras.subcommand_cli_from_dict(commands, prog="swinunetr", description=about, args=arguments).run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, the same command goes on from there", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_ERROR
    sys.exit(code)


if __name__ == "__main__":
    main()
