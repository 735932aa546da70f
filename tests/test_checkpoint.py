"""Checkpoint folders are read as they were written, are found in the folders of runs, and replace other paths only on request."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.checkpoint_folder import CONFIG, TASK, assert_same_arrays, file_names, refusal
from helpers.weight_states import random_params

from swinunetr_jax.errors import InputError
from swinunetr_jax.model.unetr import SwinUNETR
from swinunetr_jax.weights.checkpoint import DESCRIPTION, PARAMS, read_checkpoint, write_checkpoint
from swinunetr_jax.weights.load import load_checkpoint, open_checkpoint, save_checkpoint
from swinunetr_jax.weights.params import build, digest, digest_all, flatten, shapes

pytest_plugins = ["helpers.fixtures"]

# Reading what was written


def test_a_checkpoint_is_read_as_it_was_written(written_checkpoint):
    stored = read_checkpoint(written_checkpoint)
    assert stored.config == CONFIG and stored.task == TASK
    assert_same_arrays(stored.params, random_params(CONFIG))
    assert {"count", "mean", "var"} <= {name.rsplit(".")[-1] for name in stored.params}
    opened = open_checkpoint(written_checkpoint)
    assert opened.config == CONFIG and opened.task == TASK
    assert_same_arrays(opened.params, random_params(CONFIG))
    assert opened.digest == digest_all({name: digest(array) for name, array in random_params(CONFIG).items()})
    assert list(opened.params) == list(shapes(CONFIG)) and sorted(opened.report.read) == sorted(opened.params)
    assert not opened.report.initialized and not opened.report.adapted and not opened.report.ignored


def test_a_network_is_read_as_it_was_saved(tmp_path):
    config = CONFIG.replace(norm_name=("group", {"num_groups": 3}), window_size=(3, 2))
    model = SwinUNETR(config, rngs=nnx.Rngs(7))
    save_checkpoint(tmp_path / "a" / "b", model)  # the folder above is created
    loaded = load_checkpoint(tmp_path / "a" / "b")
    assert loaded.config == config
    assert_same_arrays(flatten(loaded), flatten(model))
    assert open_checkpoint(tmp_path / "a" / "b").task is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_parameters_of_16_bits_are_read_as_they_were_written(tmp_path, dtype):
    config = CONFIG.replace(param_dtype=dtype, use_v2=True)
    params = random_params(config)
    write_checkpoint(tmp_path / "a", config, params)
    opened = open_checkpoint(tmp_path / "a")
    assert opened.config == config and opened.params["out.kernel"].dtype == dtype
    assert opened.params["encoder1.norm1.mean"].dtype == np.float32
    assert_same_arrays(opened.params, params)
    assert build(config, opened.params).out.kernel.dtype == dtype
    wide = open_checkpoint(tmp_path / "a", param_dtype="float32").params["out.kernel"]
    assert np.array_equal(wide, params["out.kernel"].astype(np.float32))


def test_the_memory_layout_of_arrays_does_not_matter(tmp_path, written_checkpoint):
    write_checkpoint(tmp_path / "a", CONFIG, {n: jnp.asarray(a) for n, a in random_params(CONFIG).items()}, TASK)
    write_checkpoint(tmp_path / "b", CONFIG, {n: np.asarray(a, order="F") for n, a in random_params(CONFIG).items()}, TASK)
    for name in "ab":
        assert_same_arrays(read_checkpoint(tmp_path / name).params, random_params(CONFIG))
        descriptions = [json.loads((path / DESCRIPTION).read_text()) for path in (tmp_path / name, written_checkpoint)]
        assert descriptions[0]["digests"] == descriptions[1]["digests"]


def test_a_checkpoint_can_be_moved_and_linked(checkpoint, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    checkpoint.rename(tmp_path / "elsewhere" / "x")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "x")
    assert_same_arrays(read_checkpoint(tmp_path / "link").params, random_params(CONFIG))
    write_checkpoint(tmp_path / "link", CONFIG, random_params(CONFIG, 1), overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert_same_arrays(read_checkpoint(tmp_path / "elsewhere" / "x").params, random_params(CONFIG, 1))
    assert file_names(tmp_path / "elsewhere")[0] == "x" and len(list((tmp_path / "elsewhere").iterdir())) == 1


def test_fields_that_contradict_the_checkpoint_are_refused(written_checkpoint):
    message = refusal(written_checkpoint, window_size=7)
    assert "was created with `window_size` [3, 3], but [7, 7] was given: leave it out." in message
    assert open_checkpoint(written_checkpoint, window_size=3, dtype="bfloat16").config == CONFIG.replace(dtype="bfloat16")


# Folders of training runs


def test_opening_a_run_opens_its_best_network(checkpoint, tmp_path):
    (tmp_path / "run").mkdir()
    checkpoint.rename(tmp_path / "run" / "best")
    with pytest.raises(InputError, match="run is not a checkpoint"):
        read_checkpoint(tmp_path / "run")
    assert_same_arrays(open_checkpoint(tmp_path / "run").params, random_params(CONFIG))
    (tmp_path / "run" / "best" / PARAMS / "_METADATA").unlink()
    with pytest.raises(InputError, match="run/best is damaged"):
        open_checkpoint(tmp_path / "run")


def unfinished_run(run: Path, checkpoint: Path, *steps: int) -> Path:
    """Creates a run that has saved states with this checkpoint, but no validation."""
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"recipe": {}, "steps": 240}))
    for step in steps:
        shutil.copytree(checkpoint, run / "checkpoints" / f"{step:08d}")
    return run


@pytest.mark.fault("5.4")
def test_opening_a_run_without_validation_opens_its_newest_network_with_a_warning(written_checkpoint, tmp_path, capsys):
    run = unfinished_run(tmp_path / "run", written_checkpoint, 20, 40)
    write_checkpoint(run / "checkpoints" / "00000040", CONFIG, random_params(CONFIG, 1), TASK, overwrite=True)
    (run / "checkpoints" / ".00000060.tmp").mkdir()
    assert_same_arrays(open_checkpoint(run).params, random_params(CONFIG, 1))
    printed = capsys.readouterr().err
    assert f"warning: {run} is a training run without any validation so far" in printed
    assert "of step 40 of 240, is used" in printed and printed.count("\n") == 1
    shutil.copytree(written_checkpoint, run / "best")
    assert_same_arrays(open_checkpoint(run).params, random_params(CONFIG))
    assert not capsys.readouterr().err


@pytest.mark.fault("5.4")
def test_a_run_without_a_network_is_refused(written_checkpoint, tmp_path):
    run = unfinished_run(tmp_path / "run", written_checkpoint)
    assert "is a training run that has not saved a network yet: continue it with" in refusal(run)
    (run / "run.json").write_text("[]")
    assert "run.json" in refusal(run)
    (run / "run.json").unlink()
    assert "is not a checkpoint" in refusal(run)


# Paths that exist


def test_an_existing_path_is_not_replaced(checkpoint, tmp_path):
    before = file_names(checkpoint)
    with pytest.raises(
        InputError, match="exists already, expected a new name: choose another one, or replace it with `overwrite`"
    ):
        write_checkpoint(checkpoint, CONFIG, random_params(CONFIG, 1))
    assert file_names(checkpoint) == before
    assert_same_arrays(read_checkpoint(checkpoint).params, random_params(CONFIG))

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("notes")
    (tmp_path / "file").write_text("a file")
    for name in ("folder", "file"):  # overwrite applies only to checkpoints
        for overwrite in (False, True):
            with pytest.raises(InputError, match="exists already and is not a checkpoint"):
                write_checkpoint(tmp_path / name, CONFIG, random_params(CONFIG), overwrite=overwrite)
    assert (tmp_path / "folder" / "notes.txt").read_text() == "notes" and (tmp_path / "file").read_text() == "a file"


@pytest.mark.parametrize("name", ["loop", "loop/below"])
def test_a_link_to_itself_is_refused(tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match=f"{name} (exists already and is not a checkpoint|cannot be written)"):
        write_checkpoint(tmp_path / name, CONFIG, random_params(CONFIG))
    with pytest.raises(InputError, match=f"{name} does not exist"):
        open_checkpoint(tmp_path / name)


def test_overwrite_replaces_a_checkpoint_and_keeps_other_files(checkpoint, tmp_path):
    (checkpoint / "notes.txt").write_text("notes")
    (checkpoint / "params_backup").mkdir()
    for seed in (1, 2):
        write_checkpoint(
            checkpoint, CONFIG.replace(out_channels=3), random_params(CONFIG.replace(out_channels=3), seed), overwrite=True
        )
        stored = read_checkpoint(checkpoint)
        assert stored.config.out_channels == 3 and stored.task is None
        assert_same_arrays(stored.params, random_params(CONFIG.replace(out_channels=3), seed))
        names = sorted(path.name for path in checkpoint.iterdir())
        assert names[:2] == [DESCRIPTION, "notes.txt"] and names[3:] == ["params_backup"] and names[2].startswith("params-")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_damaged_checkpoint_can_be_overwritten(checkpoint):
    (checkpoint / DESCRIPTION).write_text("damaged")
    shutil.rmtree(checkpoint / PARAMS)
    write_checkpoint(checkpoint, CONFIG, random_params(CONFIG, 1), overwrite=True)
    assert_same_arrays(read_checkpoint(checkpoint).params, random_params(CONFIG, 1))
