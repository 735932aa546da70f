"""Predictions of a simple function instead of a network, also by several processes at the same time."""

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np

from swinunetr_jax import Task
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.formats import read_volume
from swinunetr_jax.inference import batch
from swinunetr_jax.inference.batch import predict_cases
from swinunetr_jax.inference.segmentation import Segmentation

SHAPE = (6, 5, 4)
SECONDS = 200  # for processes on a busy machine
PROCESSES = multiprocessing.get_context("forkserver")
BRATS = Task.brats()


@dataclass
class FakePredictor:
    """Labels the voxels of every case with the label values of the task in turn, instead of running a network.

    Args:
        task: the task.
        began: a file that `segment_prepared` creates when it is called.
        until: a file; `segment_prepared` waits until it exists.
        fails: the names of cases that cannot be segmented.
        windows: the number of windows that `segment_prepared` reports as progress.
        empty: whether no voxel is labelled.
    """

    task: Task = BRATS
    began: Path | None = None
    until: Path | None = None
    fails: tuple[str, ...] = ()
    windows: int = 8
    empty: bool = False

    def prepare(self, case: Case) -> Any:
        volume = read_volume(case.images[0])
        return SimpleNamespace(name=case.name, scan=volume, memory=volume.array.nbytes)

    def segment_prepared(
        self, prepared: Any, *, probabilities: bool = False, et_label: int | None = None, progress: Callable[[int, int], None]
    ) -> Segmentation:
        if self.began:
            self.began.touch()
        deadline = time.monotonic() + SECONDS
        while self.until and not self.until.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if prepared.name in self.fails:
            raise batch.InputError(f"{prepared.name}: cannot be segmented.")
        scan = prepared.scan
        task = self.task if et_label is None else self.task.with_et_label(et_label)
        values = np.array(sorted({0, *(output.value for output in task.outputs)}), np.uint8)
        labels = values[np.arange(scan.array.size).reshape(scan.array.shape) % len(values)]
        labels *= not self.empty
        for done in range(1, self.windows + 1):
            progress(done, self.windows)
        channel_probabilities = np.full((*scan.array.shape, len(task.outputs)), 0.5, np.float32) if probabilities else None
        return Segmentation(labels, channel_probabilities, scan, task, self.windows, (), channels={"FLAIR": scan.array})


def scan(folder: Path, name: str, image: str = "flair") -> Case:
    """Writes a scan of random voxels, unless it exists."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}_{image}.nii.gz"
    if not path.exists():
        nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), np.eye(4)), path)
    return Case(name, (path,))


def predict(
    folder: Path,
    *names: str,
    fake: FakePredictor | None = None,
    settings: str = "one",
    image: str = "flair",
    **options: Any,
) -> list[str]:
    """Predicts these cases into the folder `out` and returns the names of those that failed."""
    fake = fake or FakePredictor()
    cases = [scan(folder, name, image) for name in names]
    identity = {"weights": settings, "task": fake.task.to_dict()}
    return predict_cases(fake, cases, folder / "out", identity=identity, **options)


def recorded(folder: Path) -> Any:
    """Returns the content of predict.json."""
    return json.loads((folder / "out/predict.json").read_text())


def predict_together(folder: Path, *options: tuple[Sequence[str], dict[str, Any]]) -> tuple[list[int | None], str]:
    """Predicts with each of these options in a separate process at the same time; returns the exit codes and the output."""
    PROCESSES.set_forkserver_preload([batch.__name__, "pytest"])  # imported once, by a process without threads
    logs = [folder / f"log{number}" for number in range(len(options))]
    started = [
        PROCESSES.Process(target=predict_into_log, args=(log, folder, *arguments)) for log, arguments in zip(logs, options)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(SECONDS)
    return [process.exitcode for process in started], "".join(log.read_text() for log in logs)


def predict_into_log(log: Path, folder: Path, names: Sequence[str], options: dict[str, Any]) -> None:
    """Predicts in a process of its own, whose output goes to the file `log`."""
    with open(log, "w") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        batch.jax = SimpleNamespace(devices=list)  # because starting JAX takes longer than everything else
        if options.pop("killed", False):
            os.replace = lambda _, target: os.kill(os.getpid(), signal.SIGKILL) if "a_prob" in Path(target).name else None
        ended = options.pop("ended", None)
        predict(folder, *names, **options)
        if ended:
            ended.touch()


def predict_overlapping(folder: Path, first: dict[str, Any], second: dict[str, Any]) -> tuple[list[int | None], str]:
    """Predicts the case `a` in two runs, of which the first finishes while the second one is running."""
    began, ended = folder / "began", folder / "ended"
    began.unlink(missing_ok=True)
    ended.unlink(missing_ok=True)
    fakes = FakePredictor(until=began), FakePredictor(began=began, until=ended, fails=second.pop("fails", ()))
    runs = [(("a",), {"fake": fakes[0], "ended": ended, **first}), (("a",), {"fake": fakes[1], **second})]
    scan(folder, "a")
    return predict_together(folder, *runs)
