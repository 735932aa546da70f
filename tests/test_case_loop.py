"""Many cases: the next one is read and the previous one is written while a case is computed, with the lines and records in order."""

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.prediction_record import CaseEntry, Record
from swinunetr_jax.errors import InputError
from swinunetr_jax.inference import case_loop
from swinunetr_jax.inference.background import background_calls, background_windows
from swinunetr_jax.inference.case_loop import run_cases
from swinunetr_jax.inference.plan import Plan
from swinunetr_jax.inference.sliding_window import predict_slabs

SECONDS = 30  # for a thread on a busy machine
Hook = Callable[[str], None]


class Work:
    """Copies the name of each case into a file. `hooks` are called with the names of cases by the stage that they belong to."""

    unit = "step"

    def __init__(self, out: Path, memory: int = 1, **hooks: Hook):
        self.out, self.bytes, self.hooks = out, memory, hooks
        self.events: list[tuple[str, str]] = []

    def _stage(self, stage: str, name: str) -> None:
        self.events.append((stage, name))
        self.hooks.get(stage, lambda name: None)(name)
        self.events.append((f"{stage} ended", name))

    def outputs(self, case: Case) -> dict[str, Path]:
        return {"text": self.out / f"{case.name}.txt"}

    def read(self, case: Case) -> str:
        self._stage("read", case.name)
        return case.name

    def memory(self, content: str) -> int:
        return self.bytes

    def compute(self, case: Case, content: str, progress: Any) -> str:
        self._stage("compute", case.name)
        return content

    def warnings(self, result: str) -> list[str]:
        return []

    def notes(self, result: str) -> list[str]:
        return [f"note on {result}"]

    def write(self, case: Case, result: str, paths: Mapping[str, Path]) -> None:
        self._stage("write", case.name)
        paths["text"].write_text(result)

    def entry(self, result: str) -> CaseEntry:
        return CaseEntry(windows=1)

    def summary(self, result: str, outputs: Mapping[str, Path], seconds: float) -> list[str]:
        return [f"{result} is written"]


def run(work: Work, names: str = "abcd", **options: Any) -> list[str]:
    return run_cases(work, Record(work.out, {}, {}), [Case(name, ()) for name in names], **options)


def entries(work: Work) -> dict[str, Any]:
    return json.loads((work.out / "predict.json").read_text())["cases"]


@pytest.mark.parametrize("readers", [1, 2])
def test_the_next_case_is_read_and_the_previous_one_written_during_the_computation(tmp_path, monkeypatch, readers):
    monkeypatch.setattr(case_loop, "READERS", readers)
    written, read = threading.Event(), threading.Event()

    def compute(name: str) -> None:
        if name == "b":  # if one stage waited for the other, neither event would be set in time
            assert written.wait(SECONDS) and read.wait(SECONDS)

    def writes(name: str) -> None:
        written.set()
        assert read.wait(SECONDS)

    def reads(name: str) -> None:
        if name == "cd"[readers - 1]:
            read.set()

    work = Work(tmp_path, compute=compute, write=writes, read=reads)
    assert run(work) == []
    in_memory, most = 0, 0
    for event, _ in work.events:
        in_memory += (event == "read") - (event == "write ended")
        most = max(most, in_memory)
    assert most == 2 + readers
    assert list(entries(work)) == list("abcd") and (tmp_path / "d.txt").read_text() == "d"


def test_lines_are_in_the_order_of_the_cases(tmp_path, capsys):
    run(Work(tmp_path, compute=lambda name: None), "ac")
    capsys.readouterr()

    def fail(wrong: str) -> Hook:
        def stage(name: str) -> None:
            if name == wrong:
                raise InputError(f"{name} is faulty.")

        return stage

    work = Work(tmp_path, read=fail("b"), compute=fail("d"), write=fail("f"))
    assert run(work, "abcdefg") == ["b", "d", "f"]
    printed = capsys.readouterr()
    assert [line.partition("; ")[0] for line in printed.out.splitlines()] == [
        "[1/7] a: done already, skipped",
        "[3/7] c: done already, skipped",
        "[5/7] e: note: note on e",
        "[5/7] e: e is written",
        "[6/7] f: note: note on f",
        "[7/7] g: note: note on g",
        "[7/7] g: g is written",
    ]
    assert printed.err.splitlines() == [
        "[2/7] b: FAILED: b is faulty.",
        "[4/7] d: FAILED: d is faulty.",
        "[6/7] f: FAILED: f is faulty.",
    ]
    assert [name for name, entry in entries(work).items() if "error" in entry] == ["b", "d", "f"]
    assert not (tmp_path / "f.txt").exists()


def test_the_next_case_is_not_read_ahead_after_a_case_that_takes_much_memory(tmp_path):
    work = Work(tmp_path, memory=case_loop.MAX_READ_AHEAD + 1)
    run(work, "ab")
    assert work.events.index(("compute ended", "a")) < work.events.index(("read", "b"))


def test_an_interruption_keeps_the_case_that_is_being_written(tmp_path):
    computing = threading.Event()

    def interrupt(name: str) -> None:
        if name == "b":
            computing.set()
            raise KeyboardInterrupt

    work = Work(tmp_path, compute=interrupt, write=lambda name: computing.wait(SECONDS))
    with pytest.raises(KeyboardInterrupt):
        run(work)
    assert (tmp_path / "a.txt").read_text() == "a" and list(entries(work)) == ["a"]


@pytest.mark.parametrize(("batch", "calls", "background"), [(1, 3, 14), (2, 3, 12)])
def test_windows_of_background_are_computed_once(batch, calls, background):
    volume = np.zeros((8, 8, 16, 1), np.float32)
    volume[1, 1, 1], volume[6, 6, 14] = 3, 5
    plan = Plan.of(volume.shape[:3], 4, 0)
    count = 0

    def predictor(patches):
        nonlocal count
        count += 1
        return (patches * 2 + 1,)

    found = background_calls(volume, plan, batch)
    assert background_windows(found, plan, batch) == background and plan.windows == 16
    weights = np.ones(plan.roi, np.float32)
    pieces = list(predict_slabs(volume, plan, batch, predictor, weights, background=found))
    result = np.concatenate([piece.array[piece.skip : piece.skip + piece.count] for piece in pieces])
    assert np.array_equal(result, volume * 2 + 1) and count == calls
