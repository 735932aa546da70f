"""Scores cases with the program of the BraTS challenge of 2026, `brats-evaluation`, in an environment and a process of its own.

The program needs an older numpy than this project, so that both cannot be installed together. It pairs files by numbers in their names,
accepts only fixed label values, and skips cases that it cannot score. Therefore each case is written under a unique name and in the label
values of the program, and every skipped case is reported.

Source: github.com/BraTS/BraTS_evaluation, version 0.0.10: `brats-evaluate` writes a JSON file, and `brats-parse-metrics` makes the table of
the ranking from it.
"""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np

from swinunetr_jax.data.nifti import Volume, write_volume
from swinunetr_jax.errors import InputError
from swinunetr_jax.evaluation.pairs import label_values
from swinunetr_jax.task import Task

PREFIX = "brats2026_"
UNTIL_2022, SINCE_2023 = 4, 3  # the label of the enhancing tumour; the program accepts only 3
VERSION = "0.0.10"
Ranking = Literal["gli", "mets", "ped", "MenRT", "MenPre", "GoAT"]
# The label values of the program's regions in each ranking. It scores no case that has another value.
_ADULT = {"et": (3,), "tc": (1, 3), "wt": (1, 2, 3)}
REGIONS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "gli": {"netc": (1,), "snfh": (2,), "rc": (4,), **_ADULT},
    "mets": {"rc": (4,), **_ADULT},
    "ped": {"et": (1,), "netc": (2,), "cc": (3,), "ed": (4,), "tc": (1, 2, 3), "wt": (1, 2, 3, 4)},
    "MenRT": {"gtv": (1,)},
    "MenPre": _ADULT,
    "GoAT": _ADULT,
}
SET_UP = f"python -m venv brats2026 && brats2026/bin/pip install brats-evaluation=={VERSION}"
_PACKAGES = ("brats-evaluation", "panoptica")
_VERSIONS = f"from importlib.metadata import version; print(', '.join(f'{{name}} {{version(name)}}' for name in {_PACKAGES}))"
_CASE = re.compile(r"\[(\d+)/\d+\] Evaluating")
_LAST_LINES = 5  # of the program's output, which an error message repeats


@dataclass(frozen=True)
class ChallengeScores:
    """The scores in the program's table.

    Attributes:
        program: the names and versions of the packages that computed the table.
        ranking: the ranking whose label values and regions were used.
        cases: case → region, in lower case → metric → value, NaN where the table has none.
        failed: case → the program's reason for not scoring it.
    """

    program: str
    ranking: str
    cases: dict[str, dict[str, dict[str, float]]]
    failed: dict[str, str]


@dataclass
class Challenge:
    """Collects cases for the program, and runs it. As a context manager it removes the collected files at the end.

    Args:
        ranking: the ranking of the challenge, which determines the regions.
        environment: the folder of the virtual environment in which the program is installed; by default, PATH is searched for the program.

    Raises:
        InputError: the program was not found or does not start.
    """

    ranking: Ranking
    environment: Path | None = None
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        folders = (
            None if self.environment is None else os.pathsep.join(str(self.environment / folder) for folder in ("bin", "Scripts"))
        )
        self._evaluate, self._parse = (
            _find(name, folders, self.environment) for name in ("brats-evaluate", "brats-parse-metrics")
        )
        python = next((path for path in map(self._evaluate.with_name, ("python", "python.exe")) if path.exists()), None)
        process = (
            None
            if python is None
            else subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, env=_environment())
        )
        self.program = (
            process.stdout.strip() if process is not None and process.returncode == 0 else "brats-evaluation of unknown version"
        )

    def __enter__(self) -> "Challenge":
        self._folder = tempfile.TemporaryDirectory(prefix="swinunetr-brats2026-")
        self._root = Path(self._folder.name)
        for side in ("prediction", "reference"):
            (self._root / side).mkdir()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._folder.cleanup()

    def add(self, name: str, pred: np.ndarray, ref: Volume, task: Task, ignore: int | None) -> list[str]:
        """Writes a case for the program, and returns sentences on what was changed for it.

        Args:
            name: the case.
            pred: its prediction [x, y, z] in the label values of `task`.
            ref: its reference.
            task: the meaning of the labels.
            ignore: the label of voxels in the reference that count as background on both sides.

        Raises:
            InputError: the files cannot be written.
        """
        notes, known_values = list[str](), sorted({value for values in REGIONS[self.ranking].values() for value in values})
        for side, labels in (("prediction", pred), ("reference", ref.array)):
            labels = labels if ignore is None else np.where(ref.array == ignore, 0, labels)
            if task.et_label == UNTIL_2022:
                labels = np.where(labels == UNTIL_2022, SINCE_2023, np.where(labels == SINCE_2023, 0, labels))
            unknown = sorted(label_values(labels) - {0, *known_values})
            if unknown:
                notes.append(
                    f"label {', '.join(map(str, unknown))} of the {side} is unknown to the program of BraTS 2026 and counts as background "
                    "in its scores"
                )
                labels = np.where(np.isin(labels, known_values), labels, 0)
            write_volume(self._root / side / f"{len(self.names):05d}-000.nii.gz", labels, ref)
        self.names.append(name)
        return notes

    def check(self, task: Task) -> None:
        """Raises InputError if a region of the ranking and the output of the same name have different labels."""
        for output in task.outputs:
            own = {SINCE_2023 if value == task.et_label else value for value in task.labels_of(output)}
            theirs = set(REGIONS[self.ranking].get(output.name.lower(), own))
            if own != theirs:
                expected, actual = (", ".join(map(str, sorted(values))) for values in (theirs, own))
                raise InputError(
                    f"the ranking {self.ranking} of BraTS 2026 expects {output.name} in the labels {expected}, but in this task "
                    f"{output.name} has {actual}: choose the ranking of this data set with --scorer-ranking, or renumber the labels."
                )

    def run(self, progress: Callable[[int, int], None] = lambda done, total: None) -> ChallengeScores:
        """Scores the cases that were added.

        Args:
            progress: called before each case with the number of cases done and of all cases.

        Raises:
            InputError: the program failed.
        """
        summary, table = self._root / "summary.json", self._root / "table.csv"

        def report(text: str) -> None:
            if match := _CASE.search(text):
                progress(int(match[1]) - 1, len(self.names))

        _call([
            self._evaluate, "--config", self.ranking, "--ref_path", self._root / "reference", "--pred_path", self._root / "prediction",
            "--summary_json", summary,
        ], report)  # fmt: skip
        kind = "mets" if self.ranking == "mets" else "seg"
        _call([self._parse, kind, "--json_path", summary, "--output_csv_path", table], lambda text: None)
        return self._scores(summary, table)

    def _scores(self, summary: Path, table: Path) -> ChallengeScores:
        """Returns the scores in the two files of the program."""
        try:
            rows = json.loads(summary.read_text(encoding="utf-8"))["metrics"]
            failed = {self._case(row["subject_name"]): _sentence(row["error"]) for row in rows if "error" in row}
            regions = {name for row in rows for name, value in row.items() if isinstance(value, dict)}
            cases = {}
            if len(failed) < len(rows):
                with open(table, newline="", encoding="utf-8") as file:
                    for row in csv.DictReader(file):
                        if row["subject_id"] not in ("mean", "std", "median"):  # rows at the end, over all cases
                            cases[self._case(row["subject_id"])] = _by_region(row, regions)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"the tables of {self._evaluate} are not in the format of version {VERSION} ({type(error).__name__}: {error}): "
                f"install that version, `{SET_UP}`."
            ) from error
        missing = set(self.names) - cases.keys() - failed.keys()
        failed |= dict.fromkeys(missing, "the program has no row for it in its table")
        return ChallengeScores(self.program, self.ranking, cases, failed)

    def _case(self, file: str) -> str:
        """Returns the name of the case that was written as `file`."""
        return self.names[int(file[:5])]


def merged(
    scores: Mapping[str, Mapping[str, Mapping[str, float]]], challenge: ChallengeScores
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns scores by case and output with the program's metrics for the region of the same name, and NaN where it has none."""
    regions = {region for case in challenge.cases.values() for region in case}
    metrics = next((list(values) for case in challenge.cases.values() for values in case.values()), [])
    if not regions & {output.lower() for case in scores.values() for output in case}:
        return {name: {output: dict(values) for output, values in case.items()} for name, case in scores.items()}
    return {
        name: {
            output: {
                **values,
                **{
                    PREFIX + metric: challenge.cases.get(name, {}).get(output.lower(), {}).get(metric, math.nan)
                    for metric in metrics
                },
            }
            for output, values in case.items()
        }
        for name, case in scores.items()
    }


def _by_region(row: Mapping[str, str], regions: set[str]) -> dict[str, dict[str, float]]:
    """Returns region → metric → value of a row, whose columns are named METRIC_REGION."""
    values: dict[str, dict[str, float]] = {region: {} for region in sorted(regions)}
    for column, text in row.items():
        metric, _, region = column.rpartition("_")
        if region in regions:
            values[region][metric] = float(text) if text else math.nan
    return values


def _find(name: str, folders: str | None, environment: Path | None) -> Path:
    """Returns the path of one of the program's commands. Raises InputError if the command does not exist."""
    path = shutil.which(name, path=folders)
    if path is None:
        where = "on PATH" if environment is None else f"in {environment}"
        raise InputError(
            f"the program of BraTS 2026 was not found: there is no {name} {where}. It needs an environment of its own: run `{SET_UP}` and "
            "give --scorer-environment brats2026."
        )
    return Path(path)


def _call(command: list[str | Path], on_line: Callable[[str], None]) -> None:
    """Runs a command, and calls `on_line` with each line of its output. Raises InputError if it fails."""
    last: deque[str] = deque(maxlen=_LAST_LINES)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=_environment()
    ) as process:
        assert process.stdout is not None
        try:
            for text in process.stdout:
                last.append(text.strip())
                on_line(text)
        except BaseException:  # such as an interruption
            process.kill()
            raise
    if process.returncode:
        raise InputError(
            f"{command[0]} ended with exit code {process.returncode}, after these last lines: {' | '.join(filter(None, last))}"
        )


def _environment() -> dict[str, str]:
    """Returns the environment variables for the program: unbuffered, and without the paths of this project's packages."""
    names = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return names | {"PYTHONUNBUFFERED": "1"}


def _sentence(text: str) -> str:
    """Returns the first line of a message, because the program appends tables to some."""
    return text.strip().splitlines()[0] if text.strip() else "no reason was given"
