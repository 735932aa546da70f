"""Finds the mistake in a command line and explains it in one sentence."""

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Literal, get_args, get_origin

from swinunetr_jax import console
from swinunetr_jax.arguments.option import Option, dashed, spellings
from swinunetr_jax.arguments.values import alternatives, description, example_values, fits, taken_values

_NUMBER = re.compile(r"-(\d|\.\d|inf|nan)", re.IGNORECASE)


def mistake(known: list[Option], arguments: Sequence[str], prog: str) -> str | None:
    """Returns one sentence on what is wrong with a command line, or None if no mistake is found."""
    named = {name: option for option in known if not option.positional for name in spellings(option)}
    help_text = f"`{prog} --help` shows all options"
    positional, seen = [], []
    # without positional arguments, all values up to the next option belong to the option before them
    no_positional = not any(option.positional for option in known)
    for name, values in _groups(arguments):
        if name is None:
            positional += values
            continue
        key = dashed(name)
        if key not in named:
            meant = closest(key, [spelling for spelling in named if spelling.startswith("--")])
            hint = f"did you mean {meant}? " if meant else ""
            return f"there is no option {console.literal(name)}: {hint}{help_text[0].upper() if meant else '`'}{help_text[1:]}."
        option = named[key]
        option_values, rest = taken_values(option.type, values)
        positional += rest
        seen.append(option)
        if option.is_flag and values and no_positional:
            off = next(spelling for spelling in spellings(option) if "no-" in spelling)
            return f"{name} takes no value, got {_shown(values)}: give {option.names[0]} or {off}."
        if not option.is_flag and (not fits(option.type, option_values) or (rest and no_positional)):
            return _value_mistake(option, name, values if no_positional else option_values)
    for option in known:
        if not option.positional:
            continue
        option_values, positional = taken_values(option.type, positional)
        if option_values:
            seen.append(option)
            if not fits(option.type, option_values):
                return _value_mistake(option, option.names[0], option_values)
    if positional:
        surplus = "is one argument" if len(positional) == 1 else f"are {len(positional)} arguments"
        return f"{_shown(positional)} {surplus} too many: {help_text}."
    missing = [option.names[0] for option in known if option.required and option not in seen]
    if missing:
        return f"{' and '.join(missing)} must be given: {help_text}."
    return None


def closest(word: str, known: Sequence[str]) -> str | None:
    """Returns the known word that was probably meant, or None.

    It is the option of a group whose last part is the word (--optim.lr for --lr), a known word that starts with the word, or a similar one.
    """
    similar = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    ends = [name for name in known if name.rpartition(".")[2] == word.lstrip("-")]
    begins = [name for name in known if len(word) > 2 and name.startswith(word)]
    if ends or begins:
        return (ends or begins)[0]
    return similar[0] if similar else None


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


def _value_mistake(option: Option, name: str, values: list[str]) -> str:
    """Returns a sentence on an invalid value of an option."""
    got = _shown(values) if values else "nothing"
    return f"{name} takes {description(option.type)}, got {got}: give for example {_example(option, name)}."


def _example(option: Option, name: str) -> str:
    """Returns the option with a valid value, such as `--roi 96 96 96`."""
    default = option.default
    if default not in (None, dataclasses.MISSING, ()) and not isinstance(default, bool):
        values = map(str, default) if isinstance(default, tuple) else [str(default)]
    else:
        part = alternatives(option.type)[0]
        values = [str(get_args(part)[0])] if get_origin(part) is Literal else example_values(part)
    return f"`{' '.join([name] * (not option.positional) + list(values))}`"


def _shown(values: Sequence[str]) -> str:
    """Returns the values as literal text."""
    return " ".join(console.literal(value) if value else "an empty string" for value in values)
