"""CASE_statistics.json of a case, and statistics.csv of a folder with a row for each case and label."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swinunetr_jax import console, files
from swinunetr_jax.errors import InputError
from swinunetr_jax.statistics.label_statistics import LabelStatistics

TABLE = "statistics.csv"
_AXES, _DIRECTIONS = ("x", "y", "z"), ("right", "front", "up")
_FIRST = ("case", "output", "labels", "volume_ml", "voxels", "components", "largest_component_ml")
_REMEDY = "predict the case again with --overwrite"


@dataclass(frozen=True)
class CaseStatistics:
    """The content of CASE_statistics.json.

    Attributes:
        case: the name of the case.
        spacing_mm: the voxel size.
        orientation: the directions of the axes of the label map, such as "LPS".
        outputs: the statistics of each output.
        warnings: sentences on what is implausible.
    """

    case: str
    spacing_mm: tuple[float, ...]
    orientation: str
    outputs: tuple[LabelStatistics, ...]
    warnings: tuple[str, ...] = ()


def write_case(path: Path, statistics: CaseStatistics) -> None:
    """Writes the statistics of a case as JSON. Raises InputError if the file cannot be written."""
    try:
        files.write_json(path, asdict(statistics))
    except OSError as error:
        raise _unwritable(path, error) from error


def check_table_free(out: Path, overwrite: bool) -> None:
    """Raises InputError if a folder has another file named statistics.csv, which is replaced only with `overwrite`."""
    path = out / TABLE
    if overwrite or not files.exists(path):
        return
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            ours = file.readline().startswith(",".join(_FIRST))
    except OSError:
        ours = False
    if not ours:
        raise InputError(
            f"{path} exists and was not written by `predict --statistics`; choose another folder, or give --overwrite."
        )


def write_table(out: Path, cases: Iterable[Path]) -> Path:
    """Writes statistics.csv with the rows of these CASE_statistics.json, in their order, and returns its path.

    Raises:
        InputError: a file is damaged, or the table cannot be written.
    """
    rows: list[dict[str, object]] = []
    for path in cases:
        try:
            rows += _rows(files.read_json(path, CaseStatistics, _REMEDY))
        except FileNotFoundError:
            continue  # another process removed it
    columns = dict.fromkeys([*_FIRST, *_box_columns()])
    columns |= dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    table = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    path = out / TABLE
    try:
        files.write_text(path, text.getvalue())
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _rows(statistics: CaseStatistics) -> list[dict[str, object]]:
    return [_row(statistics.case, output) for output in statistics.outputs]


def _row(case: str, output: LabelStatistics) -> dict[str, object]:
    """Returns the cells of one output of a case by their columns. Without a voxel, boxes and intensities are empty."""
    row: dict[str, object] = {
        "case": console.csv_cell(case),
        "output": console.csv_cell(output.output),
        "labels": " ".join(map(str, output.labels)),
        **{name: getattr(output, name) for name in _FIRST[3:]},
    }
    if output.box_voxels is not None and output.box_mm is not None:
        numbers: list[Any] = [number for start, stop in output.box_voxels for number in (start, stop - 1)]
        numbers += [number for sides in output.box_mm for number in sides]
        row |= dict(zip(_box_columns(), numbers, strict=True))
    for channel, intensities in output.intensities.items():
        numbers_of = {} if intensities is None else asdict(intensities)
        for name in ("mean", "standard_deviation", "minimum", "maximum", "median"):
            row[f"{console.csv_cell(channel)}_{name}_intensity"] = numbers_of.get(name, "")
    return row


def _box_columns() -> Sequence[str]:
    """Returns the columns of the box: the first and the last voxel along each axis, and its faces in mm (RAS)."""
    voxels = [f"{end}_{axis}_voxel" for axis in _AXES for end in ("first", "last")]
    return [*voxels, *(f"{end}_{direction}_mm" for direction in _DIRECTIONS for end in ("low", "high"))]


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be written ({files.reason(error)}): check the folder and its free space.")
