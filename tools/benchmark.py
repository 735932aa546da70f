"""Compares this project with MONAI on this machine: forward pass, training step and a whole case, in one run and in turns.

    python -m tools.benchmark --work forward train --sizes 64 96
    python -m tools.benchmark --out docs/benchmarks/cpu-64.json --write docs/performance.md   # also the tables of that page
    python -m tools.benchmark --work case --feature-size 24
    python -m tools.benchmark --dtype bfloat16 --sizes 96 128 --queued 5 --together           # on a GPU

Every contender runs in its own process, so that its peak memory is measured separately, and the contenders take turns: A B A B … Since
the speed of machines varies, the result is the median of the ratios of all turns. The contenders are this project; MONAI without
compilation; MONAI with its fused attention; MONAI under torch.compile, in both memory layouts; and medicai (forward pass only). A contender
that is not installed is a row that says so. In bfloat16, torch computes under autocast. The peak memory of a device does not include the
first call, in which libraries try out their kernels.
"""

import os
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from swinunetr_jax import console
from swinunetr_jax.errors import InputError
from tools import benchmark_page
from tools.benchmark_figures import device, flops, matmul_rate, windows
from tools.benchmark_results import OURS, Row, Run, write_run
from tools.benchmark_worker import Environment, Task, Worker
from tools.contenders import NAMES, NOT_INSTALLABLE

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
    """Contenders: monai, monai-flash, monai-compile, monai-compile-channels-last, medicai, nnunet, fast-swin-unetr. The last two cannot be
    installed and are only named in the table, with the reason. ours-HHHH, ours-HAHA and ours-HHAA are this project's network with Hyena
    stages."""
    python: tuple[str, ...] = ()
    """NAME=INTERPRETER for each contender that has a Python environment of its own, because its packages do not fit into this one."""
    torch_cache: Path | None = None
    """Folder in which torch.compile keeps its compiled code from run to run. By default it compiles again, which takes minutes."""
    repeats: int = 5
    """Timed turns of each contender, after one warm-up."""
    queued: int = 1
    """Steps of a turn that are started without waiting for one another, as a trainer does on a GPU."""
    together: bool = False
    """Warm up all contenders at the same time, if there are enough cores and memory: torch.compile takes minutes. Even then, only one
    contender at a time chooses its kernels or takes a turn; compile times are those of a busy machine."""
    out: Path | None = None
    """Also store the run as JSON here."""
    write: Path | None = None
    """Also rebuild the tables of this page, which names the file of --out (see tools/benchmark_page.py)."""


class Race:
    """All contenders for one kind of work and one size."""

    def __init__(self, work: Work, size: int, options: Options, environments: dict[str, Environment], cache: str):
        self.work, self.size, self.options, self.environments, self.cache = work, size, options, environments, cache
        self.workers: dict[str, Worker] = {}
        self.cached: Worker | None = None

    def start(self) -> None:
        """Starts all contenders, one after the other unless the option `together` is set."""
        for name in (OURS, *self.options.against):
            if name in NOT_INSTALLABLE:
                continue
            self.workers[name] = self._worker(name)
            if not self.options.together:
                self.workers[name].wait()

    def wait(self) -> None:
        """Waits for all contenders. Ours is started a second time when it is ready, to measure a start with a filled cache."""
        self.workers[OURS].wait()
        self.cached = self._worker(OURS)
        self.cached.wait()
        self.cached.finish()
        for worker in self.workers.values():
            worker.wait()

    def run(self) -> list[Row]:
        """Runs all turns and returns a row for each contender, ours first."""
        if not self.workers:
            self.start()
            self.wait()
        for _ in range(self.options.repeats):
            for worker in self.workers.values():
                worker.turn()
        rows = [self._row(name, worker) for name, worker in self.workers.items()]
        missing = [name for name in self.options.against if name in NOT_INSTALLABLE]
        return rows + [Row(*self._item(name), error=NOT_INSTALLABLE[name]) for name in missing]

    def _item(self, name: str) -> tuple[str, int, str, int, str]:
        return self.work, self.size, name, self.options.feature_size, self.options.dtype

    def _worker(self, name: str) -> Worker:
        options = self.options
        task = Task(name, self.work, self.size, options.feature_size, options.dtype, options.queued, f"{self.cache}/lock")
        return Worker(task, self.environments.get(name, self.environments[""]))

    def _row(self, name: str, worker: Worker) -> Row:
        worker.finish()
        if worker.error:
            return Row(*self._item(name), error=worker.error)
        figures: dict[str, Any] = dict(worker.figures)  # the values of JSON
        if name == OURS and self.cached is not None and not self.cached.error:
            cached = self.cached.figures
            figures |= {"cached_first_call": self.cached.first_call, "cached_compiling": cached["compiling"]}
            if self.work != "case":  # the second start tries no kernels, so its peak is lower; but it never runs a whole case
                figures["device_bytes"] = cached["device_bytes"]
        passes = {"forward": 1, "train": 3, "case": windows(self.size)}[self.work]
        figures["flops"] = flops(self.size, self.options.feature_size) * passes
        return Row(*self._item(name), seconds=tuple(worker.seconds), first_call=worker.first_call, **figures)


def environments_of(options: Options, cache: str) -> dict[str, Environment]:
    """Returns the environment of each contender that has one of its own, and that of the others under ""."""
    variables = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    variables["TORCHINDUCTOR_CACHE_DIR"] = str(options.torch_cache.resolve() if options.torch_cache else Path(cache) / "torch")
    environments = {"": Environment(sys.executable, variables)}
    for text in options.python:
        name, _, interpreter = text.partition("=")
        if name not in NAMES or not Path(interpreter).is_file():
            raise InputError(f"--python {text} is not NAME=INTERPRETER with a contender and the path of its Python interpreter.")
        environments[name] = Environment(interpreter, variables)
    return environments


def main(options: Options) -> None:
    unknown = set(options.against) - {*NAMES, *NOT_INSTALLABLE}
    if unknown:
        raise InputError(f"unknown contender {', '.join(unknown)}; the known ones are {', '.join([*NAMES, *NOT_INSTALLABLE])}.")
    if options.write and (options.out is None or options.out.resolve() not in benchmark_page.runs_of(options.write)):
        raise InputError(
            "--write rebuilds the tables of a page that names the file of --out: add its name to a section of the page."
        )
    load, rate = os.getloadavg()[0], matmul_rate(options.dtype)
    date, command = (
        time.strftime("%Y-%m-%d"),
        shlex.join(["python", "-m", "tools.benchmark", *arguments_of_measurement(sys.argv[1:])]),
    )
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as cache:
        environments = environments_of(options, cache)
        races = [Race(work, size, options, environments, cache) for work in options.work for size in options.sizes]
        if options.together:
            for race in races:
                race.start()
            for race in races:
                race.wait()
        for race in races:
            rows += race.run()
            run = Run(command, date, device(), os.cpu_count(), load, rate, tuple(rows), _note(options))
            print(benchmark_page.section([run]), flush=True)
            if options.out:
                write_run(options.out, run)
    if options.write:
        benchmark_page.rebuild(options.write)


def _note(options: Options) -> str:
    compiled = any("compile" in name for name in options.against)
    return "The first results of `torch.compile` come from its cache." if compiled and options.torch_cache else ""


def arguments_of_measurement(arguments: list[str]) -> list[str]:
    """Returns the arguments without the paths of this machine, which a reader cannot repeat."""
    kept, skipping = [], False
    for argument in arguments:
        if argument.startswith("--"):
            skipping = argument.partition("=")[0] in ("--out", "--write", "--python", "--torch-cache")
        if not skipping:
            kept.append(argument)
    return kept


if __name__ == "__main__":
    console.configure_streams()
    try:
        main(tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
