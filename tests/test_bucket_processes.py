"""Processes that train in a bucket without a shared folder are killed, suspended or started twice, or their bucket fails."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers.bucket_runs import bytes_in
from helpers.buckets import Bucket, is_stopped
from helpers.runner import OPTIONS, ROOT, SECONDS, Runner, bytes_of
from helpers.small_network import forget, replace_swin_unetr

from swinunetr_jax.buckets.run_objects import StoredState, usable_states

pytestmark = pytest.mark.long
LEASE = 4


@pytest.fixture(scope="module", autouse=True)
def small():
    patch = pytest.MonkeyPatch()
    replace_swin_unetr(patch)
    yield
    patch.undo()
    forget()


@pytest.fixture(scope="module")
def whole(runner: Runner, small) -> dict[int, dict[str, bytes]]:
    """Returns the arrays of uninterrupted local runs of one and two processes, by the number of processes."""
    runs = {count: runner.folder / f"whole {count}" for count in (1, 2)}
    for count, run in runs.items():
        runner.finish(runner.begin(run, *options(), count=count), 0)
    return {count: bytes_of(run) for count, run in runs.items()}


@pytest.fixture
def run(gcs_bucket: Bucket) -> Bucket:
    return gcs_bucket / "run"


def options(steps: int = 4) -> tuple[str, ...]:
    return "--steps", str(steps), "--validation.every", "2", "--save-every", "1"


def start(
    runner: Runner, run: Bucket, host: str, *, count: int = 1, steps: int = 4, **environment: str
) -> list[subprocess.Popen]:
    """Starts the same command each time. Each host has its own scratch folder, which is empty if the host is new."""
    shared = ("--data", str(runner.folder / "data"), "--cache", str(runner.folder / "cache"), "--out", run.url)
    place = {"SWINUNETR_SCRATCH": str(runner.folder / run.prefix.replace("/", "-") / host), "SWINUNETR_TEST_LEASE": str(LEASE)}
    return runner.start(*OPTIONS, *shared, *options(steps), count=count, environment=run.environment | place | environment)


def close(ours: dict[str, bytes], theirs: dict[str, bytes]) -> bool:
    pairs = [(np.frombuffer(ours[n], np.float32), np.frombuffer(theirs[n], np.float32)) for n in ours if len(ours[n]) > 8]
    return ours.keys() == theirs.keys() and all(np.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs)


KILLS = {
    "both, before a commit": ((0, 1), "write", r"00000002-000001/training\.json$", 1),
    "both, in an upload": ((0, 1), "write", "00000002-000001/state", 3),
    "the leader, in the best network": ((0,), "write", r"best/checkpoint\.json$", 1),
    "the follower, in a step": ((1,), "write", "00000003-000001/params", 1),
}


@pytest.mark.parametrize("case", KILLS)
def test_two_processes_that_are_killed_continue_on_new_machines_to_the_same_bytes(case, runner, run, whole, proxied, tmp_path):
    killed, operation, name, nth = KILLS[case]
    proxy = proxied(run)
    proxy.fail("hold", operation, name, nth=nth)
    started = start(runner, proxy.bucket, "old", count=2)
    proxy.wait_for_held(seconds=SECONDS)
    for index in killed:
        started[index].send_signal(signal.SIGKILL)
    proxy.release(carry_out=killed != (0, 1))
    codes = [process.wait(SECONDS) for process in started]
    assert 0 not in codes, codes
    runner.finish(start(runner, run, "new", count=2), 0)
    assert bytes_in(run, tmp_path / "copy") == whole[2]


def test_other_numbers_of_processes_continue_with_the_same_numbers(runner, run, whole, tmp_path):
    runner.finish(start(runner, run, "one", count=1, steps=4), 0)
    assert bytes_in(run, tmp_path / "one") == whole[1]
    shorter = Bucket(run.emulator, f"{run.prefix}-2", run.endpoint)
    proxyless = start(runner, shorter, "two", count=2)
    runner.wait_for(proxyless[0], lambda: bool(usable_states(shorter.names())))
    for process in proxyless:
        process.kill()
        process.wait(SECONDS)
    runner.finish(start(runner, shorter, "again", count=1), 0)
    assert close(bytes_in(shorter, tmp_path / "two"), whole[1])


def test_four_processes_that_are_killed_continue_to_the_same_bytes(runner, run, tmp_path):
    batch = list(OPTIONS)
    batch[batch.index("--batch") + 1] = "4"
    shared = (*batch, "--data", str(runner.folder / "data"), "--cache", str(runner.folder / "cache"), *options())
    uninterrupted = runner.folder / "whole 4"
    runner.finish(runner.start(*shared, "--out", str(uninterrupted), count=4), 0)

    def four(host: str) -> list[subprocess.Popen]:
        place = {"SWINUNETR_SCRATCH": str(tmp_path / host), "SWINUNETR_TEST_LEASE": str(LEASE)}
        return runner.start(*shared, "--out", run.url, count=4, environment=run.environment | place)

    started = four("old")
    assert runner.wait_for(started[0], lambda: bool(usable_states(run.names())))
    for process in started:
        process.kill()
        process.wait(SECONDS)
    runner.finish(four("new"), 0)
    assert bytes_in(run, tmp_path / "copy") == bytes_of(uninterrupted)


def test_of_two_trainers_that_start_at_the_same_moment_one_is_refused(runner, run, whole, tmp_path):
    lease = {"SWINUNETR_TEST_LEASE": "1"}  # shorter than the run
    both = [*start(runner, run, "a", **lease), *start(runner, run, "b", **lease)]
    codes = [process.wait(SECONDS) for process in both]
    assert sorted(codes) == [0, 2], [runner.output_of(process) for process in both]
    refused = runner.output_of(both[codes.index(2)])
    assert f"error: {run.url} is in use by another training process" in refused and "Traceback" not in refused
    assert bytes_in(run, tmp_path / "copy") == whole[1]


@pytest.mark.parametrize("where", ["training.json", "params"])
def test_a_process_that_was_suspended_and_replaced_writes_nothing_when_it_is_resumed(
    where, runner, run, whole, proxied, tmp_path
):
    proxy = proxied(run)
    proxy.fail("hold", "write", f"00000002-000001/.*{where}")
    (old,) = start(runner, proxy.bucket, "old")
    proxy.wait_for_held(seconds=SECONDS)
    old.send_signal(signal.SIGSTOP)
    assert runner.wait_for(old, lambda: is_stopped(old.pid))
    proxy.release(carry_out=False)
    runner.finish(start(runner, run, "new"), 0)
    before = run.digests()
    old.send_signal(signal.SIGCONT)
    assert old.wait(SECONDS) == 2, runner.output_of(old)
    assert f"{run.url} is now trained by another process (claim 2; this one had claim 1)" in runner.output_of(old)
    after = run.digests()
    # Requests that were sent before the suspension can still arrive: files of a state that does not count without its training.json.
    late = {name for name in after if name not in before and re.match("checkpoints/00000002-000001/(params|state)/", name)}
    assert {name: after[name] for name in after if name not in late} == before and (not late or where == "params")
    assert bytes_in(run, tmp_path / "copy") == whole[1] and usable_states(run.names())[0] == StoredState(2, 4)


def test_a_bucket_that_fails_now_and_then(runner, run, whole, proxied, tmp_path):
    proxy = proxied(run)
    proxy.fail_at_random(0.1, ["503", "429", "slow", "cut", "dropped"], seconds=0.3)
    runner.finish(start(runner, proxy.bucket, "host"), 0)
    assert sum(count for kind, count in proxy.counts().items() if kind not in (None, "ok")) > 5
    assert bytes_in(run, tmp_path / "copy") == whole[1]


def test_a_run_waits_for_a_bucket_that_cannot_be_reached_for_a_minute(runner, run, whole, proxied, tmp_path):
    proxy = proxied(run)
    proxy.fail("away", "write", "00000002-000001/training", seconds=60)
    (process,) = start(runner, proxy.bucket, "host")
    runner.finish([process], 0)
    assert "it is tried again for up to" in runner.output_of(process)
    assert bytes_in(run, tmp_path / "copy") == whole[1]


def test_a_bucket_that_cannot_be_written_ends_in_one_sentence(runner, run, proxied):
    proxy = proxied(run)
    proxy.read_only()
    (process,) = start(runner, proxy.bucket, "host")
    runner.finish([process], 2)
    output = runner.output_of(process)
    assert f"error: {run.url}/claims/000001 cannot be created" in output and "check the address and your access" in output
    assert "Traceback" not in output


def test_s3_has_the_same_bytes(runner, s3_bucket, whole, proxied, tmp_path):
    run = s3_bucket / "run"
    proxy = proxied(run)
    proxy.fail("hold", "write", r"00000002-000001/training\.json$")
    started = start(runner, proxy.bucket, "old", count=2)
    proxy.wait_for_held(seconds=SECONDS)
    for process in started:
        process.kill()
        process.wait(SECONDS)
    proxy.release(carry_out=False)
    runner.finish(start(runner, run, "new", count=2), 0)
    assert bytes_in(run, tmp_path / "copy") == whole[2]


def test_compiled_programs_are_found_by_another_machine(runner, run):
    """JAX writes the programs to RUN/programs, and reads them on a new host."""
    fresh = {"JAX_COMPILATION_CACHE_DIR": "", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    script = (
        "import os; os.environ.pop('JAX_COMPILATION_CACHE_DIR'); import sys, runpy, jax, jax.monitoring as m; hits = [];"
        "m.register_event_listener(lambda name, **_: hits.append(name));"
        "sys.argv[1:] = sys.argv[1:]; sys.path.insert(0, sys.argv[1]); sys.argv.pop(1)\n"
        "try: runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
        "except SystemExit as end: print('hits', sum('cache_hits' in name for name in hits), 'code', end.code)\n"
    )
    shared = ("--data", str(runner.folder / "data"), "--cache", str(runner.folder / "cache"))
    hits = []
    for host in ("first", "second"):
        out = (
            ("--out", f"{run.url}", *options(2 if host == "first" else 4))
            if host == "first"
            else ("--resume", run.url, "--steps", "4")
        )
        command = [sys.executable, "-c", script, str(ROOT), str(ROOT / "tests/helpers/run_train.py")]
        command += [*OPTIONS, *shared, *out] if host == "first" else [*out]
        place = {
            "SWINUNETR_SCRATCH": str(runner.folder / run.prefix / host),
            "SWINUNETR_TEST_LEASE": str(LEASE),
            "JAX_PLATFORMS": "cpu",
        }
        done = subprocess.run(
            command, env=os.environ | run.environment | place | fresh, capture_output=True, text=True, timeout=SECONDS
        )
        assert "code 0" in done.stdout, done.stdout + done.stderr
        hits.append(int(done.stdout.split("hits ")[1].split()[0]))
    assert any(name.startswith("programs/") for name in run.names()) and hits[1] > 0, hits
