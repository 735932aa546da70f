"""Ends a process that makes no progress, so that a run that hangs is started again instead of occupying its machines, and measures the time
of each kind of work.

    with Watchdog(minutes, default_on=True, leads=True):
        with watchdog.phase(VALIDATION):    # what the process does, which has its own limit
            for window in windows:
                watchdog.beat()             # progress, which restarts the limit

A process that makes no progress within the limit of its phase prints the stacks of all of its threads and one sentence, and ends with
`EXIT_HUNG`. A separate thread does this, so that it also happens if the main thread waits in C code. If C code holds the global interpreter
lock, no Python thread runs; then faulthandler ends the process a little later, with its own exit code, 1. Time also counts while a process
is suspended by SIGSTOP, so that a process that is resumed after its limit, when others may have continued its run, ends immediately.

Each process watches its own work. Waiting for other processes has a long limit, because a process that hangs ends itself, and the others
then notice that it is lost. Only the main thread has phases and makes progress; calls in other threads have no effect.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

EXIT_HUNG = 3
DEFAULT_MINUTES = 10.0
STEP, COMPILING, PREPARING, RESTORING, VALIDATION, SAVING, WAITING = (
    "the step",
    "compiling",
    "preparing cases",
    "restoring the state",
    "the validation",
    "saving",
    "waiting for the other processes",
)
DATA, DISPATCH = "waiting for data", "the dispatch of the step"
# The limits of the phases, as multiples of the limit of a step; every other phase has `OTHERS`.
FACTORS = {STEP: 1, DATA: 1, DISPATCH: 1, COMPILING: 6, WAITING: 24}
OTHERS = 3
OUTSIDE = "the start or the end of the run"  # what a process does outside of all phases
POLL_SECONDS = 5.0  # a process ends at most this time after its limit
GRACE_SECONDS = 30.0  # faulthandler waits for this much longer
PRINT_SECONDS = 10.0  # after this time the process ends even if it has not printed everything, since stderr may be what hangs

_active: "Watchdog | None" = None


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """States what the process does during the block. Entering and leaving the block count as progress."""
    active = _active
    if active is None or threading.get_ident() != active.thread:
        yield
        return
    active.count()
    active.phases.append(name)
    active.beat()
    try:
        yield
    finally:
        active.count()
        active.phases.pop()
        active.beat()


def beat() -> None:
    """Reports progress. Ends the process if its limit has passed already, as after a long suspension by SIGSTOP."""
    if _active is not None and threading.get_ident() == _active.thread:
        _active.beat()


def beating(progress: Callable[..., None]) -> Callable[..., None]:
    """Returns a function that reports progress to the watchdog, and then calls `progress` with its arguments."""

    def call(done: int, total: int, *note: str) -> None:
        beat()
        progress(done, total, *note)

    return call


def check() -> None:
    """Ends the process if its limit has passed. Any thread may call this before it writes what another process may have continued."""
    if _active is not None:
        _active.check()


def spent() -> dict[str, float]:
    """Returns the seconds that each phase has taken so far, excluding those of the phases within it."""
    if _active is None:
        return {}
    _active.count()
    return dict(_active.spent)


def started() -> float:
    """Returns the time at which the watchdog started, in seconds since 1970."""
    return time.time() if _active is None else _active.started


class Watchdog:
    """Watches the thread that enters the `with` block. The time of phases is also measured if the watchdog is off.

    Args:
        minutes: the limit of a step; 0 turns the watchdog off, and None is the default.
        default_on: whether the default is `DEFAULT_MINUTES`; otherwise it is 0, so that a user can stop a process and continue it later.
        leads: whether this process saves the states. The steps of the others wait meanwhile, so that they have the limit of saving.
    """

    def __init__(self, minutes: float | None, *, default_on: bool, leads: bool):
        minutes = (DEFAULT_MINUTES if default_on else 0.0) if minutes is None else minutes
        self.seconds, self.leads, self.phases, self.thread = 60 * minutes, leads, [OUTSIDE], threading.get_ident()
        self._beaten, self._limit = time.monotonic(), self._limit_of(OUTSIDE)
        self._ends, self._closed = threading.Lock(), threading.Event()
        self.spent, self.started, self._counted = dict[str, float](), time.time(), self._beaten

    def __enter__(self) -> "Watchdog":
        global _active
        if _active is not None:
            return self
        _active = self
        if self.seconds:
            # `swinunetr_jax.alarm` redirects stderr while a program is compiled, which does not affect this descriptor.
            self._stderr = os.dup(2) if _is_open(2) else os.open(os.devnull, os.O_WRONLY)
            self.beat()
            self._arm()
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        global _active
        if _active is self:
            _active = None
            self._closed.set()
            if self.seconds:
                faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """Restarts the limit of the current phase, unless it has passed."""
        self.check()
        self._beaten, self._limit = time.monotonic(), self._limit_of(self.phases[-1])

    def check(self) -> None:
        """Ends the process if the limit of its phase has passed."""
        if self.seconds and self._remaining() < 0:
            self._end()

    def count(self) -> None:
        """Adds the time since the last call to that of the current phase."""
        now = time.monotonic()
        self.spent[self.phases[-1]] = self.spent.get(self.phases[-1], 0.0) + now - self._counted
        self._counted = now

    def _limit_of(self, name: str) -> float:
        factor = OTHERS if name in (STEP, DISPATCH) and not self.leads else FACTORS.get(name, OTHERS)
        return self.seconds * factor

    def _remaining(self) -> float:
        return self._beaten + self._limit - time.monotonic()

    def _watch(self) -> None:
        """Checks the limit at regular times until the block ends. It runs in a thread."""
        while not self._closed.wait(min(POLL_SECONDS, self.seconds / 10)):
            self.check()
            self._arm()
        faulthandler.cancel_dump_traceback_later()
        os.close(self._stderr)

    def _arm(self) -> None:
        """Makes faulthandler end the process some time after its limit. The thread repeats this, so that steps do not have to."""
        grace = min(GRACE_SECONDS, self.seconds)
        faulthandler.dump_traceback_later(max(self._remaining(), 0) + grace, exit=True, file=self._stderr)

    def _end(self) -> None:
        """Prints what hangs, and ends this process and those that it has started to read data. It never returns."""
        name, seconds = self.phases[-1], time.monotonic() - self._beaten
        if self._ends.acquire(blocking=False):
            lines = (*stacks(), self._sentence(name, seconds))
            printer = threading.Thread(target=self._print, args=("\n".join(lines) + "\n",), daemon=True)
            printer.start()
            printer.join(PRINT_SECONDS)
            try:
                for child in multiprocessing.active_children():
                    child.kill()
            finally:
                os._exit(EXIT_HUNG)
        while True:  # another thread ends the process
            time.sleep(1)

    def _print(self, text: str) -> None:
        rest = text.encode(errors="backslashreplace")
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(self._stderr, rest) :]

    def _sentence(self, name: str, seconds: float) -> str:
        shown = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
        return (
            f"error: {name} has made no progress for {shown}, so that this process ({os.getpid()} on {platform.node()}) ends, after the "
            "stacks of its threads above; start the same command again, in all processes, to continue from the last saved state "
            "(--watchdog-minutes changes the limit, and 0 turns it off)"
        )


def stacks() -> list[str]:
    """Returns the stacks of all threads as lines, the innermost call first. No source file is read, because its disk may hang."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for thread, frame in sys._current_frames().items():
        lines.append(f"Thread {names.get(thread, thread)} (most recent call first):")
        for caller, line in traceback.walk_stack(frame):
            lines.append(f'  File "{caller.f_code.co_filename}", line {line} in {caller.f_code.co_name}')
    return lines


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
