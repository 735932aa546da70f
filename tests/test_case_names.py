"""The name of a case does not depend on other cases, and every entry of a folder is a case or is reported."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.data_sets import SHAPE, ball, case_names, save, touch, write_list
from helpers.refusals import refused

from swinunetr_jax.commands.cases import check_no_input_is_replaced, input_cases
from swinunetr_jax.data.check.problems import problem_lines
from swinunetr_jax.data.discovery.folds import unlabelled
from swinunetr_jax.data.discovery.formats import find_cases
from swinunetr_jax.task import Task
from swinunetr_jax.training import Recipe
from swinunetr_jax.training.data import collect_cases


@pytest.mark.fault("1.5")
def test_three_scans_of_one_file_name_have_three_case_names(tmp_path):
    touch(tmp_path, "A/ct/scan.nii.gz", "B/ct/scan.nii.gz", "C/ct_scan_2.nii.gz")
    assert len(set(case_names(find_cases(tmp_path)))) == 3
    assert case_names(find_cases(tmp_path))[:2] == ["A_ct_scan", "B_ct_scan"]


@pytest.mark.fault("1.5")
def test_an_additional_case_does_not_rename_others(tmp_path):
    touch(tmp_path, "P002/CT/image.nii.gz")
    assert case_names(find_cases(tmp_path)) == ["P002_CT_image"]
    touch(tmp_path, "P001/CT/image.nii.gz", "P003/CT/image.nii.gz")
    assert case_names(find_cases(tmp_path)) == ["P001_CT_image", "P002_CT_image", "P003_CT_image"]
    touch(tmp_path / "b", "HGG/Brats18_1_2_1/Brats18_1_2_1_flair.nii.gz")
    assert case_names(find_cases(tmp_path / "b")) == ["Brats18_1_2_1"]


@pytest.mark.fault("1.5")
def test_names_that_no_folder_distinguishes_are_refused(tmp_path):
    touch(tmp_path, "A/ct_scan.nii.gz", "A_ct/scan.nii.gz")
    with refused("A_ct_scan", "rename"):
        find_cases(tmp_path)


@pytest.mark.fault("2.1")
def test_every_entry_is_a_case_or_is_named(tmp_path):
    touch(tmp_path, "a.nii", "a.nii.gz", "b.nii.gz", "d.mgz", "h.nii.gz.part", "README.md", ".DS_Store", "extra/f.nii.gz")
    (tmp_path / "c.nii.gz").symlink_to("/nowhere/c.nii.gz")
    os.mkfifo(tmp_path / "e.nii.gz")
    dataset = find_cases(tmp_path)
    problems = {case.name: case.problem for case in dataset.cases if case.problem}
    words = {
        "a": "several files of the same name (a.nii, a.nii.gz)",
        "c": "a link to /nowhere",
        "d": "FreeSurfer",
        "e": "not a regular file",
    }
    words["h"] = ".nii in its name"
    assert set(problems) == set(words) and case_names(dataset).count("b") == 1
    assert all(text in problems[name] for name, text in words.items())
    assert dataset.ignored == "2 entries that are not scans were ignored: .DS_Store, README.md."
    assert len(dataset.warnings) == 1 and "extra" in dataset.warnings[0]


@pytest.mark.fault("2.1")
def test_folders_without_scans_are_named(tmp_path):
    brats = [f"BraTS2021_00000/BraTS2021_00000_{end}.nii.gz" for end in ("flair", "t1", "t1ce", "t2", "seg")]
    touch(tmp_path, *brats, "BraTS2021_00001/1.dcm", "BraTS2021_00001/2.dcm", "docs/x.pdf", "BraTS2021_00000/T1_brain.nii.gz")
    (tmp_path / "P3").mkdir()
    dataset = find_cases(tmp_path)
    assert case_names(dataset) == ["BraTS2021_00001", "BraTS2021_00000", "P3"]
    assert dataset.cases[0].images == (tmp_path / "BraTS2021_00001",) and "is empty" in dataset.cases[2].problem
    assert "docs" in dataset.ignored and "T1_brain" in dataset.warnings[0]


@pytest.mark.fault("2.1")
def test_a_folder_that_cannot_be_read_is_one_case(tmp_path, monkeypatch):
    touch(tmp_path, "P1/P1_T1.nii.gz", "P2/P2_T1.nii.gz")
    scan = os.scandir

    def denied(path):
        if Path(path).name == "P2":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    one, two = find_cases(tmp_path).cases
    assert one.problem is None and two.name == "P2" and "Permission denied" in two.problem


def nnunet(root, labels=("c0.nii.gz", "c1.nii.gz", "c2.nii")):
    touch(root, *(f"imagesTr/c{n}_0000.nii.gz" for n in range(4)), *(f"labelsTr/{name}" for name in labels))
    return write_list(root / "dataset.json", channel_names={"0": "CT"}, labels={"background": 0, "x": 1})


@pytest.mark.fault("2.1")
def test_labels_with_another_ending_are_found_and_missing_ones_are_reported(tmp_path):
    nnunet(tmp_path, ("c0.nii.gz", "c1.nii.gz", "c2.nii", "z.nii.gz"))
    dataset = find_cases(tmp_path)
    assert [case.label and case.label.name for case in dataset.cases] == ["c0.nii.gz", "c1.nii.gz", "c2.nii", None]
    assert [case.name for case in unlabelled(dataset)] == ["c3"]
    assert any("label maps without an image are not used (1)" in text and "z" in text for text in dataset.warnings)


@pytest.mark.fault("2.3")
def test_results_in_the_folder_of_the_scans_are_not_scans(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii.gz", "results/a.nii.gz", "P3.nii.gz")
    record = {"settings": {}, "cases": {"a": {"outputs": {"labels": {"path": "a.nii.gz", "bytes": 1}}}}}
    write_list(tmp_path / "results" / "predict.json", **record)
    dataset = find_cases(tmp_path)
    assert case_names(dataset) == ["P3", "a", "b"] and "results" in dataset.ignored
    write_list(tmp_path / "predict.json", settings={}, cases={"P3": {"outputs": {"labels": {"path": "P3.nii.gz", "bytes": 1}}}})
    assert case_names(find_cases(tmp_path)) == ["a", "b"]


@pytest.mark.fault("2.3")
def test_a_result_never_replaces_a_scan(tmp_path):
    touch(tmp_path, "a.nii.gz")
    with refused("a.nii.gz", "choose another --output"):
        check_no_input_is_replaced(input_cases((tmp_path,), Task.classes(2), None)[0], tmp_path, ("{}.nii.gz",))


@pytest.mark.fault("5.7")
def test_a_fault_of_200_cases_is_reported_once(tmp_path):
    touch(tmp_path, *(f"P{n:03}_T1.nii.gz" for n in range(200)))
    cases = find_cases(tmp_path, channels=("FLAIR", "T1")).cases
    (line,) = problem_lines([(case.name, case.problem) for case in cases])
    assert line.startswith("200 cases for the same reason (P000, P001, P002, P003, P004 and 195 more), such as P000: ")
    with refused("all 200 cases have the same fault", "has no FLAIR image"):
        input_cases((tmp_path,), Task.classes(2, channels=("FLAIR", "T1")), None)


@pytest.mark.fault("2.1")
def test_training_reports_the_cases_that_it_does_not_use(tmp_path, capsys):
    nnunet(tmp_path, ())
    for number in range(4):
        save(tmp_path / f"imagesTr/c{number}_0000.nii.gz", np.arange(120, dtype=np.float32).reshape(SHAPE) + number)
    for number in range(2):
        save(tmp_path / f"labelsTr/c{number}.nii", ball(number))
    collected = collect_cases(Recipe(kind="labels", data=tmp_path, folds=2), tmp_path / "run")
    assert len(collected.train) == len(collected.validation) == 1
    printed = capsys.readouterr().out
    assert (
        "2 of 4 scans have no label map and are not used for training: c2, c3" in printed
        and "2 cases count as 2 patients" in printed
    )
