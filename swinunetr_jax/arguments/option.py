"""The options that a dataclass describes."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from tyro.conf import Fixed, OmitArgPrefixes, Positional, Suppress


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
        without_prefix = any(getattr(mark, "name", None) == "" for mark in marks) or _marked(OmitArgPrefixes, marks)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            inner = None if value is dataclasses.MISSING else value
            yield from options(hint, inner, prefix if without_prefix else f"{prefix}{dashed(field.name)}.")
            continue
        aliases = next((mark.aliases for mark in marks if getattr(mark, "aliases", None)), ())
        positional = _marked(Positional, marks)
        metavar = next((mark.metavar for mark in marks if getattr(mark, "metavar", None)), None)
        name = (metavar or field.name.upper()) if positional else f"--{prefix}{dashed(field.name)}"
        yield Option((name, *aliases), hint, value, positional)


def spellings(option: Option) -> list[str]:
    """Returns all names under which an option can be given, such as --mirror and --no-mirror."""
    names = [dashed(name) if name.startswith("--") else name for name in option.names]
    if option.is_flag:
        head, dot, last = names[0].removeprefix("--").rpartition(".")
        names.append(f"--{head}{dot}no-{last}")
    return names


def dashed(name: str) -> str:
    """Returns a name with hyphens instead of underscores."""
    return name.replace("_", "-")


def _marked(marker: Any, marks: Sequence[Any]) -> bool:
    """Returns whether a field's annotations contain a marker of tyro."""
    return any(mark in marks for mark in marker[int].__metadata__)


def _default(field: dataclasses.Field) -> Any:
    """Returns the default of a field, or MISSING."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
