"""Which cases train and which validate: given folds, drawn folds, or the data set's own validation list."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from swinunetr_jax.data.cases import Case
from swinunetr_jax.errors import InputError

# BraTS-GLI-02062-100 and -101 are one patient at two times, who must not be on both sides of a split.
_TIME_POINT = re.compile(r"(BraTS-\w+-\d+)-\d{3}")


def with_folds(cases: Sequence[Case], *, folds: int = 5, seed: int = 0) -> tuple[Case, ...]:
    """The same cases, those for training (split 'training', with a label) with a fold.

    Folds that the data set gives are kept. Otherwise they are drawn from the sorted names, so that they depend on `seed` and not
    on the order of listing; their sizes differ by one patient at most, and time points of a BraTS patient stay together.

    Raises:
        InputError: only some cases have a fold, or there are too few patients.
    """
    chosen = [case for case in cases if _trains(case)]
    given = [case for case in chosen if case.fold is not None]
    if given and len(given) < len(chosen):
        without = next(case.name for case in chosen if case.fold is None)
        raise InputError(
            f"{len(given)} of {len(chosen)} training cases have a fold, {without} has none; give all of them a fold, or none."
        )
    if given:
        return tuple(cases)
    patients = sorted({_patient(case) for case in chosen})
    if folds < 2 or len(patients) < folds:
        raise InputError(f"{len(patients)} labelled patients cannot be split into {folds} folds; ask for 2 folds or more, fewer.")
    order = np.random.default_rng(seed).permutation(len(patients))
    fold = {patients[patient]: place % folds for place, patient in enumerate(order)}
    return tuple(replace(case, fold=fold[_patient(case)]) if _trains(case) else case for case in cases)


def fold_split(cases: Sequence[Case], fold: int | None) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """(train, validation): the other folds and this one; with None all of training and the data set's own validation list.

    Raises:
        InputError: one of the two would be empty, or None is asked for where there are folds.
    """
    chosen = [case for case in cases if _trains(case)]
    members = defaultdict(int)
    for case in chosen:
        members[case.fold] += 1
    told = ", ".join(f"{name} ({count})" for name, count in sorted(members.items(), key=str))
    if fold is None:
        if members.keys() - {None}:
            raise InputError(f"the cases have folds; choose one to validate on: {told}.")
        train, validation = chosen, [case for case in cases if case.split == "validation" and case.label is not None]
        if not validation:
            raise InputError("the data set has no validation list with labels; draw folds and choose one to validate on.")
    else:
        if None in members:
            raise InputError(
                f"{members[None]} of {len(chosen)} training cases have no fold; give all of them one, or draw folds."
            )
        train = [case for case in chosen if case.fold != fold]
        validation = [case for case in chosen if case.fold == fold]
        if not validation:
            raise InputError(
                f"fold {fold} has no cases; choose one of the folds there are (and cases in each): {told or 'none'}."
            )
    if not train:
        raise InputError("no training case with a label is left; give more cases, or another fold.")
    return tuple(train), tuple(validation)


def _trains(case: Case) -> bool:
    return case.split == "training" and case.label is not None


def _patient(case: Case) -> str:
    found = _TIME_POINT.fullmatch(case.name)
    return found[1] if found else case.name
