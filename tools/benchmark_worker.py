"""A contender of `tools.benchmark` in its own process: the side that sends commands, and the program that runs there.

The process prints "ready SECONDS" after its first call, or one line that says why it cannot run. For each line on stdin it then works
once and prints the seconds. At the end of stdin it prints its figures as JSON.
"""

import json
import os
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from typing import Any, NamedTuple

from tools import contenders


class Task(NamedTuple):
    """The work that a process measures.

    Attributes:
        name: the contender.
        work: "forward", "train" or "case".
        size: the edge of the volume or window.
        features: the feature size.
        dtype: the type of the computation.
        queued: the steps of a turn that are started without waiting for one another.
        lock: the file that `contenders.exclusive` locks.
    """

    name: str
    work: str
    size: int
    features: int
    dtype: str
    queued: int
    lock: str


class Environment(NamedTuple):
    """The Python interpreter of a contender, and the environment variables that it gets in addition."""

    interpreter: str
    variables: dict[str, str]


class Worker:
    """The process as the benchmark sees it: this class starts it, lets it take its turns, and reads its figures."""

    def __init__(self, task: Task, where: Environment):
        environment = os.environ | where.variables
        command = [where.interpreter, "-m", "tools.benchmark_worker", json.dumps(task)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdin is not None and self.process.stdout is not None  # both are pipes
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.label = f"{task.work} {task.size}³ {task.name}"
        self.first_call: float | None = None
        self.error: str | None = None
        self.seconds: list[float] = []
        self.figures: dict[str, Any] = {}

    def wait(self) -> None:
        """Waits until the process is ready or has failed."""
        if self.first_call is not None or self.error:
            return
        first = self.stdout.readline()
        if first.startswith("ready "):
            self.first_call = float(first.split()[1])
            print(f"{self.label}: first result after {self.first_call:.0f} s", file=sys.stderr, flush=True)
        else:
            self._fail(first.strip() or "the process ended")

    def turn(self) -> None:
        """Lets the process work once, and records the seconds."""
        if not self.error:
            try:
                self.stdin.write("go\n")
                self.stdin.flush()
                self.seconds.append(float(self.stdout.readline()))
            except (OSError, ValueError):  # the pipe is broken, or empty
                self._fail("the process ended during a turn")

    def finish(self) -> None:
        """Ends the process and reads its figures."""
        if not self.error:
            lines = self.process.communicate("")[0].strip().splitlines()
            if lines:
                self.figures = json.loads(lines[-1])
            else:
                self._fail("the process ended")

    def _fail(self, error: str) -> None:
        self.error = error
        self.process.kill()


def work_in_turns(task: Task) -> None:
    """Runs the process: builds the contender and works in turns."""
    output = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # so that the output of libraries does not mix with the figures
    started = time.perf_counter()
    try:
        contender = contenders.build(task.name, task.work, task.size, task.features, task.dtype, task.lock)
        warm = contender.warm or contender.run
        if "compile" in task.name:  # it takes minutes, so the other contenders do not wait for it
            warm()
        with contenders.exclusive(task.lock):
            contender.tune()
            warm()
            contender.wait()
        contender.rest()
    except Exception as error:  # a contender that cannot run is a row of the table and does not end the benchmark
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:150]}", file=output)
        return
    print(f"ready {time.perf_counter() - started - contenders.waited}", file=output)
    for _ in sys.stdin:
        # The first step after a pause is slower, because memory is allocated and clock rates rise.
        if contender.on_device and task.work != "case":
            contender.run()
            contender.wait()
        started = time.perf_counter()
        for _ in range(task.queued):
            contender.run()
        contender.wait()
        print((time.perf_counter() - started) / task.queued, file=output)
        contender.rest()
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = {
        "host_bytes": host,
        "device_bytes": contender.device_peak(),
        "compiling": contender.compiling,
        "versions": versions(),
    }
    print(json.dumps(figures), file=output)


def versions() -> dict[str, str]:
    """Returns the version of each library that this process has imported."""
    return {name: version(name) for name in ("jax", "flax", "torch", "monai", "medicai", "keras") if name in sys.modules}


if __name__ == "__main__":
    work_in_turns(Task(*json.loads(sys.argv[1])))
