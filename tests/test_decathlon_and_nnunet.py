"""Data sets in the layouts of the Decathlon and of nnU-Net."""

import pytest
from helpers.data_sets import WEIGHTS, case_names, decathlon, image_names, touch, write_json, write_list

from swinunetr_jax.data.discovery.formats import find_cases


def test_decathlon(tmp_path):
    path = decathlon(tmp_path, {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"})
    for dataset in (find_cases(tmp_path), find_cases(path), find_cases(tmp_path, channels=WEIGHTS)):
        assert dataset.layout == "decathlon" and dataset.channels == ("FLAIR", "T1", "T1ce", "T2")
        assert dataset.labels == {"background": 0, "edema": 1, "non-enhancing tumor": 2, "enhancing tumour": 3}
        assert [(c.name, c.split, c.problem) for c in dataset.cases] == [
            ("BRATS_000", "training", None),
            ("BRATS_001", "training", None),
            ("BRATS_900", "test", None),
        ]
        assert dataset.cases[0].images == (tmp_path / "imagesTr/BRATS_000.nii.gz",)
        assert dataset.cases[0].label == tmp_path / "labelsTr/BRATS_000.nii.gz" and dataset.cases[2].label is None
    assert "ADC is missing" in find_cases(tmp_path, channels=["ADC"]).cases[0].problem
    dataset = find_cases(tmp_path / "imagesTs")
    assert (
        dataset.layout == "decathlon"
        and dataset.channels == ("FLAIR", "T1", "T1ce", "T2")
        and dataset.cases[0].name == "BRATS_900"
    )
    assert find_cases(tmp_path / "imagesTr").cases[0].label == tmp_path / "labelsTr/BRATS_000.nii.gz"


def test_repeated_names_are_not_used(tmp_path):
    decathlon(tmp_path, {"0": "MRI", "1": "MRI", "2": "MRI", "3": "MRI"})
    dataset = find_cases(tmp_path, channels=WEIGHTS)
    assert dataset.channels is None and not any(case.problem for case in dataset.cases)


def nnunet(root, names, cases=("BRATS_0001", "BRATS_0002"), **info):
    for case in cases:
        touch(root, *(f"imagesTr/{case}_{i:04d}.nii.gz" for i in range(len(names))), f"labelsTr/{case}.nii.gz")
    touch(root, *(f"imagesTs/BRATS_0900_{i:04d}.nii.gz" for i in range(len(names))))
    info = {"channel_names": {str(i): n for i, n in enumerate(names)}, "file_ending": ".nii.gz", "numTraining": len(cases)} | info
    return write_json(root / "dataset.json", info)


def test_nnunet(tmp_path):
    labels = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}
    path = nnunet(tmp_path, ["T1", "T1ce", "T2", "Flair"], labels=labels, regions_class_order=[1, 2, 3])
    for dataset in (find_cases(tmp_path), find_cases(path)):
        assert dataset.layout == "nnunet" and dataset.channels == ("T1", "T1ce", "T2", "FLAIR")
        assert dataset.labels == labels and dataset.regions_class_order == (1, 2, 3)
        assert [(c.name, c.split) for c in dataset.cases] == [
            ("BRATS_0001", "training"),
            ("BRATS_0002", "training"),
            ("BRATS_0900", "test"),
        ]
        assert image_names(dataset.cases[0]) == [f"BRATS_0001_{i:04d}.nii.gz" for i in range(4)]
        assert dataset.cases[0].label == tmp_path / "labelsTr/BRATS_0001.nii.gz" and dataset.cases[2].label is None
    for folder in ("", "imagesTs"):  # dataset.json next to the folder gives the names
        case = find_cases(tmp_path / folder, channels=WEIGHTS).cases[-1]
        assert case.channels == WEIGHTS and [n[-11:-7] for n in image_names(case)] == ["0003", "0001", "0000", "0002"]


def test_nnunet_without_dataset_json(tmp_path):
    nnunet(tmp_path, WEIGHTS).unlink()
    dataset = find_cases(tmp_path / "imagesTs", channels=WEIGHTS)
    assert (
        dataset.layout == "nnunet"
        and dataset.channels is None
        and dataset.cases[0].problem is None
        and len(dataset.cases[0].images) == 4
    )
    assert "has 4 images" in find_cases(tmp_path / "imagesTs", channels=["CT", "PET"]).cases[0].problem
    assert [case.split for case in find_cases(tmp_path).cases] == ["training", "training", "test"]
    assert find_cases(tmp_path / "imagesTr").cases[0].label is not None


def test_incomplete_cases_of_nnunet_have_problems(tmp_path):
    nnunet(tmp_path, WEIGHTS, cases=("a", "b", "c"))
    (tmp_path / "imagesTr/b_0002.nii.gz").unlink()
    (tmp_path / "imagesTr/c_0000.nii.gz").unlink()
    touch(tmp_path, "imagesTr/d.nii.gz", "imagesTr/a_0004.nii.gz", "imagesTr/._a_0000.nii.gz")
    cases = {case.name: case for case in find_cases(tmp_path).cases}
    assert set(cases) == {"a", "b", "c", "d", "BRATS_0900"} and cases["BRATS_0900"].problem is None
    assert "a has the channels 0000, 0001, 0002, 0003, 0004" in cases["a"].problem
    assert "expected 0000, 0001, 0002, 0003" in cases["b"].problem and cases["b"].channels == ("FLAIR", "T1ce", "T2")
    assert len(cases["c"].images) == 3 and "_0000" in cases["d"].problem


def test_numbered_cases_are_not_channels(tmp_path):
    touch(tmp_path, *(f"case_{i:04d}.nii.gz" for i in range(1, 5)))
    assert [c.name for c in find_cases(tmp_path).cases] == ["case_0001", "case_0002", "case_0003", "case_0004"]
    touch(tmp_path, "case_0000.nii.gz")
    assert len(find_cases(tmp_path, channels=["CT"]).cases) == 5
    touch(tmp_path / "one", "a_0000.nii.gz", "b_0000.nii.gz")
    dataset = find_cases(tmp_path / "one", channels=["CT"])
    assert dataset.layout == "nnunet" and [case.name for case in dataset.cases] == ["a", "b"]


def test_real_decathlon(shared_data):
    dataset = find_cases(shared_data / "Task04_Hippocampus")
    assert dataset.layout == "decathlon" and len(dataset.cases) == 200 and not any(case.problem for case in dataset.cases)
    assert dataset.channels == ("MRI",) and dataset.labels == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert all(case.label.is_file() and case.split == "training" for case in dataset.cases)
    assert find_cases(shared_data / "Task04_Hippocampus" / "imagesTr").cases[0].label == dataset.cases[0].label


@pytest.mark.fault("4.3")
def test_nnunet_version_1(tmp_path):
    touch(tmp_path, *(f"imagesTr/la_00{n}_000{c}.nii.gz" for n in (1, 2, 3) for c in (0, 1)), "labelsTr/la_001.nii.gz")
    entries = [{"image": f"./imagesTr/la_00{n}.nii.gz", "label": f"./labelsTr/la_00{n}.nii.gz"} for n in (1, 2)]
    write_list(tmp_path / "dataset.json", modality={"0": "T1", "1": "T2"}, labels={"0": "background", "1": "x"}, training=entries)
    dataset = find_cases(tmp_path, channels=("T2", "T1"))
    assert (
        dataset.layout == "nnunet" and case_names(dataset) == ["la_001", "la_002"] and not any(c.problem for c in dataset.cases)
    )
    assert [image.name for image in dataset.cases[0].images] == ["la_001_0001.nii.gz", "la_001_0000.nii.gz"]
    assert "2 images are not listed" in dataset.warnings[0]
    write_list(tmp_path / "dataset.json", modality={"0": "T1", "1": "T2"}, labels={"0": "background", "1": "x"})
    assert case_names(find_cases(tmp_path)) == ["la_001", "la_002", "la_003"]
