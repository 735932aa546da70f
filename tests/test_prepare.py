"""Prepared data sets: training on them has the samples of the scans; what is complete is kept, and what is damaged is found."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.training_runs import recipe as small_recipe

from swinunetr_jax import InputError, cli
from swinunetr_jax.data.nifti import read_labels
from swinunetr_jax.data.phantom.dataset import write_phantom
from swinunetr_jax.training import Phantom, Recipe
from swinunetr_jax.training.data import Cases, batches, collect_cases
from swinunetr_jax.training.prepare import prepare
from swinunetr_jax.training.validation import ScanGrid

SIZE = (32, 32, 32)


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """A phantom of two cases."""
    folder = tmp_path_factory.mktemp("scans") / "data"
    write_phantom(folder, cases=2, size=SIZE)
    return folder


@pytest.fixture
def recipe(scans, tmp_path) -> Recipe:
    fields = {"kind": "brats", "roi": (32, 32, 64), "batch": 2, "cache": None}
    return small_recipe(scans, tmp_path / "run", **fields)


def of_place(recipe: Recipe, place: Path) -> Recipe:
    return replace(recipe, data=place)


def first_batch(recipe: Recipe, cases: Cases) -> dict[str, np.ndarray]:
    pipeline = batches(recipe, cases)
    batch = next(pipeline)
    pipeline.close()
    return batch


def test_prepared_data_have_the_samples_of_the_scans(recipe, tmp_path, capsys):
    place = tmp_path / "place"
    prepare(recipe, place)
    assert "2 prepared cases, " in capsys.readouterr().out
    raw, prepared = (collect_cases(r, tmp_path / "run") for r in (recipe, of_place(recipe, place)))
    assert prepared.names == raw.names and prepared.task == raw.task and prepared.in_channels == 4
    ours, theirs = first_batch(of_place(recipe, place), prepared), first_batch(recipe, raw)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])
