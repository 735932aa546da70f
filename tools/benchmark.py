"""This project against MONAI on this machine: forward pass, training step and a whole case, in one run, in turns.

    python -m tools.benchmark --work forward train --sizes 64 96
    python -m tools.benchmark --work case --feature-size 24
    python -m tools.benchmark --dtype bfloat16 --sizes 96 128 --queued 5 --together           # on a GPU

Every contender lives in a process of its own, so that peak memory is its own, and waits there for its turn: A B A B … Machines are
noisy: what counts is the ratio of medians. Contenders: ours; MONAI eager; with its fused attention; under torch.compile, in both memory
layouts; medicai, where it is installed (forward alone). On a GPU torch runs under autocast for bfloat16.
A device's peak memory leaves out the first call, in which libraries try their kernels out.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from swinunetr_jax import console
from tools import contenders
from tools.contenders import CASE, CHANNELS, NAMES

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # contenders share the device

Work = Literal["forward", "train", "case"]


@dataclass
class Options:
    """What to measure."""

    work: tuple[Work, ...] = ("forward",)
    """forward; train: forward, backward and AdamW; case: a 240×240×155 volume by windows of --sizes, overlap 0.5."""
    sizes: tuple[int, ...] = (64,)
    """Edge of the volume or window."""
    feature_size: int = 48
    dtype: Literal["float32", "bfloat16"] = "float32"
    against: tuple[str, ...] = ("monai",)
    """Peers: monai, monai-flash, monai-compile, monai-compile-channels-last, medicai."""
    repeats: int = 5
    """Timed turns of each contender, after one warm-up."""
    queued: int = 1
    """Steps of a turn that are started one after the other and waited for together, as a trainer's on a GPU."""
    together: bool = False
    """Warm up all contenders at once, where cores and memory suffice: torch.compile takes minutes. Kernels are chosen and turns taken
    alone all the same; times of compiling are those of a busy machine."""
    out: Path | None = None
    """Also write the table as JSON here."""


def main(options: Options) -> None:
    unknown = set(options.against) - set(NAMES)
    if unknown:
        sys.exit(f"error: unknown contender {', '.join(unknown)}; known are {', '.join(NAMES)}")
    rate = matmul_rate(options.dtype)
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        races = [Race(work, size, options, cache) for work in options.work for size in options.sizes]
        if options.together:
            for race in races:
                race.start()
            for race in races:
                race.ready()
        for race in races:
            rows += race.run()
            print(table(rows[-1 - len(options.against) :], rate), flush=True)
            if options.out:
                options.out.write_text(json.dumps({"machine": machine(), "matmul_flops": rate, "rows": rows}, indent=1))
    print("\n" + table(rows, rate))


class Race:
    """All contenders at one work and size."""

    def __init__(self, work: str, size: int, options: Options, cache: str):
        self.work, self.size, self.options, self.cache = work, size, options, cache
        self.workers: dict[str, Worker] = {}
        self.again: Worker | None = None

    def start(self) -> None:
        for name in ("ours", *self.options.against):
            self.workers[name] = Worker(name, self.work, self.size, self.options, self.cache)
            if not self.options.together:
                self.workers[name].wait()

    def ready(self) -> None:
        """Waits for all, and meanwhile starts ours once more, which finds its compiled program in the cache."""
        self.workers["ours"].wait()
        self.again = Worker("ours", self.work, self.size, self.options, self.cache)
        self.again.wait()
        self.again.finish()
        for worker in self.workers.values():
            worker.wait()

    def run(self) -> list[dict[str, Any]]:
        """The turns; a row for each contender."""
        if not self.workers:
            self.start()
            self.ready()
        for _ in range(self.options.repeats):
            for worker in self.workers.values():
                worker.turn()
        rows = []
        for name, worker in self.workers.items():
            row = {"work": self.work, "size": self.size, "contender": name}
            row |= {"features": self.options.feature_size, "dtype": self.options.dtype, "first_call": worker.first_call}
            worker.finish()
            row |= {"seconds": worker.seconds, "error": worker.error} | worker.figures
            if not worker.error:
                row["median"] = statistics.median(worker.seconds)
                passes = {"forward": 1, "train": 3, "case": windows(self.size)}[self.work]
                row["flops"] = flops(self.size, self.options.feature_size) * passes
            rows.append(row)
        ours = rows[0]
        if not self.again.error:
            ours |= {"cached_first_call": self.again.first_call, "cached_compiling": self.again.figures["compiling"]}
            if self.work != "case":  # that start did a step, but not a case, and tried no kernels out
                ours["device_bytes"] = self.again.figures["device_bytes"]
        for row in rows[1:]:
            if "median" in row and "median" in ours:
                row["ratio"] = row["median"] / ours["median"]
        return rows


class Worker:
    """A contender in its own process: it warms up, then works once for every line it is sent."""

    def __init__(self, name: str, work: str, size: int, options: Options, cache: str):
        task = json.dumps([name, work, size, options.feature_size, options.dtype, options.queued, f"{cache}/lock"])
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        command = [sys.executable, "-m", "tools.benchmark", "--worker", task]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.label = f"{work} {size}³ {name}"
        self.first_call: float | None = None
        self.error: str | None = None
        self.seconds: list[float] = []
        self.figures: dict[str, Any] = {}

    def wait(self) -> None:
        """Until it is ready or has failed."""
        if self.first_call is not None or self.error:
            return
        first = self.process.stdout.readline()
        if first.startswith("ready "):
            self.first_call = float(first.split()[1])
            print(f"{self.label}: first result after {self.first_call:.0f} s", file=sys.stderr, flush=True)
        else:
            self._fail(first.strip() or "it died")

    def turn(self) -> None:
        if not self.error:
            try:
                self.process.stdin.write("go\n")
                self.process.stdin.flush()
                self.seconds.append(float(self.process.stdout.readline()))
            except (OSError, ValueError):  # a pipe that broke, or nothing in it
                self._fail("it died in a turn")

    def finish(self) -> None:
        if not self.error:
            lines = self.process.communicate("")[0].strip().splitlines()
            if lines:
                self.figures = json.loads(lines[-1])
            else:
                self._fail("it died")

    def _fail(self, why: str) -> None:
        self.error = why
        self.process.kill()


# ---- in the worker's process -----------------------------------------------------------------------------------------------------


def work_in_turns(name: str, work: str, size: int, features: int, dtype: str, queued: int, lock: str) -> None:
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print does not come between
    started = time.perf_counter()
    try:
        contender = contenders.build(name, work, size, features, dtype, lock)
        warm = contender.warm or contender.run
        if "compile" in name:  # minutes, in which others need not wait
            warm()
        with contenders.alone(lock):
            contender.tune()
            warm()
            contender.wait()
        contender.rest()
    except Exception as error:  # a contender that cannot run is a row of the table, not the end of it
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:150]}", file=told)
        return
    print(f"ready {time.perf_counter() - started - contenders.waited}", file=told)
    for _ in sys.stdin:
        if contender.on_device and work != "case":  # the first step after a rest pays for memory and clocks
            contender.run()
            contender.wait()
        started = time.perf_counter()
        for _ in range(queued):
            contender.run()
        contender.wait()
        print((time.perf_counter() - started) / queued, file=told)
        contender.rest()
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = {"host_bytes": host, "device_bytes": contender.device_peak(), "compiling": contender.compiling}
    print(json.dumps(figures), file=told)


# ---- figures ---------------------------------------------------------------------------------------------------------------------


def flops(size: int, features: int) -> float:
    """Of one forward pass as it reads, 2 for each multiplication of convolutions, linear layers and attention."""
    f, total = features, 0.0

    def voxels(level: int) -> float:
        return float(size // 2**level) ** 3

    def conv(level: int, c_in: int, c_out: int, taps: int = 27) -> float:
        return 2.0 * voxels(level) * taps * c_in * c_out

    total += conv(1, 8 * CHANNELS[0], f, 1) + conv(0, CHANNELS[0], f) + conv(0, f, f) + conv(0, CHANNELS[0], f, 1)
    for stage in range(4):
        width, grid = f * 2**stage, size // 2 ** (stage + 1)
        window = min(7, grid)
        tokens = float(-(-grid // window) * window) ** 3
        total += 2 * (2 * voxels(stage + 1) * 8 * width**2 + 2 * tokens * (4 * width**2 + 2 * window**3 * width))
        total += 2 * voxels(stage + 2) * 8 * width * 2 * width
    total += sum(2 * conv(level, f * 2 ** (level - 1), f * 2 ** (level - 1)) for level in (1, 2, 3)) + 2 * conv(5, 16 * f, 16 * f)
    for level, c_in, c_out in ((4, 16 * f, 8 * f), (3, 8 * f, 4 * f), (2, 4 * f, 2 * f), (1, 2 * f, f), (0, f, f)):
        total += conv(level, c_in, c_out, 1) + conv(level, 2 * c_out, c_out, 28) + conv(level, c_out, c_out)
    return total + conv(0, f, CHANNELS[1], 1)


def windows(size: int) -> int:
    from swinunetr_jax.inference.plan import Plan

    return Plan.of(CASE, (size,) * 3, 0.5).windows


def matmul_rate(dtype: str) -> float:
    """FLOP/s of a large square matrix product here, by JAX."""
    import jax
    import jax.numpy as jnp

    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.asarray(np.random.default_rng(0).normal(size=(n, n)), dtype)
    multiply = jax.jit(lambda a: a @ a)
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        multiply(a).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


def machine() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    import jax

    found = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count()}
    for name in ("jax", "flax", "torch", "monai", "medicai"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def table(rows: list[dict[str, Any]], rate: float) -> str:
    """Markdown: ratios are a contender's median over ours, so more than 1 means that ours is faster."""
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
            both = (number(row.get(name), digits=1) for name in (kind, f"cached_{kind}"))
            cells.append(", ".join(filter(None, both)))
        cells += [number(row["host_bytes"], 1e-9), number(row["device_bytes"], 1e-9)]
        cells.append(f"{row['flops'] / row['median'] / rate:.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    console.configure_streams()
    if sys.argv[1:2] == ["--worker"]:
        work_in_turns(*json.loads(sys.argv[2]))
    else:
        main(tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__))
