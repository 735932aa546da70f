"""RUN/report.html: one file with the results of a run, which can be read anywhere and without the run's folder."""

import base64
import html
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swinunetr_jax import Task, console, files
from swinunetr_jax.evaluation.evaluate import CONVENTIONS
from swinunetr_jax.training.description import Description, read_description
from swinunetr_jax.training.log import DICE, best_validation, metric_of
from swinunetr_jax.training.options import Options
from swinunetr_jax.training.sources import SOURCES
from swinunetr_jax.training.times import Times, times_of
from swinunetr_jax.training.validation import predict_options

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; overflow-wrap: anywhere; } h2 { font-size: 1.15em; margin-top: 2em; }
.wide { overflow-x: auto; } table { border-collapse: collapse; }
td, th { padding: .25em .9em; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; } tr.mean td { font-weight: bold; }
img { max-width: 100%; } pre { background: #f5f5f5; padding: 1em; overflow-x: auto; font-size: 12.5px; } .note { color: #666; }
"""
SYNTHETIC = (
    "The patients of this run are synthetic: a program made the heads and their tumours. Its scores show that training works, but not how "
    "well the network would segment scans of patients."
)


def write_report(run: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes the report from the log's rows and the pictures in the run's folder.

    Raises:
        InputError: the description of the run cannot be read.
        OSError: the report cannot be written.
    """
    description = read_description(run)
    validations = [row for row in rows if row["kind"] == "validation"]
    best = best_validation(validations) if validations else None
    steps = [row for row in rows if row["kind"] == "step"]
    options = Options.from_dict(description["recipe"])
    title = f"{run.resolve().name}: recipe {options.name or options.kind}, {description['network'].get('network', 'Swin UNETR')}"
    parts = [f"<h1>{_text(title)}</h1>", _summary(description, steps, best)]
    if SOURCES[options.kind].is_synthetic:
        parts.append(f"<p><b>{SYNTHETIC}</b></p>")
    parts += ["<h2>Curves</h2>", _image(run / "progress.png")]
    if best:
        parts += [f"<h2>Validation at step {best['step']}, the best</h2>", _table(best, description)]
        parts += _pictures(run, options)
    parts += _times(times_of(rows))
    parts.append("<h2>Configuration</h2>")
    for part in description["parts"]:
        versions = ", ".join(f"{name} {number}" for name, number in part["versions"].items())
        parts.append(f"<p>From step {part['after_step']}: {_text(versions)}; {_text(part['device'])}</p>")
    for name, values in (("recipe", description["recipe"]), ("network", description["network"]), ("task", description["task"])):
        parts.append(f"<details><summary>{name}</summary><pre>{html.escape(json.dumps(values, indent=1))}</pre></details>")
    head = [
        "<!doctype html>",
        '<html lang="en">',
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(title)}</title>",
        f"<style>{STYLE}</style>",
    ]
    path = run / "report.html"
    files.write_text(path, "\n".join([*head, *parts, "</html>", ""]))
    return path


def _summary(description: Description, steps: Sequence[dict[str, Any]], best: dict[str, Any] | None) -> str:
    score = "No validation"
    if best:
        score = f"Best validation {_text(metric_of(best))} <b>{_score(best['score'], 4)}</b> at step {best['step']}"
    seconds = [row["seconds"] for row in steps[1:]] or [0.0]
    count = {name: len(cases) for name, cases in description["cases"].items()}
    return (
        f"<p>{score}; {len(steps)} of {description['steps']} steps, {sorted(seconds)[len(seconds) // 2]:.2f} s each (median), "
        f"{count['train']} training and {count['validation']} validation cases. "
        f"Written on {time.strftime('%Y-%m-%d at %H:%M %Z')}.</p>"
    )


def _table(best: dict[str, Any], description: Description) -> str:
    names = list(best["dice"])
    head = "".join(f"<th>{_text(name)}</th>" for name in ("case", *names, "mean"))
    rows = []
    for case, dice in sorted(best["cases"].items()):
        values = [dice[name] for name in names]
        finite = [value for value in values if value is not None and math.isfinite(value)]
        values.append(sum(finite) / len(finite) if finite else None)
        rows.append(f"<tr><td>{_text(case)}</td>{''.join(f'<td>{_score(value)}</td>' for value in values)}</tr>")
    means = "".join(f"<td>{_score(value)}</td>" for value in (*(best["dice"][name] for name in names), best["score"]))
    rows.append(f'<tr class="mean"><td>mean</td>{means}</tr>')
    if description["task"]["kind"] == "images":
        numbers = "".join(f", {_text(name)} {_score(value)}" for name, value in best.get("numbers", {}).items())
        note = (
            f"{_text(metric_of(best))} on crops of held-out scans, the same crops and random numbers in all validations{numbers}"
        )
    elif (metric := metric_of(best)) != DICE:
        note = f"The score is {_text(metric)}, as the objective of the recipe computes it"
    else:
        convention = CONVENTIONS[f"dice_{description['convention']}"]
        note = f"Dice on the scans' own grids, convention {_text(convention)}; {_text(scoring_note(description))}"
    note = f'<p class="note">{note}.</p>'
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>{note}'


def _times(times: Times | None) -> list[str]:
    """Returns the table of the time of each kind of work, or nothing if the log does not state it."""
    if times is None:
        return []
    rows = [*times.table, ("all", times.total)]
    cells = "".join(
        f"<tr><td>{_text(title)}</td><td>{console.duration(seconds)}</td><td>{100 * seconds / max(times.total, 1e-9):.1f} %</td></tr>"
        for title, seconds in rows
    )
    notes = [f"The goodput, the share of the steps in all of the time, is {100 * times.goodput:.1f} %.", times.slowest_host]
    note = " ".join(_text(text).rstrip(".") + "." for text in notes if text)
    table = f'<div class="wide"><table><tr><th>work</th><th>time</th><th>share</th></tr>{cells}</table></div>'
    return ["<h2>How the time was spent</h2>", table, f'<p class="note">{note}</p>']


def _pictures(run: Path, options: Options) -> list[str]:
    """Returns the pictures of the best validation with their titles."""
    if options.kind != "scans":
        return [*_extreme_cases(run, "best"), *_extreme_cases(run, "worst")]
    if options.task != "mim":
        return []
    note = '<p class="note">One slice of a crop of each of the first held-out scans at the last validation. Masked blocks are blue.</p>'
    return ["<h2>Filled in</h2>", _image(run / "filled_in.png"), note]


def _extreme_cases(run: Path, name: str) -> list[str]:
    """Returns the picture of the best or the worst cases with its title, and a link to the page of the first of them if it exists."""
    parts, page = [f"<h2>{name.title()} cases</h2>", _image(run / f"{name}.png")], f"{name}.html"
    if files.exists(run / page):
        parts.append(
            f'<p><a href="{page}">Show the {name} case in slices and in 3-D</a>, with all channels, the prediction, the reference and '
            f"their difference. The link needs the file {page} in the folder of this report.</p>"
        )
    return parts


def _score(value: float | None, digits: int = 3) -> str:
    return "none" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _text(text: object) -> str:
    """Returns text from a data set, escaped for HTML so that it is displayed literally."""
    return html.escape(console.literal(text))


def scoring_note(description: Description) -> str:
    """Returns a clause that names the commands which compute the same scores as a run; `description` is the content of its run.json."""
    recipe = Options.from_dict(description["recipe"])
    options = predict_options(
        recipe.validation, Task.from_dict(description["task"]), description["network"].get("dtype", "float32")
    )
    rounded = ", but computed from scans that the cache holds in float16" if recipe.cache_dtype == "float16" else ""
    return f"the scores are those of swinunetr predict{options} and swinunetr evaluate{rounded}"


def _image(path: Path) -> str:
    if not files.exists(path):
        return '<p class="note">This picture was not drawn.</p>'
    return f'<img alt="{path.stem}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
