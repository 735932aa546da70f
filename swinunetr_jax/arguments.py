"""Command lines described by dataclasses: tyro parses them, and a mistake is explained in one sentence.

This module imports nothing heavy, so that `--help` and mistakes are answered immediately. A field is an option. A field that is a dataclass
is a group of options, whose names start with the name of the field unless it is marked `OmitArgPrefixes` or `arg(name="")`.
"""

import contextlib
import dataclasses
import difflib
import io
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.conf import Fixed, OmitArgPrefixes, Positional, Suppress

from swinunetr_jax import console
from swinunetr_jax.errors import InputError
from swinunetr_jax.files import local_path

T = TypeVar("T")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
EXAMPLES = {int: ("96", "96", "96"), float: ("1.5", "1.5", "2"), Path: ("FOLDER",) * 3, str: ("NAME",) * 3}
_NUMBER = re.compile(r"-(\d|\.\d|inf|nan)", re.IGNORECASE)


@dataclass(frozen=True)
class Option:
    """An option or a positional argument: its names as typed, the type of its values, and its default."""

    names: tuple[str, ...]
    type: Any
    default: Any
    positional: bool

    @property
    def is_flag(self) -> bool:
        return self.type is bool

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING


def parse(kind: type[T], arguments: Sequence[str], *, prog: str, description: str | None = None, default: T | None = None) -> T:
    """Returns a value of the dataclass `kind` from a command line. `--help` prints the help and exits with code 0.

    Args:
        kind: the dataclass.
        arguments: the words of the command line, without the command.
        prog: the command, as a user types it.
        description: the text at the top of the help; by default the docstring of `kind`.
        default: a value whose fields are the defaults.

    Raises:
        InputError: an option is unknown, missing, or has an invalid value; the message says which one and what it accepts.
    """
    printed, complained = io.StringIO(), io.StringIO()
    if {"-h", "--help"} & set(arguments):  # at any position
        arguments = ["--help"]
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complained):
            fields = tyro.MISSING_NONPROP if default is None else default
            value = tyro.cli(kind, args=list(arguments), prog=prog, description=description, default=fields)
        _check_paths(value)
        return value
    except SystemExit as stop:
        if not stop.code:
            console.say("\n".join(map(str.rstrip, printed.getvalue().rstrip().split("\n"))))
            sys.exit(0)
    raise InputError(_mistake(list(options(kind, default)), arguments, prog) or _tyro_message(complained.getvalue(), prog))


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


def _check_paths(value: Any) -> None:
    """Raises InputError if a path among the options is the address of a remote store."""
    if isinstance(value, Path):
        local_path(value)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _check_paths(getattr(value, field.name))
    elif isinstance(value, (tuple, list)):
        for item in value:
            _check_paths(item)


def options(kind: type, default: Any = None, prefix: str = "") -> Iterator[Option]:
    """Yields all options of a dataclass, including those of its groups."""
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint, marks = hints[field.name], ()
        if get_origin(hint) is Annotated:
            hint, marks = get_args(hint)[0], hint.__metadata__
        if any(_marked(marker, marks) for marker in (Fixed, Suppress)):
            continue
        value = _default(field) if default is None else getattr(default, field.name)
        bare = any(getattr(mark, "name", None) == "" for mark in marks) or _marked(OmitArgPrefixes, marks)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            inner = None if value is dataclasses.MISSING else value
            yield from options(hint, inner, prefix if bare else f"{prefix}{_dashed(field.name)}.")
            continue
        aliases = next((mark.aliases for mark in marks if getattr(mark, "aliases", None)), ())
        positional = _marked(Positional, marks)
        metavar = next((mark.metavar for mark in marks if getattr(mark, "metavar", None)), None)
        name = (metavar or field.name.upper()) if positional else f"--{prefix}{_dashed(field.name)}"
        yield Option((name, *aliases), hint, value, positional)


def closest(word: str, known: Sequence[str]) -> str | None:
    """Returns the known word that was probably meant, or None.

    It is an option of a group with that name (--optim.lr for --lr), a word that starts with it, or a similar word.
    """
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    ends = [name for name in known if name.rpartition(".")[2] == word.lstrip("-")]
    begins = [name for name in known if len(word) > 2 and name.startswith(word)]
    if ends or begins:
        return (ends or begins)[0]
    return found[0] if found else None


def _mistake(known: list[Option], arguments: Sequence[str], prog: str) -> str | None:
    """Returns one sentence on what is wrong with a command line, or None if no mistake is found."""
    named = {name: option for option in known if not option.positional for name in _spellings(option)}
    help_text = f"`{prog} --help` shows all options"
    positional, seen = [], []
    no_positional = not any(option.positional for option in known)  # then all values up to the next option belong to an option
    for name, values in _groups(arguments):
        if name is None:
            positional += values
            continue
        key = _dashed(name)
        if key not in named:
            meant = closest(key, [spelling for spelling in named if spelling.startswith("--")])
            hint = f"did you mean {meant}? " if meant else ""
            return f"there is no option {console.literal(name)}: {hint}{help_text[0].upper() if meant else '`'}{help_text[1:]}."
        option = named[key]
        taken, rest = _taken(option.type, values)
        positional += rest
        seen.append(option)
        if option.is_flag and values and no_positional:
            off = next(spelling for spelling in _spellings(option) if "no-" in spelling)
            return f"{name} takes no value, got {_shown(values)}: give {option.names[0]} or {off}."
        if not option.is_flag and (not _fits(option.type, taken) or (rest and no_positional)):
            return _value_mistake(option, name, values if no_positional else taken)
    for option in known:
        if not option.positional:
            continue
        taken, positional = _taken(option.type, positional)
        if taken:
            seen.append(option)
            if not _fits(option.type, taken):
                return _value_mistake(option, option.names[0], taken)
    if positional:
        return f"{_shown(positional)} is one argument too many: {help_text}."
    missing = [option.names[0] for option in known if option.required and option not in seen]
    if missing:
        return f"{' and '.join(missing)} must be given: {help_text}."
    return None


def _groups(arguments: Sequence[str]) -> Iterator[tuple[str | None, list[str]]]:
    """Yields (option, its values) in order, and first (None, values) for the values before the first option."""
    name: str | None = None
    values: list[str] = []
    for argument in arguments:
        if argument.startswith("-") and len(argument) > 1 and not _NUMBER.match(argument):
            yield name, values
            name, equals, value = argument.partition("=")
            values = [value] if equals else []
        else:
            values.append(argument)
    yield name, values


def _taken(hint: Any, values: list[str]) -> tuple[list[str], list[str]]:
    """Returns the values that an option of this type takes of those that follow it, and the remaining ones."""
    if hint is bool:
        return [], values
    counts = [_count(part) for part in _alternatives(hint)]
    limits = [count for count in counts if count is not None]
    if len(limits) < len(counts):
        return values, []
    fitting = [n for n in sorted(limits, reverse=True) if n <= len(values)]
    count = fitting[0] if fitting else max(limits)
    return values[:count], values[count:]


def _value_mistake(option: Option, name: str, values: list[str]) -> str:
    """Returns a sentence on an invalid value of an option."""
    got = _shown(values) if values else "nothing"
    return f"{name} takes {_wanted(option.type)}, got {got}: give for example {_example(option, name)}."


def _example(option: Option, name: str) -> str:
    """Returns the option with a valid value, such as `--roi 96 96 96`."""
    default = option.default
    if default not in (None, dataclasses.MISSING, ()) and not isinstance(default, bool):
        values = map(str, default) if isinstance(default, tuple) else [str(default)]
    else:
        part = _alternatives(option.type)[0]
        values = [str(get_args(part)[0])] if get_origin(part) is Literal else _example_values(part)
    return f"`{' '.join([name] * (not option.positional) + list(values))}`"


def _example_values(part: Any) -> Sequence[str]:
    if get_origin(part) is not tuple:
        return EXAMPLES.get(part, ("True",))[:1]
    inner = get_args(part)
    if inner == (float, float):  # a range of intensities
        return ("-175", "250")
    return EXAMPLES[inner[0]][: 2 if inner[-1] is Ellipsis else len(inner)] if inner != (int, Ellipsis) else ("1", "2")


def _alternatives(hint: Any) -> list[Any]:
    """Returns the types of a union, with None last."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [part for part in parts if part is not type(None)] + [part for part in parts if part is type(None)]


def _count(part: Any) -> int | None:
    """Returns the number of values that a type takes, or None for any number."""
    if get_origin(part) is not tuple:
        return 1
    return None if get_args(part)[-1] is Ellipsis else len(get_args(part))


def _fits(hint: Any, values: list[str]) -> bool:
    """Returns whether the values can be parsed as this type."""
    return any(_fits_one(part, values) for part in _alternatives(hint))


def _fits_one(part: Any, values: list[str]) -> bool:
    if get_origin(part) is tuple:
        inner = get_args(part)
        if inner[-1] is Ellipsis:
            return all(_fits_one(inner[0], [value]) for value in values)
        return len(values) == len(inner) and all(_fits_one(kind, [value]) for kind, value in zip(inner, values))
    if len(values) != 1:
        return False
    if get_origin(part) is Literal:
        return values[0] in map(str, get_args(part))
    if part in (bool, type(None)):
        return values[0] in (("True", "False") if part is bool else ("None",))
    if part in (int, float):
        try:
            part(values[0])
        except ValueError:
            return False
    return True


def _wanted(hint: Any) -> str:
    """Returns a description of the values of a type, such as "three integers or None"."""
    words: list[str] = []
    for part in _alternatives(hint):
        if get_origin(part) is tuple:
            inner = get_args(part)
            many = {int: "integers", float: "numbers", str: "names", Path: "paths"}[inner[0]]
            words.append(f"one or more {many}" if inner[-1] is Ellipsis else f"{NUMBERS[len(inner)]} {many}")
        elif get_origin(part) is Literal:
            words += map(str, get_args(part))
        elif part is bool:
            words += ["True", "False"]
        else:
            words.append({int: "an integer", float: "a number", str: "a text", Path: "a path", type(None): "None"}[part])
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _spellings(option: Option) -> list[str]:
    """Returns all names under which an option can be given, such as --mirror and --no-mirror."""
    names = [_dashed(name) if name.startswith("--") else name for name in option.names]
    if option.is_flag:
        head, dot, last = names[0].removeprefix("--").rpartition(".")
        names.append(f"--{head}{dot}no-{last}")
    return names


def _shown(values: Sequence[str]) -> str:
    return " ".join(console.literal(value) if value else "an empty text" for value in values)


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _marked(marker: Any, marks: Sequence[Any]) -> bool:
    """Returns whether a field's annotations contain a marker of tyro."""
    return any(mark in marks for mark in marker[int].__metadata__)


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _tyro_message(text: str, prog: str) -> str:
    """Returns tyro's own message on one line, without its frame."""
    words = " ".join(line.strip("|+- ╭╮╰╯│─") for line in text.splitlines()).split()
    return f"the command line cannot be read ({' '.join(words)}): `{prog} --help` shows all options."
