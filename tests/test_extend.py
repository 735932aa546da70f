"""The recipe files of docs/extend, each run through `swinunetr train FILE`: other losses, augmentation, optimizers, networks, objectives.

The examples that train a Swin UNETR run with `small_network` instead; the long tests run them with Swin UNETR itself.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from helpers.runner import bytes_of
from helpers.small_network import forget, replace_swin_unetr

from swinunetr_jax import InputError, cli, open_checkpoint
from swinunetr_jax.training import Network, checkpoints, description, load_recipe, loop, restore
from swinunetr_jax.training import command as train_command
from swinunetr_jax.training.log import read_rows
from swinunetr_jax.weights.params import flatten, make_network

FOLDER = Path(__file__).parents[1] / "docs" / "extend"
# fmt: off
SMALL = (
    "--batch", "2", "--folds", "2", "--roi", "32", "32", "64", "--phantom.cases", "4", "--phantom.size", "48", "48", "32", "--steps", "4",
    "--validation.every", "2", "--validation.overlap", "0",
)
SMALLER = ("--roi", "32", "32", "32", "--validation.every", "4")
# fmt: on
WITH_SWIN_UNETR = ("loss", "augmentation", "device_augmentation", "optimizer", "deep_supervision")


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Draws no pictures and, except in the tests of Swin UNETR itself, replaces it by a small network."""
    monkeypatch.setattr(loop, "_draw", lambda *_: None)
    monkeypatch.setattr(train_command, "keep_programs", lambda *_: None)
    if request.node.originalname != "test_an_example_trains_swin_unetr":
        replace_swin_unetr(monkeypatch)
    yield
    monkeypatch.undo()
    forget()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("data")


def run_command(*arguments: str | Path) -> int:
    """Runs `swinunetr` with these arguments in this process, and returns its exit code."""
    with pytest.raises(SystemExit) as done:
        cli.main(list(map(str, arguments)))
    return done.value.code or 0


def train_example(name: str, data: Path, out: Path, *more: str) -> int:
    shared = ("--data", data / "phantom", "--cache", data / "cache", "--out", out)
    blocks = ("--network.depths", *"1111") if name in WITH_SWIN_UNETR else ()
    return run_command("train", FOLDER / f"{name}.py", *shared, *SMALL, *blocks, *more)


# .ci/run runs these among the long tests, which leaves time for others in the default suite.
LONG = ("augmentation", "device_augmentation", "loss", "optimizer")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.long) if n in LONG else n for n in WITH_SWIN_UNETR])
def test_an_example_trains_and_resumes_to_the_same_bytes(name, data, tmp_path):
    assert_resumes_to_the_same_bytes(name, data, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", WITH_SWIN_UNETR)
def test_an_example_trains_swin_unetr(name, data, tmp_path):
    assert_resumes_to_the_same_bytes(name, data, tmp_path)


def assert_resumes_to_the_same_bytes(name: str, data: Path, folder: Path) -> None:
    full_run, resumed_run = folder / "whole", folder / "half"
    assert train_example(name, data, full_run) == 0
    assert train_example(name, data, resumed_run) == 0
    for newest in ("00000004", "last"):  # as if the run had stopped after step 2
        path = resumed_run / "checkpoints" / newest if newest != "last" else resumed_run / "last"
        path.unlink() if path.is_symlink() else path.rename(path.with_name("set-aside"))
    assert run_command("train", "--resume", resumed_run) == 0
    assert bytes_of(resumed_run) == bytes_of(full_run)
    assert [row["loss"] for row in read_rows(resumed_run) if row["kind"] == "step"] == [
        row["loss"] for row in read_rows(full_run) if row["kind"] == "step"
    ]


def test_an_example_is_one_file_of_at_most_40_lines():
    files = sorted(FOLDER.glob("*.py"))
    assert [path.stem for path in files] == [
        "augmentation",
        "deep_supervision",
        "device_augmentation",
        "loss",
        "network",
        "optimizer",
    ]
    assert all(len(path.read_text().splitlines()) <= 40 for path in files)


def test_parameters_of_an_objective_are_trained_and_saved_separately_from_the_network(data, tmp_path):
    """The run has the trainer's own deep supervision: heads on decoder2, decoder3 and decoder4."""
    shared = (
        "--data",
        data / "phantom",
        "--cache",
        data / "cache",
        "--out",
        tmp_path / "run",
        *SMALL,
        "--network.depths",
        *"1111",
    )
    assert run_command("train", "phantom", *shared, "--deep-supervision", "--class-share", "0.5") == 0
    last = tmp_path / "run" / "last"
    own = {name: value for name, value in restore.read_arrays(last / checkpoints.STATE).items() if "objective." in name}
    assert sum(name.startswith("own.") for name in own) == 6 and any(name.startswith("opt.") for name in own)
    opened = open_checkpoint(last)
    assert opened.params.keys() == flatten(make_network(opened.config, nnx.Rngs(0))).keys()
    assert description.read_recipe(tmp_path / "run").deep_supervision
    steps = [row for row in read_rows(tmp_path / "run") if row["kind"] == "step"]
    assert all("full_resolution_loss" in row["metrics"] for row in steps)


def test_frozen_parameters_do_not_change_and_biases_have_no_decay(data, tmp_path):
    example = load_recipe(FOLDER / "optimizer.py")
    transformation, _ = example.optimizer(10)
    params = {"swin.patch_embed.proj.kernel": np.ones(3), "out.kernel": np.ones(3), "out.bias": np.ones(3)}
    zero = {name: np.zeros(3) for name in params}
    state = transformation.init(params)
    for _ in range(2):  # the first step of the warm-up has the rate 0
        updates, state = transformation.update(zero, state, params)
    moved = {name: bool(np.any(value)) for name, value in updates.items()}
    assert moved == {"swin.patch_embed.proj.kernel": False, "out.kernel": True, "out.bias": False}


@pytest.fixture(scope="module")
def unet_run(data, tmp_path_factory) -> Path:
    """Returns a run of the network example that a separate process with two workers trained in another folder."""
    run = tmp_path_factory.mktemp("unet") / "run"
    shared = ["--data", data / "phantom", "--cache", data / "cache", "--out", run, *SMALL, *SMALLER, "--workers", "2"]
    command = [sys.executable, "-m", "swinunetr_jax.cli", "train", FOLDER / "network.py", *shared]
    environment = os.environ | {"XLA_FLAGS": ""}  # gradients of convolutions that are not optimized run slowly
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=run.parent, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "recipe network, UNet" in (run / "report.html").read_text()
    return run


def test_another_network_is_trained_resumed_and_used_by_predict(unet_run, data, tmp_path, capsys):
    assert run_command("train", "--resume", unet_run, "--steps", "5", "--workers", "0") == 0
    case = data / "phantom" / "BraTS2021_00000"
    assert run_command("predict", "-i", case, "-o", tmp_path, "-m", unet_run, "--recipe", FOLDER / "network.py") == 0
    assert (tmp_path / "BraTS2021_00000.nii.gz").exists()
    capsys.readouterr()
    assert run_command("predict", "-i", case, "-o", tmp_path / "none", "-m", unet_run) == 2
    printed = capsys.readouterr().err
    assert "the network is UNet, which is not a Swin UNETR" in printed and "--recipe FILE" in printed and printed.count("\n") == 1


def test_a_recipe_that_changed_is_named_when_its_run_is_resumed(unet_run, tmp_path, capsys):
    moved = tmp_path / "mine.py"
    moved.write_text((FOLDER / "network.py").read_text() + "\n# changed\n")
    assert run_command("train", "--resume", unet_run, "--steps", "6", "--workers", "0", "--recipe", moved) == 0
    printed = capsys.readouterr().out
    assert f"{moved} has changed since the run started" in printed and str(unet_run / "recipe.py") in printed
    moved.unlink()
    assert run_command("train", "--resume", unet_run, "--steps", "7") == 2
    assert "does not exist any more: name the file with --recipe" in capsys.readouterr().err


def test_a_network_that_changed_is_refused_and_no_state_is_renamed(unet_run, tmp_path, capsys):
    saved = sorted(path.name for path in (unet_run / "checkpoints").iterdir())
    moved = tmp_path / "mine.py"
    moved.write_text((FOLDER / "network.py").read_text().replace("32", "24"))
    assert run_command("train", "--resume", unet_run, "--steps", "9", "--recipe", moved) == 2
    printed = capsys.readouterr().err
    assert (
        "holds the weights of another UNet than its factory creates now" in printed
        and "down.bias: got (32,), expected (24,)" in printed
    )
    assert sorted(path.name for path in (unet_run / "checkpoints").iterdir()) == saved


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("RECIPE = 3", "must define RECIPE, a swinunetr_jax.training.Recipe, but defines it as int"),
        ("", "must define RECIPE, a swinunetr_jax.training.Recipe, but does not"),
        ("x = 1\nraise ValueError('no')", "line 2 failed with ValueError: no"),
        ("RECIPE = (", "failed with SyntaxError"),
    ],
)
def test_a_file_without_a_recipe_is_refused_in_one_sentence(text, printed, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(InputError, match=printed) as refused:
        load_recipe(path)
    assert str(path) in str(refused.value)


def test_crops_that_swin_unetr_cannot_take_are_allowed_for_another_network():
    recipe = replace(load_recipe(FOLDER / "network.py"), roi=(32, 32, 32))
    recipe.check()
    with pytest.raises(InputError, match="one voxel at 1/32 resolution"):
        replace(recipe, network=Network(feature_size=12)).check()


def test_options_that_a_function_replaces_are_refused(data, tmp_path, capsys):
    assert train_example("network", data, tmp_path / "run", "--network.feature-size", "24") == 2
    assert "--network.feature-size has no effect here" in capsys.readouterr().err
    assert train_example("optimizer", data, tmp_path / "run", "--optim.lr", "1e-3") == 2
    assert "--optim.lr has no effect here, since the recipe gives a function for `optimizer`" in capsys.readouterr().err
    assert train_example("loss", data, tmp_path / "run", "--loss.kind", "dice") == 2  # the default value
    assert "--loss.kind has no effect here, since the recipe gives a function for `loss`" in capsys.readouterr().err
    assert train_example("deep_supervision", data, tmp_path / "run", "--deep-supervision") == 2
    assert "--deep-supervision has no effect here, since the recipe gives a function for `objective`" in capsys.readouterr().err
    assert train_example("network", data, tmp_path / "run", "--deep-supervision") == 2
    assert "`deep_supervision` is the trainer's objective for a Swin UNETR, but the recipe gives a function for `network`" in (
        capsys.readouterr().err
    )
    assert train_example("augmentation", data, tmp_path / "run", "--devices.pmap") == 2
    assert "with `devices.pmap` each device has only its own samples" in capsys.readouterr().err
