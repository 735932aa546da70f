"""Divides cases into training and validation: by the data set's folds, nnU-Net's splits file, random folds, or a validation list."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from swinunetr_jax import files
from swinunetr_jax.console import name_list
from swinunetr_jax.data.discovery.cases import Case, Dataset
from swinunetr_jax.data.discovery.patients import find_patients
from swinunetr_jax.errors import InputError

SPLITS = "splits_final.json"  # nnU-Net's file: [{"train": [names], "val": [names]}, …]
NEVER = -1  # the fold of a case that is in every training set and in no validation set
_IMPLICIT = ("brats", "case-folder", "files")  # layouts without a list of training cases

Notify = Callable[[str], None]


def with_folds(
    cases: Sequence[Case],
    *,
    folds: int = 5,
    seed: int = 0,
    patient: str | None = None,
    splits: str | os.PathLike | None = None,
    notify: Notify = lambda text: None,
) -> tuple[Case, ...]:
    """Returns the same cases with a fold for each training case (split 'training', with a label).

    A splits file takes precedence over the data set's own folds, which take precedence over randomly drawn ones. Folds are drawn from the
    sorted names, so that they depend on `seed` and not on the order of the cases. Their sizes differ by at most one patient, and all cases
    of a patient are in one fold.

    Args:
        cases: all cases of the data set.
        folds: the number of folds to draw.
        seed: the seed of the draw.
        patient: a regular expression that finds the patient in a case's name; by default `find_patients` interprets the names.
        splits: the path of nnU-Net's splits_final.json.
        notify: called with sentences for the user: where the folds come from and how many patients there are.

    Raises:
        InputError: only some cases have a fold, there are too few patients, or the splits file does not fit the cases.
    """
    training = [case for case in cases if _is_training_case(case)]
    if splits is not None:
        cases = _by_splits(cases, Path(splits), notify)
        _warn_of_divided_patients(cases, patient, str(splits), notify)
        return cases
    with_fold = [case for case in training if case.fold is not None]
    if with_fold and len(with_fold) < len(training):
        first_without = next(case.name for case in training if case.fold is None)
        raise InputError(
            f"{len(with_fold)} of {len(training)} training cases have a fold, {first_without} has none; give all of them a fold, or none."
        )
    if with_fold:
        notify(f"{len({case.fold for case in training})} folds from the data set's list")
        _warn_of_divided_patients(cases, patient, "the data set's list", notify)
        return tuple(cases)
    grouping = find_patients([case.name for case in training], patient)
    patients = sorted(set(grouping.patient_of.values()))
    if folds < 2 or len(patients) < folds:
        note = "" if len(patients) == len(training) else f" ({grouping.note})"
        kind = "labelled " if any(case.needs_label for case in training) else ""
        remedy = ", or state by --patient which cases belong to one patient" if note else ""
        if len(patients) < 2:
            raise InputError(
                f"the data set has {len(patients)} {kind}patient{'s' * (len(patients) != 1)}{note}, and a division into training "
                f"and validation needs at least 2: add {kind}cases{remedy}."
            )
        wanted = "at least 2 folds" if folds < 2 else "fewer folds"
        raise InputError(f"{len(patients)} {kind}patients{note} cannot be split into {folds} folds; use {wanted}{remedy}.")
    notify(f"{folds} folds drawn with seed {seed}: {grouping.note}")
    order = np.random.default_rng(seed).permutation(len(patients))
    fold_of = {patients[index]: position % folds for position, index in enumerate(order)}
    return tuple(
        replace(case, fold=fold_of[grouping.patient_of[case.name]]) if _is_training_case(case) else case for case in cases
    )


def fold_split(cases: Sequence[Case], fold: int | None) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Returns (training cases, validation cases).

    Args:
        cases: cases with folds, as from `with_folds`.
        fold: the fold to validate on, or None for the data set's own validation list.

    Raises:
        InputError: one of the two would be empty, or `fold` is None although the cases have folds.
    """
    labelled = [case for case in cases if _is_training_case(case)]
    sizes = defaultdict(int)
    for case in labelled:
        sizes[case.fold] += 1
    choices = ", ".join(f"{number} ({count})" for number, count in sorted(sizes.items(), key=str) if number != NEVER)
    if fold is None:
        if sizes.keys() - {None}:
            raise InputError(f"the cases have folds; choose one to validate on: {choices}.")
        train, validation = labelled, [case for case in cases if case.split == "validation" and case.can_train]
        if not validation:
            raise InputError("the data set has no validation list with labels; draw folds and choose one to validate on.")
    else:
        if None in sizes:
            raise InputError(
                f"{sizes[None]} of {len(labelled)} training cases have no fold; give all of them one, or draw folds."
            )
        train = [case for case in labelled if case.fold != fold]
        validation = [case for case in labelled if case.fold == fold != NEVER]
        if not validation:
            raise InputError(
                f"fold {fold} has no cases; choose one of these folds (with their numbers of cases): {choices or 'none'}."
            )
    if not train:
        raise InputError("no training case with a label remains; give more cases, or another fold.")
    return tuple(train), tuple(validation)


def fold_numbers(cases: Iterable[Case]) -> list[int]:
    """Returns the folds that can be validated on, sorted."""
    return sorted({case.fold for case in cases if case.fold is not None and case.fold != NEVER})


def find_splits(root: Path, notify: Notify = lambda text: None) -> Path | None:
    """Returns nnU-Net's splits file for the data set in `root`: next to its dataset.json, or in nnUNet_preprocessed; None if absent."""
    root = Path(os.path.abspath(root))
    root = root.parent if root.name.startswith("images") else root
    folders = [root]
    if root.parent.name.startswith(("nnUNet_raw", "nnUNet_preprocessed")):
        folders.append(root.parent.parent / "nnUNet_preprocessed" / root.name)
    for folder in folders:
        if files.is_file(folder / SPLITS):
            return folder / SPLITS
        pickled = folder / SPLITS.replace(".json", ".pkl")
        if files.is_file(pickled):
            notify(f"{pickled} is not read, because reading a pickle may run code; save it as JSON ({SPLITS}) to use its folds")
    return None


def unlabelled(dataset: Dataset) -> tuple[Case, ...]:
    """Returns the cases that would be training cases if they had a label: in a data set without lists, all unlabelled cases."""
    labelled = any(case.label is not None for case in dataset.cases)
    without = [case for case in dataset.cases if not case.can_train and case.images]
    implicit = dataset.layout in _IMPLICIT or dataset.root.name.startswith("imagesTr")
    return tuple(case for case in without if case.split == "training" or (labelled and implicit))


def _by_splits(cases: Sequence[Case], path: Path, notify: Notify) -> tuple[Case, ...]:
    """Returns the cases with folds from a splits file: the fold of a case is the number of the split that validates on it.

    Cases that the file does not name become test cases.
    """
    splits = _read_splits(path)
    fold_of: dict[str, int] = {}
    for number, (_, validation) in enumerate(splits):
        for name in validation:
            if name in fold_of:
                raise InputError(
                    f"{path}: {name} is validated on in the splits {fold_of[name]} and {number}, expected one fold for each case; "
                    "give splits that validate on each case at most once."
                )
            fold_of[name] = number
    all_names = {name for train, validation in splits for name in train | validation}
    for number, (train, validation) in enumerate(splits):
        if train & validation or train | validation != all_names:
            misplaced = sorted(train & validation or all_names - train - validation)
            raise InputError(
                f"{path}: the split {number} does not train on all cases that it does not validate on ({name_list(misplaced)}), "
                "which is not supported; give splits of the same cases."
            )
    names = {case.name for case in cases if _is_training_case(case)}
    if not names & all_names:
        raise InputError(
            f"{path}: names none of the cases: it names {name_list(sorted(all_names))}, and the data set has "
            f"{name_list(sorted(names))}; give the splits of this data set."
        )
    notify(f"{len(splits)} folds from {path}")
    if missing := sorted(all_names - names):
        notify(f"warning: {path} names {len(missing)} cases that the data set lacks or that have no label: {name_list(missing)}")
    if unnamed := sorted(names - all_names):
        notify(f"warning: {len(unnamed)} cases are not named in {path} and are not used: {name_list(unnamed)}")
    return tuple(
        case
        if not _is_training_case(case)
        else replace(case, fold=fold_of.get(case.name, NEVER))
        if case.name in all_names
        else replace(case, split="test")
        for case in cases
    )


def _read_splits(path: Path) -> list[tuple[set[str], set[str]]]:
    """Returns (training names, validation names) of each split."""
    try:
        content = json.loads(path.read_text("utf-8-sig"))
        splits = [(split["train"], split["val"]) for split in content]
        if not splits or not all(isinstance(name, str) for split in splits for part in split for name in part):
            raise TypeError("names of cases are missing")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); correct --splits.") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f'{path}: is not a list of splits ({error!r}), expected [{{"train": [names], "val": [names]}}, …]; correct it.'
        ) from error
    return [(set(train), set(validation)) for train, validation in splits]


def _warn_of_divided_patients(cases: Sequence[Case], patient: str | None, source: str, notify: Notify) -> None:
    """Warns if the folds of the list or the splits file divide the cases of a patient."""
    labelled = [case for case in cases if _is_training_case(case)]
    try:
        grouping = find_patients([case.name for case in labelled], patient)
    except InputError:
        if patient is not None:
            raise
        return  # the names are ambiguous, but no fold depends on them
    folds: dict[str, set[int | None]] = defaultdict(set)
    for case in labelled:
        folds[grouping.patient_of[case.name]].add(case.fold)
    if divided := sorted(name for name, numbers in folds.items() if len(numbers) > 1):
        notify(f"warning: {source} has cases of one patient in several folds ({len(divided)} patients: {name_list(divided)})")
    else:
        notify(grouping.note)


def _is_training_case(case: Case) -> bool:
    """Returns whether the case is a training case with a label, or one that needs none."""
    return case.split == "training" and case.can_train
