"""The claim on a run in a bucket, which replaces the lock of a local run.

Claims are the objects RUN/claims/000001, 000002, …, and the process with the highest number owns the run. It rewrites its claim every
quarter of a lease. A new process watches the highest claim until it has not changed for one lease or is marked as released. Then the new
process creates the next number, which only one of several processes can do. If the claim still changes after one lease, its owner is alive
and the new process is refused. The clocks of different machines are never compared.

A process that was suspended (by SIGSTOP, or with its virtual machine) and was replaced meanwhile finds the higher claim before it writes:
before each request it checks how much time has passed, and if this is long, it reads the claims. The library for the store repeats a write
that was interrupted a second after the process is resumed, so the thread that rewrites the claim ends the process as soon as it finds a
higher claim.
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
HEARTBEATS = 4  # a claim is rewritten this many times in a lease
POLL_SECONDS = 0.2  # time between two checks of how much time has passed
RELEASE_SECONDS = 10.0  # the release of a claim is abandoned after this time
KEPT = 10  # number of earlier claims that are not removed


class ReplacedError(InputError):
    """Another process owns the run now, so this one must not write any more."""


class Claim:
    """The claim of this process on a run. `take` creates it.

    Attributes:
        number: its number.
        replaced: whether a higher claim has been found.
        waited: whether the owner of the claim before it had not released it, so that the run may have changed since this process read it.
    """

    def __init__(self, run: Bucket, number: int, token: str, on_replaced: Callable[[ReplacedError], None]):
        self.number, self.replaced, self.waited, self._on_replaced = number, False, False, on_replaced
        self._run, self._token, self._beat = run, token, 0
        self._verified = _clock()  # until this time, the process is known not to have been suspended for long
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._heartbeat, name="claim", daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, run: Bucket, on_replaced: Callable[[ReplacedError], None], say: Callable[[str], None] = console.say) -> "Claim":
        """Returns a new claim on a run, after waiting for one lease if the owner of the last claim has not released it.

        Args:
            run: the run.
            on_replaced: called in a thread as soon as another process owns the run; it ends this process.
            say: prints a sentence.

        Raises:
            InputError: the owner is alive.
        """
        while True:
            names = run.names()
            highest = highest_claim(names)
            waited = highest > 0 and _wait_until_free(run, highest, say)
            token, number = secrets.token_hex(16), next_claim(names)
            if run.create(claim_name(number), _content(token, 0)):
                run.remove(claim_name(old) for old in range(1, number - KEPT) if claim_name(old) in names)
                claim = cls(run, number, token, on_replaced)
                claim.waited = waited
                return claim

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
            # If the request took longer, this process may have been suspended meanwhile.
            if _clock() - started < LEASE_SECONDS / HEARTBEATS:
                return

    def guard(self) -> None:
        """Calls `check` if this process may have been suspended for some time. It is called before each request."""
        if _clock() - self._verified > LEASE_SECONDS / HEARTBEATS:
            self.check()

    def release(self) -> None:
        """Stops rewriting the claim and marks it as released, so that the next process does not have to wait.

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

    def _heartbeat(self) -> None:
        """Rewrites the claim until it is released. It runs in a thread."""
        rewritten = self._verified
        while not self._ended.wait(min(POLL_SECONDS, LEASE_SECONDS / HEARTBEATS / 2)):
            now = _clock()
            was_suspended = now - self._verified > LEASE_SECONDS / HEARTBEATS
            if not was_suspended:
                self._verified = now
                if now - rewritten < LEASE_SECONDS / HEARTBEATS:
                    continue
            try:
                self.check()
                self._beat += 1
                self._write()
                rewritten = self._verified = _clock()
            except ReplacedError as error:
                self._on_replaced(error)
                return
            except InputError:  # the bucket cannot be reached, which the writes of the run report
                rewritten = _clock()

    def _write(self, *, released: bool = False) -> None:
        self._run.write(claim_name(self.number), _content(self._token, self._beat, released=released))


def _wait_until_free(run: Bucket, number: int, say: Callable[[str], None]) -> bool:
    """Waits until the owner of a claim is known to have ended, and returns whether it has waited. Raises InputError if it is alive."""
    last = _read(run, number)
    values = _values(last)
    if values.get("released"):
        return False
    owner = f"process {values.get('process')} on {values.get('host')}"
    say(
        f"{run.address} has not been released by {owner}: waiting {console.duration(LEASE_SECONDS)} for a sign that it still trains"
    )
    started = since = _clock()
    while _clock() - since < LEASE_SECONDS:
        time.sleep(LEASE_SECONDS / (2 * HEARTBEATS))
        now = _read(run, number)
        if _values(now).get("released"):
            say(f"{owner} has ended: this process continues")
            return True
        if now != last:
            last, since = now, _clock()
            if since - started > LEASE_SECONDS:  # an owner that was ending would have released it by now
                raise InputError(
                    f"{run.address} is in use by another training process ({owner}): wait for it, or choose another --out."
                )
    say(f"there is no sign of {owner}: this process owns the run now")
    return True


def _clock() -> float:
    """Returns a time in seconds. Where the system supports it, the time during which the machine was suspended counts, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _read(run: Bucket, number: int) -> bytes:
    try:
        return run.read(claim_name(number))
    except FileNotFoundError:  # the claim was removed
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
