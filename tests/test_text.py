"""Text from data (names of cases, labels and files) is shown literally, and a picture that cannot be drawn does not stop a run."""

import json
import time
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from swinunetr_jax import Task
from swinunetr_jax.data.nifti import Volume
from swinunetr_jax.output import Output
from swinunetr_jax.training import loop, pages, plots, validation
from swinunetr_jax.training.html_report import write_report
from swinunetr_jax.training.objective import FromFunction
from swinunetr_jax.viz import figures, preview

NASTY = ("$\\badmacro$", "_hidden", "a\x1b[31m\nb", "年 \ud800", "%s {0} <b>&", "x" * 300)


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """Yields the list of the figures that are saved, and turns warnings into errors."""
    saved = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **options: (saved.append(self), save(self, *args, **options)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield saved


def nasty_task() -> Task:
    outputs = (Output(name="background", value=0), *(Output(name=name, value=i) for i, name in enumerate(NASTY, 1)))
    return Task(kind="classes", outputs=outputs)


@pytest.mark.fault("3.1")
def test_a_preview_draws_any_name_literally(tmp_path, drawn):
    labels = (np.arange(8 * 8 * 8).reshape(8, 8, 8) % (len(NASTY) + 1)).astype(np.uint8)
    for title in NASTY[:3]:
        preview.write_preview(
            tmp_path / "p.png", labels.astype(float), labels, Volume(labels, np.eye(4), None, tmp_path), nasty_task(), title
        )
    assert (tmp_path / "p.png").stat().st_size > 1000
    assert drawn[0].get_suptitle() == "$\\badmacro$"
    (legend,) = drawn[0].legends
    texts = [text.get_text() for text in legend.get_texts()]
    names, volumes = [text.rpartition(": ")[0] for text in texts[:5]], {text.rpartition(": ")[2] for text in texts[:5]}
    assert volumes == {"0.1 ml"}
    assert names == [
        "$\\badmacro$ (1)",
        "_hidden (2)",
        "a\\x1b[31m\\nb (3)",
        "\\u5e74 \\ud800 (4)",
        "%s {0} <b>& (5)",
    ]
    assert len(texts[5]) == figures.MAX_TEXT and texts[5].endswith("…")


@pytest.mark.fault("3.1")
def test_pictures_of_a_run_draw_any_name_literally(tmp_path, drawn):
    dice = dict.fromkeys(NASTY, 0.5)
    rows = [{"kind": "step", "step": 1, "loss": 1.0, "lr": 0.1}]
    rows += [{"kind": "validation", "step": 1, "score": 0.5, "dice": dice}]
    plots.write_progress(tmp_path / "progress.png", rows, 2)
    texts = [text.get_text() for text in drawn[0].axes[1].get_legend().get_texts()]
    assert texts[:2] == ["$\\badmacro$", "_hidden"] and texts[-1] == "mean"
    labels = np.ones((8, 8, 8), np.uint8)
    case = SimpleNamespace(name="$\\badmacro$_", affine=np.eye(4), shape=labels.shape)
    score = SimpleNamespace(case=case, prediction=labels, dice=dice)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "full_grid", lambda case: (np.random.default_rng(0).random((8, 8, 8, 1)), labels))
        plots.write_comparison(tmp_path / "validation.png", [score], nasty_task())
    assert drawn[1].axes[0].get_title() == "$\\badmacro$_"


@pytest.mark.fault("3.1")
def test_a_legend_of_many_labels_is_shortened(tmp_path, drawn):
    outputs = tuple(Output(name=f"label {value}", value=value) for value in range(256))
    labels = (np.arange(8 * 8 * 8).reshape(8, 8, 8) % 256).astype(np.uint8)
    task = Task(kind="classes", outputs=outputs)
    preview.write_preview(
        tmp_path / "p.png", labels.astype(float), labels, Volume(labels, np.eye(4), None, tmp_path), task, "many"
    )
    assert drawn[0].legends[0].get_texts()[-1].get_text() == "and 226 more"


@pytest.mark.fault("3.1")
def test_a_picture_that_fails_does_not_stop_a_run(monkeypatch, tmp_path):
    messages, drawn = [], []

    def fail(*arguments):
        raise ValueError("no font\x1b")

    monkeypatch.setattr(plots, "write_progress", fail)
    monkeypatch.setattr(plots, "write_comparison", lambda path, scores, task: drawn.append((path.name, scores)))
    monkeypatch.setattr(pages, "write_case_page", lambda path, score, task, metric: drawn.append((path.name, score)))
    tracked = []
    log = SimpleNamespace(say=messages.append, rows=[], picture=lambda path, step: tracked.append((path.name, step)))
    progress, cases = SimpleNamespace(step=1), SimpleNamespace(task=None)
    run = SimpleNamespace(log=log, folder=tmp_path, total=1, cases=cases, progress=progress)
    scores, objective = SimpleNamespace(first=[], lowest=["low"], highest=["high"]), FromFunction(fail)
    loop._draw(run, scores, True, objective)
    assert messages == ["warning: progress.png was not drawn (no font\\x1b); the run continues"]
    assert drawn == [
        ("validation.png", []),
        ("worst.png", ["low"]),
        ("best.png", ["high"]),
        ("worst.html", "low"),
        ("best.html", "high"),
    ]
    assert tracked == [
        ("validation.png", 1),
        ("worst.png", 1),
        ("best.png", 1),
    ]  # trackers receive only the pictures that were drawn
    drawn.clear()
    objective.higher_is_better = False
    loop._draw(run, scores, True, objective)
    assert sorted(drawn) == [
        ("best.html", "low"),
        ("best.png", ["low"]),
        ("validation.png", []),
        ("worst.html", "high"),
        ("worst.png", ["high"]),
    ]


def write_run(run, **recipe):
    """Creates a run's folder with the inputs of its report, and returns the rows of its log."""
    description = {
        "recipe": {"kind": "phantom", **recipe},
        "network": {"dtype": "float32"},
        "task": Task.brats().to_dict(),
        "steps": 2,
        "convention": "brats",
        "cases": {"train": ["a"], "validation": ["b"]},
        "parts": [{"after_step": 0, "versions": {"jax": "1"}, "device": "cpu"}],
    }
    run.mkdir()
    (run / "run.json").write_text(json.dumps(description))
    dice = {"<b>$\\badmacro$": 0.5, "_x\x1b": None}
    return [{"kind": "validation", "step": 1, "score": 0.5, "dice": dice, "cases": {"=1\udcff<i>": dice}}]


@pytest.mark.fault("5.15")
def test_a_report_has_a_viewport_a_date_the_recipe_and_literal_names(tmp_path):
    rows = write_run(tmp_path / "run", kind="labels", name="msd")
    text = write_report(tmp_path / "run", rows).read_text("utf-8")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "<title>run: recipe msd, Swin UNETR</title>" in text
    assert f"Written on {time.strftime('%Y-')}" in text
    assert "&lt;b&gt;$\\badmacro$" in text and "_x\\x1b" in text and "=1\\udcff&lt;i&gt;" in text and "<td>none</td>" in text
    assert "synthetic" not in text
    assert "the scores are those of swinunetr predict --crop and swinunetr evaluate" in text


@pytest.mark.fault("5.10")
def test_the_report_of_the_demonstration_says_that_its_patients_are_synthetic(tmp_path):
    rows = write_run(tmp_path / "run")
    assert "The patients of this run are synthetic" in write_report(tmp_path / "run", rows).read_text("utf-8")


@pytest.mark.fault("3.1")
def test_a_preview_that_fails_does_not_stop_a_prediction(tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise ValueError("no font\x1b")

    monkeypatch.setattr(preview, "grey_levels", fail)
    labels = np.ones((8, 8, 8), np.uint8)
    preview.write_preview(tmp_path / "p.png", labels, labels, Volume(labels, np.eye(4), None, tmp_path), nasty_task(), "a\x1b")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().err == "warning: a\\x1b: the preview could not be drawn (no font\\x1b).\n"
