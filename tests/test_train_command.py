"""The command `swinunetr train`: its recipes, what it refuses, and where it keeps compiled programs."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.training_runs import recipe

from swinunetr_jax import InputError
from swinunetr_jax.training import (
    command,
    description,
)
from swinunetr_jax.training.lock import locked
from swinunetr_jax.training.loop import train
from swinunetr_jax.training.options import Options
from swinunetr_jax.training.result import usage_commands


@pytest.mark.fault("3.7")
@pytest.mark.parametrize("home", ["none", "not writable", "a folder"])
def test_compiled_programs_are_stored_if_there_is_a_home_directory(home, tmp_path, monkeypatch, capsys):
    """A container may have neither the variable HOME nor an entry for its user, or a home directory that does not exist."""

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    (tmp_path / "file").write_text("")
    homes = {"none": no_home, "not writable": lambda: tmp_path / "file", "a folder": lambda: tmp_path}
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homes[home])
    updates = {}
    cache = {"jax_compilation_cache_dir": None, "jax_enable_compilation_cache": True}
    monkeypatch.setattr(
        command.jax,
        "config",
        SimpleNamespace(update=updates.__setitem__, **cache),
    )
    command.keep_programs()
    printed = capsys.readouterr().out
    if home == "a folder":
        assert updates == {"jax_compilation_cache_dir": str(tmp_path / ".cache" / "swinunetr_jax")} and not printed
    else:
        assert not updates and "compiled programs are not kept for the next run" in printed and printed.count("\n") == 1


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    (tmp_path / "checkpoints" / "00000002").mkdir(parents=True)
    with pytest.raises(InputError, match=r"already holds a run: continue it with `--resume"):
        train(recipe(tmp_path / "data", tmp_path))


def test_the_printed_commands_can_be_given_to_a_shell_as_they_are():
    """Paths with spaces are quoted, and the options without which the commands would fail are part of them."""
    folder = Path("/my data")
    plain = replace(recipe(folder / "list.json", folder / "run"), base=folder)
    segment, score = usage_commands(plain, folder / "run", " --crop")
    words = ["-i", "/my data/list.json", "--base", "/my data", "-o", "/my data/run/predictions", "-m", "/my data/run", "--crop"]
    assert shlex.split(segment) == ["swinunetr", "predict", *words]
    assert shlex.split(score) == ["swinunetr", "evaluate", "/my data/run/predictions", "/my data/list.json", "--base", "/my data"]
    custom = replace(plain, base=None, network=lambda *_, **__: None, file=SimpleNamespace(path=folder / "own.py"))
    segment, score = usage_commands(custom, folder / "run", "")
    assert "--base" not in segment + score and shlex.split(segment)[-2:] == ["--recipe", "/my data/own.py"]


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    with locked(tmp_path), pytest.raises(InputError, match="in use by another"), locked(tmp_path):
        pass


@pytest.mark.parametrize("name", ["phantom", "brats21", "msd", "btcv", "strong"])
def test_every_recipe_is_valid_and_the_same_after_json(name):
    shipped, resume, _ = command.parse([name, "--data", "somewhere", "--optim.lr", "8e-4", "--seed", "3"])
    assert not resume and shipped.optim.lr == 8e-4 and shipped.seed == 3
    assert Options.from_dict(json.loads(json.dumps(shipped.to_dict()))) == shipped.options()
    config = shipped.network.config(4, 3)
    if shipped.roi:
        config.check_spatial(shipped.roi)
    assert "train" in __import__(f"swinunetr_jax.training.recipes.{name}", fromlist=["RECIPE"]).__doc__


def test_a_recipe_is_read_from_the_folder_of_its_run(tmp_path):
    saved = recipe(tmp_path / "data", tmp_path / "elsewhere")
    (tmp_path / description.DESCRIPTION).write_text(json.dumps({"recipe": saved.to_dict()}))
    assert description.read_recipe(tmp_path) == replace(saved, out=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "there is no recipe nothing: use one of brats21, btcv, msd, phantom, pretrain, pretrain_swin3, strong"),
        (["--resume", "nowhere"], "nowhere holds no run"),
        (["phantom", "--batch", "3", "--optim.accumulate", "2"], "must divide `batch` 3"),
        (["phantom", "--roi", "30", "32", "32"], "multiple of 32"),
        pytest.param(
            ["msd"], "the recipe msd needs a data set: name its folder or list with --data", marks=pytest.mark.fault("5.11")
        ),
        pytest.param(["--resume", "hf://b/run"], "is an address of a remote store", marks=pytest.mark.fault("5.16")),
        pytest.param(["msd", "--data", "hf://b/x"], "is an address of a remote store", marks=pytest.mark.fault("5.16")),
        pytest.param(["--out", "hf://b/x"], "is an address of a remote store", marks=pytest.mark.fault("5.16")),
        pytest.param(["--cache", "hf://b/x"], "is an address of a remote store", marks=pytest.mark.fault("5.16")),
        pytest.param(["--init.checkpoint", "https://b/x"], "is an address of a remote store", marks=pytest.mark.fault("5.16")),
        pytest.param(["--resume", "."], "holds no run, because it has no run.json", marks=pytest.mark.fault("5.16")),
        pytest.param(
            ["--resume", ".", "--optim.lr", "1"], "--optim.lr cannot change when a run is resumed", marks=pytest.mark.fault("5.5")
        ),
        (["msd", "--resume", "."], "leave out msd"),
        (["--optim.clip", "inf"], "`optim.clip` must be a finite number"),
        (["nowhere.py"], "nowhere.py cannot be read (No such file or directory): give the path of a Python file"),
    ],
)
def test_a_mistake_is_reported_in_one_sentence_and_writes_no_files(arguments, message, tmp_path, monkeypatch, capsys):
    check_mistake(arguments, message, tmp_path, monkeypatch, capsys)
    assert not list(tmp_path.iterdir())


def test_a_missing_data_set_is_reported_in_one_sentence(tmp_path, monkeypatch, capsys):
    """The mistake is found after the run was locked, so the folder of the run exists."""
    check_mistake(["msd", "--data", "nowhere"], "nowhere: does not exist", tmp_path, monkeypatch, capsys)


def test_a_file_in_place_of_the_folder_of_the_run_is_reported_in_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "run").write_text("")
    check_mistake(
        ["--out", "run"], "run is a file, expected a folder for the run: choose another --out", tmp_path, monkeypatch, capsys
    )


def check_mistake(arguments, message, folder, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(command, "keep_programs", lambda *_: None)
    with pytest.raises(SystemExit) as exited:
        command.main(arguments)
    error = capsys.readouterr().err
    assert exited.value.code == 2 and error.startswith("error: ") and message in error and error.count("\n") == 1
