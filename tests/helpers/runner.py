"""Starts runs of the trainer in separate processes, on a small phantom, and reads their results."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from swinunetr_jax.training import checkpoints, restore
from swinunetr_jax.training.log import read_rows

ROOT = Path(__file__).parents[2]
# fmt: off
OPTIONS = (
    "phantom", "--batch", "2", "--folds", "2", "--roi", "32", "32", "64", "--phantom.cases", "4", "--phantom.size", "48", "48", "32",
    "--network.feature-size", "12", "--network.depths", "1", "1", "1", "1", "--validation.overlap", "0", "--optim.lr", "1e-3",
)
# fmt: on
SECONDS = 300


def free_port(minimum: int = 0) -> int:
    """Returns a port that is not in use, not below `minimum`."""
    for port in range(minimum, 1 << 16) if minimum else [0]:
        with contextlib.suppress(OSError), socket.socket() as free:
            free.bind(("localhost", port))
            return free.getsockname()[1]
    raise OSError(f"no port from {minimum} on is free")


def bytes_of(run: Path) -> dict[str, bytes]:
    """Returns the arrays of the newest saved state: the weights and the rest of the training state."""
    weights = restore.read_checkpoint(run / "last").params
    training_state = restore.read_arrays(run / "last" / checkpoints.STATE)
    return {name: np.asarray(value).tobytes() for name, value in {**weights, **training_state}.items()}


def losses(run: Path) -> list[float]:
    rows = [row for row in read_rows(run) if row["kind"] == "step"]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


class Runner:
    """Starts processes of the trainer; `started` holds all of them."""

    def __init__(self, folder: Path, programs: Path):
        self.folder, self.started = folder, []
        # Runs share compiled programs, as a user's runs do. Other sessions of tests do not share them.
        self.environment = {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(programs),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def start(self, *arguments: str, count: int = 2, environment: dict[str, str] | None = None) -> list[subprocess.Popen]:
        address = f"localhost:{free_port()}"
        environment = os.environ | self.environment | (environment or {})
        processes = []
        for index in range(count):
            distributed = ("--distributed", address, "--processes", str(count), "--process", str(index)) if count > 1 else ()
            log = open(self.folder / f"{len(self.started)}.log", "w")  # noqa: SIM115 - the process writes into it
            command = [sys.executable, ROOT / "tests" / "helpers" / "run_train.py", *arguments, *distributed]
            processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))
            self.started.append(processes[-1])
        return processes

    def output_of(self, process: subprocess.Popen) -> str:
        return (self.folder / f"{self.started.index(process)}.log").read_text()

    def stop(self, processes: list[subprocess.Popen], run: Path, after: int) -> int:
        """Signals the last process after a step, checks that all of them stop with a saved state, and returns its step."""
        self.wait_for_step(processes[0], run, after)
        processes[-1].send_signal(signal.SIGTERM)
        self.finish(processes, 143)
        stopped = len(losses(run))
        assert stopped >= after and (run / "last").resolve().name == f"{stopped:08d}"
        return stopped

    def finish(self, processes: list[subprocess.Popen], code: int) -> None:
        for process in processes:
            assert process.wait(SECONDS) == code, self.output_of(process)

    def begin(self, run: Path, *more: str, **options: Any) -> list[subprocess.Popen]:
        """Starts a new run on the small phantom, with `OPTIONS` and further options."""
        shared = ("--data", str(self.folder / "data"), "--cache", str(self.folder / "cache"))
        return self.start(*OPTIONS, *shared, "--out", str(run), *more, **options)

    def wait_for(self, process: subprocess.Popen, happened: Callable[[], bool]) -> bool:
        """Returns True as soon as `happened` returns true, or False if the process has ended before."""
        deadline = time.monotonic() + SECONDS
        while not happened():
            if process.poll() is not None:
                return False
            assert time.monotonic() < deadline, self.output_of(process)
            time.sleep(0.01)
        return True

    def wait_for_step(self, process: subprocess.Popen, run: Path, step: int) -> None:
        reached = self.wait_for(process, lambda: any(row["kind"] == "step" and row["step"] >= step for row in read_rows(run)))
        assert reached, self.output_of(process)
