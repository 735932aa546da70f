"""Stopping a run by SIGINT or SIGTERM after a whole step."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from swinunetr_jax.buckets.bucket import interrupted


class Stopped(Exception):
    """A signal stopped the run; its state is saved."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stop:
    """A signal handler that is true after the first signal."""

    number = 0

    def __bool__(self) -> bool:
        return self.number != 0

    def __call__(self, number: int, frame: Any) -> None:
        if self.number:  # the second signal stops the program immediately
            interrupted.set()
            raise KeyboardInterrupt
        self.number = number
        with suppress(OSError):  # stderr may be closed; `print` is not used, since the signal may interrupt another `print`
            os.write(2, b"stopping after this step is done and saved; a second signal stops immediately\n")


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Handles SIGINT and SIGTERM during the block, and yields an object that is true after the first of them."""
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
