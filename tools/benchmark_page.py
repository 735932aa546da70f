"""Writes the results of `tools.benchmark` into a page of the documentation, from the stored runs and without measuring.

    python -m tools.benchmark_page docs/performance.md

A section of a page begins with the comment `<!-- benchmark: RUN.json ... -->`, which names stored runs relative to the page, and ends with
`<!-- end of benchmark -->`. Everything between the two comments is replaced. Runs of one section are combined: the turns of the same work
count together.
"""

import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from swinunetr_jax import console
from swinunetr_jax.errors import InputError
from swinunetr_jax.files import write_text
from tools.benchmark_results import OURS, Row, Run, Spread, Standing, contenders, failures, read_run, standing, work_items

BEGIN, END = "<!-- benchmark: {} -->", "<!-- end of benchmark -->"
_SECTION = re.compile(r"<!-- benchmark: (.+?) -->\n.*?" + re.escape(END), re.DOTALL)
LABELS = {
    OURS: "this project",
    "monai": "MONAI",
    "monai-flash": "with fused attention",
    "monai-compile": "`torch.compile`",
    "monai-compile-channels-last": "the same, channels last",
}


@dataclass
class Options:
    """The page to write."""

    page: Annotated[Path, tyro.conf.Positional] = Path("docs/performance.md")


def rebuild(page: Path) -> None:
    """Replaces every section of the page by the tables of the runs that it names."""
    write_text(page, rebuilt(page.read_text(), page.parent))


def rebuilt(text: str, folder: Path) -> str:
    """Returns the page's text with new sections. The names of stored runs are relative to `folder`.

    Raises:
        InputError: the page has no section, or a run that it names does not exist.
    """

    def replace(match: re.Match[str]) -> str:
        names = match[1].split()
        return "\n".join([BEGIN.format(match[1]), section([_read(folder / name) for name in names]), END])

    text, count = _SECTION.subn(replace, text)
    if not count:
        raise InputError(f"the page has no section for results: add the lines {BEGIN.format('RUN.json')} and {END} to it.")
    return text


def runs_of(page: Path) -> set[Path]:
    """Returns the stored runs that a page names."""
    return {(page.parent / name).resolve() for match in _SECTION.finditer(page.read_text()) for name in match[1].split()}


def _read(path: Path) -> Run:
    try:
        return read_run(path)
    except FileNotFoundError:
        raise InputError(f"the run {path} does not exist: measure it, or remove its name from the page.") from None


def section(runs: Sequence[Run]) -> str:
    """Returns the text of a section: how the runs were made, their tables, and why a contender is missing."""
    missing = [f"- {LABELS.get(name, name)} was not compared: {reason}" for name, reason in failures(runs)]
    parts = ([_origin(run) for run in runs], _speed_table(runs), _resource_table(runs), missing)
    return "\n" + "".join("\n".join(part) + "\n\n" for part in parts if part)[:-1]


def _origin(run: Run) -> str:
    versions = {name: version for row in run.rows for name, version in row.versions.items()}
    facts = [run.date, run.device if run.cores is None else f"{run.device}, {run.cores} cores"]
    facts.append("load unknown" if run.load is None else f"load by other programs {run.load:.1f}")
    facts += [f"{name} {version}" for name, version in sorted(versions.items())]
    if run.matmul_flops:
        facts.append(f"matrix products {_rate(run.matmul_flops)}")
    return f"- `{run.command}`: {'; '.join(facts)}.{' ' * bool(run.note)}{run.note}"


def _speed_table(runs: Sequence[Run]) -> list[str]:
    names = [name for name in contenders(runs) if any(standing(runs, item, name) for item in work_items(runs))]
    head, rows = ["work", *(LABELS.get(name, name) for name in names)], []
    for item in work_items(runs):
        found = {name: standing(runs, item, name) for name in names}
        cells = ["" if one is None else _time(one.seconds) if name == OURS else _speed_up(one) for name, one in found.items()]
        rows.append([_work(item), *cells, _efficiency(runs, found.get(OURS))])
    return _table([*head, "of the rate of matrix products"], rows)


def _resource_table(runs: Sequence[Run]) -> list[str]:
    names = [name for name in contenders(runs) if any(standing(runs, item, name) for item in work_items(runs))]
    head = ["peak memory, first result after", *(LABELS.get(name, name) for name in names)]
    rows = []
    for item in work_items(runs):
        found = (standing(runs, item, name) for name in names)
        rows.append([_work(item), *("" if one is None else _resources(one.rows) for one in found)])
    return _table(head, rows)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Returns the lines of a table without its empty columns and rows."""
    rows = [row for row in rows if any(row[1:])]
    filled = [column for column in range(len(head)) if any(row[column] for row in rows)]
    head, rows = [head[column] for column in filled], [[row[column] for column in filled] for row in rows]
    if not rows:
        return []
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _work(item: tuple[str, int, int, str]) -> str:
    work, size, features, dtype = item
    name = {"train": "train step", "case": "a case of 240 × 240 × 155 by windows of"}.get(work, work)
    return f"{name} {size}³, {features} features{'' if dtype == 'float32' else f', {dtype}'}"


def _time(seconds: Spread) -> str:
    scale, unit = (1, "s") if seconds.median >= 1 else (1000, "ms")
    return f"{_digits(seconds.median * scale)} {unit}{_range(seconds, scale)}"


def _speed_up(one: Standing) -> str:
    return "" if one.speed_up is None else f"{one.speed_up.median:.2f} ×{_range(one.speed_up)}"


def _range(spread: Spread, scale: float = 1) -> str:
    if spread.count == 1:
        return ""
    return f" ({_digits(spread.low * scale)}–{_digits(spread.high * scale)})"


def _digits(number: float) -> str:
    """Returns three significant digits."""
    return f"{number:.2f}" if number < 10 else f"{number:.1f}" if number < 100 else f"{number:.0f}"


def _efficiency(runs: Sequence[Run], ours: Standing | None) -> str:
    """Returns the share of the rate of matrix products in the same run: the median of all turns of the runs that measured that rate."""
    rows = () if ours is None else ours.rows
    rates = [next(run.matmul_flops for run in runs if any(own is row for own in run.rows)) for row in rows]
    shares = [row.flops / seconds / rate for row, rate in zip(rows, rates) if rate for seconds in row.seconds]
    return f"{statistics.median(shares):.0%}" if shares else ""


def _resources(rows: Sequence[Row]) -> str:
    """Returns the peak memory, on an accelerator that of the device, and the seconds to the first result, of the last run with each."""
    peaks = [row.host_bytes if row.device_bytes is None else row.device_bytes for row in rows]
    parts = [f"{peak / 1e9:.2f} GB" for peak in peaks if peak is not None][-1:]
    starts = [row for row in rows if row.first_call is not None]
    if starts:
        cached = starts[-1].cached_first_call
        parts.append(f"{starts[-1].first_call:.0f} s{'' if cached is None else f' ({cached:.1f} s from the cache)'}")
    return ", ".join(parts)


def _rate(flops: float) -> str:
    return f"{flops / 1e12:.0f} TFLOP/s" if flops >= 1e13 else f"{flops / 1e9:.0f} GFLOP/s"


if __name__ == "__main__":
    console.configure_streams()
    try:
        rebuild(tyro.cli(Options, description=__doc__).page)
    except InputError as error:
        sys.exit(f"error: {error}")
