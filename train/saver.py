"""Saves the state of a run in the background: at regular times, before each validation, and at the end."""

import time
from dataclasses import dataclass, field

from swinunetr_jax.training import checkpoints, processes, times, watchdog
from swinunetr_jax.training.start import Run
from swinunetr_jax.training.writer import Writer


@dataclass
class Saver:
    """Saves the run's state in the background; `step` is the last saved step."""

    run: Run
    step: int
    at: float = field(default_factory=time.monotonic)
    writer: Writer = field(init=False)

    def __post_init__(self) -> None:
        self.writer = Writer(lambda: self.run.store.copied)

    def due(self) -> bool:
        every, minutes = self.run.recipe.save_every, self.run.recipe.save_minutes or self.run.store.save_minutes
        return (every is not None and self.run.progress.step % every == 0) or time.monotonic() - self.at > 60 * minutes

    @watchdog.phase(watchdog.SAVING)
    def save(self) -> None:
        run, self.at = self.run, time.monotonic()
        if run.progress.step == self.step:
            return
        self.step = run.progress.step
        times.record(run)
        if processes.is_leader():
            state = checkpoints.snapshot(run.strategy.unreplicate(run.state))
            options = run.progress, run.training.config, run.cases.task

            def write() -> None:
                checkpoints.save(run.folder, state, *options, keep=run.recipe.keep)
                run.store.state_saved(options[0].step, run.recipe.keep)

            self.writer.start(write)
        run.log.restart_clock()
