"""The pseudo-Dice of patches: its counts, its patches, its moving average, and its rows in a run."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.refusals import refused
from helpers.small_network import forget, replace_swin_unetr
from helpers.training_cases import BRATS, prepare, write_case
from helpers.training_runs import recipe

from swinunetr_jax import InputError, Task
from swinunetr_jax.inference.prepare import normalized
from swinunetr_jax.training import Validation, loop, pseudo_dice
from swinunetr_jax.training.log import read_rows
from swinunetr_jax.training.loop import train
from swinunetr_jax.training.validation import full_grid


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    return prepare([write_case(folder / "data", shape=(9, 8, 7))], folder / "cache")[0]


def test_a_patch_of_the_whole_scan_is_what_a_validation_sees(case):
    image, label = full_grid(case)
    stored = tuple(slice(low, high) for low, high in case.box)
    size = case.label.shape
    patch_image, reference = pseudo_dice.patch(case, BRATS, size, np.random.default_rng(0), False)
    np.testing.assert_allclose(patch_image, normalized(image, BRATS)[stored], atol=1e-6)
    np.testing.assert_array_equal(reference, label[stored])


def test_half_of_the_patches_are_around_labels_and_small_scans_are_padded(case):
    for seed in range(5):
        image, label = pseudo_dice.patch(case, BRATS, (2, 2, 2), np.random.default_rng(seed), True)
        assert label.any() and image.shape == (2, 2, 2, 2)
    image, label = pseudo_dice.patch(case, BRATS, (32, 32, 32), np.random.default_rng(0), True)
    assert image.shape == (32, 32, 32, 2) and label.sum() == case.label.sum()


def test_voxels_of_all_patches_are_counted_together(monkeypatch):
    task = Task.classes(4, names=("background", "a", "b", "c"))
    pairs = [([1, 1, 2, 0], [1, 0, 0, 0]), ([1, 0, 0, 0], [1, 1, 2, 2])]
    maps = [tuple(np.array(labels, np.uint8).reshape(2, 2, 1) for labels in pair) for pair in pairs]
    monkeypatch.setattr(pseudo_dice, "patch", lambda case, *_: case)
    predict = SimpleNamespace(run=lambda image: (image, None, 1))
    scores = pseudo_dice.pseudo_dice(predict, maps, task, (2, 2, 1), 4, 0, lambda: False)
    assert scores == {"a": 2 * 2 / (3 + 3), "b": 0.0}  # c does not occur
    assert pseudo_dice.pseudo_dice(predict, maps, task, (2, 2, 1), 4, 0, lambda: True) is None
    maps[1][1][0, 0, 0] = 9
    scores = pseudo_dice.pseudo_dice(predict, maps, replace(task, ignore=9), (2, 2, 1), 4, 0, lambda: False)
    assert scores == {"a": 2 * 1 / (2 + 2), "b": 0.0}  # the ignored voxel was predicted as a


def test_the_moving_average_begins_with_the_first_value():
    rows = []
    for value in (0.5, 1.0, None):
        row = pseudo_dice.row_of({} if value is None else {"a": value}, 3, rows, 0.0)
        rows += [{"kind": "step"}, {"kind": "pseudo_dice", **row}]
    assert [row["average"] for row in rows[1::2]] == pytest.approx([0.5, 0.55, 0.55])
    assert np.isnan(rows[-1]["mean"]) and rows[-1]["outputs"] == {}


def test_a_run_logs_the_pseudo_dice_and_validates_whole_scans_only_at_the_end(tmp_path, monkeypatch, capsys):
    replace_swin_unetr(monkeypatch)
    monkeypatch.setattr(loop, "_draw", lambda *_: None)
    options = recipe(tmp_path / "data", tmp_path / "run", validation=Validation(overlap=0.0, pseudo=2, pseudo_every=2))
    train(options)
    monkeypatch.undo()
    forget()
    rows = [row for row in read_rows(tmp_path / "run") if row["kind"] != "time"]
    kinds = [(row["kind"], row["step"]) for row in rows if row["kind"] != "step"]
    assert kinds == [("pseudo_dice", 2), ("pseudo_dice", 4), ("validation", 4)]
    assert rows[2]["patches"] == 2 and rows[2]["average"] == rows[2]["mean"]
    assert "pseudo-Dice of 2 patches" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]["validation"]["pseudo"] == 2
    with refused("pseudo_every", "give --validation.pseudo"):
        recipe(tmp_path, tmp_path, validation=Validation(pseudo_every=2)).check()
    with pytest.raises(InputError, match=r"validation.pseudo` must be at least 1"):
        recipe(tmp_path, tmp_path, validation=Validation(pseudo=0)).check()
