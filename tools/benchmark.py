"""Compares this project with MONAI on this machine: forward pass, training step and a whole case, in one run and in turns.

    python -m tools.benchmark --work forward train --sizes 64 96
    python -m tools.benchmark --work case --feature-size 24
    python -m tools.benchmark --dtype bfloat16 --sizes 96 128 --queued 5 --together           # on a GPU

Every contender runs in its own process, so that its peak memory is measured separately, and the contenders take turns: A B A B … Since
the speed of machines varies, the result is the ratio of medians. The contenders are this project; MONAI without compilation; MONAI with its
fused attention; MONAI under torch.compile, in both memory layouts; and medicai if it is installed (forward pass only). In bfloat16, torch
computes under autocast. The peak memory of a device does not include the first call, in which libraries try out their kernels.
"""

import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from swinunetr_jax import console
from tools.benchmark_figures import flops, machine, matmul_rate, windows
from tools.benchmark_worker import Task, Worker
from tools.contenders import NAMES

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # contenders share the device

Work = Literal["forward", "train", "case"]


@dataclass
class Options:
    """The measurements to make."""

    work: tuple[Work, ...] = ("forward",)
    """forward; train: forward, backward and AdamW; case: a volume of 240×240×155 in windows of --sizes with overlap 0.5."""
    sizes: tuple[int, ...] = (64,)
    """Edge lengths of the volume or window in voxels."""
    feature_size: int = 48
    dtype: Literal["float32", "bfloat16"] = "float32"
    against: tuple[str, ...] = ("monai",)
    """Contenders: monai, monai-flash, monai-compile, monai-compile-channels-last, medicai."""
    repeats: int = 5
    """Timed turns of each contender, after one warm-up."""
    queued: int = 1
    """Steps of a turn that are started without waiting for one another, as a trainer does on a GPU."""
    together: bool = False
    """Warm up all contenders at the same time, if there are enough cores and memory: torch.compile takes minutes. Even then, only one
    contender at a time chooses its kernels or takes a turn; compile times are those of a busy machine."""
    out: Path | None = None
    """Also write the table as JSON here."""


class Race:
    """All contenders for one kind of work and one size."""

    def __init__(self, work: Work, size: int, options: Options, cache: str):
        self.work, self.size, self.options, self.cache = work, size, options, cache
        self.workers: dict[str, Worker] = {}
        self.cached: Worker | None = None

    def start(self) -> None:
        """Starts all contenders, one after the other unless the option `together` is set."""
        for name in ("ours", *self.options.against):
            self.workers[name] = self._worker(name)
            if not self.options.together:
                self.workers[name].wait()

    def wait(self) -> None:
        """Waits for all contenders. Ours is started a second time when it is ready, to measure a start with a filled cache."""
        self.workers["ours"].wait()
        self.cached = self._worker("ours")
        self.cached.wait()
        self.cached.finish()
        for worker in self.workers.values():
            worker.wait()

    def run(self) -> list[dict[str, Any]]:
        """Runs all turns and returns a row for each contender, ours first."""
        if not self.workers:
            self.start()
            self.wait()
        for _ in range(self.options.repeats):
            for worker in self.workers.values():
                worker.turn()
        rows = [self._row(name, worker) for name, worker in self.workers.items()]
        ours = rows[0]
        if self.cached is not None and not self.cached.error:
            ours |= {"cached_first_call": self.cached.first_call, "cached_compiling": self.cached.figures["compiling"]}
            if self.work != "case":  # the second start tries no kernels, so its peak is lower; but it never runs a whole case
                ours["device_bytes"] = self.cached.figures["device_bytes"]
        for row in rows[1:]:
            if "median" in row and "median" in ours:
                row["ratio"] = row["median"] / ours["median"]
        return rows

    def _worker(self, name: str) -> Worker:
        options = self.options
        task = Task(name, self.work, self.size, options.feature_size, options.dtype, options.queued, f"{self.cache}/lock")
        return Worker(task, self.cache)

    def _row(self, name: str, worker: Worker) -> dict[str, Any]:
        row = {"work": self.work, "size": self.size, "contender": name}
        row |= {"features": self.options.feature_size, "dtype": self.options.dtype, "first_call": worker.first_call}
        worker.finish()
        row |= {"seconds": worker.seconds, "error": worker.error} | worker.figures
        if not worker.error:
            row["median"] = statistics.median(worker.seconds)
            passes = {"forward": 1, "train": 3, "case": windows(self.size)}[self.work]
            row["flops"] = flops(self.size, self.options.feature_size) * passes
        return row


def table(rows: list[dict[str, Any]], rate: float) -> str:
    """Returns the rows as a Markdown table. A ratio is the median of a contender divided by ours: above 1, ours is faster."""
    lines = [
        "| work | size | contender | median s | ratio to ours | compiling s, from cache | to first result s, from cache | peak host GB | "
        "peak device GB | of matmul rate |"
    ]
    lines.append("| --- " * 10 + "|")

    def number(value: float | None, scale: float = 1, digits: int = 2) -> str:
        return "" if value is None else f"{value * scale:.{digits}f}"

    for row in rows:
        if row["error"]:
            lines.append(f"| {row['work']} | {row['size']} | {row['contender']} | {row['error']} |" + " |" * 6)
            continue
        cells = [row["work"], f"{row['size']}³", row["contender"], f"{row['median']:.4g}"]
        cells.append(number(row.get("ratio")))
        for kind in ("compiling", "first_call"):
            figures = (number(row.get(name), digits=1) for name in (kind, f"cached_{kind}"))
            cells.append(", ".join(filter(None, figures)))
        cells += [number(row["host_bytes"], 1e-9), number(row["device_bytes"], 1e-9)]
        cells.append(f"{row['flops'] / row['median'] / rate:.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(options: Options) -> None:
    unknown = set(options.against) - set(NAMES)
    if unknown:
        sys.exit(f"error: unknown contender {', '.join(unknown)}; the known ones are {', '.join(NAMES)}")
    rate = matmul_rate(options.dtype)
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        races = [Race(work, size, options, cache) for work in options.work for size in options.sizes]
        if options.together:
            for race in races:
                race.start()
            for race in races:
                race.wait()
        for race in races:
            rows += race.run()
            print(table(rows[-1 - len(options.against) :], rate), flush=True)
            if options.out:
                options.out.write_text(json.dumps({"machine": machine(), "matmul_flops": rate, "rows": rows}, indent=1))
    print("\n" + table(rows, rate))


if __name__ == "__main__":
    console.configure_streams()
    main(tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__))
