"""Predictions are paired with the label map of their own scan, and folds keep a patient's cases together."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.data_sets import SHAPE, ball, save, touch, write_list
from helpers.refusals import refused

from swinunetr_jax import cli
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.folds import find_splits, fold_numbers, fold_split, with_folds
from swinunetr_jax.data.discovery.patients import find_patients
from swinunetr_jax.evaluation.pairing import pair_cases
from swinunetr_jax.evaluation.pairs import Reference, References, find_predictions, find_references
from swinunetr_jax.task import Task


def reference(folder):
    return Reference(folder / "label.nii.gz", (folder / "image.nii.gz",))


@pytest.mark.fault("1.5")
def test_predictions_are_scored_against_the_label_of_their_own_scan(tmp_path):
    """Formerly the result CT_image of P002 was scored against the label of P001, with a Dice of 0.28 instead of 1."""
    out = tmp_path / "out"
    cases = {}
    for index, (patient, name) in enumerate([("P001", None), ("P002", "CT_image"), ("P003", "CT_image_2")]):
        folder = tmp_path / "data" / patient / "CT"
        save(folder / "image.nii.gz", np.ones(SHAPE, np.float32))
        save(folder / "label.nii.gz", ball(index))
        if name:
            save(out / f"{name}.nii.gz", ball(index))
            scan = {"path": str(folder / "image.nii.gz"), "bytes": 1, "modified_ns": 1}
            cases[name] = {"inputs": [scan], "outputs": {"labels": {"path": f"{name}.nii.gz", "bytes": 1}}}
    write_list(out / "predict.json", settings={"task": Task.classes(2).to_dict()}, cases=cases)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", str(out), str(tmp_path / "data")])
    report = json.loads((out / "scores.json").read_text())
    assert stopped.value.code == 1 and report["missing_predictions"] == ["P001_CT_image"]
    assert {name: case["class 1"]["dice_brats"] for name, case in report["cases"].items()} == {"CT_image": 1, "CT_image_2": 1}


@pytest.mark.fault("1.5")
def test_uncertain_pairs_are_refused(tmp_path):
    first, second = tmp_path / "P001" / "CT", tmp_path / "P002" / "CT"
    touch(first, "image.nii.gz", "label.nii.gz")
    records = {"CT_image": {"inputs": [{"path": str(second / "image.nii.gz"), "bytes": 7}]}}
    pairs = pair_cases({"CT_image": Path("CT_image.nii.gz")}, References({"CT_image": reference(first)}), {"cases": records})
    assert "belongs to another scan" in pairs.refused["CT_image"] and not pairs.predictions
    # Two results of one scan are refused.
    records = {name: {"inputs": [{"path": str(first / "image.nii.gz"), "bytes": 1}]} for name in ("a", "b")}
    maps = {name: Path(f"{name}.nii.gz") for name in records}
    pairs = pair_cases(maps, References({"c": reference(first)}), {"cases": records})
    assert set(pairs.refused) == {"a", "b"} and "same scan" in pairs.refused["a"]
    # One result and one reference of different names are a pair only if the user gave both.
    one_each = {"a": Path("a.nii.gz")}, References({"b": Reference(Path("b.nii.gz"))}), {}
    assert "a" not in pair_cases(*one_each).references.cases
    assert "a" in pair_cases(*one_each, same=True).references.cases


@pytest.mark.fault("1.5")
def test_two_label_maps_for_one_case_are_refused(tmp_path):
    touch(tmp_path, "a.nii", "a.nii.gz", "b.nii.gz", "labels/c_seg.nii.gz", "labels/c_mask.nii.gz", "labels/d_seg.nii.gz")
    predictions = find_predictions(tmp_path)
    assert list(predictions.cases) == ["b"] and "a.nii, a.nii.gz" in predictions.refused["a"]
    references = find_references(tmp_path / "labels")
    assert list(references.cases) == ["d"] and "several label maps" in references.refused["c"]


@pytest.mark.fault("1.6")
@pytest.mark.parametrize(
    ("names", "patients"),
    [
        (["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"], 2),
        ([f"genius_{number:04}" for number in (800, 801, 802, 900, 901, 1000)], 3),
        ([f"P{patient:03}_{visit}" for patient in range(5) for visit in (1, 2)], 5),
        ([f"patient{patient:03}_frame{frame:02}" for patient in range(5) for frame in (1, 12)], 5),
        (["P1_baseline", "P1_followup", "P2_20190101", "P2_20200101", "Patient-003_week-004", "Patient-003_week-044"], 3),
        (["BraTS-GLI-00001-000", "BraTS-GLI-00001-001", "UPENN-GBM-00001_11", "UPENN-GBM-00001_21"], 2),
        (["hippocampus_001", "hippocampus_003"], 2),
        ([f"la_{number:03}" for number in (3, 4, 5, 7, 9, 10, 11, 14)], 8),
        ([f"liver_{number}" for number in range(131)], 131),
        ([f"BraTS20_Training_{number:03}" for number in range(1, 4)] + ["BraTS20_Validation_001"], 4),
        ([f"s{site}_{number:03}" for site in (1, 2) for number in range(100)], 200),
    ],
)
def test_patients_by_names(names, patients):
    result = find_patients(names)
    assert len(set(result.patient_of.values())) == patients and f"{patients} patients" in result.note


@pytest.mark.fault("1.6")
def test_ambiguous_patients_need_an_option():
    names = [f"P{patient}_{number}" for patient in (1, 2) for number in range(12)]
    with refused("P1_0 and P1_1", "--patient"):
        find_patients(names)
    assert len(set(find_patients(names, r"P\d+").patient_of.values())) == 2
    assert len(set(find_patients(names, ".+").patient_of.values())) == 24
    with refused("--patient", "matches every case"):
        find_patients(names, "(X)")
    with refused("not a regular expression"):
        find_patients(names, "(")


def labelled(name, **fields):
    return Case(name, (Path(f"{name}.nii"),), label=Path(f"{name}_seg.nii"), **fields)


@pytest.mark.fault("1.6")
def test_all_cases_of_a_patient_are_in_one_fold_and_the_number_of_patients_is_printed():
    messages = []
    cases = with_folds([labelled(f"sub-{n:02}_ses-{s}") for n in range(10) for s in (1, 2)], notify=messages.append)
    folds = {}
    for case in cases:
        folds.setdefault(case.name[:6], set()).add(case.fold)
    assert all(len(numbers) == 1 for numbers in folds.values()) and "20 cases of 10 patients" in messages[0]
    cases_with_folds = [labelled("sub-01_ses-1", fold=0), labelled("sub-01_ses-2", fold=1)]
    with_folds(cases_with_folds, notify=messages.append)
    assert "sub-01" in messages[-1] and "several folds" in messages[-1]


@pytest.mark.fault("1.6")
def test_the_splits_of_nnunet_are_used(tmp_path):
    raw, messages = tmp_path / "nnUNet_raw" / "Dataset001_A", []
    raw.mkdir(parents=True)
    path = write_list(tmp_path / "nnUNet_preprocessed" / "Dataset001_A" / "splits_final.json")
    path.write_text(json.dumps([{"train": ["a", "b"], "val": ["c"]}, {"train": ["c", "b"], "val": ["a"]}]))
    assert find_splits(raw) == path
    cases = with_folds([labelled(name) for name in "abcd"], splits=path, notify=messages.append)
    assert [case.fold for case in cases] == [1, -1, 0, None] and fold_numbers(cases) == [0, 1]
    train, validation = fold_split(cases, 0)
    assert [c.name for c in train] == ["a", "b"] and [c.name for c in validation] == ["c"]
    assert f"2 folds from {path}" in messages[0] and "not used: d" in messages[1]
    path.write_text(json.dumps([{"train": ["b"], "val": ["a", "c"]}, {"train": ["c", "b"], "val": ["a"]}]))
    with refused(path, "a is validated on in the splits 0 and 1"):
        with_folds([labelled(name) for name in "abc"], splits=path)
    path.write_text("{")
    with refused(path, "not a list of splits"):
        with_folds([labelled("a")], splits=path)
