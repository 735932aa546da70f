"""Damages files at random and reads them: each must be refused with a message, or give the values that another reader gives.

    python -m tools.fuzz --count 2000 --seed 0 --only pt nifti1

It tests every reader of files from users or from earlier runs: weight files are compared with the readers of torch and safetensors,
checkpoints with the saved values, NIfTI files with nibabel, and JSON files with their schema. It prints a table, and the exit code is 1 if
any file was read wrongly.
"""

import contextlib
import io
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from swinunetr_jax.errors import InputError
from tools.fuzz_targets import TARGETS, Target
from tools.mutations import damage_bytes

LIMIT_SECONDS = 60  # for one file


@dataclass(frozen=True)
class Options:
    """The files to damage, and how often."""

    count: int = 200
    """Damaged files of each kind."""
    seed: int = 0
    """The seed that determines the damage."""
    only: tuple[str, ...] = ()
    """Kinds of files; all kinds by default."""
    keep: Path | None = None
    """Folder into which damaged files that were read wrongly are copied."""


@dataclass
class Tally:
    """The counts of damaged files of one kind by outcome, the slowest read in seconds, and the growth of memory in MB."""

    kind: str
    tried: int = 0
    refused: int = 0
    accepted: int = 0
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    growth: float = 0.0


def fuzz(target: Target, count: int, seed: int, keep: Path | None = None) -> Tally:
    """Damages a random file of the target, reads it and restores it, `count` times."""
    tally, rng = Tally(target.kind), random.Random(f"{target.kind} {seed}")
    if fault := target.fault(target.read()):
        raise RuntimeError(f"the intact files of {target.kind} are read wrongly: {fault}")
    for number in range(count):
        path = rng.choice(target.files)
        intact = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile warns if a mutation writes two members of the same name
            damaged = rng.choice((damage_bytes, *target.mutations))(rng, intact)
        if damaged == intact:
            continue
        tally.tried += 1
        path.write_bytes(damaged)
        fault = _try(target, tally)
        if fault:
            tally.wrong.append(f"{target.kind}, seed {seed}, number {number}: {fault}")
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, keep / f"{target.kind}-{seed}-{number}-{path.name}")
        path.write_bytes(intact)
    return tally


def _try(target: Target, tally: Tally) -> str | None:
    """Reads the damaged file and returns what is wrong with the result, or None."""
    before, start = _peak(), time.perf_counter()
    try:
        with _limited(), warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            value = target.read()
    except InputError as error:
        tally.refused += 1
        return None if str(error).strip() else "refused without a message"
    except Exception:
        return traceback.format_exc(limit=-3)
    finally:
        tally.slowest = max(tally.slowest, time.perf_counter() - start)
        tally.growth = max(tally.growth, _peak() - before)
    tally.accepted += 1
    return target.fault(value)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raises TimeoutError in a block that takes too long."""

    def end(*_: Any) -> None:
        raise TimeoutError(f"more than {LIMIT_SECONDS} s")

    previous = signal.signal(signal.SIGALRM, end)
    signal.alarm(LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def _peak() -> float:
    """Returns the peak memory of this process in MB. Linux reports it in kB and macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def table(tallies: Sequence[Tally]) -> str:
    """Returns the tallies as a Markdown table."""
    lines = ["| kind | tried | refused | accepted | wrong | slowest s | growth of memory in MB |", "| --- " * 7 + "|"]
    lines += [
        f"| {t.kind} | {t.tried} | {t.refused} | {t.accepted} | {len(t.wrong)} | {t.slowest:.2f} | {t.growth:.0f} |"
        for t in tallies
    ]
    return "\n".join(lines)


def run(options: Options, say: Callable[[str], None] = print) -> list[Tally]:
    """Damages files of all chosen kinds. Raises InputError for a kind that does not exist."""
    unknown = sorted(set(options.only) - TARGETS.keys())
    if unknown:
        raise InputError(f"--only has {', '.join(unknown)}, expected some of {', '.join(TARGETS)}.")
    tallies = []
    for kind in options.only or TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            tallies.append(fuzz(TARGETS[kind](Path(folder)), options.count, options.seed, options.keep))
        for fault in tallies[-1].wrong[:5]:
            say(fault)
    return tallies


def main(options: Options) -> int:
    """Prints the table and returns the exit code."""
    tallies = run(options)
    print(table(tallies))
    return int(any(tally.wrong for tally in tallies))


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__)))
    except InputError as error:
        sys.exit(f"error: {error}")
