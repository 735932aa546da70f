"""The training loop. A saved state is always the state after a whole number of steps.

start     lock the folder, collect the cases, make the network, restore the newest intact state
step      take a batch → dispatch the step → only then read the numbers of the previous step, so that the device never waits
save      read the last numbers → save in the background → validate → save the best network → record the validation in the saved state
signal    finish the step (with several processes, up to two more) → save → exit

Several processes run the same loop. The step numbers, flags and scores that decide when the processes communicate are equal in all of them.
Only the leader saves.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax import Array

from swinunetr_jax import InputError, console
from swinunetr_jax.alarm import quiet_compilation
from swinunetr_jax.training import checkpoints, plots, processes, times, watchdog
from swinunetr_jax.training.augmentation import device_augmentation
from swinunetr_jax.training.bucket_store import store_of
from swinunetr_jax.training.data import batches
from swinunetr_jax.training.log import DICE
from swinunetr_jax.training.objective import Objective
from swinunetr_jax.training.profiling import Profiler
from swinunetr_jax.training.pseudo_dice import has_pseudo_dice, log_pseudo_dice
from swinunetr_jax.training.recipe import Recipe
from swinunetr_jax.training.rerun import earlier_run
from swinunetr_jax.training.result import print_result, report
from swinunetr_jax.training.saver import Saver
from swinunetr_jax.training.start import Run, start
from swinunetr_jax.training.step import make_objective, objective_of
from swinunetr_jax.training.stop import Stop, Stopped, stop_on_signals
from swinunetr_jax.training.validation import Interrupted, Scores
from swinunetr_jax.training.watchdog import Watchdog
from swinunetr_jax.training.writer import Writer

STEP_NUMBERS = ("loss", "grad_norm", "lr")  # the metrics that every step has; any others are those of the objective


def train(recipe: Recipe, *, resume: bool = False, at_end: Callable[[Run, Stop], None] | None = None) -> float:
    """Trains from the start, or from the newest saved state, to the end, and returns the best score.

    Args:
        recipe: the recipe of the run.
        resume: whether the folder holds the run already.
        at_end: called in every process with the finished run before its report is written.

    Raises:
        InputError: the folder, the data or the options cannot be used; or the loss is not finite.
        Stopped: SIGINT or SIGTERM stopped the run after its state was saved.
    """
    recipe.check()
    recipe = recipe.absolute()
    store = store_of(recipe.out)
    on = processes.is_distributed() or store.is_remote
    with Watchdog(recipe.watchdog_minutes, default_on=on, leads=processes.is_leader()), store.owned():
        if store.waited and not resume:  # the process that owned the run until now may have been given the same command
            resume = earlier_run(recipe) != "none"
        run = start(recipe, store, resume=resume)
        try:
            with stop_on_signals() as stop:
                _advance(run, stop)
                if at_end is not None:
                    at_end(run, stop)
        finally:
            run.log.close()
        if processes.is_leader():
            report(run)
            store.sync()
            print_result(run)
        return run.progress.best_score or 0.0


class PendingStep(NamedTuple):
    """A dispatched step whose numbers have not been read: its number, its metrics on the device, its wait for data and its cases."""

    step: int
    metrics: dict[str, Array]
    wait: float
    names: list[str]


@watchdog.phase(watchdog.STEP)
def _advance(run: Run, stop: Stop) -> None:
    """Runs steps until the last one, or until patience or a signal ends the run."""
    recipe, total, strategy = run.recipe, run.total, run.strategy
    train_step = quiet_compilation(run.training.compile(strategy))
    augment = device_augmentation(recipe, run.cases.task, run.cases.augmentation, strategy)
    pseudo, patience = recipe.validation.pseudo, recipe.validation.patience
    every = recipe.validation.every or (max(total // 10, 1) if pseudo is None else total)
    pseudo_every = recipe.validation.pseudo_every or max(total // 100, 1)
    if pseudo is not None and make_objective(run.training).metric != DICE:
        raise InputError("`validation.pseudo` computes a Dice, but the objective's score is another one: leave it out.")
    data = batches(recipe, run.cases, strategy.share)
    data.set_state({"step": run.progress.step})
    first = run.progress.step
    saver, profiler = Saver(run, first), Profiler(run)
    pending: PendingStep | None = None
    stopping = flag = False
    times.record(run)
    try:
        while True:
            step = run.progress.step
            watchdog.beat()
            if not processes.is_distributed():
                stopping = bool(stop)
            validation_due = step > 0 and (step % every == 0 or step == total) and run.progress.validated != step
            if pseudo is not None and step > 0 and step % pseudo_every == 0 and not stopping and not has_pseudo_dice(run):
                pending = _read(run, pending)
                log_pseudo_dice(run, pseudo, stop)
            if validation_due or stopping or saver.due():
                pending = _read(run, pending)
                jax.block_until_ready(run.state)  # the numbers are ready before the whole step is
                saver.save()
                if validation_due and not stopping:
                    stopping = not _validate(run, saver.writer, stop)
            if stopping:
                saver.writer.wait()
                processes.barrier("the last state is saved")  # if one process ended before that, the others would end too
                raise Stopped(stop.number or signal.SIGTERM)
            if step == total or (patience and run.progress.since_best >= patience):
                if step < total:
                    run.log.say(
                        f"no better score in {patience} validation{'s' * (patience != 1)}: stopped after step {step} of {total}"
                    )
                saver.writer.wait()
                times.finish(run, first)
                return
            if step == first:  # a resumed run compiles too, or reads the compiled program
                run.log.say("compiling the training step …")
            profiler.at(step)
            names = data.names()
            started = time.perf_counter()
            with watchdog.phase(watchdog.DATA):
                batch = next(data)
            waited = time.perf_counter() - started
            arrays = {name: array for name, array in batch.items() if name != "case"}
            with watchdog.phase(watchdog.COMPILING if step == first else watchdog.DISPATCH):
                run.state, metrics = train_step(run.state, augment(strategy.shard_batch(arrays)), strategy.stop_flags(bool(stop)))
                if step == first:  # another process may still be compiling, and the step waits for it
                    jax.block_until_ready(metrics)
            run.progress = replace(run.progress, step=step + 1)
            previous_flag, flag = flag, metrics.pop("flag")
            if processes.is_distributed():
                # The flag of the previous step is read, like all other numbers, so that all processes stop after the same step.
                stopping = bool(strategy.unreplicate(previous_flag))
            _read(run, pending)
            saver.writer.check()
            run.store.check()
            pending = PendingStep(step + 1, metrics, waited, names)
    finally:
        profiler.close()
        data.close()
        saver.writer.close()


def _read(run: Run, pending: PendingStep | None) -> None:
    """Logs the numbers of a dispatched step, if there is one. Raises InputError if its loss is not finite."""
    if pending is None:
        return
    values = {name: float(value) for name, value in run.strategy.unreplicate(pending.metrics).items()}
    if not np.isfinite(values["loss"]) or not np.isfinite(values["grad_norm"]):
        raise InputError(
            f"step {pending.step}: the loss is {values['loss']:g} and the norm of its gradient {values['grad_norm']:g}, on "
            f"{', '.join(pending.names)}; check these cases (`swinunetr validate`), lower --optim.lr or give --optim.clip 1. The last "
            f"saved state is kept in {run.folder}."
        )
    metrics = {name: values.pop(name) for name in list(values) if name not in STEP_NUMBERS}
    more = {"metrics": metrics} if metrics else {}
    run.log.step(pending.step, values | {"wait": round(pending.wait, 4)} | more)


@watchdog.phase(watchdog.VALIDATION)
def _validate(run: Run, writer: Writer, stop: Stop) -> bool:
    """Scores the network, and saves it if it is the best so far. Returns False if a signal interrupted the validation."""

    def interrupt(done: int, windows: int) -> None:
        watchdog.beat()
        if stop:
            raise Interrupted

    progress, network, started = run.progress, run.strategy.unreplicate(run.state.network), time.perf_counter()
    objective = objective_of(run.training, run.strategy.unreplicate(run.state.own))
    try:
        scores = objective.validate(
            run.training.config,
            network,
            run.cases.validation,
            run.cases.task,
            run.recipe.validation,
            interrupt,
            spatial_shards=run.recipe.devices.spatial_shards,
        )
    except Interrupted:
        return False
    seconds, score = time.perf_counter() - started, scores.mean
    better = bool(np.isfinite(score)) and _is_better(score, progress.best_score, objective)
    run.progress = replace(progress, validated=progress.step, since_best=0 if better else progress.since_best + 1)
    if better:
        run.progress = replace(run.progress, best_score=score, best_step=progress.step)
    shown = scores.numbers or scores.by_output
    by_output = ", ".join(f"{console.literal(name)} {value:.3f}" for name, value in shown.items())
    previous_best = (
        "no best so far" if progress.best_score is None else f"best {progress.best_score:.4f} at step {progress.best_step}"
    )
    comparison = "best so far" if better else previous_best
    if processes.is_leader():
        writer.wait()
        if better:
            checkpoints.save_best(run.folder, network, run.training.config, run.cases.task, new_names=run.store.is_remote)
            run.store.best_saved()
    cases = {case_score.case.name: case_score.dice for case_score in scores.cases}
    marks = ({"best": True} if better else {}) | ({} if objective.metric == DICE else {"metric": objective.metric})
    marks |= {"numbers": dict(scores.numbers)} if scores.numbers else {}
    run.log.validation(
        progress.step,
        {"score": score, "dice": scores.by_output, "cases": cases, "took": seconds} | marks,
        f"step {progress.step}/{run.total}  validation {objective.metric} {score:.4f} ({by_output}), {comparison}; {seconds:.0f} s",
    )
    times.record(run)
    if not processes.is_leader():
        return True
    checkpoints.write_progress(run.folder, run.progress)
    run.store.progress_saved(run.progress.step)
    _draw(run, scores, better, objective)
    run.store.sync()
    run.log.restart_clock()
    return True


def _is_better(score: float, best: float | None, objective: Objective) -> bool:
    """Returns whether a score is better than the best one so far, in the direction that the objective states."""
    return best is None or (score > best if objective.higher_is_better else score < best)


def _draw(run: Run, scores: Scores, better: bool, objective: Objective) -> None:
    """Draws the pictures and pages of a validation. A failure of any kind is only a warning, and the run continues."""
    drawings: dict[str, Callable[[Path], None]] = {
        "progress.png": lambda path: plots.write_progress(path, run.log.rows, run.total)
    }
    for name, draw in (drawings | objective.drawings(scores, better, run.cases.task)).items():
        try:
            if name.endswith(".html"):  # if it cannot be written, the report must not link to that of another network
                (run.folder / name).unlink(missing_ok=True)
            draw(run.folder / name)
        except Exception as error:
            run.log.say(f"warning: {name} was not drawn ({console.literal(error) or type(error).__name__}); the run continues")
        else:
            if name.endswith(".png"):  # a page of a large scan has many megabytes
                run.log.picture(run.folder / name, run.progress.step)
