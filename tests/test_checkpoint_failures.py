"""A save that fails or is interrupted at any moment leaves the previous checkpoint, or no file if there was none."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers.checkpoint_folder import CONFIG, assert_same_arrays, file_names
from helpers.weight_states import random_params

from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.checkpoint import DESCRIPTION, PARAMS, read_checkpoint, write_checkpoint
from swinunetr_jax.weights.load import save_params

pytest_plugins = ["helpers.fixtures"]


@pytest.fixture(params=["nothing", "checkpoint"])
def target(request, tmp_path, written_checkpoint):
    """Yields a path that does not exist or a checkpoint to be overwritten, and asserts afterwards that it has not changed."""
    path = tmp_path / "out" / "checkpoint"
    path.parent.mkdir()
    if request.param == "checkpoint":
        shutil.copytree(written_checkpoint, path)
    before = file_names(tmp_path)
    yield path
    assert file_names(tmp_path) == before
    if request.param == "checkpoint":
        assert_same_arrays(read_checkpoint(path).params, random_params(CONFIG))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (
            ValueError("RESOURCE_EXHAUSTED: Error writing\n  lots\n of lines\n" + 80 * "text " + "end"),
            "ValueError RESOURCE_EXHAUSTED:",
        ),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_a_failed_save_leaves_the_previous_state(target, monkeypatch, error, reason):
    def save(self, path, tree):
        Path(path).mkdir(parents=True)
        (Path(path) / "half").write_text("half")
        raise error

    monkeypatch.setattr(ocp.Checkpointer, "save", save)
    with pytest.raises(InputError) as caught:
        save_params(target, CONFIG, random_params(CONFIG, 1), overwrite=True)
    message = str(caught.value)
    assert message.startswith(f"{target} cannot be written ({reason}") and "\n" not in message and len(message) < 450
    assert message.endswith("): check the folder and its free space.")


@pytest.mark.parametrize("step", ["rename", "replace", "fsync"])
def test_a_failure_of_the_file_system_leaves_the_previous_state(target, monkeypatch, step):
    original = getattr(os, step)

    def fail(first, *args, **options):
        if step == "fsync" or str(args[0]).endswith((target.name, DESCRIPTION)) or PARAMS in Path(args[0]).name:
            raise OSError(errno.EIO, "Input/output error")
        return original(first, *args, **options)

    monkeypatch.setattr(os, step, fail)
    if step == "replace" and not target.exists():
        return  # a new checkpoint replaces no file
    with pytest.raises(InputError, match=r"cannot be written \(Input/output error\)"):
        write_checkpoint(target, CONFIG, random_params(CONFIG, 1), overwrite=True)


def test_an_interrupted_save_leaves_the_previous_state(target, monkeypatch):
    def save(self, path, tree):
        Path(path).mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(ocp.Checkpointer, "save", save)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(target, CONFIG, random_params(CONFIG, 1), overwrite=True)


def test_a_kill_before_the_last_step_leaves_the_previous_checkpoint(checkpoint, monkeypatch):
    """The process ends directly before the description is replaced, which is the last step."""

    class Killed(BaseException):
        pass

    original = os.replace

    def kill(source, target, *args, **options):
        if Path(target).name == DESCRIPTION:
            raise Killed
        original(source, target, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        with pytest.raises(Killed):
            write_checkpoint(checkpoint, CONFIG, random_params(CONFIG, 1), overwrite=True)
    assert_same_arrays(read_checkpoint(checkpoint).params, random_params(CONFIG))
    write_checkpoint(checkpoint, CONFIG, random_params(CONFIG, 2), overwrite=True)
    assert_same_arrays(read_checkpoint(checkpoint).params, random_params(CONFIG, 2))
    assert len(list(checkpoint.iterdir())) == 2  # the remainder of the killed save was removed


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a", Path("/proc/no such folder/a"), tmp_path / ("long" * 100)):
        with pytest.raises(InputError) as caught:
            write_checkpoint(path, CONFIG, random_params(CONFIG))
        message = str(caught.value)
        assert message.startswith(f"{path} cannot be written (") and "\n" not in message
    assert file_names(tmp_path) == ["file"]


def test_invalid_weights_are_not_written(tmp_path):
    params = random_params(CONFIG)
    for value in (np.nan, np.inf):
        params["out.bias"][1] = params["encoder1.norm1.var"][0] = value
        with pytest.raises(
            InputError, match=r"^the weights contain NaN or infinite values, so nothing was written: encoder1.*var, out.bias.$"
        ):
            write_checkpoint(tmp_path / "a", CONFIG, params)
    del params["out.bias"]
    with pytest.raises(
        InputError,
        match=r"the weights do not fit the configuration, so nothing was written:\n  out.bias: got nothing, expected \(2,\)$",
    ):
        write_checkpoint(tmp_path / "a", CONFIG, params)
    assert file_names(tmp_path) == []
