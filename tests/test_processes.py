"""Runs of two processes on one machine: the numbers of one process, and what becomes of a run whose processes are stopped or killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from swinunetr_jax import InputError
from train import processes
from train.log import read_rows
from train.processes import Launch, join

ROOT = Path(__file__).parents[1]
OPTIONS = (
    "phantom --batch 2 --folds 2 --roi 32 32 64 --phantom.cases 4 --phantom.size 48 48 32 --network.feature-size 12 "
    "--network.depths 1 1 1 1 --validation.every 2 --validation.overlap 0 --optim.lr 1e-3"
).split()
SECONDS = 300


class Runner:
    """Starts the trainer's processes, and ends those that a failing test leaves."""

    def __init__(self, folder: Path):
        self.folder, self.started = folder, []

    def start(self, *arguments: str, count: int = 2, environment: dict[str, str] | None = None) -> list[subprocess.Popen]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        environment = os.environ | {"JAX_PLATFORMS": "cpu"} | (environment or {})
        begun = []
        for index in range(count):
            among = ("--distributed", address, "--processes", str(count), "--process", str(index)) if count > 1 else ()
            log = open(self.folder / f"{len(self.started)}.log", "w")  # noqa: SIM115 - the process has it
            command = [sys.executable, ROOT / "tests" / "run_train.py", *arguments, *among]
            begun.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))
            self.started.append(begun[-1])
        return begun

    def said(self, process: subprocess.Popen) -> str:
        return (self.folder / f"{self.started.index(process)}.log").read_text()

    def finish(self, begun: list[subprocess.Popen], code: int) -> None:
        for process in begun:
            assert process.wait(SECONDS) == code, self.said(process)

    def begin(self, run: Path, *more: str, count: int = 2) -> list[subprocess.Popen]:
        shared = ("--data", str(self.folder / "data"), "--cache", str(self.folder / "cache"))
        return self.start(*OPTIONS, *shared, "--out", str(run), *more, count=count)

    def wait_for_step(self, run: Path, step: int) -> None:
        deadline = time.monotonic() + SECONDS
        while not any(row["kind"] == "step" and row["step"] >= step for row in read_rows(run)):
            assert time.monotonic() < deadline and all(process.poll() is None for process in self.started[-2:])
            time.sleep(0.05)


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> Iterator[Runner]:
    runner = Runner(tmp_path_factory.mktemp("processes"))
    yield runner
    for process in runner.started:
        process.kill()


def losses(run: Path) -> list[float]:
    rows = [row for row in read_rows(run) if row["kind"] == "step"]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


@pytest.fixture(scope="module")
def alone(runner) -> Path:
    """Six steps in one process."""
    run = runner.folder / "alone"
    runner.finish(runner.begin(run, "--steps", "6", count=1), 0)
    return run


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_other_numbers_of_processes_go_on(runner, alone):
    run = runner.folder / "two"
    begun = runner.begin(run, "--steps", "6")
    runner.wait_for_step(run, 2)
    begun[1].send_signal(signal.SIGTERM)
    runner.finish(begun, 143)
    stopped = len(losses(run))
    assert 2 <= stopped < 6 and (run / "last").resolve().name == f"{stopped:08d}"
    runner.finish(runner.start("--resume", str(run), "--workers", "1", count=1), 0)  # two processes, then one with a worker
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-5)
    ours, theirs = ([row for row in read_rows(folder) if row["kind"] == "validation"] for folder in (run, alone))
    assert [row["step"] for row in ours] == [2, 4, 6]
    for our, their in zip(ours, theirs):
        assert our["cases"].keys() == their["cases"].keys()
        assert our["score"] == pytest.approx(their["score"], abs=1e-3)
    assert (run / "report.html").exists() and (run / "worst.png").exists()


@pytest.mark.slow
def test_when_one_is_killed_the_other_ends_and_a_restart_goes_on(runner, alone):
    run = runner.folder / "killed"
    begun = runner.begin(run, "--steps", "6", "--save-every", "1")
    runner.wait_for_step(run, 2)
    begun[1].kill()
    killed = time.monotonic()
    assert begun[0].wait(SECONDS) not in (0, None)
    assert time.monotonic() - killed < 30
    runner.finish(runner.start("--resume", str(run)), 0)
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-5)


@pytest.mark.slow
def test_a_mistake_ends_all(runner):
    begun = runner.begin(runner.folder / "odd", "--steps", "6", "--batch", "3")
    runner.finish(begun, 2)
    assert "a batch of 3 cannot be shared evenly by 2 devices of 2 processes: choose a multiple of 2" in runner.said(begun[0])


def test_who_is_among_several():
    assert not processes._among_several({})
    assert not processes._among_several({"SLURM_NTASKS": "4"})  # within an allocation, but not started by srun
    assert not processes._among_several({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"})
    assert processes._among_several({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a[1-4]"})
    assert processes._among_several({"TPU_WORKER_HOSTNAMES": "a,b"}) and not processes._among_several({"TPU_WORKER_HOSTNAMES": "a"})


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        (Launch(distributed="somewhere"), "must be auto, detect, off or HOST:PORT, got 'somewhere'"),
        (Launch(distributed="localhost:1"), "needs --processes N and --process from 0 to N - 1"),
        (Launch(distributed="localhost:1", processes=2, process=2), "needs --processes N and --process from 0 to N - 1"),
        (Launch(processes=2, process=0), "give --distributed HOST:PORT with them"),
    ],
)
def test_options_that_contradict(launch, said):
    with pytest.raises(InputError, match=said):
        join(launch)


def test_alone_nothing_waits():
    processes.barrier("nothing")
    np.testing.assert_array_equal(processes.gather(np.array([1.5])), [[1.5]])
    np.testing.assert_array_equal(processes.from_process(np.arange(3), 0), np.arange(3))
    assert processes.is_leader() and not processes.several()
