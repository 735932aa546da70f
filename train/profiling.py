"""The option `--profile`: a trace of a few steps for xprof, in RUN/profile."""

import shlex
from pathlib import Path

import jax

from swinunetr_jax import console
from swinunetr_jax.training import processes, watchdog
from swinunetr_jax.training.start import Run

FOLDER = "profile"
STEP = "train"  # the name of a step's event in the trace


class Profiler:
    """Writes a trace of the steps that the recipe's `profile` states.

    Only the leader writes one, because all processes execute the same step at the same time. A trace that fails is reported in one
    sentence, and the run continues.
    """

    def __init__(self, run: Run):
        first, count = run.recipe.profile or (0, 0)
        self._run, self._first, self._last = run, first, first + count
        self._due, self._running = bool(count) and processes.is_leader(), False
        self._event: jax.profiler.StepTraceAnnotation | None = None
        if self._due and run.progress.step > first:
            self._due = False
            if not (run.folder / FOLDER).exists():
                run.log.say(
                    f"no trace is written, because step {first} of `profile` is before step {run.progress.step}, where the run is"
                )

    def at(self, step: int) -> None:
        """Starts or ends the trace if it is due. The loop calls this after `step` steps, before the next one."""
        if not self._due:
            return
        self._end_event()
        if self._running and step >= self._last:
            self.close()
        elif step >= self._first and not self._running:
            self._start()
        if self._running:
            self._event = jax.profiler.StepTraceAnnotation(STEP, step_num=step + 1)
            self._event.__enter__()

    def close(self) -> None:
        """Writes the trace if one is running, even if some of its steps are missing."""
        self._end_event()
        if not self._running:
            return
        self._running = self._due = False
        try:
            with watchdog.phase("writing the trace"):
                jax.block_until_ready(self._run.state)
                jax.profiler.stop_trace()
        except Exception as error:
            self._failed(error)
        else:
            folder = self._run.folder / FOLDER
            self._run.log.say(
                f"a trace of the steps after {self._first} is in {console.literal(folder)}; open it with {command(folder)}"
            )
        self._run.log.restart_clock()

    def _start(self) -> None:
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # tracing every call of Python would slow the steps down
        try:
            jax.block_until_ready(self._run.state)
            jax.profiler.start_trace(self._run.folder / FOLDER, profiler_options=options)
        except Exception as error:  # another profiler is running, or the folder cannot be written
            self._failed(error)
            self._due = False
        else:
            self._running = True

    def _end_event(self) -> None:
        if self._event is not None:
            self._event.__exit__(None, None, None)
            self._event = None

    def _failed(self, error: Exception) -> None:
        reason = console.literal(error).rstrip(".") or type(error).__name__
        self._run.log.say(f"warning: no trace of the steps was written ({reason}); the run continues")


def command(folder: Path) -> str:
    """Returns the commands that show a trace in a browser, quoted for a shell."""
    return f"`pip install xprof; xprof --port 8791 {shlex.quote(console.literal(folder))}`, at http://localhost:8791"
