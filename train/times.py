"""Measures how a run spends its time: rows of the log hold the seconds of each kind of work, which are added over all starts of the run.

The leader adds a row at the first step after a start, at each saved state, after each validation and at the end. A row holds the seconds
since its start. When a run continues from a saved state, the log keeps the rows up to this state, so that the time from the last of them to
the next start is the cost of the restart: the steps that are computed again, and the pause.
"""

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from swinunetr_jax import console
from swinunetr_jax.training import processes, watchdog
from swinunetr_jax.training.start import Run

# The kinds of work in the order of the report, with their titles and phases. `sentence` shows only the part of a title before a comma.
KINDS = {
    "start": ("start, restoring the state", (watchdog.OUTSIDE, watchdog.RESTORING)),
    "preparing": ("preparing cases", (watchdog.PREPARING,)),
    "compiling": ("compiling, with the first step", (watchdog.COMPILING,)),
    "steps": ("steps", (watchdog.STEP, watchdog.DISPATCH)),
    "data": ("waiting for data", (watchdog.DATA,)),
    "validation": ("validation", (watchdog.VALIDATION,)),
    "saving": ("saving, as far as steps waited for it", (watchdog.SAVING,)),
    "waiting": ("waiting for the other processes", (watchdog.WAITING,)),
    "other": ("other", ()),
}
_KIND_OF = {phase: kind for kind, (_, phases) in KINDS.items() for phase in phases}
_NAME_BYTES = 64


@dataclass(frozen=True)
class Times:
    """The seconds of all starts of a run by kind of work, and what its restarts have cost.

    `lost` are the seconds between a saved state and the start that continued from it, and `repeated` the number of steps that were computed
    again, as far as the log held them. `hosts` are the mean seconds per step of each process: waiting for data, and dispatch.
    """

    spent: Mapping[str, float]
    lost: float
    restarts: int
    repeated: int
    hosts: Mapping[str, Sequence[float]]

    @property
    def total(self) -> float:
        return sum(self.spent.values()) + self.lost

    @property
    def goodput(self) -> float:
        """The time of the steps whose results were used, as a share of the time of all starts and restarts."""
        return self.spent.get("steps", 0.0) / max(self.total, 1e-9)

    @property
    def table(self) -> list[tuple[str, float]]:
        """The title and the seconds of each kind of work, without those that took no time."""
        rows = [(title, self.spent.get(kind, 0.0)) for kind, (title, _) in KINDS.items()]
        repeated = f", of which {_count(self.repeated, 'step')} had been computed" if self.repeated else ""
        return [*((title, seconds) for title, seconds in rows if seconds >= 0.05)] + (
            [(f"lost by {_count(self.restarts, 'restart')}{repeated}", self.lost)] if self.restarts else []
        )

    @property
    def slowest_host(self) -> str | None:
        """A sentence on the process that spends the most time between its steps, or None if there is only one."""
        if len(self.hosts) < 2:
            return None
        name = max(self.hosts, key=lambda host: sum(self.hosts[host]))
        (wait, dispatch), (mean_wait, mean_dispatch) = self.hosts[name], np.mean(list(self.hosts.values()), axis=0)
        return (
            f"the slowest process is {name}: {wait:.3f} s of waiting for data and {dispatch:.3f} s of dispatch per step; the mean of all "
            f"{len(self.hosts)} is {mean_wait:.3f} s and {mean_dispatch:.3f} s"
        )


def record(run: Run, **more: Any) -> None:
    """Adds a row to the log with the time since the start."""
    seconds = dict.fromkeys(KINDS, 0.0)
    for phase, spent in watchdog.spent().items():
        seconds[_KIND_OF.get(phase, "other")] += spent
    row: dict[str, Any] = {"start": round(1000 * watchdog.started()), "at": round(1000 * time.time())}
    row["spent"] = {kind: round(value, 3) for kind, value in seconds.items() if value}
    if run.log.repeated:
        row["repeated"] = run.log.repeated
    run.log.time(run.progress.step, row | more)


def finish(run: Run, first: int) -> None:
    """Adds the last row of a finished run, with the times of all processes; `first` is the step from which this start continued."""
    steps = run.progress.step - first
    hosts = {}
    if steps:
        spent = watchdog.spent()
        means = np.array([spent.get(watchdog.DATA, 0.0) / steps, spent.get(watchdog.DISPATCH, 0.0) / max(steps - 1, 1)])
        name = platform.node().encode()[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")
        names = [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in processes.gather(np.frombuffer(name, np.uint8))]
        hosts = {
            f"{number} on {host}": row for number, (host, row) in enumerate(zip(names, processes.gather(means).round(6).tolist()))
        }
    record(run, finished=True, **({"hosts": hosts} if hosts else {}))


def times_of(rows: Sequence[Mapping[str, Any]]) -> Times | None:
    """Returns the times of a run from the rows of its log, or None if it has none, because an earlier version wrote it."""
    starts: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        if row["kind"] == "time":
            starts[row["start"]] = row  # the last row of a start covers all of its time
    if not starts:
        return None
    spent, lost, restarts, repeated, before = dict.fromkeys(KINDS, 0.0), 0.0, 0, 0, None
    for row in starts.values():
        for kind, seconds in row["spent"].items():
            spent[kind if kind in KINDS else "other"] += seconds
        if before is not None and not before.get("finished"):
            restarts, repeated = restarts + 1, repeated + row.get("repeated", 0)
            lost += max(row["start"] - before["at"], 0) / 1000  # the clocks of two hosts may differ
        before = row
    return Times(spent, lost, restarts, repeated, before.get("hosts", {}) if before else {})


def sentence(times: Times) -> str:
    """Returns the times on one line."""
    percents = [(title.partition(",")[0], 100 * seconds / max(times.total, 1e-9)) for title, seconds in times.table]
    largest = sorted((part for part in percents if part[1] >= 0.5), key=lambda part: -part[1])
    shares = ", ".join(f"{title} {percent:.0f} %" for title, percent in largest)
    return f"time:              {console.duration(times.total)} in all: {shares}; goodput {100 * times.goodput:.0f} %"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
