"""Keeps XLA's alarm about slow compilation out of what a program prints.

XLA's compiler writes it from C++ straight to the stderr of the process, a block of stars and advice to its developers, where a network
compiles for two minutes or a constant for a second. There is no option against it but the level of all of XLA's messages, errors among
them. So the block alone is taken out of stderr, and only while something compiles.
"""

import contextlib
import functools
import os
import re
import select
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

_MESSAGE = re.compile(rb"[IWEF]\d{4} ")  # how a line of XLA's log begins
_ALARM = re.compile(rb"[IWE]\d{4} .*slow_operation_alarm\.cc:\d+\]")
_STARS = re.compile(rb"\*{10,}\s*")
_LAST_LINE = (
    b"If you'd like to file a bug"  # of the alarm about constants; that about a program ends with its second line of stars
)
_LONGEST = 20  # lines of an alarm


def quiet_compilation(function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function whose first call for each shape of its arguments but the first, which compiles, runs without the alarm."""
    seen: set[tuple[tuple[int, ...], ...]] = set()

    @functools.wraps(function)
    def quiet(first: Any, *rest: Any) -> Any:
        key = tuple(np.shape(leaf) for leaf in jax.tree.leaves(rest))
        if key in seen:
            return function(first, *rest)
        with without_alarm():
            result = function(first, *rest)
        seen.add(key)
        return result

    return quiet


@contextlib.contextmanager
def without_alarm() -> Iterator[None]:
    """While the block runs, stderr goes through a filter that drops the alarm and writes all else at once."""
    try:
        stderr, (source, sink) = os.dup(2), os.pipe()
    except OSError:  # stderr is closed: nothing is printed
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_copy, args=(source, stderr, stop), daemon=True)
    thread.start()
    _flush()
    os.dup2(sink, 2)
    os.close(sink)
    try:
        yield
    finally:
        _flush()
        os.dup2(stderr, 2)
        stop.set()  # the end of the pipe may not come: a process that was started meanwhile has it too
        thread.join()
        os.close(source)
        os.close(stderr)


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()


def _copy(source: int, target: int, stop: threading.Event) -> None:
    """Copies from one file descriptor to the other until `stop` is set and nothing more has come."""
    kept = Filter()
    while True:
        ready = select.select([source], [], [], 0.05)[0]
        chunk = os.read(source, 1 << 16) if ready else b""
        with contextlib.suppress(OSError):  # stderr is gone or full; the program must not wait for a reader of the pipe
            os.write(target, kept.passed(chunk))
        if not chunk and stop.is_set():
            with contextlib.suppress(OSError):
                os.write(target, kept.rest)
            return


class Filter:
    """What is left of a stream of bytes without the alarm; `rest` is the beginning of a line that may become one."""

    def __init__(self) -> None:
        self.rest = b""
        self._lines = self._stars = 0  # of the alarm that is being dropped

    def passed(self, chunk: bytes) -> bytes:
        """The bytes that are to be written now that these have come."""
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        passed = b"".join(line + b"\n" for line in lines if self._keeps(line))
        if self.rest and not self._lines and not _MESSAGE.match(self.rest[:6] + b"E0000 "[len(self.rest) :]):
            passed, self.rest = passed + self.rest, b""  # such as a progress bar's, which ends with no line feed
        return passed

    def _keeps(self, line: bytes) -> bool:
        if _ALARM.match(line):
            self._lines, self._stars = 1, 0
            return False
        if not self._lines or _MESSAGE.match(line) or self._lines > _LONGEST:
            self._lines = 0
            return True
        self._lines += 1
        self._stars += bool(_STARS.fullmatch(line))
        if self._stars == 2 or line.startswith(_LAST_LINE):
            self._lines = 0
        return False
