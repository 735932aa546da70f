"""Parses a command line with tyro."""

import contextlib
import dataclasses
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro

from swinunetr_jax import console
from swinunetr_jax.arguments.help_text import readable
from swinunetr_jax.arguments.mistakes import mistake
from swinunetr_jax.arguments.option import options
from swinunetr_jax.buckets.address import MAY_BE_ADDRESS, MAY_BE_MODEL, model_path_or_address, path_or_address
from swinunetr_jax.errors import InputError
from swinunetr_jax.files import local_path

T = TypeVar("T")


def parse(kind: type[T], arguments: Sequence[str], *, prog: str, description: str | None = None, default: T | None = None) -> T:
    """Returns an instance of the dataclass `kind` from a command line. `--help` prints the help and exits with code 0.

    Args:
        kind: the dataclass.
        arguments: the words of the command line, without the command.
        prog: the command, as a user types it.
        description: the text at the top of the help; by default the docstring of `kind`.
        default: an instance whose fields are the defaults.

    Raises:
        InputError: an option is unknown, missing, or has an invalid value; the message says which one and what it accepts.
    """
    output, errors = io.StringIO(), io.StringIO()
    if {"-h", "--help"} & set(arguments):  # at any position
        arguments = ["--help"]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            defaults = tyro.MISSING_NONPROP if default is None else default
            value = tyro.cli(kind, args=list(arguments), prog=prog, description=description, default=defaults)
        check_paths(value)
        return value
    except SystemExit as stop:
        if not stop.code:
            console.say(readable("\n".join(map(str.rstrip, output.getvalue().rstrip().split("\n")))))
            sys.exit(0)
    raise InputError(mistake(list(options(kind, default)), arguments, prog) or _tyro_message(errors.getvalue(), prog))


def rename_options(arguments: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Returns a command line with renamed options under their new names, and warns about each old one.

    Args:
        arguments: the words of the command line.
        names: old name -> new name.
    """
    renamed = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in names:
            console.warn(f"{name} is now {names[name]}; the old name will be removed in the next version.")
            argument = f"{names[name]}{equals}{value}"
        renamed.append(argument)
    return renamed


def check_paths(value: Any, *, check: Callable[[Path], Path] = local_path) -> None:
    """Raises InputError if a path among the fields of options is an address, except for fields that are marked.

    Fields that are marked `MAY_BE_ADDRESS` may be addresses in buckets, and those that are marked `MAY_BE_MODEL` also on the hub.
    """
    if isinstance(value, Path):
        check(value)
    elif dataclasses.is_dataclass(value):
        hints = get_type_hints(type(value), include_extras=True)
        for field in dataclasses.fields(value):
            marks = getattr(hints[field.name], "__metadata__", ())
            allowed = (
                model_path_or_address if MAY_BE_MODEL in marks else path_or_address if MAY_BE_ADDRESS in marks else local_path
            )
            check_paths(getattr(value, field.name), check=allowed)
    elif isinstance(value, (tuple, list)):
        for item in value:
            check_paths(item, check=check)


def _tyro_message(text: str, prog: str) -> str:
    """Returns tyro's own message on one line, without its frame."""
    words = " ".join(line.strip("|+- ╭╮╰╯│─") for line in text.splitlines()).split()
    return f"the command line cannot be read ({' '.join(words)}): `{prog} --help` shows all options."
