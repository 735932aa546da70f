"""What a run says while it goes: a bar or plain lines, RUN/log.jsonl, and TensorBoard where tensorboardX is installed."""

import contextlib
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

LOG = "log.jsonl"
PLAIN_SECONDS = 20.0


class Log:
    """Rows of two kinds, {"kind": "step", …} and {"kind": "validation", …}, kept in memory too, for the curves.

    With `silent`, of the processes that follow a leader, nothing is written or said.
    """

    def __init__(self, run: Path, *, step: int, total: int, batch: int, validated: int | None = None, silent: bool = False):
        self.path, self.total, self.batch, self.silent = run / LOG, total, batch, silent
        # a run that goes on forgets what it does again
        last = {"step": step, "validation": step if validated == step else step - 1}
        self.rows = [row for row in read_rows(run) if row["step"] <= last[row["kind"]]]
        if not silent:
            text = "".join(json.dumps(row) + "\n" for row in self.rows)
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(text)
            temporary.replace(self.path)
        self._file = open(os.devnull if silent else self.path, "a", buffering=1)  # noqa: SIM115 - closed by close()
        hidden = silent or not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=step, unit="step", disable=hidden, dynamic_ncols=True)
        self._board = None if silent else _tensorboard(run)
        self._told = self._before = time.perf_counter()
        self._told_step = step

    def step(self, step: int, values: dict[str, float]) -> None:
        """A finished step: loss, gradient norm, learning rate, seconds waited for data."""
        now = time.perf_counter()
        self._add({"kind": "step", "step": step, **values, "seconds": round(now - self._before, 4)})
        self._before = now
        self._bar.set_postfix_str(f"loss {values['loss']:.4f}, {self._rate():.2f} images/s", refresh=False)
        self._bar.update(step - self._bar.n)
        if self._bar.disable and not self.silent and (now - self._told >= PLAIN_SECONDS or step == self.total or step == 1):
            pace = (now - self._told) / max(step - self._told_step, 1)
            left = "" if step < 3 else f", {_clock((self.total - step) * pace)} left"
            print(f"step {step}/{self.total}  loss {values['loss']:.4f}  {self._rate():.2f} images/s{left}", flush=True)
            self._told, self._told_step = now, step

    def validation(self, step: int, values: dict[str, Any], text: str) -> None:
        """A finished validation: score, Dice per output and per case."""
        self._add({"kind": "validation", "step": step, **values})
        self.say(text)
        self._told = self._before = time.perf_counter()

    def resumed(self) -> None:
        """After a pause that is no step, such as saving: it does not count as one's time."""
        self._before = time.perf_counter()

    def say(self, text: str) -> None:
        """A line that does not tear the bar."""
        if not self.silent:
            self._bar.write(text) if not self._bar.disable else print(text, flush=True)

    def close(self) -> None:
        self._bar.close()
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _rate(self) -> float:
        """Images per second over the last steps; the first one, which compiles, is left out."""
        seconds = [row["seconds"] for row in self.rows[-20:] if row["kind"] == "step"]
        seconds = seconds[1:] if len(seconds) > 1 else seconds
        return self.batch * len(seconds) / max(sum(seconds), 1e-9)

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{row['kind']}/{name}", value, row["step"])
            for name, value in row.get("dice", {}).items():
                self._board.add_scalar(f"dice/{name}", value, row["step"])


def read_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's log; a last line that a kill cut off is left out."""
    rows = []
    with contextlib.suppress(FileNotFoundError), open(run / LOG, errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
    return rows


def _tensorboard(run: Path) -> Any:
    if importlib.util.find_spec("tensorboardX") is None:
        return None
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(run / "tensorboard"))


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
