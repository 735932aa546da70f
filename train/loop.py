"""The loop of a run. Its order is the contract: what is saved is always the state after a whole number of steps.

start     lock the folder, gather cases, build the network, take up the newest sound state
step      take a batch → dispatch the step → only then read the numbers of the step before, so that the device never waits
due       read the last numbers → validate → keep the best → save
signal    finish the step → save → leave
"""

import dataclasses
import json
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from swinunetr_jax import InputError, __version__, open_checkpoint
from train import checkpoints, pictures
from train.checkpoints import Progress
from train.config import Recipe
from train.data import Cases, batches, gather
from train.log import Log
from train.optim import learning_rate
from train.report import write_report
from train.step import State, Training
from train.validation import CONVENTION, Scores, validate

DESCRIPTION = "run.json"


class Stopped(Exception):
    """A signal asked the run to stop; its state is saved."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass
class Run:
    """A run while it goes: what is fixed, what changes, and where it is written."""

    recipe: Recipe
    folder: Path
    cases: Cases
    training: Training
    state: State
    progress: Progress
    log: Log

    @property
    def total(self) -> int:
        return self.training.steps


def train(recipe: Recipe, *, resume: bool = False) -> float:
    """Trains, from the start or from the newest saved step, to the end; returns the best score.

    Raises:
        InputError: the folder, the data or the options cannot be used; or the loss is not finite.
        Stopped: by SIGINT or SIGTERM, after the state was saved.
    """
    recipe.check()
    folder = recipe.out
    with checkpoints.locked(folder), _signals() as stop:
        if not resume and (folder / DESCRIPTION).exists():
            raise InputError(f"{folder} holds a run already: go on with `--resume {folder}`, or choose another --out.")
        run = _start(recipe, folder)
        try:
            _advance(run, stop)
        finally:
            run.log.close()
        write_report(folder, run.log.rows)
        _farewell(run)
        return run.progress.best_score or 0.0


def _start(recipe: Recipe, folder: Path) -> Run:
    cases = gather(recipe, folder)
    steps = recipe.total_steps(len(cases.train))
    config, weights = _network(recipe, cases)
    config.check_spatial(cases.task.roi)
    cases.task.check(config)
    training = Training(config, cases.task, recipe.loss, recipe.optim, steps, recipe.seed)
    found = checkpoints.restore(folder, training.like(), config)
    state, progress, warnings = found or (training.init(weights or training.random_weights()), Progress(), [])
    _describe(folder, recipe, cases, training)
    log = Log(folder, step=progress.step, total=steps, batch=recipe.batch)
    for warning in warnings:
        log.say(f"warning: {warning}")
    where = f"going on after step {progress.step}" if found else "from the start"
    count = sum(np.size(value) for value in jax.tree.leaves(state.params))
    log.say(
        f"{len(cases.train)} training and {len(cases.validation)} validation cases; {count / 1e6:.1f} M parameters, crops of "
        f"{'×'.join(map(str, cases.task.roi))}, {recipe.batch} a step, {steps} steps on {jax.devices()[0].device_kind}, {where}"
    )
    return Run(recipe, folder, cases, training, state, progress, log)


def _advance(run: Run, stop: "Stop") -> None:
    recipe, total = run.recipe, run.total
    step_of, rate = run.training.compile(), learning_rate(run.training.optim, total)
    every = recipe.validation.every or max(total // 10, 1)
    save_every = recipe.save_every or every
    data = batches(recipe, run.cases)
    data.set_state(run.progress.data or {"step": run.progress.step})
    samples = iter(data)
    pending: dict[str, Any] | None = None
    saved = run.progress.step
    try:
        while True:
            step = run.progress.step
            validation_due = step > 0 and (step % every == 0 or step == total) and run.progress.validated != step
            if validation_due or stop or (step % save_every == 0 and step > saved):
                pending = _read(run, pending)
                if validation_due and not stop:
                    _validate(run, stop)
                if step > saved or validation_due:
                    _save(run)
                    saved = step
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
            batch = next(samples)
            waited = time.perf_counter() - asked
            run.state, metrics = step_of(run.state, batch["image"], batch["label"])
            run.progress = replace(run.progress, step=step + 1, data=data.get_state())
            _read(run, pending)
            names = [run.cases.train[index].name for index in np.asarray(batch["case"]).tolist()]
            pending = {"step": step + 1, "metrics": metrics, "lr": float(rate(step)), "wait": waited, "names": names}
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
            f"last saved state is kept: --resume {run.folder}."
        )
    run.log.step(pending["step"], values | {"lr": pending["lr"], "wait": round(pending["wait"], 4)})


def _validate(run: Run, stop: "Stop") -> None:
    """Scores the network and keeps it if it is the best so far; a stop in between leaves the score undone."""

    def look(done: int, windows: int) -> None:
        if stop:
            raise _Interrupted

    progress, started = run.progress, time.perf_counter()
    try:
        scores = validate(
            run.training.config, run.state.network, run.cases.validation, run.cases.task, run.recipe.validation, look
        )
    except _Interrupted:
        return
    seconds = time.perf_counter() - started
    score = scores.mean
    better = np.isfinite(score) and (progress.best_score is None or score > progress.best_score)
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
    _draw(run, scores, better)


def _draw(run: Run, scores: Scores, better: bool) -> None:
    pictures.write_progress(run.folder / "progress.png", run.log.rows, run.total)
    pictures.write_comparison(run.folder / "validation.png", scores.cases[:4], run.cases.task)
    if better:
        ranked = scores.ranked
        pictures.write_comparison(run.folder / "worst.png", ranked[:2], run.cases.task)
        pictures.write_comparison(run.folder / "best.png", ranked[:-3:-1], run.cases.task)


def _save(run: Run) -> None:
    checkpoints.save(run.folder, run.state, run.progress, run.training.config, run.cases.task, keep=run.recipe.keep)
    run.log.resumed()


def _network(recipe: Recipe, cases: Cases) -> tuple[Any, dict[str, np.ndarray] | None]:
    """The configuration, and weights to start from if any were given."""
    init, outputs = recipe.init, len(cases.task.outputs)
    if init.checkpoint is None:
        return recipe.network.config(cases.in_channels, outputs), None
    fields: dict[str, Any] = recipe.network.in_use()
    if init.downsample:
        fields["downsample"] = init.downsample
    if init.encoder_only or init.adapt_channels:
        fields |= {"out_channels": outputs} | ({"in_channels": cases.in_channels} if init.adapt_channels else {})
    found = open_checkpoint(
        init.checkpoint, encoder_only=init.encoder_only, adapt_channels=init.adapt_channels, seed=recipe.seed, **fields
    )
    print(found.report)
    if (found.config.in_channels, found.config.out_channels) != (cases.in_channels, outputs):
        raise InputError(
            f"{init.checkpoint} takes {found.config.in_channels} channels and has {found.config.out_channels} outputs, the data have "
            f"{cases.in_channels} and {outputs}: give --init.adapt-channels to start the layers that differ anew."
        )
    return found.config, found.params


def _describe(folder: Path, recipe: Recipe, cases: Cases, training: Training) -> None:
    """RUN/run.json: all that is needed to go on, and to know later what was done. Going on with other cases is refused."""
    path = folder / DESCRIPTION
    values = {
        "recipe": recipe.to_dict(),
        "cases": cases.names,
        "task": cases.task.to_dict(),
        "network": training.config.to_dict(),
        "steps": training.steps,
        "convention": CONVENTION,
        "versions": {"swinunetr_jax": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "grain", "numpy")},
        "device": jax.devices()[0].device_kind,
    }
    if path.exists():
        before = json.loads(path.read_text())
        if before["cases"] != values["cases"]:
            raise InputError(
                f"{folder} was trained on other cases than the data set gives now: restore them, or start a new run."
            )
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(values, indent=1))
    temporary.replace(path)


def read_recipe(folder: Path) -> Recipe:
    """The recipe of the run in a folder, which may have been moved. Raises InputError if there is none."""
    try:
        values = json.loads((folder / DESCRIPTION).read_text())["recipe"]
    except FileNotFoundError as error:
        raise InputError(f"{folder} holds no run, it has no {DESCRIPTION}: give the --out folder of a run.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / DESCRIPTION} cannot be read: restore it, or start a new run.") from error
    return dataclasses.replace(Recipe.from_dict(values), out=folder)


def _farewell(run: Run) -> None:
    recipe, waits = run.recipe, [row for row in run.log.rows if row["kind"] == "step"][1:]
    data = recipe.data or run.folder / "data"
    share = sum(row["wait"] for row in waits) / max(sum(row["seconds"] for row in waits), 1e-9)
    print(
        f"best validation Dice {run.progress.best_score or float('nan'):.4f} at step {run.progress.best_step}; "
        f"{100 * share:.1f} % of the time went into waiting for data\n"
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
        print("stopping after this step; once more to stop at once", flush=True)


@contextmanager
def _signals() -> Iterator[Stop]:
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
