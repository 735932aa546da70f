"""Training batches do not depend on workers, processes or interruptions, and exceptions name the case."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers.refusals import refused
from helpers.training_cases import prepare, write_case

from swinunetr_jax.data.augment.class_share import ClassShare
from swinunetr_jax.data.augment.crops import CropByClass, RandomCrop
from swinunetr_jax.data.augment.intensity import ScaleIntensity
from swinunetr_jax.data.augment.transforms import RandomFlip
from swinunetr_jax.data.pipeline import SampleError, TrainingData

CROP = (RandomCrop((4, 3, 2)), ScaleIntensity(0.5), RandomFlip())
BY_CLASS = (CropByClass(RandomCrop((4, 3, 2)), ClassShare(0.5, 2)), ScaleIntensity(0.5))


@dataclass(frozen=True)
class CachedCase:
    """A stand-in for a prepared case."""

    name: str
    number: int

    def example(self):
        image = np.arange(6 * 5 * 4 * 2, dtype=np.float32).reshape(6, 5, 4, 2) + 1000 * self.number
        return {"image": image, "label": np.full((6, 5, 4), self.number, np.uint8), "class_voxels": Voxels()}


@dataclass(frozen=True)
class Voxels:
    """A stand-in for the stored voxels of a case."""

    present: tuple[int, ...] = (0,)

    def draw(self, rng):
        return int(rng.integers(6)), int(rng.integers(5)), 3


CASES = [CachedCase(f"case {n}", n) for n in range(5)]


class Fails:
    """A transform that fails for one case."""

    def __init__(self, number, how):
        self.number, self.how = number, how

    def __call__(self, example, rng):
        if example["label"].flat[0] != self.number:
            return example
        if self.how == "raises":
            raise KeyError("nothing")
        if self.how == "refuses":
            raise example_error()
        if self.how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return {**example, "image": np.where(example["image"] == example["image"].max(), np.float32(self.how), example["image"])}


def example_error():
    from swinunetr_jax.errors import InputError

    return InputError("it is too small.")


def data(transforms=CROP, cases=CASES, **options):
    return TrainingData(cases, transforms, **{"batch": 2, "seed": 7, **options})


def take(pipeline, count):
    try:
        return [{key: np.array(value) for key, value in batch.items()} for batch in itertools.islice(pipeline, count)]
    finally:
        pipeline.close()


def assert_same_batches(got, expected):
    assert len(got) == len(expected) > 0
    for a, b in zip(got, expected):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_batches_have_the_expected_arrays_and_every_case_once_per_epoch():
    batches = take(data(), 20)
    for batch in batches:
        assert batch["image"].shape == (2, 4, 3, 2, 2) and batch["image"].dtype == np.float32
        assert batch["label"].shape == (2, 4, 3, 2) and batch["label"].dtype == np.uint8
        assert batch["case"].dtype == np.int32 and batch["image"].flags.c_contiguous
        assert (batch["label"] == batch["case"][:, None, None, None]).all()
    order = np.concatenate([batch["case"] for batch in batches]).reshape(-1, 5)
    assert (np.sort(order, axis=1) == np.arange(5)).all()  # every case occurs once before any occurs again
    assert len({tuple(epoch) for epoch in order}) > 4
    images = [data(transforms=()).__next__()["image"] for _ in range(2)]
    np.testing.assert_array_equal(*images)


def test_the_seed_determines_the_batches():
    one, again, other = (take(data(seed=seed), 5) for seed in (7, 7, 8))
    assert_same_batches(one, again)
    assert any(not np.array_equal(a["image"], b["image"]) for a, b in zip(one, other))
    # epoch n + 1 of seed 7 is not epoch n of seed 8
    cases = [np.concatenate([batch["case"] for batch in take(data(seed=seed), 20)]).reshape(-1, 5) for seed in (7, 8)]
    assert not np.array_equal(cases[0][1:], cases[1][:-1])


def test_a_case_looks_different_every_time():
    batches = take(data(cases=CASES[:1], batch=1), 6)
    assert len({batch["image"].tobytes() for batch in batches}) == 6


def test_each_case_gives_several_samples_per_epoch():
    order = np.concatenate([batch["case"] for batch in take(data(samples_per_case=2), 10)]).reshape(2, 10)
    assert (np.sort(order, axis=1) == np.repeat(np.arange(5), 2)).all()


@pytest.mark.parametrize("step", [1, 3, 11])
def test_the_pipeline_continues_from_a_saved_state(step):
    uninterrupted = take(data(), step + 3)
    first = data()
    for _ in range(step):
        next(first)
    state = first.get_state()
    assert state == {"step": step}
    first.close()
    resumed = data()
    resumed.set_state(state)
    assert_same_batches(take(resumed, 3), uninterrupted[step:])
    resumed.set_state({"step": 0})  # and back
    assert_same_batches(take(resumed, 2), uninterrupted[:2])


@pytest.mark.parametrize("processes", [2, 4])
def test_the_shares_of_processes_are_the_batch(processes):
    batches = take(data(BY_CLASS, batch=8), 4)
    shares = [take(data(BY_CLASS, batch=8, process=p, processes=processes), 4) for p in range(processes)]
    joined = [{key: np.concatenate([part[key] for part in parts]) for key in parts[0]} for parts in zip(*shares)]
    assert_same_batches(joined, batches)
    assert [batch["sample"].tolist() for batch in batches[2:]] == [[*range(16, 24)], [*range(24, 32)]]
    resumed = data(BY_CLASS, batch=8, process=1, processes=processes)
    resumed.set_state({"step": 2})
    assert_same_batches(take(resumed, 2), shares[1][2:])


def test_upcoming_returns_the_cases_of_the_next_batch():
    pipeline = data(batch=4, process=1, processes=2)
    for _ in range(3):
        upcoming = pipeline.upcoming()
        assert pipeline.upcoming(pipeline.get_state()["step"]) == upcoming
        assert next(pipeline)["case"].tolist() == upcoming
    pipeline.close()


def test_workers_change_nothing():
    """Which crops are centred on classes depends on the numbers of the samples, and workers must not change it."""
    without_workers = take(data(BY_CLASS), 7)
    pipeline = data(BY_CLASS, workers=2)
    pipeline.set_state({"step": 3})
    assert_same_batches(take(pipeline, 4), without_workers[3:])  # resumed with another number of workers
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("how", "words"), [(np.nan, "NaN or Inf"), (np.inf, "NaN or Inf"), ("refuses", "it is too small")])
def test_a_sample_that_cannot_be_used_is_reported_with_its_case(how, words):
    with refused("case 3: ", words):
        take(data(transforms=(Fails(3, how),)), 5)


def test_a_large_sum_does_not_count_as_inf():
    large = (lambda example, rng: {**example, "image": np.full((4, 3, 2, 2), 2e38, np.float32)},)
    assert np.isfinite(take(data(transforms=large), 1)[0]["image"]).all()


def test_an_exception_in_a_sample_names_the_case():
    with pytest.raises(SampleError, match="case 3: KeyError: 'nothing'"):
        take(data(transforms=(Fails(3, "raises"),)), 5)


def test_an_exception_in_a_worker_names_the_case():
    with refused("case 3: the sample holds NaN or Inf"):
        take(data(transforms=(Fails(3, np.nan),), workers=1), 5)
    assert not multiprocessing.active_children()


def test_the_exception_after_a_killed_worker_names_the_possible_cases():
    started = time.monotonic()
    pipeline = data(transforms=(Fails(3, "dies"),), cases=CASES[2:4], batch=1, workers=1)
    with pytest.raises(
        SampleError, match=r"batch \d or one soon after it \(cases: .*case 3.*\) could not be prepared .*exit code -9"
    ):
        take(pipeline, 3)
    assert time.monotonic() - started < 180


PROGRAM = """
import multiprocessing, sys, time
sys.path.insert(0, sys.argv[1])
if __name__ == "__main__":
    from test_pipeline import data
    pipeline = data(workers=1)
    next(pipeline)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    time.sleep(float(sys.argv[2]))
    for _ in range(4):
        next(pipeline)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def within(seconds, condition):
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return met


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads the state of processes from /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_ends_with_its_parent_and_not_before(tmp_path, how):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, tmp_path / "program.py", str(Path(__file__).parent)]
    seconds = 600 if how == signal.SIGKILL else 1
    with subprocess.Popen([*command, str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        if how == signal.SIGKILL:
            parent.kill()
        else:
            os.kill(worker, signal.SIGTERM)  # only the worker: the parent receives its batches and ends normally without `close`
            assert parent.wait(180) == 0, parent.stderr.read()
        assert within(90, lambda: not alive(worker))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cases": []}, "no cases to train on"),
        ({"batch": 3, "processes": 2}, "a batch of 3 cannot be shared by 2 processes"),
        ({"batch": 0}, "a batch of 0"),
        ({"process": 2, "processes": 2}, "`process` must be 0 … 1, got 2"),
        ({"workers": -1}, "`workers` must be 0 or more"),
        ({"samples_per_case": 0}, "`samples_per_case` 1 or more"),
        ({"seed": -1}, "`seed` within 32 bits"),
    ],
)
def test_invalid_arguments_are_refused(options, words):
    with refused(words):
        data(**options)


def test_batches_are_made_of_prepared_cases(tmp_path):
    cases = [write_case(Path(tmp_path) / "data", name, seed) for seed, name in enumerate("ab")]
    prepared = prepare(cases, tmp_path / "cache", dtype="float16")
    batches = take(TrainingData(prepared, (RandomCrop((4, 4, 2)),), batch=2, seed=0), 3)
    for batch in batches:
        assert batch["image"].shape == (2, 4, 4, 2, 2) and batch["image"].dtype == np.float32
        assert sorted(batch["case"].tolist()) == [0, 1]
    assert_same_batches(take(TrainingData(prepared, (RandomCrop((4, 4, 2)),), batch=2, seed=0, workers=1), 3), batches)
