"""What is printed on a terminal or into a log: any text, on any encoding, and the progress of long work.

Names and labels come from data, so they are untrusted: `literal` makes control characters visible, `csv_cell` keeps a spreadsheet from
running a name as a formula, and `configure_streams` keeps an encoding without "→" or "×" from ending a run.
"""

import contextlib
import os
import re
import sys
import time
from types import TracebackType
from typing import TextIO

from tqdm import tqdm

# C0 and C1 control characters, line and paragraph separators, direction overrides, and lone surrogates (bytes of a name that are no UTF-8).
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet evaluate a cell
LINES_PER_TASK = 4  # progress lines where there is no terminal


def configure_streams() -> None:
    """Makes stdout and stderr print every character: what an encoding lacks becomes a backslash escape."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")


def literal(text: object) -> str:
    """Text from data on one line, with control characters and surrogates as escapes such as \\x1b: a terminal obeys none of them."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), str(text))


def csv_cell(text: object) -> str:
    """Text from data for a cell of a CSV file: literal, and with an apostrophe before what a spreadsheet would evaluate."""
    text = literal(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def duration(seconds: float) -> str:
    """A time for people, such as 42 s, 13 min or 2.5 h."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints a line at once. The caller passes what comes from data through `literal`."""
    print(text, file=stream or sys.stdout, flush=True)


def warn(text: str) -> None:
    """Prints a warning, on stderr."""
    say(f"warning: {text}", sys.stderr)


def silence_stdout() -> None:
    """After stdout failed (its reader ended, or the disk is full): nothing more is written to it, also not when Python ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """A bar on a terminal, and a few lines with the time left elsewhere.

        with Progress("preparing cases", unit="case") as progress:
            progress(done, total)

    Args:
        title: what is being done; literal.
        unit: what is counted.
        silent: print nothing, for processes that are not the first.
    """

    def __init__(self, title: str, unit: str, *, silent: bool = False):
        self.title, self.unit, self.silent = literal(title), unit, silent
        self.on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar: tqdm | None = None
        self.share, self.started, self.first = 0.0, time.monotonic(), None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.close()

    def __call__(self, done: int, total: int) -> None:
        """So many of so many units are done."""
        if self.silent:
            return
        if self.on_terminal:
            if self.bar is None:
                self.bar = tqdm(desc=self.title, total=total, unit=self.unit, leave=False)
            self.bar.total = total
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        if self.first is None:
            self.first = (done, now)  # the first unit compiles, so it says nothing of the others' time
        if done == total or done / total >= self.share + 1 / LINES_PER_TASK:
            self.share = done / total
            left = ""
            if self.first[0] < done < total:
                left = f", {duration((total - done) * (now - self.first[1]) / (done - self.first[0]))} left"
            say(f"{self.title}: {done} of {total} {self.unit}s{left}")
