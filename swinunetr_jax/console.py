"""Output to a terminal or a log: text from data, streams of any encoding, and the progress of long work.

Names and labels come from data and are not trusted: `literal` makes control characters visible, `csv_cell` keeps a spreadsheet from
evaluating a name as a formula, and `configure_streams` keeps an encoding without "→" or "×" from stopping a run.
"""

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

from swinunetr_jax.errors import InputError

# C0 and C1 control characters, line and paragraph separators, direction overrides, and lone surrogates (bytes that are not UTF-8).
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_ADDRESS = re.compile(r"(?<![\w/.-])(gs|s3|hf):/(?=[\w])")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet evaluates a cell that starts with one of these
LINES_PER_TASK = 4  # progress lines if there is no terminal
_names: dict[str, str] = {}  # see `show_as`
_amount = "usual"  # see `set_amount`


def configure_streams() -> None:
    """Keeps errors of stdout and stderr from stopping the program; every entry point calls this first.

    Afterwards the streams accept every character: those that an encoding lacks become backslash escapes. A line is written as soon as it
    is complete. If a stream fails later (a full disk, a reader that ended), this is reported once on stderr, nothing more is written to it,
    and the program continues; `finish` returns False in this case. A stream that is closed from the start, as by `>&-`, is discarded.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            _occupy(number)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
            continue
        if hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace", line_buffering=True)
        if stream is getattr(sys, f"__{name}__"):  # not one that a test or a notebook has replaced
            setattr(sys, name, _Tolerant(stream, name))


def finish() -> bool:
    """Flushes both streams and returns whether everything printed to stdout was written."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return not getattr(sys.stdout, "failed", False)


class _Tolerant:
    """A standard stream that raises no OSError: after the first one nothing more is written to it."""

    def __init__(self, stream: TextIO, name: str):
        self._stream, self._name, self.failed = stream, name, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._attempt(self._stream.write, text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[..., Any], *arguments: str) -> Any:
        if self.failed:
            return len("".join(arguments))
        try:
            return action(*arguments)
        except OSError as error:
            self.failed = True
            _discard(self._stream)
            if self._name == "stdout":
                reason = "its reader ended" if isinstance(error, BrokenPipeError) else error.strerror or error
                warn(f"stdout cannot be written ({reason}); the work continues without it.")
            return len("".join(arguments))


def _discard(stream: TextIO) -> None:
    """Redirects the stream's file descriptor to the null device, so that its buffer causes no error when Python ends."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _occupy(number: int) -> None:
    """Opens the null device with the number of a standard file descriptor if this is closed, so that no other file receives the number."""
    try:
        os.fstat(number)
    except OSError:
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            if null != number:
                os.dup2(null, number)
                os.close(null)


def literal(text: object) -> str:
    """Returns text from data on one line, with control characters and surrogates as escapes such as \\x1b, which terminals ignore."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape", "surrogatepass").decode(), str(text))


def csv_cell(text: object) -> str:
    """Returns text from data for a cell of a CSV file: literal, and with an apostrophe before text that a spreadsheet would evaluate."""
    text = literal(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def name_list(names: Iterable[object], most: int = 5) -> str:
    """Returns the first names, at most `most`, and the number of the others, such as 'a, b, c, d, e and 195 more'."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def duration(seconds: float) -> str:
    """Returns a time as text such as 42 s, 13 min or 2.5 h."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Returns a number of bytes as text such as 3.4 MB or 12.3 GB."""
    return f"{count / 1e6:.3g} MB" if count < 1e9 else f"{count / 1e9:.3g} GB" if count < 1e12 else f"{count / 1e12:.3g} TB"


def literal_lines(error: BaseException) -> str:
    """Returns the message of an error as literal text, with a line for each argument of an `InputError`, which may list several faults."""
    return "\n".join(map(literal, error.args)) if isinstance(error, InputError) else literal(error)


def set_amount(*, quiet: bool = False, verbose: bool = False) -> None:
    """Determines what this process prints: with `quiet` only warnings and errors, with `verbose` also what `detail` is called with.

    Raises:
        InputError: both are requested.
    """
    global _amount
    if quiet and verbose:
        raise InputError("--quiet and --verbose contradict each other: give one of them.")
    _amount = "quiet" if quiet else "verbose" if verbose else "usual"


def detail(text: str) -> None:
    """Prints text that only `verbose` shows."""
    if _amount == "verbose":
        say(text)


def show_as(path: str, name: str) -> None:
    """Makes printed text show `name` instead of a path, such as the address of which a folder is a copy."""
    _names[path] = name


def with_names(text: str) -> str:
    """Returns text with the names of `show_as` instead of paths, and with both slashes of gs://bucket/run, of which `Path` keeps one."""
    for path in sorted(_names, key=len, reverse=True):  # a folder before the folders that contain it
        text = text.replace(path, _names[path])
    return _ADDRESS.sub(r"\1://", text)


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints text and flushes the stream. The caller applies `literal` to text from data, which may contain line breaks.

    After `set_amount(quiet=True)`, text for stdout is not printed.
    """
    if stream is None and _amount == "quiet":
        return
    output = stream or sys.stdout
    lines = map(literal, with_names(text).split("\n"))
    with (
        tqdm.external_write_mode(output) if Progress.bars else contextlib.nullcontext()
    ):  # the bar gives its line away and is drawn again below
        output.write("\n".join(lines) + "\n")  # in one call, so that lines of several processes do not mix
        output.flush()


def warn(text: str) -> None:
    """Prints a warning on stderr."""
    say(f"warning: {text}", sys.stderr)


class Progress:
    """The progress of long work: a bar on a terminal, or a few lines with the remaining time elsewhere.

        with Progress("preparing cases", unit="case") as progress:
            progress(done, total)

    Args:
        title: the name of the work; `literal` is applied to it.
        unit: the name of what is counted, in the singular.
        silent: whether to print nothing, as in every process except the first.
        stream: the stream for lines, by default stdout. The bar is on stderr.
    """

    bars = 0  # the number of bars on the terminal

    def __init__(self, title: str, unit: str, *, silent: bool = False, stream: TextIO | None = None):
        self.title, self.unit, self.silent, self.stream = literal(title), unit, silent or _amount == "quiet", stream
        self.on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar: tqdm | None = None
        self.share, self.started, self.first = 0.0, time.monotonic(), None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()
            Progress.bars -= 1

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Shows that `done` of `total` units are done, followed by `note`."""
        if self.silent:
            return
        if self.on_terminal:
            if self.bar is None:
                self.bar = tqdm(desc=self.title, total=total, unit=self.unit, leave=False)
                Progress.bars += 1
            self.bar.total = total
            self.bar.set_postfix_str(literal(note), refresh=False)
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        if self.first is None:
            self.first = (done, now)  # the first unit includes compilation, so it is not used for the estimate
        if done == total or done / total >= self.share + 1 / LINES_PER_TASK:
            self.share = done / total
            remaining = ""
            if self.first[0] < done < total:
                remaining = f", {duration((total - done) * (now - self.first[1]) / (done - self.first[0]))} left"
            say(f"{self.title}: {done} of {total} {self.unit}s{remaining}{note and f', {note}'}", self.stream)
