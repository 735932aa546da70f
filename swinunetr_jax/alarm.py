"""Removes XLA's alarm about slow compilation from stderr.

XLA's C++ code writes the alarm directly to the stderr of the process, a block between lines of stars with advice for XLA's developers, if a
network compiles for two minutes or a constant for one second. The only option that disables it also disables XLA's error messages. So
the block is filtered out of stderr, and only during compilation.
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

_MESSAGE = re.compile(rb"[IWEF]\d{4} ")  # the start of a line in XLA's log
_ALARM = re.compile(rb"[IWE]\d{4} .*slow_operation_alarm\.cc:\d+\]")
_STARS = re.compile(rb"\*{10,}\s*")
_LAST_LINE = b"If you'd like to file a bug"  # ends the alarm about constants; that about a program ends with stars
_LONGEST = 20  # the largest number of lines in an alarm


def quiet_compilation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a compiled function whose first call for new shapes of its arguments, except of the first one, prints no alarm."""
    compiled_shapes: set[tuple[tuple[int, ...], ...]] = set()

    @functools.wraps(function)
    def quiet(first: Any, *rest: Any) -> Any:
        key = tuple(np.shape(leaf) for leaf in jax.tree.leaves(rest))
        if key in compiled_shapes:
            return function(first, *rest)
        with without_alarm():
            result = function(first, *rest)
        compiled_shapes.add(key)
        return result

    return quiet


@contextlib.contextmanager
def without_alarm() -> Iterator[None]:
    """While the block runs, stderr goes through a filter that drops the alarm and writes everything else immediately."""
    try:
        stderr, (source, sink) = os.dup(2), os.pipe()
    except OSError:  # stderr is closed, so that nothing is printed
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
        stop.set()  # the pipe may stay open: a process that was started in the meantime has inherited it
        thread.join()
        os.close(source)
        os.close(stderr)


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()


def _copy(source: int, target: int, stop: threading.Event) -> None:
    """Copies from one file descriptor to the other until `stop` is set and there is no more input."""
    filter_ = Filter()
    while True:
        ready = select.select([source], [], [], 0.05)[0]
        chunk = os.read(source, 1 << 16) if ready else b""
        with contextlib.suppress(OSError):  # stderr is closed or full; the program must not wait for a reader of the pipe
            os.write(target, filter_.feed(chunk))
        if not chunk and stop.is_set():
            with contextlib.suppress(OSError):
                os.write(target, filter_.rest)
            return


class Filter:
    """Removes the alarm from a stream of bytes. `rest` is the beginning of a line that may become one of the alarm."""

    def __init__(self) -> None:
        self.rest = b""
        self._lines = self._stars = 0  # the lines of the current alarm

    def feed(self, chunk: bytes) -> bytes:
        """Takes more bytes and returns those that can be written."""
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        output = b"".join(line + b"\n" for line in lines if self._keeps(line))
        if self.rest and not self._lines and not _MESSAGE.match(self.rest[:6] + b"E0000 "[len(self.rest) :]):
            output, self.rest = output + self.rest, b""  # such as a progress bar, which does not end with a line feed
        return output

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
