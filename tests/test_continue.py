"""A command whose folder holds a run or a cross-validation continues it, extends it, reports that it is finished, or is refused.

The trainer's step is trivial here and the scores are invented, because only the code around them is tested.
"""

import csv
import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.refusals import refused
from helpers.training_runs import recipe, stop_after

from swinunetr_jax import InputError, files
from swinunetr_jax.data.phantom.dataset import write_phantom
from swinunetr_jax.files.atomic import temporary_name
from swinunetr_jax.training import (
    Optim,
    Recipe,
    Validation,
    checkpoints,
    command,
    description,
    fold_labels,
    folds,
    loop,
    objective,
    restore,
)
from swinunetr_jax.training.lock import locked
from swinunetr_jax.training.log import LOG, Log, read_rows
from swinunetr_jax.training.loop import Stopped, train
from swinunetr_jax.training.optim import learning_rate
from swinunetr_jax.training.rerun import earlier_run, is_finished
from swinunetr_jax.training.sources import source_of
from swinunetr_jax.training.step import Training
from swinunetr_jax.training.validation import CaseScore, Scores


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, cases=4, size=(48, 48, 32), seed=0)
    return folder


@pytest.fixture(autouse=True)
def trivial_steps(monkeypatch):
    """Replaces the training step by one that only increases the step number, and validation by one whose scores increase."""

    def compiled(self, layout=None):
        def step(state, batch, flags):
            rate = learning_rate(self.optim, self.steps)(state.step)
            numbers = {"loss": jnp.float32(1), "grad_norm": jnp.float32(1), "lr": jnp.float32(rate), "flag": jnp.asarray(False)}
            return dataclasses.replace(state, step=state.step + 1), numbers

        return step

    scored = []

    def validate(config, network, cases, task, *_, **__):
        scored.append(len(scored))
        return Scores(tuple(CaseScore(case, {"TC": 0.5, "WT": 0.25 + len(scored) / 100, "ET": 0.5}) for case in cases))

    monkeypatch.setattr(Training, "compile", compiled)
    monkeypatch.setattr(objective, "validate", validate)
    monkeypatch.setattr(fold_labels, "write_fold_labels", lambda *_: None)
    monkeypatch.setattr(loop, "_draw", lambda *_: None)
    monkeypatch.setattr(command, "keep_programs", lambda *_: None)


def exit_code(monkeypatch, wanted_recipe: Recipe, resume: bool = False) -> int:
    """Returns the exit code of `python -m train` with these options."""
    monkeypatch.setattr(command, "parse", lambda _: (wanted_recipe, resume, command.Launch()))
    with pytest.raises(SystemExit) as exit_info:
        command.main([])
    return exit_info.value.code


def rates(run: Path) -> list[float]:
    return [row["lr"] for row in read_rows(run) if row["kind"] == "step"]


@pytest.mark.fault("5.5")
@pytest.mark.fault("5.11")
def test_a_command_given_twice_continues_reports_refuses_and_extends(data, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    wanted_recipe = recipe(data, run)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 1)
        train(wanted_recipe)
    assert earlier_run(wanted_recipe) == "unfinished"
    assert exit_code(monkeypatch, wanted_recipe) == 0  # the same command continues it
    assert "holds an unfinished run of the same options: it continues" in capsys.readouterr().out
    assert is_finished(run) and len(rates(run)) == 4

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert exit_code(monkeypatch, replace(wanted_recipe, workers=3)) == 0  # this option changes no number
    printed = capsys.readouterr().out
    assert (
        "holds a finished run of the same options" in printed and str(run / "report.html") in printed and "--steps N" in printed
    )
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for other in (
        replace(wanted_recipe, optim=Optim(lr=1e-4)),
        replace(wanted_recipe, steps=8),
        replace(wanted_recipe, data=tmp_path),
    ):
        assert exit_code(monkeypatch, other) == 2
        error = capsys.readouterr().err
        assert "other options" in error and "--steps, --epochs" in error and error.count("\n") == 1
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}

    assert exit_code(monkeypatch, command.Resume(resume=run, steps=8).changed_recipe(), resume=True) == 0
    printed = capsys.readouterr().out
    assert (
        "the run ends after 8 steps instead of 4: from here on the learning rate follows the schedule of a run of 8 steps"
        in printed
    )
    schedules = [learning_rate(Optim(lr=1e-3), steps) for steps in (4, 8)]
    np.testing.assert_allclose(rates(run), [schedules[step >= 4](step) for step in range(8)], rtol=1e-6)
    run_json = json.loads((run / "run.json").read_text())
    assert run_json["steps"] == 8 and run_json["recipe"]["steps"] == 8
    assert [part["after_step"] for part in run_json["parts"]] == [0, 2, 4]
    assert run_json["parts"][-1]["changes"] == {"steps": [4, 8]} and run_json["parts"][-1]["steps"] == 8
    with refused("has finished 8 steps, which is more than 6"):
        train(recipe(data, run, steps=6), resume=True)


def test_epochs_extend_a_run_and_reset_its_patience(data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.setattr(Scores, "mean", property(lambda self: 0.5))
    train(recipe(data, run, steps=None, epochs=4, validation=Validation(every=1, overlap=0.0, patience=2)))
    assert len(rates(run)) == 3 and is_finished(run)  # two training cases; no better score at steps 2 and 3
    longer = command.Resume(resume=run, epochs=6).changed_recipe()
    assert (longer.steps, longer.epochs) == (None, 6)
    train(longer, resume=True)
    assert len(rates(run)) == 5
    assert json.loads((run / "run.json").read_text())["parts"][-1]["changes"] == {"epochs": [4, 6]}
    with refused("--steps and --epochs both state the length"):
        command.Resume(resume=run, epochs=6, steps=12).changed_recipe()


@pytest.mark.fault("1.16")
@pytest.mark.fault("2.6")
@pytest.mark.fault("5.11")
def test_a_cross_validation_lists_its_folds_and_writes_a_complete_table_or_none(data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "cv"
    wanted_recipe = recipe(data, out, fold="all", steps=2)
    original = folds.train

    def fail_in_fold_1(fold_recipe, *, resume, at_end):
        if fold_recipe.fold == 1:
            raise InputError("stopped here.")
        return original(fold_recipe, resume=resume, at_end=at_end)

    with monkeypatch.context() as patch:
        patch.setattr(folds, "train", fail_in_fold_1)
        with refused("stopped here"):
            folds.train_folds(wanted_recipe)
    assert json.loads((out / "run.json").read_text())["folds"] == [0, 1]
    assert earlier_run(wanted_recipe) == "unfinished"

    write_text = files.write_text

    def fail_on_table(path, text):
        if "out_of_fold" in str(path):
            raise OSError(28, "No space left on device", str(path))
        write_text(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_text", fail_on_table)
        assert exit_code(monkeypatch, wanted_recipe) == 2
    assert "out_of_fold.csv: No space left on device" in capsys.readouterr().err and not list(out.glob("out_of_fold*"))
    assert exit_code(monkeypatch, wanted_recipe) == 0 and earlier_run(wanted_recipe) == "finished"
    with open(out / "out_of_fold.csv") as file:
        assert [row["case"] for row in csv.DictReader(file)] == [*(f"BraTS2021_{n:05d}" for n in range(4)), "mean"]
    assert json.loads((out / "out_of_fold.json").read_text())["mean"].keys() == {"TC", "WT", "ET"}
    (out / "fold0" / LOG).write_text("")
    with refused("fold0", "holds no validation"):
        folds.write_table(out, [out / "fold0", out / "fold1"])


@pytest.mark.fault("2.6")
def test_the_table_of_all_folds_holds_no_formula(tmp_path):
    (tmp_path / "fold0").mkdir()
    row = {"kind": "validation", "step": 1, "score": 0.5, "dice": {"=A1": 0.5}, "cases": {"=HYPERLINK(1)": {"=A1": 0.5}}}
    (tmp_path / "fold0" / LOG).write_text(json.dumps(row) + "\n")
    folds.write_table(tmp_path, [tmp_path / "fold0"])
    assert (tmp_path / "out_of_fold.csv").read_text() == "case,fold,'=A1\n'=HYPERLINK(1),fold0,0.500000\nmean,,0.500000\n"


def test_another_task_is_refused_and_a_missing_cache_is_reported(data, tmp_path, capsys):
    run, cache = tmp_path / "run", tmp_path / "cache"
    wanted_recipe = recipe(data, run, cache=cache, steps=2)
    train(wanted_recipe)
    capsys.readouterr()
    cache.rename(tmp_path / "moved")
    longer = replace(wanted_recipe, steps=3)
    train(longer, resume=True)
    printed = capsys.readouterr().err
    assert (
        printed.count(f"the run's prepared cases are not in {cache} any more, so all cases are prepared again; --cache names")
        == 1
    )
    values = json.loads((run / "run.json").read_text())
    values["task"]["outputs"][0]["name"] = "core"
    (run / "run.json").write_text(json.dumps(values))
    with refused(
        "was trained for another task than the data set defines now (`outputs` was core (1, 4), WT", "and is TC (1, 4), WT"
    ):
        train(longer, resume=True)


def test_folders_that_cannot_be_used_are_refused_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "checkpoints").symlink_to("checkpoints")
    with refused("checkpoints is not a folder"):
        checkpoints.has_steps(tmp_path)
    for folder in ("run/checkpoints", "phantom"):
        (tmp_path / folder).mkdir(parents=True)

    def forbidden(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("os.listdir", forbidden)
    with refused("checkpoints cannot be read (Permission denied)"):
        checkpoints.has_steps(tmp_path / "run")
    with refused("phantom: cannot be read (Permission denied)"):
        source_of(recipe(tmp_path / "phantom", tmp_path)).dataset(recipe(tmp_path / "phantom", tmp_path), tmp_path)


# ---- descriptions that were edited or damaged


@pytest.fixture(scope="module")
def described(tmp_path_factory, data) -> Path:
    """Returns the folder of a run that holds only its run.json."""
    folder = tmp_path_factory.mktemp("described")
    values = {
        "recipe": recipe(data, folder).to_dict(),
        "cases": {"train": ["a"], "validation": ["b"]},
        "task": {},
        "network": {"in_channels": 4, "out_channels": 3},
        "steps": 4,
        "convention": "brats",
        "parts": [{"after_step": 0, "versions": {"jax": "0"}, "device": "cpu"}],
    }
    description.write_description(folder, values)
    return folder


def without(values: dict, *path: str) -> dict:
    return {k: without(v, *path[1:]) if k == path[0] and len(path) > 1 else v for k, v in values.items() if [k] != list(path)}


EDITS = {
    "no JSON": lambda v: "{",
    "empty file": lambda v: "",
    "a list": lambda v: "[1]",
    "deeply nested": lambda v: "[" * 100_000,
    "a number": lambda v: "3",
    "NaN": lambda v: json.dumps(v | {"steps": float("nan")}),
    "no recipe": lambda v: without(v, "recipe"),
    "recipe null": lambda v: v | {"recipe": None},
    "recipe a list": lambda v: v | {"recipe": []},
    "recipe without kind": lambda v: without(v, "recipe", "kind"),
    "an unknown option": lambda v: v | {"recipe": v["recipe"] | {"lr": 3}},
    "an unknown option of a group": lambda v: v | {"recipe": v["recipe"] | {"optim": {"rate": 3}}},
    "a group that is a number": lambda v: v | {"recipe": v["recipe"] | {"optim": 3}},
    "steps is a text": lambda v: v | {"recipe": v["recipe"] | {"steps": "many"}},
    "lr a text": lambda v: v | {"recipe": v["recipe"] | {"optim": {"lr": "high"}}},
    "roi of two": lambda v: v | {"recipe": v["recipe"] | {"roi": [32, 32]}},
    "data a number": lambda v: v | {"recipe": v["recipe"] | {"data": 3}},
    "fold a word": lambda v: v | {"recipe": v["recipe"] | {"fold": "every"}},
    "no cases": lambda v: without(v, "cases"),
    "cases a list": lambda v: v | {"cases": ["a"]},
    "no parts": lambda v: without(v, "parts"),
    "parts of wrong types": lambda v: v | {"parts": [{"after_step": "0"}]},
    "parts without versions": lambda v: v | {"parts": [{"after_step": 0, "device": "cpu"}]},
    "no steps": lambda v: without(v, "steps"),
    "network null": lambda v: v | {"network": None},
    "network of texts": lambda v: v | {"network": {"in_channels": "4", "out_channels": 3}},
    "network empty": lambda v: v | {"network": {}},
}


@pytest.mark.fault("3.3")
@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_run_json_is_refused_in_one_sentence_that_names_it(described, tmp_path, edit):
    values = EDITS[edit](json.loads((described / "run.json").read_text()))
    (tmp_path / "run.json").write_text(values if isinstance(values, str) else json.dumps(values))
    with refused(tmp_path / "run.json", "restore it, or start a new run with another --out"):
        description.read_recipe(tmp_path)
        description.stored_network(tmp_path, description.read_description(tmp_path))


def test_a_run_json_of_an_earlier_version_loads(described, tmp_path):
    values = json.loads((described / "run.json").read_text())
    values["recipe"]["augment"] = {"flips": [0, 1, 2], "normalize_after_crop": True}
    del values["recipe"]["devices"]
    (tmp_path / "run.json").write_text(json.dumps(values))
    loaded = description.read_recipe(tmp_path)
    assert loaded.augment.flips == (0, 1, 2) and loaded.devices.spatial_shards == 1 and loaded.out == tmp_path


@pytest.mark.fault("3.3")
def test_damaged_lines_of_a_log_are_ignored_with_a_warning(tmp_path, capsys):
    good = [
        {"kind": "step", "step": 1, "loss": 1.0, "grad_norm": 1.0, "lr": 0.1, "wait": 0.0, "seconds": 1.0},
        {"kind": "validation", "step": 1, "score": None, "dice": {"TC": 0.5}, "cases": {"a": {"TC": 0.5}}, "took": 1.0},
    ]
    bad = [
        "{}", "[]", "3", "null", "{", "\x00", "[" * 100_000, '{"kind": "step"}', '{"kind": "step", "step": "1"}',
        '{"kind": ["step"], "step": 1}', '{"kind": "other", "step": 1}', json.dumps(good[0] | {"loss": "low"}),
        json.dumps(good[1] | {"dice": []}), json.dumps(good[1] | {"cases": {"a": 3}}), json.dumps(good[1] | {"cases": {"a": {"WT": 1.0}}}),
        json.dumps(good[1] | {"dice": {}}), json.dumps(good[1] | {"cases": {"a": {"TC": "x"}}}), '{"step": 1, "kind": null}',
    ]  # fmt: skip
    lines = [json.dumps(good[0]), *bad, json.dumps(good[1])]
    (tmp_path / LOG).write_text("\n".join(lines) + '\n{"kind": "st')  # a kill interrupted the last line
    rows = read_rows(tmp_path)
    assert [row["kind"] for row in rows] == ["step", "validation"] and np.isnan(rows[1]["score"])
    printed = capsys.readouterr().err
    assert (
        printed.count("\n") == 1
        and str(tmp_path / LOG) in printed
        and "2, 3, 4" in printed
        and f"and {len(bad) - 8} more" in printed
    )
    log = Log(tmp_path, step=1, total=2, batch=1, validated=1)
    log.close()
    assert len((tmp_path / LOG).read_text().splitlines()) == 2  # without the damaged lines
    (tmp_path / LOG).unlink()
    (tmp_path / LOG).mkdir()
    with refused(tmp_path / LOG, "is not a file"):
        read_rows(tmp_path)


@pytest.mark.fault("3.3")
@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"progress": 3}', '{"progress": {"step": "x"}}', "[" * 100_000, '{"progress": {}}']
)
def test_a_damaged_description_of_a_saved_step_is_one_warning(tmp_path, text):
    folder = tmp_path / "checkpoints" / "00000004"
    folder.mkdir(parents=True)
    (folder / "training.json").write_text(text)
    (folder / "checkpoint.json").write_text("{}")
    assert checkpoints.newest_progress(tmp_path) is None
    with pytest.raises(InputError, match="holds no intact state to continue from") as error:
        restore.restore(tmp_path, None, None)
    assert "00000004 is" in str(error.value) and "damaged-00000004" in str(error.value)


def test_only_the_temporary_files_of_a_killed_run_are_removed(tmp_path):
    ours = [".last.tmp", ".best.0123abcd.tmp", temporary_name("run.json", "")]
    others = [".thesis.tmp", ".cache.tmp.old", "notes.tmp"]
    for name in (*ours, *others):
        (tmp_path / name).write_text("")
    (tmp_path / "checkpoints" / ".00000004.tmp").mkdir(parents=True)
    with locked(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {*others, "checkpoints", "lock"}
        assert not list((tmp_path / "checkpoints").iterdir())
