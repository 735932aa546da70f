"""Starts the proxy of `helpers.flaky_proxy` in front of an emulator, and controls it."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.buckets import Bucket
from helpers.object_requests import CHANGES

SECONDS = 60


@dataclass(frozen=True)
class Request:
    """A request that the proxy has received. `kind` is "ok" or the kind of failure; `status` is None if there is no answer yet."""

    number: int
    method: str
    target: str
    operation: str
    names: tuple[str, ...]
    kind: str
    status: int | None
    held: bool


class Proxy:
    """A proxy process in front of the emulator of a bucket. `bucket` is the same folder, accessed through the proxy.

    The operations of requests are those of `helpers.object_requests`: "write" (an object appears), "start" and "part" (of an upload in
    parts), "read", "stat", "list", "delete", "copy" and "other". The names of objects in requests begin with the bucket's prefix.

    The kinds of failures:

    - "503", "429", "500", "403", or any other status: it is answered, and nothing is carried out.
    - "slow": the request waits for `seconds`, and is carried out.
    - "dropped": the connection is closed, and nothing is carried out.
    - "lost": the request is carried out, and the connection is closed without an answer.
    - "cut": the request is carried out, and the answer ends in the middle of its contents (if it has none, as with "lost").
    - "short": a listing lacks the second half of its objects, and does not state this. Other requests are carried out.
    - "hold": the request waits for `release` before it is carried out.
    - "hold_answer": the request is carried out, and its answer waits for `release`.
    - "away": nothing is carried out, and the proxy is unavailable from then on, for `seconds` and as `how` states (see `away`).
    """

    def __init__(self, bucket: Bucket):
        tests = str(Path(__file__).parents[1])
        command = [sys.executable, "-m", "helpers.flaky_proxy", bucket.endpoint.rpartition(":")[2]]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH")]))}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        self.port: int = json.loads(self.process.stdout.readline())["port"]
        self.bucket = Bucket(bucket.emulator, bucket.prefix, f"http://127.0.0.1:{self.port}")

    def command(self, do: str, **arguments: Any) -> Any:
        print(json.dumps({"do": do, **arguments}), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        """Ends the proxy; requests that it holds are not carried out."""
        self.process.stdin.close()
        self.process.wait(SECONDS)
        self.process.stdout.close()

    def fail(
        self,
        kind: str,
        operations: str | Sequence[str] | None = None,
        name: str = "",
        *,
        nth: int = 1,
        times: int | None = 1,
        seconds: float = 1.0,
        how: str = "refused",
    ) -> None:
        """Fails requests at a named point.

        Args:
            kind: the kind of failure.
            operations: the operation or operations of the requests that are counted; None means all.
            name: a regular expression that is searched in the names of the objects; a listing has its prefix as its name.
            nth: the number of the first of these requests that fails, counted from 1 and from this call on.
            times: how many of them fail; None means all from `nth` on.
            seconds: the time of "slow" and "away".
            how: the way of being unavailable, for "away".

        The first rule that applies to a request decides.
        """
        chosen = [operations] if isinstance(operations, str) else operations and list(operations)
        self.command("rule", kind=kind, operations=chosen, name=name, nth=nth, times=times, seconds=seconds, how=how)

    def fail_at_random(
        self,
        share: float,
        kinds: Sequence[str],
        seed: int = 0,
        *,
        operations: Sequence[str] | None = None,
        name: str = "",
        seconds: float = 1.0,
    ) -> None:
        """Fails a share of the requests, each with one of the kinds; the same seed makes the same sequence of requests fail equally."""
        chosen = operations and list(operations)
        self.command("rate", share=share, kinds=list(kinds), seed=seed, operations=chosen, name=name, seconds=seconds)

    def read_only(self) -> None:
        """Answers each request that would change something with 403."""
        self.fail("403", CHANGES, times=None)

    def page(self, size: int | None) -> None:
        """Divides listings into pages of `size` objects, as the services do with more than 1,000 objects."""
        self.command("page", size=size)

    def away(self, seconds: float | None = None, how: str = "refused") -> None:
        """Makes the proxy unavailable for some seconds, or until `back`.

        With "refused", the port and all connections are closed. With a status such as "503", it is the answer to every request. With
        "silent", requests are accepted and not answered; they are carried out when the proxy is available again.
        """
        self.command("away", seconds=seconds, how=how)

    def back(self) -> None:
        """Makes the proxy available again."""
        self.command("back")

    def clear(self) -> None:
        """Removes all rules, the share and the size of pages. Held requests and the list of requests are kept."""
        self.command("clear")

    def release(self, *, carry_out: bool = True) -> None:
        """Forwards all held requests. With `carry_out=False` their connections are closed instead, and a "hold" is not carried out."""
        self.command("release", carry_out=carry_out)

    def requests(self, operation: str | None = None, name: str = "") -> list[Request]:
        """Returns the requests so far in order, if given only those of an operation, or with an object whose name contains `name`."""
        every = [Request(**record | {"names": tuple(record["names"])}) for record in self.command("requests")]
        return [r for r in every if operation in (None, r.operation) and any(name in n for n in r.names or ("",))]

    def counts(self) -> Counter[str]:
        """Returns how many requests there were of each kind, "ok" included."""
        return Counter(request.kind for request in self.requests())

    def wait_for_held(self, count: int = 1, seconds: float = SECONDS) -> list[Request]:
        """Waits until `count` requests are held, and returns them."""
        return self.wait_for(lambda request: request.held, count, seconds)

    def wait_for(self, matches: Callable[[Request], bool], count: int = 1, seconds: float = SECONDS) -> list[Request]:
        """Waits until there are `count` requests for which `matches` is true, and returns them."""
        deadline = time.monotonic() + seconds
        while len(found := [request for request in self.requests() if matches(request)]) < count:
            assert time.monotonic() < deadline, (
                f"{len(found)} of {count} requests arrived in {seconds} s: {self.requests()[-20:]}"
            )
            time.sleep(0.01)
        return found
