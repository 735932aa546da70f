"""A training from a network that was pre-trained without labels, and what such a network is refused for."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.weight_states import random_params

from swinunetr_jax import InputError, SwinUNETRConfig, Task, cli
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.training import Optim, Recipe, command, start
from swinunetr_jax.training.options import Options
from swinunetr_jax.training.pretrain.fine_tuning import fine_tuning_options
from swinunetr_jax.training.recipes.brats21 import RECIPE as BRATS21
from swinunetr_jax.training.recipes.msd import RECIPE as MSD
from swinunetr_jax.training.rerun import earlier_run
from swinunetr_jax.weights import fit
from swinunetr_jax.weights.load import open_checkpoint, read_task, save_params

CONFIG = SwinUNETRConfig(in_channels=1, out_channels=1, feature_size=12, depths=(1, 1, 1, 1), spatial_dims=2, window_size=3)
TASK = Task.images(("image",))
# The fields of a run.json that the options do not determine.
OTHER_FIELDS = {"cases": {}, "task": {}, "network": {}, "convention": "", "parts": [], "steps": 9}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished pre-training."""
    folder = tmp_path_factory.mktemp("pretraining") / "run"
    folder.mkdir()
    save_params(folder / "best", CONFIG, random_params(CONFIG), task=TASK)
    (folder / "run.json").write_text(json.dumps({"recipe": Options(kind="scans").to_dict()}))
    return folder


def fine_tuned(recipe, checkpoint, *given) -> Recipe:
    recipe = replace(recipe, init=replace(recipe.init, checkpoint=checkpoint))
    return fine_tuning_options(recipe, {"init.checkpoint", *given})


# The options


def test_the_defaults_of_fine_tuning(run, capsys):
    recipe = fine_tuned(MSD, run)
    assert (recipe.optim.lr, recipe.optim.warmup) == (MSD.optim.lr / 3, 0.1)
    assert recipe.init.adapt_channels and not recipe.init.encoder_only
    assert replace(recipe, optim=MSD.optim, init=MSD.init) == MSD
    assert capsys.readouterr().out == (
        f"{run} was pre-trained without labels, so `optim.lr` is 0.000333 instead of 0.001, `optim.warmup` is 0.1 instead of 0.05 and the "
        "numbers of channels and outputs are adapted; --optim.lr, --optim.warmup and --init.no-adapt-channels choose otherwise\n"
    )
    assert fine_tuned(BRATS21, run / "best").optim == replace(BRATS21.optim, lr=BRATS21.optim.lr / 3)  # a longer warm-up


def test_given_options_are_kept(run, capsys):
    names = ("optim.lr", "optim.warmup", "init.adapt_channels")
    assert fine_tuned(MSD, run, *names) == replace(MSD, init=replace(MSD.init, checkpoint=run))
    assert not capsys.readouterr().out
    assert fine_tuned(MSD, run, *names[:2]).init.adapt_channels
    assert capsys.readouterr().out.endswith(
        "so the numbers of channels and outputs are adapted; --init.no-adapt-channels chooses otherwise\n"
    )


@pytest.mark.parametrize(("warmup", "steps", "expected"), [(5, 100, 0.1), (50, 100, 50), (5, None, 5), (0.2, None, 0.2)])
def test_the_warm_up_is_at_least_a_tenth_of_the_steps(run, warmup, steps, expected):
    assert fine_tuned(replace(MSD, optim=Optim(warmup=warmup), steps=steps), run).optim.warmup == expected


def test_functions_of_a_recipe_are_left_alone(run):
    own_optimizer = replace(MSD, optimizer=lambda steps: None)
    assert fine_tuned(own_optimizer, run).optim == MSD.optim and fine_tuned(own_optimizer, run).init.adapt_channels
    assert not fine_tuned(replace(MSD, network=lambda *_, **__: None), run).init.adapt_channels


def test_only_the_encoder_of_swin3_is_taken(run, tmp_path, capsys):
    (tmp_path / "best").symlink_to(run / "best")
    (tmp_path / "run.json").write_text(json.dumps({"recipe": Options(kind="scans", task="swin3").to_dict()}))
    for checkpoint in (tmp_path, tmp_path / "best"):
        init = fine_tuned(MSD, checkpoint).init
        assert init.encoder_only and init.adapt_channels
        assert "only the encoder is taken, because the decoder was not trained; --optim.lr" in capsys.readouterr().out
    assert not fine_tuned(MSD, tmp_path, "init.encoder_only").init.encoder_only


def test_other_trainings_are_unchanged(run, tmp_path, capsys):
    save_params(tmp_path / "task.safetensors", CONFIG, random_params(CONFIG), task=Task.default(CONFIG))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "checkpoint.json").write_text("{")
    for checkpoint in (tmp_path / "task.safetensors", tmp_path / "missing", tmp_path / "damaged"):
        assert fine_tuned(MSD, checkpoint).optim == MSD.optim
    named_in_the_file = replace(MSD, init=replace(MSD.init, checkpoint=run))
    assert fine_tuning_options(named_in_the_file, {"optim.lr"}) == named_in_the_file
    again = replace(MSD, kind="scans")
    assert fine_tuned(again, run).optim == MSD.optim
    assert not capsys.readouterr().out


def test_the_command_stores_the_options_and_recognises_its_run(run, tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(command, "keep_programs", lambda *_: None)
    monkeypatch.setattr(command, "train_one", lambda recipe, resume: trained.append((recipe, resume)))
    words = ["msd", "--data", str(tmp_path), "--init.checkpoint", str(run), "--out", str(tmp_path / "run"), "--optim.warmup=0.02"]
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            command.main(words)
        assert not stop.value.code, capsys.readouterr().err
        (recipe, _) = trained[-1]
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "run.json").write_text(json.dumps({"recipe": recipe.absolute().to_dict(), **OTHER_FIELDS}))
    assert [resume for _, resume in trained] == [False, True] and trained[0][0] == trained[1][0]
    assert recipe.optim.lr == MSD.optim.lr / 3 and recipe.optim.warmup == 0.02 and recipe.init.adapt_channels
    assert earlier_run(recipe) == "unfinished"
    assert "--optim.lr and --init.no-adapt-channels choose otherwise" in capsys.readouterr().out


# The weights


@pytest.fixture
def quick_initialization(monkeypatch):
    """Replaces the random initialisation of a network, which compiles for seconds, by other random numbers."""
    monkeypatch.setattr(fit, "SwinUNETR", lambda config, rngs: config)
    monkeypatch.setattr(fit.flat, "flatten", lambda config: random_params(config, seed=1))


@pytest.mark.usefixtures("quick_initialization")
def test_two_lines_say_what_was_taken_and_what_was_initialised(run):
    checkpoint = open_checkpoint(run, in_channels=4, out_channels=3, adapt_channels=True)
    sizes = {name: array.size for name, array in checkpoint.params.items()}
    assert checkpoint.task is None
    taken, initialized = checkpoint.report.transfer("runs/pretrained", sizes).split("\n")
    assert taken == f"taken from runs/pretrained: {len(sizes) - 2} of {len(sizes)} tensors (1.4 M of 1.4 M parameters)"
    assert initialized == (
        "initialised randomly: out (3 outputs instead of 1); adapted: encoder1.conv1, encoder1.conv3, swin.patch_embed.proj "
        "(averaged over 1 input channels for 4)"
    )


@pytest.mark.usefixtures("quick_initialization")
def test_an_output_layer_for_images_is_initialised_even_if_it_fits(run):
    original = open_checkpoint(run)
    adapted = open_checkpoint(run, in_channels=1, out_channels=1, adapt_channels=True)
    assert original.task == TASK and adapted.task is None and adapted.config == original.config
    assert sorted(adapted.report.initialized) == ["out.bias", "out.kernel"] and not adapted.report.adapted
    assert not np.array_equal(adapted.params["out.kernel"], original.params["out.kernel"])
    assert "out (the one of the file returns images)" in adapted.report.transfer(run, dict.fromkeys(adapted.params, 1))
    kept = open_checkpoint(run, adapt_channels=True)  # nothing was asked for
    assert kept.task == TASK and not kept.report.initialized


def test_the_task_is_read_without_the_weights(run, tmp_path):
    save_params(tmp_path / "ours.safetensors", CONFIG, random_params(CONFIG), task=TASK)
    save_params(tmp_path / "theirs.pt", CONFIG, random_params(CONFIG))
    assert read_task(run) == read_task(run / "best") == read_task(tmp_path / "ours.safetensors") == TASK
    assert read_task(tmp_path / "theirs.pt") is None
    with pytest.raises(InputError, match="does not exist"):
        read_task(tmp_path / "missing")


@pytest.mark.parametrize(
    ("task", "channels", "is_refused"),
    [
        (TASK, ("CT",), False),
        (Task.images(("CT",), channels=("CT",)), ("MRI",), False),
        (Task.images(("T1", "T2"), channels=("T1", "T2")), ("T2", "T1"), True),
        (Task.images(("T1", "T2"), channels=("T1", "T2")), ("T1", "FLAIR"), False),
        (Task.classes(2, channels=("T1", "T2")), ("T1", "FLAIR"), True),
        (None, ("T1", "T2"), False),
    ],
)
def test_channels_that_a_network_was_pre_trained_on(task, channels, is_refused):
    cases = SimpleNamespace(task=Task.classes(2, channels=channels), in_channels=len(channels))
    if is_refused:
        with pytest.raises(InputError, match="give --channels T1 T2"):
            start._check_channels("checkpoint", task, cases)
    else:
        start._check_channels("checkpoint", task, cases)


# Other commands


def test_a_pre_trained_network_does_not_segment(run, tmp_path, capsys):
    with pytest.raises(InputError, match="cannot segment: train it with labels first"):
        Segmenter([], TASK)
    with pytest.raises(SystemExit) as stop:
        cli.main(["predict", "-i", str(tmp_path / "scans"), "-o", str(tmp_path / "out"), "-m", str(run)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and not list(tmp_path.iterdir())
    assert "`swinunetr train msd --data DATA --init.checkpoint RUN`" in error


def test_info_says_that_a_network_was_pre_trained(run, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["info", str(run)])
    printed = capsys.readouterr().out
    assert not stop.value.code and "  images               image\n  pre-trained without labels: it returns images" in printed
