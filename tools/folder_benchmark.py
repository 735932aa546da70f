"""Times `predict` on a folder of scans with a stand-in for a fast device, which takes a fixed time per case.

    python -m tools.folder_benchmark                       # 8 cases of 240×240×155 with four channels, 0.3 s per case

On a fast device the network is not what takes the time, but reading, preparing and writing. The same cases are predicted in two ways, which
take turns: as a folder, where the next case is read and the previous one is written during the computation, and one after the other. The
stand-in sleeps, so that it takes no time of the processor, and labels voxels by their intensity.
"""

import contextlib
import io
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from swinunetr_jax import Task, console
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.formats import find_cases
from swinunetr_jax.data.phantom.dataset import write_phantom
from swinunetr_jax.inference.batch import predict_cases
from swinunetr_jax.inference.prepare import Prepared, prepare
from swinunetr_jax.inference.segmentation import Segmentation

TASK = Task.brats()


@dataclass
class Options:
    """The cases, and the time of the stand-in."""

    cases: int = 8
    size: tuple[int, int, int] = (240, 240, 155)
    seconds: float = 0.3
    """The time of the stand-in per case."""
    turns: int = 3
    preview: bool = False
    """Also write the pictures."""


@dataclass(frozen=True)
class StandIn:
    """Takes the place of a `Segmenter`."""

    seconds: float

    def prepare(self, case: Case) -> Prepared:
        return prepare(case, TASK, len(TASK.channels))

    def segment_prepared(
        self, prepared: Prepared, *, probabilities: bool, et_label: int | None, progress: Callable[[int, int], None]
    ) -> Segmentation:
        time.sleep(self.seconds)
        progress(1, 1)
        first = prepared.scan.array
        labels = (first > np.quantile(first[::4, ::4, ::4], 0.98)).astype(np.uint8)
        return Segmentation(labels, None, prepared.scan, TASK, 1, prepared.notes)

    @property
    def task(self) -> Task:
        return TASK


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with console.Progress("writing scans", unit="case") as progress:
            write_phantom(folder / "scans", cases=options.cases, size=options.size, progress=progress)
        cases = find_cases(folder / "scans").cases
        ways = {"as a folder": [cases], "one after the other": [[case] for case in cases]}
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(options.turns):
            for name, groups in ways.items():
                out = folder / "out"
                rates[name].append(60 * len(cases) / _seconds(groups, out, options))
                shutil.rmtree(out)
                console.say(f"turn {turn + 1}, {name}: {rates[name][-1]:.1f} cases per minute")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, values in rates.items():
        console.say(f"{name}: {medians[name]:.1f} cases per minute ({min(values):.1f} … {max(values):.1f})")
    ratios = [a / b for a, b in zip(*rates.values())]
    console.say(f"ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} … {max(ratios):.2f})")


def _seconds(groups: Sequence[Sequence[Case]], out: Path, options: Options) -> float:
    """Returns the time of predicting groups of cases into a folder, one group after the other."""
    started = time.perf_counter()
    for group in groups:
        with contextlib.redirect_stdout(io.StringIO()):
            failed = predict_cases(StandIn(options.seconds), group, out, identity={}, preview=options.preview)  # pyright: ignore[reportArgumentType] - a stand-in
        if failed:
            raise SystemExit(f"failed: {failed}")
    return time.perf_counter() - started


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
