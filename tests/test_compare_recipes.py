"""Tests the statistics and the choice of cases of `tools.compare_recipes` and `tools.compare_pretraining`."""

import json
from pathlib import Path

import numpy as np
import pytest

from swinunetr_jax.errors import InputError
from tools import compare_pretraining
from tools.compare_recipes import Options, main
from tools.experiment import split_cases
from tools.paired_differences import paired_difference, score_array


def test_the_interval_of_a_paired_difference_covers_the_true_difference_about_as_often_as_stated():
    random, covered = np.random.default_rng(1), 0
    for trial in range(60):
        cases, draws = random.normal(0, 0.1, (1, 60)), random.normal(0, 0.004, (8, 1))
        old = 0.8 + cases + random.normal(0, 0.01, (8, 60))
        new = 0.81 + cases + draws + random.normal(0, 0.01, (8, 60))
        difference = paired_difference(new, old, seed=trial)
        covered += difference.low <= 0.01 <= difference.high
    assert 50 <= covered <= 60  # 57 are expected; the bootstrap of 8 draws is a little too narrow


def test_cases_that_every_draw_scored_equally_have_an_interval_without_width():
    difference = paired_difference(np.full((2, 5), 0.9), np.full((2, 5), 0.8))
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.1, 0.1, 0.1))
    assert str(difference) == "+10.00 [+10.00, +10.00]"


def test_a_case_without_a_score_is_left_out_of_the_difference():
    new, old = np.array([[0.9, np.nan, 0.7]]), np.array([[0.8, 0.1, 0.7]])
    assert paired_difference(new, old).mean == pytest.approx(0.05)


def test_scores_are_arranged_by_draw_and_case():
    draws = [{"b": {"x": 0.2, "y": 0.4}, "a": {"x": 0.1, "y": 0.3}}, {"a": {"x": 0.5, "y": 0.7}, "b": {"x": 0.6, "y": 0.8}}]
    np.testing.assert_allclose(score_array(draws, "x"), [[0.1, 0.2], [0.5, 0.6]])
    np.testing.assert_allclose(score_array(draws, None), [[0.2, 0.3], [0.6, 0.7]])
    with pytest.raises(ValueError):
        score_array([draws[0], {"a": {"x": 0.5}}], "x")


def test_test_cases_are_the_same_for_all_draws_and_none_of_them_is_labelled():
    cases = [{"image": f"{i}.nii.gz", "label": f"{i}.nii.gz"} for i in range(200)]
    options = Options(Path("data"), Path("out"))
    split, other = split_cases(cases, options), split_cases(cases, Options(Path("data"), Path("out"), draws=2, labelled=10))
    names = [{case["image"] for case in draw} for draw in (split.test, *split.labelled)]
    assert len(split.test) == 60 and [len(draw) for draw in split.labelled] == [20] * 4
    assert split.test == other.test
    assert all(not names[0] & labelled for labelled in names[1:])
    assert len({frozenset(labelled) for labelled in names[1:]}) == 4
    with pytest.raises(InputError, match="need 80 cases, but there are 70"):
        split_cases(cases[:70], options)


def test_recipes_that_would_share_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="two of the recipes have the same name"):
        main(Options(tmp_path, tmp_path / "out", recipes=("msd", "mine/msd.py")))
    assert not (tmp_path / "out").exists()


def test_the_learning_rate_is_that_with_the_highest_dice_on_validation_cases_over_the_draws_that_have_all_rates(tmp_path):
    scores = {(1e-3, 0): 0.8, (1e-3, 1): 0.6, (3e-4, 0): 0.7, (3e-4, 1): 0.75, (1e-3, 2): 1.0}
    trainings = []
    for (rate, draw), score in scores.items():
        run = tmp_path / f"draw{draw}" / f"mim_{rate:g}"
        run.mkdir(parents=True)
        row = {"kind": "validation", "step": 4, "score": score, "dice": {"a": score}, "cases": {"c": {"a": score}}, "took": 1.0}
        later = row | {"step": 8, "score": 0.1, "dice": {"a": 0.1}, "cases": {"c": {"a": 0.1}}}
        (run / "log.jsonl").write_text(json.dumps(row | {"best": True}) + "\n" + json.dumps(later) + "\n")
        trainings.append(("mim", rate, run))
    options = compare_pretraining.Options(Path("data"), tmp_path)
    assert compare_pretraining.best_rate(options, trainings) == 3e-4  # 0.725 against 0.7; the third draw has one rate only
    assert compare_pretraining.best_rate(options, trainings[:1]) == 1e-3
