"""RUN/report.html: one file that shows what came out of a run, readable anywhere and without the run's folder."""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swinunetr_jax.evaluation.evaluate import CONVENTIONS

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
table { border-collapse: collapse; } td, th { padding: .25em .9em; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; } tr.mean td { font-weight: bold; }
img { max-width: 100%; } pre { background: #f5f5f5; padding: 1em; overflow-x: auto; font-size: 12.5px; } .note { color: #666; }
"""


def write_report(run: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes the report from the log's rows and the pictures in the run's folder."""
    about = json.loads((run / "run.json").read_text())
    looks = [row for row in rows if row["kind"] == "validation"]
    best = max(looks, key=lambda row: row["score"] if row["score"] == row["score"] else -1.0) if looks else None
    steps = [row for row in rows if row["kind"] == "step"]
    parts = [f"<h1>{html.escape(run.resolve().name)}</h1>", _summary(about, steps, best)]
    parts += ["<h2>Curves</h2>", _image(run / "progress.png")]
    if best:
        parts += [f"<h2>Validation at step {best['step']}, the best</h2>", _table(best, about["convention"])]
        parts += ["<h2>Best cases</h2>", _image(run / "best.png"), "<h2>Worst cases</h2>", _image(run / "worst.png")]
    parts.append("<h2>Configuration</h2>")
    for part in about["parts"]:
        versions = ", ".join(f"{name} {number}" for name, number in part["versions"].items())
        parts.append(f"<p>From step {part['after_step']}: {html.escape(versions)}; {html.escape(part['device'])}</p>")
    for name in ("recipe", "network", "task"):
        parts.append(f"<details><summary>{name}</summary><pre>{html.escape(json.dumps(about[name], indent=1))}</pre></details>")
    text = "\n".join(
        ["<!doctype html>", '<meta charset="utf-8">', f"<style>{STYLE}</style>", "<title>Swin UNETR</title>", *parts]
    )
    path = run / "report.html"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


def _summary(about: dict[str, Any], steps: Sequence[dict[str, Any]], best: dict[str, Any] | None) -> str:
    score = f"best validation Dice <b>{best['score']:.4f}</b> at step {best['step']}" if best else "no validation"
    after = [row["seconds"] for row in steps[1:]] or [0.0]
    count = {name: len(cases) for name, cases in about["cases"].items()}
    return (
        f"<p>{score}; {len(steps)} of {about['steps']} steps, {sorted(after)[len(after) // 2]:.2f} s each (median), "
        f"{count['train']} training and {count['validation']} validation cases.</p>"
    )


def _table(best: dict[str, Any], convention: str) -> str:
    names = list(best["dice"])
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("case", *names, "mean"))
    rows = []
    for case, dice in sorted(best["cases"].items()):
        cells = "".join(f"<td>{dice[name]:.3f}</td>" for name in names)
        rows.append(f"<tr><td>{html.escape(case)}</td>{cells}<td>{sum(dice.values()) / len(dice):.3f}</td></tr>")
    means = "".join(f"<td>{best['dice'][name]:.3f}</td>" for name in names)
    rows.append(f'<tr class="mean"><td>mean</td>{means}<td>{best["score"]:.3f}</td></tr>')
    note = f'<p class="note">Dice, convention {html.escape(CONVENTIONS[f"dice_{convention}"])}.</p>'
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>{note}"


def _image(path: Path) -> str:
    if not path.exists():
        return ""
    return f'<img alt="{path.stem}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
