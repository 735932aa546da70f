"""Removes XLA's alarm about slow compilation from stderr.

The alarm is a block of lines between rows of asterisks, which asks the user to report a bug. XLA writes it from C++, directly to the
stderr of the process, when a network takes more than two minutes to compile or a constant takes more than a second. The only option that
turns it off also suppresses all other messages of XLA, including errors. Therefore this block alone is removed from stderr, and only
during compilation.
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

_MESSAGE = re.compile(rb"[IWEF]\d{4} ")  # the start of a line of XLA's log
_ALARM = re.compile(rb"[IWE]\d{4} .*slow_operation_alarm\.cc:\d+\]")
_STARS = re.compile(rb"\*{10,}\s*")
# The end of the alarm about constants; the one about a program ends with its second line of asterisks.
_LAST_LINE = b"If you'd like to file a bug"
_MAX_LINES = 20  # no alarm has more lines


def quiet_compilation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a compiled function so that the alarm is removed from the calls that compile.

    A call compiles if it is the first one with its combination of shapes. The first argument is not compared, because it is always the
    same weights.
    """
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
    """Passes stderr through a filter while the block runs. The filter removes the alarm and writes everything else immediately."""
    try:
        stderr, (source, sink) = os.dup(2), os.pipe()
    except OSError:  # stderr is closed, so nothing is printed
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
        stop.set()  # a process started in the meantime may keep the pipe open, so its end may never arrive
        thread.join()
        os.close(source)
        os.close(stderr)


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()


def _copy(source: int, target: int, stop: threading.Event) -> None:
    """Copies from one file descriptor to the other until `stop` is set and no more bytes arrive."""
    alarm_filter = Filter()
    while True:
        ready = select.select([source], [], [], 0.05)[0]
        chunk = os.read(source, 1 << 16) if ready else b""
        with contextlib.suppress(OSError):  # if stderr is closed or full, the bytes are lost and the program is not blocked
            os.write(target, alarm_filter.passed(chunk))
        if not chunk and stop.is_set():
            with contextlib.suppress(OSError):
                os.write(target, alarm_filter.rest)
            return


class Filter:
    """Removes the alarm from a stream of bytes. `rest` holds the start of a line that may belong to an alarm."""

    def __init__(self) -> None:
        self.rest = b""
        self._lines = self._stars = 0  # lines and lines of asterisks of the current alarm

    def passed(self, chunk: bytes) -> bytes:
        """Returns the bytes to write after receiving a chunk."""
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        passed = b"".join(line + b"\n" for line in lines if self._keeps(line))
        if self.rest and not self._lines and not _MESSAGE.match(self.rest[:6] + b"E0000 "[len(self.rest) :]):
            passed, self.rest = passed + self.rest, b""  # the start of any other line, such as a progress bar, is written at once
        return passed

    def _keeps(self, line: bytes) -> bool:
        """Returns whether a line is not part of an alarm."""
        if _ALARM.match(line):
            self._lines, self._stars = 1, 0
            return False
        if not self._lines or _MESSAGE.match(line) or self._lines > _MAX_LINES:
            self._lines = 0
            return True
        self._lines += 1
        self._stars += bool(_STARS.fullmatch(line))
        if self._stars == 2 or line.startswith(_LAST_LINE):
            self._lines = 0
        return False
