"""The loop of a run. Its order is the contract: what is saved is always the state after a whole number of steps.

start     lock the folder, gather cases, build the network, take up the newest sound state
step      take a batch → dispatch the step → only then read the numbers of the step before, so that the device never waits
due       read the last numbers → save → validate → keep the best → note it in what was saved
signal    finish the step → save → leave
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from swinunetr_jax import InputError, parallel
from train import checkpoints, pictures
from train.config import Recipe
from train.data import batches
from train.report import write_report
from train.start import Run, start
from train.validation import Scores, validate

SAVE_SECONDS = 20 * 60.0


class Stopped(Exception):
    """A signal asked the run to stop; its state is saved."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def train(recipe: Recipe, *, resume: bool = False) -> float:
    """Trains, from the start or from the newest saved step, to the end; returns the best score.

    Raises:
        InputError: the folder, the data or the options cannot be used; or the loss is not finite.
        Stopped: by SIGINT or SIGTERM, after the state was saved.
    """
    recipe.check()
    recipe = recipe.absolute()
    with checkpoints.locked(recipe.out):
        run = start(recipe, recipe.out, resume=resume)
        try:
            with _signals() as stop:
                _advance(run, stop)
        finally:
            run.log.close()
        write_report(run.folder, run.log.rows)
        _farewell(run)
        return run.progress.best_score or 0.0


def _advance(run: Run, stop: "Stop") -> None:
    recipe, total = run.recipe, run.total
    mesh = parallel.data_mesh(recipe.batch)
    if mesh.size < jax.device_count():
        run.log.say(f"a batch of {recipe.batch} uses {mesh.size} of {jax.device_count()} devices; --batch shares it among more")
    step_of = run.training.compile(mesh if mesh.size > 1 else None)
    run.state = parallel.replicate(run.state, mesh) if mesh.size > 1 else run.state
    every = recipe.validation.every or max(total // 10, 1)
    data = batches(recipe, run.cases)
    data.set_state({"step": run.progress.step})
    pending: dict[str, Any] | None = None
    saved, saved_at = run.progress.step, time.monotonic()
    try:
        while True:
            step = run.progress.step
            validation_due = step > 0 and (step % every == 0 or step == total) and run.progress.validated != step
            save_due = recipe.save_every is not None and step % recipe.save_every == 0
            if validation_due or stop or save_due or time.monotonic() - saved_at > SAVE_SECONDS:
                pending = _read(run, pending)
                if step > saved:
                    _save(run)
                    saved, saved_at = step, time.monotonic()
                if validation_due and not stop:
                    _validate(run, stop)
            if stop:
                raise Stopped(stop.number)
            patience = recipe.validation.patience
            if step == total or (patience and run.progress.since_best >= patience):
                if step < total:
                    run.log.say(f"no better score in {patience} validations: stopped after step {step} of {total}")
                return
            if step == 0:
                run.log.say("compiling the training step …")
            asked = time.perf_counter()
            batch = next(data)
            waited = time.perf_counter() - asked
            shared = parallel.divide({name: batch[name] for name in ("image", "label")}, mesh)
            run.state, metrics = step_of(run.state, shared["image"], shared["label"])
            run.progress = replace(run.progress, step=step + 1)
            _read(run, pending)
            names = [run.cases.train[index].name for index in batch["case"].tolist()]
            pending = {"step": step + 1, "metrics": metrics, "wait": waited, "names": names}
    finally:
        data.close()


def _read(run: Run, pending: dict[str, Any] | None) -> None:
    """The numbers of a dispatched step, into the log. Raises InputError if its loss is not finite."""
    if pending is None:
        return
    values = {name: float(value) for name, value in pending["metrics"].items()}
    if not np.isfinite(values["loss"]) or not np.isfinite(values["grad_norm"]):
        raise InputError(
            f"step {pending['step']}: the loss is {values['loss']:g} and its gradient {values['grad_norm']:g}, on "
            f"{', '.join(pending['names'])}; look at these cases (`swinunetr validate`), lower --optim.lr or give --optim.clip 1. The "
            f"last saved state is kept in {run.folder}."
        )
    run.log.step(pending["step"], values | {"wait": round(pending["wait"], 4)})


def _save(run: Run) -> None:
    checkpoints.save(run.folder, run.state, run.progress, run.training.config, run.cases.task, keep=run.recipe.keep)
    run.log.resumed()


def _validate(run: Run, stop: "Stop") -> None:
    """Scores the network and keeps it if it is the best so far; a stop in between leaves the score undone."""

    def look(done: int, windows: int) -> None:
        if stop:
            raise _Interrupted

    progress, started = run.progress, time.perf_counter()
    try:
        scores = validate(
            run.training.config,
            parallel.on_one(run.state.network),
            run.cases.validation,
            run.cases.task,
            run.recipe.validation,
            look,
        )
    except _Interrupted:
        return
    seconds, score = time.perf_counter() - started, scores.mean
    better = progress.best_score is None or score > progress.best_score
    if better:
        checkpoints.save_best(run.folder, run.state, run.training.config, run.cases.task)
        changes = {"best_score": score, "best_step": progress.step, "since_best": 0}
    else:
        changes = {"since_best": progress.since_best + 1}
    run.progress = replace(progress, validated=progress.step, **changes)
    each = ", ".join(f"{name} {value:.3f}" for name, value in scores.by_output.items())
    mark = "best so far" if better else f"best {run.progress.best_score:.4f} at step {run.progress.best_step}"
    run.log.validation(
        progress.step,
        {"score": score, "dice": scores.by_output, "cases": {one.case.name: one.dice for one in scores.cases}, "took": seconds},
        f"step {progress.step}/{run.total}  validation Dice {score:.4f} ({each}), {mark}; {seconds:.0f} s",
    )
    checkpoints.note(run.folder, run.progress)
    try:
        _draw(run, scores, better)
    except OSError as error:  # a picture is no reason to end a run
        run.log.say(f"warning: {error.filename or run.folder}: no picture was drawn ({error.strerror or error})")
    run.log.resumed()


def _draw(run: Run, scores: Scores, better: bool) -> None:
    pictures.write_progress(run.folder / "progress.png", run.log.rows, run.total)
    pictures.write_comparison(run.folder / "validation.png", scores.cases[:4], run.cases.task)
    if better:
        ranked = scores.ranked
        pictures.write_comparison(run.folder / "worst.png", ranked[:2], run.cases.task)
        pictures.write_comparison(run.folder / "best.png", ranked[:-3:-1], run.cases.task)


def _farewell(run: Run) -> None:
    steps = [row for row in run.log.rows if row["kind"] == "step"][1:]
    data = run.recipe.data or run.folder / "data"
    share = sum(row["wait"] for row in steps) / max(sum(row["seconds"] for row in steps), 1e-9)
    print(
        f"best validation Dice {run.progress.best_score or 0.0:.4f} at step {run.progress.best_step}; "
        f"{100 * share:.1f} % of the steps' time went into waiting for data\n"
        f"curves and cases:  {run.folder / 'report.html'}\n"
        f"segment with it:   swinunetr predict -i {data} -o {run.folder / 'predictions'} -m {run.folder}\n"
        f"score the result:  swinunetr evaluate {run.folder / 'predictions'} {data}"
    )


class _Interrupted(Exception):
    """Ends a validation from within its progress."""


class Stop:
    """True once SIGINT or SIGTERM came."""

    number = 0

    def __bool__(self) -> bool:
        return self.number != 0

    def __call__(self, number: int, frame: Any) -> None:
        if self.number:  # the second time at once
            raise KeyboardInterrupt
        self.number = number
        os.write(2, b"stopping after this step; once more to stop at once\n")  # print may be in the middle of a line


@contextmanager
def _signals() -> Iterator[Stop]:
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
