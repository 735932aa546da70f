"""Runs of the trainer on a small phantom: their results, how they stop and continue, what they refuse, and how their networks are used."""

import csv
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.runner import bytes_of, losses
from helpers.small_network import forget, replace_swin_unetr
from helpers.trackers import Failing, Recorder
from helpers.training_runs import STEPS, recipe, stop_after

from swinunetr_jax import InputError, cli, open_checkpoint
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.losses import Loss
from swinunetr_jax.postprocess import Step, read_postprocess, write_postprocess
from swinunetr_jax.training import (
    Init,
    Optim,
    Validation,
    checkpoints,
    description,
    loop,
    restore,
    step,
)
from swinunetr_jax.training.folds import train_folds
from swinunetr_jax.training.log import best_validation, read_rows
from swinunetr_jax.training.loop import Stopped, train
from swinunetr_jax.training.objective import Supervised
from swinunetr_jax.training.times import times_of
from swinunetr_jax.training.trackers import numbers
from swinunetr_jax.training.validation import Scores
from swinunetr_jax.weights.arrays import write_arrays
from swinunetr_jax.weights.params import flatten

DRAW = loop._draw  # the tests replace it
# Only the run `finished` has trackers and a trace, so that comparing its bytes with those of other runs also shows that neither changes
# anything.
TRACKERS = (Recorder(), Failing())


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Replaces Swin UNETR by a small network, except in the tests of `swin_unetr_run`, and draws no pictures."""
    if "swin_unetr_run" not in request.fixturenames:
        replace_swin_unetr(monkeypatch)
    monkeypatch.setattr(loop, "_draw", lambda *_: None)  # only the finished runs have pictures
    yield
    monkeypatch.undo()
    forget()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("phantom")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """Returns the folder of a finished run of the small network, with pictures and a trace, whose trackers are `TRACKERS`."""
    with pytest.MonkeyPatch.context() as patch:
        replace_swin_unetr(patch)
        out = tmp_path_factory.mktemp("runs") / "finished"
        train(recipe(data, out, trackers=TRACKERS, profile=(2, 1)))
    forget()
    return out


@pytest.fixture(scope="module")
def swin_unetr_run(data, tmp_path_factory) -> Path:
    """Returns the folder of a finished run of Swin UNETR, with pictures, whose loop makes no implicit transfer to or from the device."""
    forget()
    out = tmp_path_factory.mktemp("runs") / "swin_unetr"
    advance = loop._advance

    def guarded(*arguments) -> None:
        with jax.transfer_guard("disallow"):
            with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed"):
                jnp.zeros(2) + np.ones(2, np.float32)  # the guard works
            advance(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_advance", guarded)
        train(recipe(data, out))
    return out


def test_a_run_makes_no_implicit_transfer(swin_unetr_run):
    assert validations_of(swin_unetr_run)  # steps and validations ran under the guard of the fixture


def validations_of(run: Path) -> list[dict]:
    return [row for row in read_rows(run) if row["kind"] == "validation"]


def test_a_run_writes_its_log_pictures_report_and_networks(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"run.json", "log.jsonl", "progress.png", "validation.png", "report.html", "best", "last", "checkpoints"} <= names
    rows = read_rows(finished)
    assert [row["step"] for row in rows if row["kind"] == "step"] == [1, 2, 3, 4]
    validations = [row for row in rows if row["kind"] == "validation"]
    assert [row["step"] for row in validations] == [2, 4] and set(validations[0]["dice"]) == {"TC", "WT", "ET"}
    for name in ("progress.png", "validation.png", "best.png", "worst.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    report = (finished / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 3 and 'src="http' not in report
    for name in ("best", "worst"):
        assert f'<a href="{name}.html">' in report
        page = (finished / f"{name}.html").read_text()
        assert all(
            f'"name": "{shown}"' in page for shown in ("FLAIR", "T1ce", "T1", "T2", "prediction", "reference", "difference")
        )
    assert all(case in report for case in validations[0]["cases"])
    content = json.loads((finished / "run.json").read_text())
    assert sorted(content["cases"]["train"] + content["cases"]["validation"]) == [f"BraTS2021_{n:05d}" for n in range(4)]
    assert (finished / "last").resolve().name == "00000004"


def test_the_trace_of_a_run_holds_the_steps_of_the_option(finished):
    (file,) = (finished / "profile").rglob("*.xplane.pb")
    lines = [line for plane in jax.profiler.ProfileData.from_file(str(file)).planes for line in plane.lines]
    events = [event for line in lines for event in line.events]
    assert [dict(event.stats)["step_num"] for event in events if event.name == "train"] == [3]
    assert sum(event.name.startswith("PjitFunction(") for event in events) > 0  # the program of the step


def test_trackers_receive_what_the_log_of_the_run_has(finished):
    recorder, failing = TRACKERS
    (_, config, folder, identifier), *calls, last = recorder.calls
    assert config["optim.lr"] == 1e-3 and folder == finished and identifier is None and last == ("finish",)
    rows = [(numbers(row), row["step"]) for row in read_rows(finished)]
    assert [call[1:] for call in calls if call[0] == "log"] == rows
    assert {("log_file", "progress.png", STEPS), ("log_file", "validation.png", STEPS)} <= {
        c for c in calls if c[0] == "log_file"
    }
    assert [call[0] for call in failing.calls] == ["start", "log", "log", "log"]  # times at the start, and two steps


def test_a_run_is_opened_as_its_best_network_and_its_folder_last_as_the_newest(finished):
    best, last = open_checkpoint(finished), open_checkpoint(finished / "last")
    assert best.task == last.task and best.task.roi == (32, 32, 64) and best.task.channels[0] == "FLAIR"
    assert best.task.scans == last.task.scans and best.task.scans.orientations == ("LPS",)  # for warnings on other scans
    state = restore.read_arrays(finished / "last" / checkpoints.STATE)
    name = "out.kernel"
    assert not np.array_equal(state[f"params.{name}"], last.params[name])  # the average is the network
    assert flatten(best.model()).keys() == best.params.keys()


class ErrorObjective(Supervised):
    """The objective of a run whose validation measures 1 - Dice."""

    metric = "error"
    higher_is_better = False

    def validate(self, *arguments, **options):
        scores = super().validate(*arguments, **options)
        errors = [replace(case, dice={name: 1 - dice for name, dice in case.dice.items()}) for case in scores.cases]
        return replace(scores, cases=tuple(errors))


def test_the_best_validation_has_the_lowest_score_if_lower_is_better(data, tmp_path, monkeypatch):
    def objective(task, config, rngs):
        return ErrorObjective(Loss(), task)

    run, drawn = tmp_path / "run", {}
    monkeypatch.setattr(loop, "_draw", DRAW)
    monkeypatch.setattr(loop.plots, "write_comparison", lambda path, scores, task: drawn.update({path.name: scores[0].mean}))
    train(recipe(data, run, objective=objective, validation=Validation(every=1, overlap=0.0)))
    assert drawn["best.png"] < drawn["worst.png"]
    validations = validations_of(run)
    scores = [row["score"] for row in validations]
    best = best_validation(validations)
    assert best["score"] == min(scores) != max(scores) and best["metric"] == "error"
    report = (run / "report.html").read_text()
    assert f"Best validation error <b>{min(scores):.4f}</b> at step {best['step']}" in report
    assert (
        "The score is error, as the objective of the recipe computes it." in report and "Dice" not in report.split("<details>")[0]
    )
    assert ", error " in (run / "worst.html").read_text()
    for row in validations:  # as in the log of an earlier version
        row.pop("best", None)
    assert best_validation(validations)["score"] == max(scores)


def test_predict_and_evaluate_need_no_options(finished, data, tmp_path, capsys):
    with pytest.raises(SystemExit) as exited:
        cli.main(["predict", "-i", str(data / "BraTS2021_00000"), "-o", str(tmp_path), "-m", str(finished)])
    assert exited.value.code == 0
    with pytest.raises(SystemExit) as exited:
        reference = data / "BraTS2021_00000" / "BraTS2021_00000_seg.nii.gz"
        cli.main(["evaluate", str(tmp_path / "BraTS2021_00000.nii.gz"), str(reference)])
    assert exited.value.code == 0
    assert "TC" in capsys.readouterr().out


@pytest.mark.long
def test_swin_unetr_is_trained_and_a_stopped_run_continues_to_the_same_bytes(swin_unetr_run, data, tmp_path, monkeypatch):
    assert {"progress.png", "validation.png", "report.html", "best", "last"} <= {path.name for path in swin_unetr_run.iterdir()}
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="SIGTERM"):
        stop_after(patch, 1)
        train(recipe(data, tmp_path / "run"))
    train(recipe(data, tmp_path / "run"), resume=True)
    assert bytes_of(tmp_path / "run") == bytes_of(swin_unetr_run)


@pytest.mark.parametrize(("signalled", "saved"), [(1, 2), (2, 2), (3, 4)], ids=["in a step", "before validation", "at the end"])
def test_a_stopped_run_continues_to_the_same_bytes(signalled, saved, finished, data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="SIGTERM"):
        stop_after(patch, signalled)
        train(recipe(data, tmp_path / "run"))
    assert (tmp_path / "run" / "last").resolve().name == f"{saved:08d}"
    train(recipe(data, tmp_path / "run"), resume=True)
    assert bytes_of(tmp_path / "run") == bytes_of(finished)
    theirs, ours = read_rows(finished), read_rows(tmp_path / "run")
    assert [(row["kind"], row["step"], row.get("loss"), row.get("score")) for row in ours if row["kind"] != "time"] == [
        (row["kind"], row["step"], row.get("loss"), row.get("score")) for row in theirs if row["kind"] != "time"
    ]
    times = times_of(ours)
    assert times.restarts == 1 and times.spent["steps"] > 0 and times.lost > 0 and 0 < times.goodput < 1


def test_a_validation_that_a_signal_interrupts_is_repeated(finished, data, tmp_path, monkeypatch):
    original, run = Segmenter.run, tmp_path / "run"

    def interrupted(self, array, *, progress, **options):
        signal.raise_signal(signal.SIGINT)
        return original(self, array, progress=progress, **options)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="SIGINT"):
        patch.setattr(Segmenter, "run", interrupted)
        train(recipe(data, run))
    assert (run / "last").resolve().name == "00000002" and not (run / "best").exists()
    train(recipe(data, run), resume=True)
    assert bytes_of(run) == bytes_of(finished)
    assert [row["score"] for row in validations_of(run)] == [row["score"] for row in validations_of(finished)]


def test_a_state_that_cannot_be_written_is_an_error_and_the_run_resumes_from_the_one_before(
    finished, data, tmp_path, monkeypatch
):
    run, calls = tmp_path / "run", []

    def fail_once(folder, arrays):
        calls.append(folder)
        if len(calls) == 2:
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device")  # the text of Orbax
        write_arrays(folder, arrays)

    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"00000004 cannot be written .*No space left"):
        patch.setattr(checkpoints, "write_arrays", fail_once)
        train(recipe(data, run))
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["00000002"]
    train(recipe(data, run), resume=True)
    assert bytes_of(run) == bytes_of(finished)


def test_a_run_may_start_from_any_checkpoint_and_resume_without_it(finished, data, tmp_path, monkeypatch):
    source, run = tmp_path / "start", tmp_path / "run"
    shutil.copytree(finished / "best", source)
    started = recipe(data, run, init=Init(checkpoint=source))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 1)
        train(started)
    assert losses(run)[0] < losses(finished)[0]  # because its weights were trained before
    shutil.rmtree(source)
    resumed = description.read_recipe(run)
    assert resumed.init.checkpoint == source
    with pytest.raises(InputError, match=r"lr.*0\.001.*choose another --out"):
        train(replace(started, optim=Optim(lr=1e-4, ema=0.9), init=resumed.init), resume=True)
    train(resumed, resume=True)
    assert (run / "last").resolve().name == "00000004"
    with pytest.raises(InputError, match="takes FLAIR, T1ce, T1, T2, but the data have T1"):
        other = recipe(data, tmp_path / "other", channels=("T1", "T1ce", "T2", "FLAIR"), init=Init(checkpoint=finished))
        train(other)
    with pytest.raises(InputError, match="which holds one network: leave out `key`"):
        train(recipe(data, tmp_path / "other", init=Init(checkpoint=finished / "best", key="model_ema")))


def test_patience_ends_a_run_that_does_not_improve(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Scores, "mean", property(lambda self: 0.5))
    assert train(recipe(data, tmp_path / "run", validation=Validation(every=1, overlap=0.0, patience=1))) == 0.5
    assert [row["step"] for row in validations_of(tmp_path / "run")] == [1, 2]
    assert "no better score in 1 validation: stopped after step 2 of 4" in capsys.readouterr().out


def test_a_score_of_nan_is_never_the_best(data, tmp_path, monkeypatch, capsys):
    scores = iter([float("nan"), 0.5, float("nan"), 0.4])
    monkeypatch.setattr(Scores, "mean", property(lambda self: next(scores)))
    assert train(recipe(data, tmp_path / "run", validation=Validation(every=1, overlap=0.0))) == 0.5
    printed = capsys.readouterr().out
    assert "Dice nan" in printed and "no best so far" in printed and "best 0.5000 at step 2" in printed
    assert read_rows(tmp_path / "run")[-1]["step"] == 4


def test_a_damaged_state_is_renamed_and_the_run_resumes_from_the_one_before(finished, data, tmp_path, capsys):
    run = tmp_path / "run"
    train(recipe(data, run))
    damaged_file = next(
        path for path in (run / "last" / checkpoints.STATE).rglob("*") if path.is_file() and path.stat().st_size > 999
    )
    content = bytearray(damaged_file.read_bytes())
    content[len(content) // 2] ^= 1
    damaged_file.write_bytes(bytes(content))
    train(recipe(data, run), resume=True)
    printed = capsys.readouterr().out
    assert "damaged" in printed and "damaged-00000004" in printed and "continuing after step 2" in printed
    assert bytes_of(run) == bytes_of(finished)


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_cases(data, tmp_path, monkeypatch):
    original, steps = step.Training.compile, []

    def with_a_broken_second_step(self, strategy):
        run = original(self, strategy)

        def run_step(state, *batch):
            steps.append(len(steps) + 1)
            broken = replace(state, params={name: value * np.nan for name, value in state.params.items()})
            return run(broken if steps[-1] == 2 else state, *batch)

        return run_step

    monkeypatch.setattr(step.Training, "compile", with_a_broken_second_step)
    with pytest.raises(InputError, match=r"step 2: the loss is .*BraTS2021_0000\d.*--optim.clip"):
        train(recipe(data, tmp_path / "run", validation=Validation(every=4), save_every=1))
    saved = restore.read_checkpoint(tmp_path / "run" / "last")  # it refuses weights that are not finite
    assert all(np.isfinite(value).all() for value in saved.params.values())


def test_all_folds_give_a_table_and_an_ensemble(data, tmp_path, capsys):
    out = tmp_path / "cv"
    train_folds(recipe(data, out, fold="all", validation=Validation(every=STEPS, overlap=0.0)))
    with open(out / "out_of_fold.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [*(f"BraTS2021_{n:05d}" for n in range(4)), "mean"]
    assert {row["fold"] for row in rows[:-1]} == {"fold0", "fold1"}
    np.testing.assert_allclose(float(rows[-1]["TC"]), np.mean([float(row["TC"]) for row in rows[:-1]]), atol=1e-6)
    printed, chosen = capsys.readouterr().out, read_postprocess(out / "postprocess.json")
    assert chosen.cases == 4 and chosen.before == json.loads((out / "out_of_fold.json").read_text())["mean"]
    assert all(f"post-processing: {decision}" in printed for decision in chosen.decisions)
    assert "keep the largest component of the whole foreground: mean Dice of 4 out-of-fold cases TC" in printed
    assert "out of fold, 4 cases, without post-processing: TC" in printed
    steps = (Step(operation="largest_component"), Step(operation="smallest_volume", output="ET", voxels=1000))
    write_postprocess(out / "postprocess.json", replace(chosen, steps=steps))
    with pytest.raises(SystemExit) as exited:
        cli.main(["predict", "-i", str(data / "BraTS2021_00000"), "-o", str(tmp_path / "p"), "-m", str(out)])
    assert exited.value.code == 0
    settings = json.loads((tmp_path / "p" / "predict.json").read_text())["settings"]
    assert len(settings["weights"]) == 2
    assert [step["operation"] for step in settings["postprocess"]] == ["largest_component", "smallest_volume"]
    assert (
        "post-processing of the label maps: keep the largest component of the whole foreground, then " in capsys.readouterr().out
    )
