"""Helpers of tests that run the trainer in a bucket in this process: they kill a run at a named object, and read its bytes."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from helpers.buckets import Bucket as Emulated
from swinunetr_jax.buckets import Bucket
from swinunetr_jax.buckets.run_objects import usable_states
from swinunetr_jax.training import checkpoints, restore
from swinunetr_jax.training.claim import Claim
from swinunetr_jax.training.log import read_rows


class Killed(BaseException):
    """Ends a run where kill -9 would end its process."""


def kill_at(monkeypatch: pytest.MonkeyPatch, operation: str, name: str, *, after: bool = False, count: int = 1) -> None:
    """Ends the run at an operation of `Bucket` ("write", "upload" or "remove") on an object.

    Args:
        monkeypatch: the fixture, which removes the patch.
        operation: the name of the method.
        name: a regular expression, which is searched in the object's name.
        after: whether the operation is carried out first.
        count: the number of the operation on such an object, counted from 1. In an upload of several files, earlier files are copied.
    """
    original: dict[str, Callable] = {method: getattr(Bucket, method) for method in ("write", "upload", "remove", "create")}
    left = [count]
    dead = [False]

    def patched(method: str) -> Callable:
        def call(self, subject, *rest, **options):
            if dead[0]:
                raise Killed
            names = [subject] if isinstance(subject, str) else list(subject)
            for number, one in enumerate(names):
                if method == operation and re.search(name, one):
                    left[0] -= 1
                    if left[0] == 0:
                        done = names[: number + after]
                        dead[0] = True
                        if isinstance(subject, str):
                            if after:
                                original[method](self, subject, *rest, **options)
                        elif method == "upload":
                            original[method](self, {n: subject[n] for n in done})
                        else:
                            original[method](self, done)
                        raise Killed
            return original[method](self, names if method == "remove" else subject, *rest, **options)

        return call

    for method in original:
        monkeypatch.setattr(Bucket, method, patched(method))
    monkeypatch.setattr(Claim, "release", lambda self: self._ended.set())  # a killed process releases nothing
    monkeypatch.setattr(Claim, "_heartbeat", lambda self: None)


def bytes_in(run: Emulated, folder: Path) -> dict[str, bytes]:
    """Returns the arrays of the newest state of a run in a bucket, after copying it into an empty folder."""
    for name, content in run.objects().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "last").symlink_to(usable_states(run.names())[0].name)
    weights = restore.read_checkpoint(folder / "last").params
    state = restore.read_arrays(folder / "last" / checkpoints.STATE)
    return {name: np.asarray(value).tobytes() for name, value in {**weights, **state}.items()}


def numbers(run: Path) -> list[tuple]:
    """Returns the numbers in the log of a run that do not depend on the time."""
    rows = [row for row in read_rows(run) if row["kind"] != "time"]
    return [(row["kind"], row["step"], row.get("loss"), row.get("score")) for row in rows]
