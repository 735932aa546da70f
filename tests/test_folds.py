"""Folds that a data set states are kept, and drawn folds do not depend on the order of the cases."""

from pathlib import Path

import pytest
from helpers.refusals import refused

from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.folds import fold_split, with_folds


def case(name, fold=None, split="training", label=True):
    return Case(name, (Path(f"{name}.nii"),), label=Path(f"{name}_seg.nii") if label else None, fold=fold, split=split)


CASES = [case(f"p{n:02}") for n in range(13)]


def test_drawn_folds_are_balanced_and_do_not_depend_on_the_order():
    drawn = with_folds(CASES)
    assert [c.name for c in drawn] == [c.name for c in CASES]
    assert sorted([c.fold for c in drawn].count(fold) for fold in range(5)) == [2, 2, 3, 3, 3]
    again = with_folds(CASES[::-1])
    assert {c.name: c.fold for c in again} == {c.name: c.fold for c in drawn}
    assert [c.fold for c in with_folds(CASES, seed=1)] != [c.fold for c in drawn]
    assert {c.fold for c in with_folds(CASES, folds=2)} == {0, 1}


def test_cases_that_are_not_for_training_have_no_fold():
    others = [case("v", split="validation"), case("t", split="test", label=False), case("u", label=False)]
    drawn = with_folds([*others, *CASES])
    assert drawn[:3] == tuple(others)
    assert [c.fold for c in drawn[3:]] == [c.fold for c in with_folds(CASES)]


def test_time_points_of_a_patient_stay_together():
    visits = [case(f"BraTS-GLI-{patient:05}-{time:03}") for patient in range(10) for time in (0, 1)]
    folds = {c.name: c.fold for c in with_folds(visits)}
    assert all(folds[f"BraTS-GLI-{p:05}-000"] == folds[f"BraTS-GLI-{p:05}-001"] for p in range(10))


def test_given_folds_are_kept():
    cases = [case("a", 3), case("b", 1), case("c", 3), case("v", split="validation")]
    assert with_folds(cases) == tuple(cases)
    train, validation = fold_split(cases, 3)
    assert [c.name for c in train] == ["b"] and [c.name for c in validation] == ["a", "c"]
    with refused("2 of 3 training cases have a fold, b has none"):
        with_folds([case("a", 0), case("b"), case("c", 1)])


def test_every_case_validates_once():
    drawn = with_folds(CASES)
    seen = []
    for fold in range(5):
        train, validation = fold_split(drawn, fold)
        assert {c.name for c in train} | {c.name for c in validation} == {c.name for c in CASES}
        seen += [c.name for c in validation]
    assert sorted(seen) == [c.name for c in CASES]


def test_the_validation_list_of_a_data_set_is_used_without_a_fold():
    own = [case("a"), case("v", split="validation"), case("w", split="validation", label=False)]
    train, validation = fold_split(own, None)
    assert [c.name for c in train] == ["a"] and [c.name for c in validation] == ["v"]


@pytest.mark.parametrize(
    ("cases", "fold", "words"),
    [
        (
            [case("a", 0), case("b", 1)],
            2,
            "fold 2 has no cases; choose one of these folds (with their numbers of cases): 0 (1), 1 (1)",
        ),
        ([case("a", 0), case("b", 0)], 0, "no training case with a label remains"),
        ([case("a", 0), case("b", 1)], None, "the cases have folds; choose one to validate on: 0 (1), 1 (1)"),
        ([case("a"), case("v", split="validation", label=False)], None, "no validation list with labels"),
        ([case("v", split="validation")], None, "no training case with a label"),
        ([case("a"), case("b")], 0, "2 of 2 training cases have no fold"),
        ([], 0, "fold 0 has no cases"),
    ],
)
def test_impossible_splits_are_refused(cases, fold, words):
    with refused(words):
        fold_split(cases, fold)


@pytest.mark.parametrize("folds", [14, 1, 0])
def test_more_folds_than_patients_and_fewer_than_two_are_refused(folds):
    with refused("13 labelled patients", f"{folds} folds"):
        with_folds(CASES, folds=folds)


@pytest.mark.parametrize("folds", [5, 2, 1])
def test_a_data_set_of_one_case_is_refused_for_any_number_of_folds(folds):
    with refused("has 1 labelled patient,", "needs at least 2: add labelled cases"):
        with_folds([case("a")], folds=folds)
