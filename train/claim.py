"""The claim on a run in a bucket, which takes the place of the lock of a local run.

Claims are the objects RUN/claims/000001, 000002, …, and the highest number owns the run. Its holder rewrites it every quarter of a lease.
A newcomer watches the highest claim until it has not changed for one lease, or says that it is released. Then the newcomer creates the next
number, which only one of several newcomers can do. If the claim still changes after one lease, its holder is alive and the newcomer is
refused. No clocks of different machines are compared.

A process that was stopped for some time (by SIGSTOP, or with its virtual machine) and has been replaced finds the higher claim before it
writes: before each request it looks at the clock, and at the claims if much time has passed. A write that it had begun is repeated by the
library for the store a second after it is woken, so the thread that rewrites the claim ends the process as soon as it finds a higher claim.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable

from swinunetr_jax import InputError, console
from swinunetr_jax.buckets import Bucket
from swinunetr_jax.buckets.run_objects import CLAIMS, claim_name, highest_claim, next_claim

LEASE_SECONDS = 60.0
BEATS = 4  # rewrites of a claim in a lease
LOOKS_SECONDS = 0.2  # time between two looks at the clock
RELEASE_SECONDS = 10.0  # time for the release of a claim
KEPT = 10  # claims that are not removed


class ReplacedError(InputError):
    """Another process owns the run now, so this one must not write any more."""


class Claim:
    """The claim of this process on a run. `take` creates it.

    Attributes:
        number: its number.
        replaced: whether a higher claim has been seen.
    """

    def __init__(self, run: Bucket, number: int, token: str, end: Callable[[ReplacedError], None]):
        self.number, self.replaced, self._end = number, False, end
        self._run, self._token, self._beat = run, token, 0
        self._verified = _clock()  # until then this process is known to have run without a long stop
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beats, name="claim", daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, run: Bucket, end: Callable[[ReplacedError], None], say: Callable[[str], None] = console.say) -> "Claim":
        """Returns a new claim on a run, after waiting for one lease if the holder of the last claim has not released it.

        Args:
            run: the run.
            end: called in a thread as soon as another process owns the run; it ends this process.
            say: prints a sentence.

        Raises:
            InputError: the holder is alive.
        """
        while True:
            names = run.names()
            highest = highest_claim(names)
            if highest:
                _wait_until_free(run, highest, say)
            token, number = secrets.token_hex(16), next_claim(names)
            if run.create(claim_name(number), _content(token, 0)):
                run.remove(claim_name(old) for old in range(1, number - KEPT) if claim_name(old) in names)
                return cls(run, number, token, end)

    def check(self) -> None:
        """Raises ReplacedError if another process owns the run now. It is called immediately before each write."""
        while True:
            started = _clock()
            highest = highest_claim(self._run.names(f"{CLAIMS}/"))
            if highest > self.number:
                self.replaced = True
            if self.replaced:
                raise ReplacedError(
                    f"{self._run.address} is now trained by another process (claim {highest}; this one had claim {self.number}): this "
                    "process ends and writes nothing more."
                )
            if _clock() - started < LEASE_SECONDS / BEATS:  # otherwise this process may have been stopped meanwhile
                return

    def guard(self) -> None:
        """Calls `check` if this process may have been stopped for some time. It is called before each request."""
        if _clock() - self._verified > LEASE_SECONDS / BEATS:
            self.check()

    def release(self) -> None:
        """Ends the rewriting and says in the claim that its holder has ended, so that the next process does not have to wait.

        This is tried for a short time and raises no error, because the outcome of the run does not depend on it.
        """

        def write() -> None:
            with contextlib.suppress(InputError):
                self._thread.join()
                if not self.replaced:
                    self._write(released=True)

        self._ended.set()
        writing = threading.Thread(target=write, name="release", daemon=True)
        writing.start()
        writing.join(RELEASE_SECONDS)

    def _beats(self) -> None:
        rewritten = self._verified
        while not self._ended.wait(min(LOOKS_SECONDS, LEASE_SECONDS / BEATS / 2)):
            now = _clock()
            was_stopped = now - self._verified > LEASE_SECONDS / BEATS
            if not was_stopped:
                self._verified = now
                if now - rewritten < LEASE_SECONDS / BEATS:
                    continue
            try:
                self.check()
                self._beat += 1
                self._write()
                rewritten = self._verified = _clock()
            except ReplacedError as error:
                self._end(error)
                return
            except InputError:  # the bucket cannot be reached; the writes of the run report this
                rewritten = _clock()

    def _write(self, *, released: bool = False) -> None:
        self._run.write(claim_name(self.number), _content(self._token, self._beat, released=released))


def _wait_until_free(run: Bucket, number: int, say: Callable[[str], None]) -> None:
    """Waits until a claim is known to have no living holder. Raises InputError if it has one."""
    last = _read(run, number)
    values = _values(last)
    if values.get("released"):
        return
    holder = f"process {values.get('process')} on {values.get('host')}"
    say(
        f"{run.address} has not been released by {holder}: waiting up to {console.duration(LEASE_SECONDS)} to see whether it still trains"
    )
    started = since = _clock()
    while _clock() - since < LEASE_SECONDS:
        time.sleep(LEASE_SECONDS / (2 * BEATS))
        now = _read(run, number)
        if _values(now).get("released"):
            return
        if now != last:
            last, since = now, _clock()
            if since - started > LEASE_SECONDS:  # a holder that was only ending would have released it by now
                raise InputError(
                    f"{run.address} is in use by another training process ({holder}): wait for it, or choose another --out."
                )


def _clock() -> float:
    """Returns a time in seconds that also counts the time for which a machine was suspended, where the system knows it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _read(run: Bucket, number: int) -> bytes:
    try:
        return run.read(claim_name(number))
    except FileNotFoundError:  # somebody has removed it
        return b"{}"


def _values(content: bytes) -> dict[str, object]:
    try:
        values = json.loads(content)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _content(token: str, beat: int, *, released: bool = False) -> bytes:
    values = {"host": socket.gethostname(), "process": os.getpid(), "token": token, "beat": beat, "released": released}
    return json.dumps(values).encode()
