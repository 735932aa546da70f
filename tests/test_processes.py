"""Runs of two processes have the losses of one process, and can be resumed after their processes were stopped or killed."""

import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.runner import OPTIONS, ROOT, SECONDS, bytes_of, losses
from helpers.small_network import forget, replace_swin_unetr

from swinunetr_jax import InputError
from swinunetr_jax.data.phantom.dataset import write_phantom
from swinunetr_jax.training import command, processes
from swinunetr_jax.training.log import read_rows
from swinunetr_jax.training.processes import Launch, initialize
from swinunetr_jax.training.times import times_of

VALIDATE = ("--validation.every", "2")


@pytest.fixture(scope="module")
def alone(runner) -> Path:
    """Returns the folder of a run of six steps in one process."""
    run = runner.folder / "alone"
    started = runner.begin(run, "--steps", "6", *VALIDATE, count=1)
    runner.finish(started, 0)
    assert "packages for buckets: none\n" in runner.output_of(started[0])  # a local run does not import them
    return run


@pytest.mark.long
def test_a_signal_to_one_process_stops_all_and_another_number_of_processes_continues(runner, alone):
    run = runner.folder / "two"
    assert runner.stop(runner.begin(run, "--steps", "6", *VALIDATE), run, after=2) < 6
    # The run is resumed by one process with two workers, and then by two processes.
    assert runner.stop(runner.start("--resume", str(run), "--workers", "2", count=1), run, after=4) < 6
    runner.finish(runner.start("--resume", str(run), "--workers", "0"), 0)
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-5)
    ours, theirs = ([row for row in read_rows(folder) if row["kind"] == "validation"] for folder in (run, alone))
    assert [row["step"] for row in ours] == [2, 4, 6]
    for our, their in zip(ours, theirs):
        assert our["cases"].keys() == their["cases"].keys()
        assert our["score"] == pytest.approx(their["score"], abs=1e-3)
    assert (run / "report.html").exists()


@pytest.mark.long
def test_swin_unetr_on_two_processes(runner):
    """The network is Swin UNETR instead of a small one, and pictures are drawn."""
    environment = {"SWINUNETR_TEST_WHOLE": "1"}
    alone, run = runner.folder / "swin_unetr alone", runner.folder / "swin_unetr"
    runner.finish(runner.begin(alone, "--steps", "4", *VALIDATE, count=1, environment=environment), 0)
    assert runner.stop(runner.begin(run, "--steps", "4", *VALIDATE, environment=environment), run, after=2) < 4
    runner.finish(runner.start("--resume", str(run), environment=environment), 0)
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-5)
    assert (run / "worst.png").exists()


def test_if_one_process_is_killed_the_other_ends_and_the_run_can_be_resumed(runner, alone):
    run = runner.folder / "killed"
    started = runner.begin(run, "--steps", "6", *VALIDATE, "--save-every", "1")
    runner.wait_for_step(started[0], run, 2)
    started[1].kill()
    killed_at = time.monotonic()
    assert started[0].wait(SECONDS) not in (0, None)
    assert time.monotonic() - killed_at < 30
    runner.finish(runner.start("--resume", str(run)), 0)
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-5)
    times = times_of(read_rows(run))
    assert times.restarts == 1 and times.lost > 0 and len(times.hosts) == 2
    assert "<td>lost by 1 restart" in (run / "report.html").read_text()


@pytest.mark.long
def test_pmap_on_two_processes(runner, alone):
    run = runner.folder / "pmap"
    assert runner.stop(runner.begin(run, "--steps", "6", *VALIDATE, "--devices.pmap"), run, after=2) < 6
    runner.finish(runner.start("--resume", str(run), "--pmap", "False"), 0)  # without pmap
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("more", [(), ("--devices.pmap",)])
def test_slices_in_another_order_than_processes(runner, alone, more):
    run, slices = runner.folder / f"slices{len(more)}", {"SWINUNETR_TEST_SLICES": "1,0"}
    runner.finish(runner.begin(run, "--steps", "6", *VALIDATE, *more, environment=slices), 0)
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-5)


@pytest.mark.long
def test_masks_of_pretraining_do_not_depend_on_the_order_of_slices(runner):
    """The masks of a sample depend on its number."""
    scans = runner.folder / "scans-of-slices"
    write_phantom(scans, cases=2, size=(48, 48, 32))
    options = (
        *("pretrain", "--data", str(scans), "--cache", str(runner.folder / "cache-of-slices"), "--batch", "2", "--folds", "2"),
        *("--roi", "32", "32", "64", "--network.feature-size", "12", "--network.depths", "1", "1", "1", "1", "--steps", "3"),
    )
    one, two = runner.folder / "masks-alone", runner.folder / "masks-slices"
    runner.finish(runner.start(*options, "--out", str(one), count=1), 0)
    runner.finish(runner.start(*options, "--out", str(two), environment={"SWINUNETR_TEST_SLICES": "1,0"}), 0)
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)


@pytest.mark.long
def test_a_recipe_file_on_two_processes(runner):
    """Each process executes the functions of the recipe file."""
    file = str(ROOT / "docs" / "extend" / "loss.py")
    shared = (
        "--data",
        str(runner.folder / "data"),
        "--cache",
        str(runner.folder / "cache"),
        "--steps",
        "2",
        "--validation.every",
        "2",
    )
    alone, run = runner.folder / "file alone", runner.folder / "file"
    runner.finish(runner.start(file, *OPTIONS[1:], *shared, "--out", str(alone), count=1), 0)
    runner.finish(runner.start(file, *OPTIONS[1:], *shared, "--out", str(run)), 0)
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-5)
    assert (run / "recipe.py").read_text() == Path(file).read_text() and (run / "report.html").exists()


def test_a_mistake_ends_all_processes(runner):
    started = runner.begin(runner.folder / "odd", "--steps", "6", *VALIDATE, "--batch", "3")
    runner.finish(started, 2)
    assert "a batch of 3 cannot be shared evenly by 2 devices of 2 processes: choose a multiple of 2" in runner.output_of(
        started[0]
    )


def test_several_processes_are_recognised_by_the_environment():
    assert not processes._is_one_of_several({})
    assert not processes._is_one_of_several({"SLURM_NTASKS": "4"})  # within an allocation, but not started by srun
    assert not processes._is_one_of_several({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"})
    assert processes._is_one_of_several({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a[1-4]"})
    assert processes._is_one_of_several({"TPU_WORKER_HOSTNAMES": "a,b"}) and not processes._is_one_of_several(
        {"TPU_WORKER_HOSTNAMES": "a"}
    )
    one_host_each = {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}
    assert processes._is_one_of_several(one_host_each)
    assert not processes._is_one_of_several(one_host_each | {"MEGASCALE_NUM_SLICES": "1"})


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (Launch(distributed="somewhere"), "must be auto, detect, off or HOST:PORT, got 'somewhere'"),
        (Launch(distributed="localhost:1"), "needs --processes N and --process from 0 to N - 1"),
        (Launch(distributed="localhost:1", processes=2, process=2), "needs --processes N and --process from 0 to N - 1"),
        (Launch(processes=2, process=0), "give --distributed HOST:PORT with them"),
    ],
)
def test_contradicting_options_are_refused(launch, message):
    with pytest.raises(InputError, match=message):
        initialize(launch)


@pytest.mark.parametrize(("error", "code"), [(RuntimeError("DEADLINE_EXCEEDED"), 3), (ValueError("no cluster"), 2)])
def test_processes_that_cannot_be_reached_have_a_code_that_launchers_follow_by_another_try(error, code, monkeypatch, capsys):
    def initialize(**_) -> None:
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(processes, "leave", sys.exit)
    with pytest.raises(SystemExit) as ended:
        command.main(["phantom", "--distributed", "localhost:1", "--processes", "2", "--process", "0"])
    assert ended.value.code == code and f"the other processes could not be reached ({error})" in capsys.readouterr().err


def test_a_single_process_does_not_communicate():
    processes.barrier("nothing")
    np.testing.assert_array_equal(processes.gather(np.array([1.5])), [[1.5]])
    np.testing.assert_array_equal(processes.from_process(np.arange(3), 0), np.arange(3))
    assert processes.is_leader() and not processes.is_distributed()


def test_gathered_rows_are_in_the_order_of_processes():
    rows = [np.frombuffer(np.int32(process).tobytes() + bytes([10 + process]), np.uint8) for process in (2, 0, 1)]
    assert processes.in_order_of_processes(np.stack(rows)).tolist() == [[10], [11], [12]]


@pytest.mark.long
def test_pretraining_on_two_processes_that_is_killed_ends_in_the_bytes_of_an_uninterrupted_run(runner, monkeypatch):
    scans = runner.folder / "unlabelled"
    write_phantom(scans, cases=2, size=(48, 48, 32))
    options = (
        *("pretrain", "--data", str(scans), "--cache", str(runner.folder / "scans-cache"), "--batch", "2", "--folds", "2"),
        *("--roi", "32", "32", "64", "--network.feature-size", "12", "--network.depths", "1", "1", "1", "1", "--steps", "6"),
        *("--validation.every", "3", "--save-every", "1"),
    )
    whole, killed = runner.folder / "pretrained", runner.folder / "pretrained-killed"
    runner.finish(runner.start(*options, "--out", str(whole)), 0)
    started = runner.start(*options, "--out", str(killed))
    runner.wait_for_step(started[0], killed, 2)
    started[1].kill()
    assert started[0].wait(SECONDS) not in (0, None)
    runner.finish(runner.start("--resume", str(killed)), 0)
    replace_swin_unetr(monkeypatch)
    assert bytes_of(killed) == bytes_of(whole)
    monkeypatch.undo()
    forget()
    validations = [[row for row in read_rows(run) if row["kind"] == "validation"] for run in (whole, killed)]
    assert [row["score"] for row in validations[0]] == [row["score"] for row in validations[1]]
