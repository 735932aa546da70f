"""Makes the help that tyro writes easier to read: kinds of values in the usual notation, and None only where it means something."""

import re

_OPTIONAL = re.compile(r"\{None\}\|(?:\{([^{}]*)\}|(\S+))|\{None,([^{}]*)\}")
_REPEATED = re.compile(r"\[(\S+) \[\1 \.\.\.\]\]")
_START = re.compile(r"(?m)^(?=  -)")


def readable(text: str) -> str:
    """Returns a help text in which `{None}|PATH` is PATH, or `PATH or None` if the default is not None, and lists are PATH [PATH ...]."""
    return "".join(map(_readable_option, _START.split(text)))


def _readable_option(block: str) -> str:
    """Returns the description of one option, whose first line has the names of the option and of its kind of value."""
    first, newline, rest = block.partition("\n")
    may_be_none = "(default: None)" not in " ".join(block.split())

    def kind(match: re.Match[str]) -> str:
        values, value, choices = match.groups()
        choices = values if values and "," in values else choices
        plain = f"{{{choices}}}" if choices else values or value
        plain = f"{plain} or None" if may_be_none else plain
        return _repeated(plain)

    head, *more = re.split(r"(?<=\S)(\s{2,})", first, maxsplit=1)
    gap, description = more or ("", "")
    shorter = _OPTIONAL.sub(kind, _repeated(head)) if head.lstrip().startswith("-") else head
    if description:
        gap = " " * max(len(head) + len(gap) - len(shorter), 2)
    return f"{shorter}{gap}{description}{newline}{rest}"


def _repeated(text: str) -> str:
    return _REPEATED.sub(r"\1 [\1 ...]", text)
