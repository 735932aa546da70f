"""Experiment trackers: what they receive, what happens if they fail, and the real libraries without a network."""

import base64
import importlib.util
import json
import sys

import pytest
from helpers.trackers import Failing, Recorder

from swinunetr_jax import InputError
from swinunetr_jax.training import command, trackers
from swinunetr_jax.training.log import Log, read_rows

PNG = base64.b64decode(  # one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
DICE = {"TC": 0.25, "tumour core, ä": 0.5}


def write_run(folder, recorders, *, step: int = 0, names: tuple = ()) -> None:
    """Logs two steps and a validation to trackers, as the trainer does."""
    folder.mkdir(exist_ok=True)
    log = Log(folder, step=step, total=4, batch=1)
    log.start_trackers(trackers.make_trackers(names, recorders), {"optim.lr": 1e-3, "name": "a run"})
    for number in (step + 1, step + 2):
        log.step(number, {"loss": 1.0 / number, "grad_norm": 2.0, "lr": 1e-3, "wait": 0.0, "metrics": {"x": 0.5}})
    log.validation(step + 2, {"score": 0.375, "dice": DICE, "cases": {"a": DICE}, "took": 1.0}, "validated")
    picture = folder / "progress.png"
    picture.write_bytes(PNG)
    log.picture(picture, step + 2)
    log.close()


def test_a_tracker_receives_the_rows_of_the_log_and_is_continued_with_its_identifier(tmp_path):
    recorder = Recorder()
    write_run(tmp_path / "run", [recorder])
    kinds = [call[0] for call in recorder.calls]
    assert kinds == ["start", "log", "log", "log", "log_file", "finish"]
    assert recorder.calls[0][1] == {"optim.lr": 1e-3, "name": "a run"} and recorder.calls[0][3] is None
    rows = read_rows(tmp_path / "run")
    assert [call[1:] for call in recorder.calls[1:4]] == [(trackers.numbers(row), row["step"]) for row in rows]
    assert recorder.calls[3][1] == {
        "validation/score": 0.375,
        "validation/took": 1.0,
        "dice/TC": 0.25,
        "dice/tumour core, ä": 0.5,
    }
    assert recorder.calls[1][1].items() >= {"step/loss": 1.0, "step/lr": 1e-3, "metrics/x": 0.5}.items()
    assert json.loads((tmp_path / "run" / trackers.IDENTIFIERS).read_text()) == {"Recorder": "first"}
    second = Recorder()
    write_run(tmp_path / "run", [second], step=2)
    assert second.calls[0][3] == "first"


def test_a_tracker_that_fails_is_reported_in_one_sentence_and_the_log_is_complete(tmp_path, capsys):
    failing, other = Failing(), Recorder()
    write_run(tmp_path / "run", [failing, other])
    printed = capsys.readouterr().out
    assert printed.count("warning") == 1
    assert "the tracker Failing failed (no network) and receives nothing more; the run continues" in printed
    assert [call[0] for call in failing.calls] == ["start", "log", "log"] and len(other.calls) == 6
    assert len(read_rows(tmp_path / "run")) == 3


def test_a_damaged_file_of_identifiers_starts_new_tracker_runs(tmp_path):
    (tmp_path / trackers.IDENTIFIERS).write_text("[1")
    recorder = Recorder()
    write_run(tmp_path, [recorder])
    assert recorder.calls[0][3] is None


def test_a_missing_package_is_refused_before_training_and_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"--tracker wandb needs .* `pip install 'swinunetr-jax\[wandb\]'`"):
        command.parse(["msd", "--data", str(tmp_path), "--tracker", "wandb"])
    with pytest.raises(InputError, match=r"the package tensorboardX.* `pip install 'swinunetr-jax\[tensorboard\]'`"):
        trackers.check_trackers(["tensorboard"])


def test_the_option_may_be_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "is_installed", lambda _: True)
    recipe, _, _ = command.parse(["msd", "--data", str(tmp_path), "--tracker", "wandb", "--tracker", "mlflow"])
    assert recipe.tracker == ("wandb", "mlflow") and recipe.to_dict()["tracker"] == ["wandb", "mlflow"]


def test_a_folder_that_has_only_the_name_of_a_library_is_not_a_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not trackers.is_installed("wandb")


def needs(module: str):
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"{module} is not installed")


@pytest.mark.long
@needs("wandb")
def test_wandb_writes_an_offline_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (0, 2):
        write_run(tmp_path / "run", [], step=step, names=("wandb",))
    assert "warning" not in capsys.readouterr().out
    identifier = json.loads((tmp_path / "run" / trackers.IDENTIFIERS).read_text())["wandb"]
    written = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert written and all(path.name.endswith(f"-{identifier}") for path in written)


@pytest.mark.long
@needs("mlflow")
def test_mlflow_continues_its_run(tmp_path, monkeypatch, capsys):
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions need this
    for step in (0, 2):
        write_run(tmp_path / "run", [], step=step, names=("mlflow",))
    assert "warning" not in capsys.readouterr().out
    identifier, client = json.loads((tmp_path / "run" / trackers.IDENTIFIERS).read_text())["mlflow"], MlflowClient()
    run = client.get_run(identifier)
    assert run.info.status == "FINISHED" and run.data.params["optim.lr"] == "0.001"
    assert [metric.step for metric in client.get_metric_history(identifier, "step/loss")] == [1, 2, 3, 4]
    assert run.data.metrics["dice/tumour core_ ä"] == 0.5
    assert [file.path for file in client.list_artifacts(identifier)] == ["progress.png"]


@pytest.mark.long
@needs("tensorboardX")
def test_tensorboard_writes_files_of_events(tmp_path, capsys):
    write_run(tmp_path / "run", [], names=("tensorboard",))
    assert "warning" not in capsys.readouterr().out
    data = b"".join(path.read_bytes() for path in (tmp_path / "run" / "tensorboard").iterdir())
    assert b"step/loss" in data and b"dice/TC" in data and b"progress" in data and b"\x89PNG" in data


@pytest.mark.long
@needs("trackio")
def test_trackio_continues_its_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for step in (0, 2):
        write_run(tmp_path / "run", [], step=step, names=("trackio",))
    assert "warning" not in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / trackers.IDENTIFIERS).read_text())["trackio"].startswith("run-")
    assert any(path.is_file() for path in (tmp_path / "trackio").rglob("*.db"))
