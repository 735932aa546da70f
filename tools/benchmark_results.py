"""The results of `tools.benchmark`: what a run stores as JSON, and the figures that are computed from the turns of one or several runs.

The contenders of a run take turns, so the speed-up over a contender is computed turn by turn, and the median of all turns is reported. A
machine whose speed changes during a run changes both times of a turn, and hardly their ratio.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from swinunetr_jax.files import read_json, write_json

OURS = "ours"


@dataclass(frozen=True)
class Row:
    """The turns of one contender.

    Attributes:
        work, size, contender, features, dtype: what was measured.
        seconds: the seconds of each turn; empty if the contender did not run.
        error: one sentence that says why it did not run.
        first_call: the seconds from the start of the process to its first result, with an empty cache of compiled programs.
        compiling: the seconds of compilation, where they can be measured by themselves.
        cached_first_call, cached_compiling: the same with a filled cache.
        host_bytes, device_bytes: the peak of the memory.
        flops: the operations of one step.
        versions: the versions of the libraries of the contender's process.
    """

    work: str
    size: int
    contender: str
    features: int
    dtype: str
    seconds: tuple[float, ...] = ()
    error: str | None = None
    first_call: float | None = None
    compiling: float | None = None
    cached_first_call: float | None = None
    cached_compiling: float | None = None
    host_bytes: int | None = None
    device_bytes: int | None = None
    flops: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def work_item(self) -> tuple[str, int, int, str]:
        """The work without the contender."""
        return self.work, self.size, self.features, self.dtype


@dataclass(frozen=True)
class Run:
    """One run of the benchmark.

    Attributes:
        command: the command that was run.
        date: the day of the run, YYYY-MM-DD.
        device, cores: the processor or accelerator, and the number of the host's cores.
        load: the number of other processes that wanted a core, as the average of the minute before the run; None if it is not known.
        matmul_flops: the operations per second of a large matrix product on this device, or 0 if they were not measured.
        rows: the contenders, ours first for each kind of work.
        note: a sentence about the run for the page, such as what was not recorded.
    """

    command: str
    date: str
    device: str
    cores: int | None
    load: float | None
    matmul_flops: float
    rows: tuple[Row, ...]
    note: str = ""


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, the smallest and the largest one, and how many there are."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, numbers: Sequence[float]) -> "Spread":
        return cls(statistics.median(numbers), min(numbers), max(numbers), len(numbers))


@dataclass(frozen=True)
class Standing:
    """One contender in one kind of work, over all runs.

    Attributes:
        rows: its rows, at least one of which has turns.
        seconds: the seconds of all turns.
        speed_up: its seconds divided by ours, turn by turn; None for this project itself, or if ours did not run.
    """

    rows: tuple[Row, ...]
    seconds: Spread
    speed_up: Spread | None


def read_run(path: Path) -> Run:
    """Returns a stored run. Raises InputError if the file is damaged, FileNotFoundError if there is none."""
    return read_json(path, Run, "measure again")


def write_run(path: Path, run: Run) -> None:
    """Stores a run as JSON."""
    write_json(path, asdict(run))


def work_items(runs: Sequence[Run]) -> list[tuple[str, int, int, str]]:
    """Returns every kind of work of the runs once, in the order of the runs."""
    return list(dict.fromkeys(row.work_item for run in runs for row in run.rows))


def contenders(runs: Sequence[Run]) -> list[str]:
    """Returns the names of the contenders of the runs, ours first."""
    names = dict.fromkeys(row.contender for run in runs for row in run.rows)
    return sorted(names, key=lambda name: name != OURS)  # the sort is stable


def standing(runs: Sequence[Run], work_item: tuple[str, int, int, str], contender: str) -> Standing | None:
    """Returns the figures of a contender, None if it took no turn."""
    rows: list[Row] = []
    ratios: list[float] = []
    for run in runs:
        found = {row.contender: row for row in run.rows if row.work_item == work_item}
        row, ours = found.get(contender), found.get(OURS)
        if row is None or not row.seconds:
            continue
        rows.append(row)
        if ours is not None and contender != OURS:
            ratios += [theirs / own for theirs, own in zip(row.seconds, ours.seconds)]
    if not rows:
        return None
    seconds = Spread.of([second for row in rows for second in row.seconds])
    return Standing(tuple(rows), seconds, Spread.of(ratios) if ratios else None)


def failures(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Returns each contender that did not run, with the reason, once."""
    return list(dict.fromkeys((row.contender, row.error) for run in runs for row in run.rows if row.error))
