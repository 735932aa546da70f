"""A run that is killed or signalled, or whose files are damaged, continues to the same bytes as an uninterrupted run."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.runner import Runner, bytes_of

from swinunetr_jax import InputError
from swinunetr_jax.training import checkpoints, restore
from swinunetr_jax.training.checkpoints import Progress
from swinunetr_jax.training.description import read_description
from swinunetr_jax.training.log import read_rows
from swinunetr_jax.training.step import Training
from swinunetr_jax.training.writer import Writer

pytestmark = pytest.mark.usefixtures("small_network")  # the runs that are restored here were made with it
STEPS = "12"
OFTEN = ("--steps", STEPS, "--save-every", "1", "--validation.every", "6")


@pytest.fixture(scope="module")
def finished(runner) -> Path:
    """Returns the folder of an uninterrupted run."""
    run = runner.folder / "finished"
    runner.finish(runner.begin(run, *OFTEN, count=1), 0)
    return run


# ---- killed and signalled


def test_a_run_killed_in_a_step_or_in_a_save_continues_to_the_same_bytes(runner, finished):
    kill_again_and_again(runner, finished, kills=2, seed=0)


@pytest.mark.long
def test_a_run_killed_at_twenty_moments_continues_to_the_same_bytes(runner, finished):
    kill_again_and_again(runner, finished, kills=20, seed=1)


def kill_again_and_again(runner: Runner, finished: Path, *, kills: int, seed: int) -> None:
    """Kills runs alternately at a random time after a step and while a state is written, and resumes each until it finishes."""
    rng, kill_count, number = random.Random(seed), 0, 0
    while kill_count < kills:
        run, number = runner.folder / f"killed{seed}-{number}", number + 1
        (process,) = runner.begin(run, *OFTEN, count=1)
        while kill_count < kills and killed(runner, process, run, in_a_save=kill_count % 2 == 1, delay=rng.uniform(0, 0.5)):
            kill_count += 1
            (process,) = runner.start("--resume", str(run), count=1)
        runner.finish([process], 0)
        assert bytes_of(run) == bytes_of(finished)
        shutil.rmtree(run)


def killed(runner: Runner, process: subprocess.Popen, run: Path, *, in_a_save: bool, delay: float) -> bool:
    """Kills a run after its next step or in its next save, and returns False if it ended before."""

    def steps() -> int:
        return sum(row["kind"] == "step" for row in read_rows(run))

    logged, checkpoint_folder = steps(), run / "checkpoints"
    if in_a_save:
        alive = runner.wait_for(process, lambda: any(checkpoint_folder.glob(".*.tmp")))
    else:
        alive = runner.wait_for(process, lambda: steps() > logged)
        time.sleep(delay)
    process.kill()
    return alive and process.wait() == -signal.SIGKILL


@pytest.mark.long  # signals between steps are also tested by test_train.py and test_processes.py
@pytest.mark.parametrize("moment", ["compilation", "validation"])
def test_after_a_signal_at_any_moment_the_state_is_saved_and_the_run_continues(runner, finished, moment):
    run = runner.folder / moment
    fresh = {"JAX_ENABLE_COMPILATION_CACHE": "false"} if moment == "compilation" else {}
    (process,) = runner.begin(run, *OFTEN, count=1, environment=fresh)
    if moment == "compilation":
        assert runner.wait_for(process, lambda: "compiling the training step" in runner.output_of(process))
    else:  # the sixth state exists, and its validation has not ended
        assert runner.wait_for(process, lambda: (run / "checkpoints" / "00000006").exists())
    process.send_signal(signal.SIGTERM)
    runner.finish([process], 143)
    assert (run / "last" / "training.json").exists() and "continue with" in runner.output_of(process)
    runner.finish(runner.start("--resume", str(run), count=1), 0)
    assert bytes_of(run) == bytes_of(finished)


# ---- workers and samples are lost


def test_a_worker_that_is_killed_ends_the_run(runner):
    run = runner.folder / "worker"
    (process,) = runner.begin(run, "--steps", "100000", "--workers", "1", count=1)
    runner.wait_for_step(process, run, 2)
    (worker,) = workers_of(process)
    os.kill(worker, signal.SIGKILL)
    runner.finish([process], 2)
    assert re.search(
        r"error: batch \d+ or one soon after it \(cases: BraTS2021_\d+\b.*could not be prepared", runner.output_of(process)
    )
    assert "Traceback" not in runner.output_of(process)


@pytest.mark.parametrize("workers", [pytest.param("0", marks=pytest.mark.long), "1"])
def test_a_sample_that_can_no_longer_be_read_ends_the_run(runner, workers):
    run, cache = runner.folder / f"sample{workers}", runner.folder / f"cache{workers}"
    shutil.copytree(runner.folder / "cache", cache)
    (process,) = runner.begin(run, "--steps", "100000", "--workers", workers, "--cache", str(cache), count=1)
    runner.wait_for_step(process, run, 2)
    for file in cache.rglob("*.npy"):
        damaged = file.with_suffix(".new")
        damaged.write_bytes(b"no array")
        damaged.rename(file)
    runner.finish([process], 2)
    assert re.search(r"error: BraTS2021_\d+: ", runner.output_of(process)) and "Traceback" not in runner.output_of(process)


def workers_of(process: subprocess.Popen) -> list[int]:
    """Returns the child processes that prepare samples."""
    lists = Path(f"/proc/{process.pid}/task").glob("*/children")  # each thread has a list
    children = [pid for children_file in lists for pid in children_file.read_text().split()]
    return [int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


# ---- saved states are damaged


@pytest.fixture
def stopped(finished, tmp_path) -> tuple[Path, Training]:
    """Returns a copy of the finished run with its two newest states, and the `Training` that restores them."""
    run = tmp_path / "run"
    shutil.copytree(finished, run, symlinks=True)
    run_description = read_description(run)
    from swinunetr_jax import SwinUNETRConfig, Task
    from swinunetr_jax.training import Recipe

    recipe = Recipe.from_dict(run_description["recipe"])
    config, task = SwinUNETRConfig.from_dict(run_description["network"]), Task.from_dict(run_description["task"])
    return run, Training(config, task, recipe.loss, recipe.optim, run_description["steps"], recipe.seed)


def restored(run: Path, training: Training) -> tuple[Progress, list[str]]:
    _, progress, warnings = restore.restore(run, training.like(), training.config)
    return progress, warnings


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied", "deleted"])
def test_damage_to_any_file_of_a_state_is_found(stopped, damage):
    run, training = stopped
    newest = (run / "last").resolve()
    files = sorted(path.relative_to(newest) for path in newest.rglob("*") if path.is_file())
    assert len(files) > 8
    for name in files:
        whole = (newest / name).read_bytes()
        half = len(whole) // 2
        if damage == "deleted":
            (newest / name).unlink()
        else:
            flipped = whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :] if whole else b"\0"
            (newest / name).write_bytes({"flipped": flipped, "cut": whole[:half], "emptied": b""}[damage])
        if damage != "deleted" and (newest / name).read_bytes() == whole:
            continue
        progress, (warning,) = restored(run, training)
        assert progress.step == int(STEPS) - 1, name
        assert newest.name in warning and f"renamed to damaged-{newest.name}" in warning
        (newest.with_name(f"damaged-{newest.name}")).rename(newest)
        (newest / name).write_bytes(whole)
    assert restored(run, training) == (replace(restored(run, training)[0], step=int(STEPS)), [])


def test_folders_that_are_not_states_are_ignored_or_renamed(stopped):
    run, training = stopped
    (run / "checkpoints" / "00000099").mkdir()
    (run / "checkpoints" / "notes").mkdir()
    shutil.copytree(run / "best", run / "checkpoints" / "00000098")  # a network without the rest of the state
    progress, warnings = restored(run, training)
    assert progress.step == int(STEPS)
    assert [("00000099" in warning, "00000098" in warning) for warning in warnings] == [(True, False), (False, True)]
    assert (run / "checkpoints" / "notes").is_dir()


def test_if_all_states_are_damaged_the_error_names_them(stopped):
    run, training = stopped
    for folder in (run / "checkpoints").iterdir():
        (folder / "training.json").write_text("{}")
    earlier = run / "checkpoints" / "damaged-00000012"
    earlier.mkdir()
    with pytest.raises(InputError, match=r"holds no intact state to continue from: .*00000012.*00000011"):
        restored(run, training)
    assert not list(earlier.iterdir())  # it is not replaced
    assert earlier.with_name("damaged-00000012-2").is_dir() and earlier.with_name("damaged-00000011").is_dir()


def test_the_state_of_another_network_is_refused(stopped):
    run, training = stopped
    other = replace(training, config=training.config.replace(in_channels=3))
    with pytest.raises(InputError, match="state of another network or optimizer") as error:
        restored(run, other)
    assert "mu.coarse.kernel: got (2, 2, 2, 4, 12), expected (2, 2, 2, 3, 12)" in str(error.value)


def test_a_state_is_not_written_if_the_folder_of_the_run_was_removed(stopped):
    run, training = stopped
    state, progress, _ = restore.restore(run, training.like(), training.config)
    shutil.rmtree(run)
    with pytest.raises(InputError, match=r"00000012 cannot be written \(.*run does not exist any more"):
        checkpoints.save(run, state, progress, training.config, training.task, keep=2)
    assert not run.exists()


def test_a_state_that_cannot_replace_the_one_of_its_step_leaves_that_one(stopped, monkeypatch):
    run, training = stopped
    state, progress, _ = restore.restore(run, training.like(), training.config)
    rename = Path.rename

    def fail(self, target):
        if self.name == ".00000012.tmp":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(InputError, match=r"00000012 cannot be written \(.*the states before it are unchanged"):
        checkpoints.save(run, state, progress, training.config, training.task, keep=2)
    assert restored(run, training) == (progress, [])


def test_a_writer_raises_an_error_at_the_next_call():
    def fail() -> None:
        raise InputError("the disk is full")

    writer = Writer()
    writer.start(lambda: None)
    writer.wait()
    writer.start(fail)
    with pytest.raises(InputError, match="the disk is full"):
        writer.wait()
    writer.wait()  # an error is raised once
    writer.start(fail)
    with pytest.raises(InputError, match="the disk is full"):
        while True:
            writer.check()
    writer.close()


def test_a_snapshot_does_not_change_with_the_state():
    array = np.zeros(3)
    copy = checkpoints.snapshot({"a": array})
    array += 1
    assert not copy["a"].any()
