"""Writing in the background while training continues."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from swinunetr_jax.training import watchdog

POLL_SECONDS = 5.0  # time between two checks of the progress of a write


class Writer:
    """Writes one thing at a time in the background. An error of a write is raised by the next call of a method except `close`.

    Args:
        copied: returns the number of files that the writes have copied so far; while it grows, waiting for a write counts as progress.
    """

    def __init__(self, copied: Callable[[], int] = lambda: 0) -> None:
        self._copied = copied
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[Any] | None = None

    def start(self, write: Callable[[], Any]) -> None:
        """Starts a write, after waiting for the one before it."""
        self.wait()
        self._pending = self._thread.submit(write)

    def check(self) -> None:
        """Raises the error of the last write, if it has ended."""
        if self._pending is not None and self._pending.done():
            self.wait()

    @watchdog.phase(watchdog.SAVING)
    def wait(self) -> None:
        """Waits until the last write has ended, and raises its error."""
        pending, self._pending = self._pending, None
        copied = self._copied()
        while pending is not None:
            try:
                pending.result(POLL_SECONDS)
                return
            except TimeoutError:
                if pending.done():  # it was raised by the write
                    raise
            if copied != (copied := self._copied()):
                watchdog.beat()

    @watchdog.phase(watchdog.SAVING)
    def close(self) -> None:
        """Waits until the last write has ended, and ignores its error."""
        self._thread.shutdown(wait=True)
