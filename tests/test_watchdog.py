"""A process that makes no progress ends itself, and the run can be continued."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.runner import ROOT, SECONDS, bytes_of, losses
from helpers.small_network import forget, replace_swin_unetr

from swinunetr_jax.training import watchdog

# Loads the module alone, because importing the package takes longer than the whole test.
START = f"""
import ctypes, importlib.util, os, signal, sys, threading, time
spec = importlib.util.spec_from_file_location("watchdog", {str(ROOT / "train" / "watchdog.py")!r})
watchdog = importlib.util.module_from_spec(spec)
spec.loader.exec_module(watchdog)
with watchdog.Watchdog(0.3 / 60, default_on=False, leads=True), watchdog.phase(watchdog.STEP):
"""
PROGRAMS = {
    "a lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "C code": "ctypes.CDLL(None).sleep(60)",
    "C code with the interpreter's lock": "ctypes.PyDLL(None).sleep(60)",
    "a validation": """
    with watchdog.phase(watchdog.VALIDATION):
        for _ in range(14):
            time.sleep(0.1); watchdog.beat()
        threading.Thread(target=lambda: [(time.sleep(0.1), watchdog.beat()) for _ in range(600)], daemon=True).start()
        time.sleep(60)""",
    "SIGSTOP": "print('stopped', flush=True); os.kill(os.getpid(), signal.SIGSTOP); watchdog.beat(); print('not ended')",
    "progress": "for _ in range(20): time.sleep(0.05); watchdog.beat()",
    "off": "pass\nwith watchdog.Watchdog(None, default_on=False, leads=True), watchdog.phase(watchdog.STEP): time.sleep(0.7)",
}


def ended(*names: str) -> list[tuple[int, str]]:
    """Returns the exit codes and the outputs of programs, which run at the same time."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"{START}    {PROGRAMS[name]}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for name in names
    ]
    for name, process in zip(names, processes):
        if name == "SIGSTOP":
            assert process.stdout.readline() == "stopped\n"
            time.sleep(0.5)
            process.send_signal(signal.SIGCONT)
    return [(process.communicate(timeout=50)[0], process.returncode)[::-1] for process in processes]


def check_sentence(result: tuple[int, str], sentence: str) -> None:
    code, output = result
    assert code == watchdog.EXIT_HUNG == 3
    assert "Thread MainThread (most recent call first):\n  File " in output and "in <module>" in output
    last = output.splitlines()[-1]
    assert last.startswith(sentence) and "start the same command again, in all processes" in last
    assert "not ended" not in output


def test_a_process_that_deadlocks_or_is_suspended_for_long_prints_its_stacks_and_ends():
    lock, stopped = ended("a lock", "SIGSTOP")
    check_sentence(lock, "error: the step has made no progress for 0 s")
    check_sentence(stopped, "error: the step has made no progress for 1 s")


@pytest.mark.long
def test_c_code_a_longer_limit_progress_and_no_watchdog():
    c_code, holding, validation, progress, off = ended(*(name for name in PROGRAMS if name not in ("a lock", "SIGSTOP")))
    check_sentence(c_code, "error: the step has made no progress for 0 s")
    check_sentence(validation, "error: the validation has made no progress for 1 s")  # its limit is longer, and was restarted
    code, output = holding  # no thread of Python runs, so that faulthandler ends the process
    assert code == 1 and output.startswith("Timeout (0:00:0") and "(most recent call first):" in output
    assert progress == off == (0, "")


def test_the_limit_of_each_phase_and_the_defaults(monkeypatch):
    leader, other = (watchdog.Watchdog(None, default_on=True, leads=leads) for leads in (True, False))
    limits = {
        name: leader._limit_of(name) / 60 for name in (watchdog.STEP, watchdog.COMPILING, watchdog.SAVING, watchdog.WAITING)
    }
    assert limits == {"the step": 10, "compiling": 60, "saving": 30, "waiting for the other processes": 240}
    assert other._limit_of(watchdog.STEP) == other._limit_of(watchdog.DISPATCH) == 30 * 60  # because the leader may be saving
    assert watchdog.Watchdog(0, default_on=True, leads=True).seconds == 0
    assert watchdog.Watchdog(None, default_on=False, leads=True).seconds == 0


@pytest.fixture(scope="module")
def uninterrupted(runner) -> dict[str, bytes]:
    """Returns the bytes of the newest state of a run of two processes."""
    run = runner.folder / "uninterrupted"
    runner.finish(runner.begin(run, *LENGTH), 0)
    return state_bytes(run)


LENGTH = ("--steps", "6", "--validation.every", "3", "--save-every", "1")


def state_bytes(run: Path) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        replace_swin_unetr(patch)
        state = bytes_of(run)
    forget()
    return state


@pytest.mark.long
@pytest.mark.parametrize("process", [0, 1])
def test_a_deadlock_in_a_step_of_one_of_two_processes_ends_both(runner, uninterrupted, process):
    run = runner.folder / f"deadlock-{process}"
    started = runner.begin(
        run, *LENGTH, "--watchdog-minutes", "0.15", environment={"SWINUNETR_TEST_HANG": f"deadlock {process} 4"}
    )
    runner.wait_for_step(started[0], run, 2)
    reached = time.monotonic()
    codes = [hanging.wait(SECONDS) for hanging in started]
    assert time.monotonic() - reached < 60 and 0 not in codes and 3 in codes, codes
    outputs = [runner.output_of(hanging) for hanging in started]
    assert any("error: the step has made no progress for" in output for output in outputs)
    runner.finish(runner.start("--resume", str(run)), 0)
    assert state_bytes(run) == uninterrupted and len(losses(run)) == 6


@pytest.mark.long
@pytest.mark.parametrize("process", [0, 1])
def test_a_process_that_is_suspended_for_long_makes_the_other_one_end_and_then_ends(runner, uninterrupted, process):
    run = runner.folder / f"stopped-{process}"
    started = runner.begin(run, *LENGTH, "--watchdog-minutes", "0.1", environment={"SWINUNETR_TEST_HANG": f"stop {process} 4"})
    runner.wait_for_step(started[0], run, 2)
    reached = time.monotonic()
    assert started[1 - process].wait(SECONDS) not in (0, None) and time.monotonic() - reached < 60
    assert started[process].poll() is None
    time.sleep(max(0, reached + 20 - time.monotonic()))  # the limit of the steps of both processes
    os.kill(started[process].pid, signal.SIGCONT)
    woken = time.monotonic()
    assert started[process].wait(SECONDS) != 0 and time.monotonic() - woken < 5
    runner.finish(runner.start("--resume", str(run)), 0)
    assert state_bytes(run) == uninterrupted and len(losses(run)) == 6
