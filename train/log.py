"""The log of a run: a progress bar or printed lines, the file RUN/log.jsonl, and trackers, which receive the rows of that file."""

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from tqdm import tqdm

from swinunetr_jax import InputError, files
from swinunetr_jax.console import duration, say, warn
from swinunetr_jax.training.trackers import Tracker, Trackers

LOG = "log.jsonl"
PSEUDO_DICE = "pseudo_dice"  # the kind of rows of the pseudo-Dice of patches
DICE = "Dice"  # the usual metric, which rows do not state
LINE_SECONDS = 20.0  # time between printed lines if there is no terminal for a progress bar


class Row(TypedDict):
    """The fields of every row of the log."""

    kind: Literal["step", "validation", "pseudo_dice", "time"]
    step: int


class StepRow(Row):
    """A finished step.

    `seconds` is the time of the step, and `wait` the part of it that was spent waiting for data. `metrics` are the objective's further
    numbers, null for NaN and infinities.
    """

    loss: float
    grad_norm: NotRequired[float]
    lr: NotRequired[float]
    metrics: NotRequired[dict[str, float | None]]
    wait: float
    seconds: float


class ValidationRow(Row):
    """A finished validation: the mean score, the score of each output, and the scores of each case, null for NaN; `took` is in seconds.

    `best` is present, and true, if no earlier validation was as good. `metric` is the name of the score, if it is not Dice.
    `numbers` are further scores of an objective by name.
    """

    score: float | None
    dice: dict[str, float | None]
    cases: dict[str, dict[str, float | None]]
    took: NotRequired[float]
    best: NotRequired[bool]
    metric: NotRequired[str]
    numbers: NotRequired[dict[str, float | None]]


class PseudoDiceRow(Row):
    """A pseudo-Dice of patches, see `pseudo_dice`: that of each output, their mean, and the moving average of the means; null for NaN."""

    mean: float | None
    average: float | None
    outputs: dict[str, float]
    patches: int
    took: float


class TimeRow(Row):
    """How the time since a start of the run was spent, see `times`.

    `start` and `at` are the times of the start and of the row in ms since 1970, and `spent` the seconds of each kind of work between them.
    `repeated` is the number of steps in the log that this start computes again. `finished` is present, and true, in the last row of a run
    that has ended, and `hosts` are its mean seconds per step for each process: waiting for data, and dispatch.
    """

    start: int
    at: int
    spent: dict[str, float]
    repeated: NotRequired[int]
    finished: NotRequired[bool]
    hosts: NotRequired[dict[str, tuple[float, float]]]


ROWS = {"step": StepRow, "validation": ValidationRow, PSEUDO_DICE: PseudoDiceRow, "time": TimeRow}


class Log:
    """The rows of the log, which are also kept in memory for the curves, and the messages of a run.

    Args:
        run: the folder of the run. If the run is resumed, the rows up to the step from which it continues are kept.
        step: the number of finished steps.
        total: the number of steps of the run.
        batch: the number of images per step.
        validated: the step of the last validation.
        silent: whether to write and print nothing, which is the case in all processes except the leader.
    """

    def __init__(self, run: Path, *, step: int, total: int, batch: int, validated: int | None = None, silent: bool = False):
        self.path, self.total, self.batch, self.silent = run / LOG, total, batch, silent
        # Later rows are removed, because a resumed run repeats their steps.
        last = {"step": step, PSEUDO_DICE: step, "validation": step if validated == step else step - 1, "time": step}
        rows = read_rows(run)
        self.rows = [row for row in rows if row["step"] <= last[row["kind"]]]
        self.repeated = sum(row["kind"] == "step" and row["step"] > step for row in rows)
        if not silent:
            files.write_text(self.path, "".join(map(_line, self.rows)))
        self._file = open(os.devnull if silent else self.path, "a", buffering=1)  # noqa: SIM115 - closed by close()
        hidden = silent or not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=step, unit="step", disable=hidden, dynamic_ncols=True)
        self._trackers = Trackers({}, self.say)
        self._printed = self._before = time.perf_counter()
        self._printed_step = step

    def start_trackers(self, trackers: Mapping[str, Tracker], config: Mapping[str, Any]) -> None:
        """Starts the trackers, which then receive each new row. A silent log has no trackers."""
        if not self.silent:
            self._trackers = Trackers(trackers, self.say)
            self._trackers.start(config, self.path.parent)

    def picture(self, path: Path, step: int) -> None:
        """Sends a picture to the trackers."""
        self._trackers.log_file(path, step)

    def step(self, step: int, values: dict[str, Any]) -> None:
        """Adds a finished step: loss, gradient norm, learning rate, seconds waited for data."""
        now = time.perf_counter()
        self._add({"kind": "step", "step": step, **values, "seconds": round(now - self._before, 4)})
        self._before = now
        self._bar.set_postfix_str(f"loss {values['loss']:.4f}, {self._rate():.2f} images/s", refresh=False)
        self._bar.update(step - self._bar.n)
        if self._bar.disable and not self.silent and (now - self._printed >= LINE_SECONDS or step == self.total or step == 1):
            pace = (now - self._printed) / max(step - self._printed_step, 1)
            left = "" if step < 3 or step == self.total else f", {duration((self.total - step) * pace)} left"
            say(f"step {step}/{self.total}  loss {values['loss']:.4f}  {self._rate():.2f} images/s{left}")
            self._printed, self._printed_step = now, step

    def validation(self, step: int, values: dict[str, Any], text: str) -> None:
        """Adds a finished validation: score, Dice per output and per case. Prints `text`."""
        self._add({"kind": "validation", "step": step, **values})
        self.say(text)
        self._printed = self._before = time.perf_counter()

    def pseudo_dice(self, step: int, values: dict[str, Any], text: str) -> None:
        """Adds a pseudo-Dice. Prints `text`."""
        self._add({"kind": PSEUDO_DICE, "step": step, **values})
        self.say(text)
        self._printed = self._before = time.perf_counter()

    def time(self, step: int, values: dict[str, Any]) -> None:
        """Adds a row of the kind "time"."""
        self._add({"kind": "time", "step": step, **values})

    def restart_clock(self) -> None:
        """Restarts the clock, so that the time of the next step does not include other work, such as saving."""
        self._before = time.perf_counter()

    def say(self, text: str) -> None:
        """Prints a line without damaging the bar."""
        if not self.silent:
            with nullcontext() if self._bar.disable else tqdm.external_write_mode():
                say(text)

    def close(self) -> None:
        self._bar.close()
        self._file.close()
        self._trackers.finish()

    def _rate(self) -> float:
        """Returns the images per second over the last 20 rows, without the first step among them, which may include compilation."""
        seconds = [row["seconds"] for row in self.rows[-20:] if row["kind"] == "step"]
        seconds = seconds[1:] if len(seconds) > 1 else seconds
        return self.batch * len(seconds) / max(sum(seconds), 1e-9)

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._file.write(_line(row))
        self._trackers.log(row)


def read_rows(run: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's log. Damaged lines are skipped with a warning, and an incomplete last line without one.

    Raises:
        InputError: the file cannot be read.
    """
    path, rows, damaged = run / LOG, [], []
    try:
        if files.exists(path) and not files.is_file(path):
            raise InputError(f"{path} is not a file: move it away, or choose another --out.")
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return rows
    except OSError as error:
        raise InputError(f"{path} cannot be read ({files.reason(error)}): check the disk and the permissions.") from error
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                rows.append(_row(line, f"line {number} of {path}"))
        except InputError:
            if number < len(lines):  # the last line is empty, unless the process was killed while it wrote a line
                damaged.append(number)
    if damaged:
        some = ", ".join(map(str, damaged[:8])) + (f" and {len(damaged) - 8} more" if len(damaged) > 8 else "")
        warn(f"{path}: damaged lines are ignored in curves and tables: {some}.")
    return rows


def _row(line: bytes, where: str) -> dict[str, Any]:
    """Returns a row from a line of the log, with NaN for null. Raises InputError unless it is one of `ROWS`."""
    remedy = "it is ignored"
    kind = files.decode_json(line, Row, where, remedy)["kind"]
    row = files.decode_json(line, ROWS[kind], where, remedy)
    if kind == "validation":
        row["score"] = _number(row["score"])
        if "numbers" in row:
            row["numbers"] = {name: _number(value) for name, value in row["numbers"].items()}
        row["dice"] = {name: _number(value) for name, value in row["dice"].items()}
        row["cases"] = {case: {name: _number(value) for name, value in dice.items()} for case, dice in row["cases"].items()}
        if not row["dice"] or any(dice.keys() != row["dice"].keys() for dice in row["cases"].values()):
            raise InputError(f"{where} has other outputs in its cases than in their mean: {remedy}.")
    return row


def best_validation(validations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the row of the best validation; `validations` holds at least one.

    It is the last one that is marked as the best. Rows of an earlier version have no marks, and there the highest score was the best.
    """
    marked = [row for row in validations if row.get("best")]
    return marked[-1] if marked else max(validations, key=_rank)


def metric_of(validation: dict[str, Any]) -> str:
    """Returns the name of the score in a validation's row."""
    return validation.get("metric", DICE)


def _rank(row: dict[str, Any]) -> float:
    score = _number(row["score"])
    return -math.inf if math.isnan(score) else score


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _line(row: dict[str, Any]) -> str:
    return files.json_text(row) + "\n"
