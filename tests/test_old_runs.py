"""This version reads a run, its checkpoints and its cache that the first version (397e272) wrote.

tests/old/run_397e272.tar.xz holds a run of one step on two phantom cases, with its data and its cache. All its weights were then set to one
number and saved by the first version, so that the archive is small.
"""

import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from swinunetr_jax import Task, open_checkpoint
from swinunetr_jax.training import description, start
from swinunetr_jax.training.bucket_store import store_of
from swinunetr_jax.training.log import read_rows

ARCHIVE = Path(__file__).parent / "old" / "run_397e272.tar.xz"


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """Returns the folder in which the archive was unpacked, with run/ and data/."""
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_an_old_checkpoint_is_opened(old):
    checkpoint = open_checkpoint(old / "run")
    assert checkpoint.config.feature_size == 12 and checkpoint.config.depths == (1, 1, 1, 1)
    assert checkpoint.task == Task.brats(roi=(32, 32, 64), orientation="LPS")
    assert {float(value) for array in checkpoint.params.values() for value in np.unique(array)} <= {np.float32(0.001), 1.0}


def test_an_old_run_is_resumed_with_its_options_its_cases_and_its_state(old, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(old / "run", run, symlinks=True)
    recipe = replace(description.read_recipe(run), data=old / "data", cache=run / "cache", steps=2)
    assert recipe.kind == "phantom" and recipe.network.depths == (1, 1, 1, 1)
    resumed = start.start(recipe, store_of(run), resume=True)
    resumed.log.close()
    assert resumed.progress.step == 1 and resumed.progress.best_step == 1
    assert float(np.unique(resumed.state.params["out.kernel"])[0]) == np.float32(0.001)
    assert [row["kind"] for row in read_rows(run)] == ["step", "validation"]
    printed, warned = capsys.readouterr()
    assert warned.count("entries of an older version of swinunetr_jax (2) cannot be used") == 1 and warned.count("\n") == 1
    assert "continuing after step 1" in printed
