"""The meaning of labels in `swinunetr evaluate`: the enhancing tumour is 3 or 4, and an ignored label is not scored."""

import json

import numpy as np
import pytest
from helpers.evaluation_data import SHAPE, brats, brats_case, nnunet, record, run, save, scores

from swinunetr_jax import Task


def test_names_and_values_decide_the_label_of_the_enhancing_tumour(tmp_path, capsys):
    """The enhancing tumour has the label 4 up to 2022 and 3 since 2023.

    A prediction with the other label is scored, or the message names the label.
    """
    old, new = "BraTS2021_00001", "BraTS-GLI-00001-000"
    brats_case(tmp_path / "data", new, brats(et=3), modern=True)
    save(tmp_path / "a" / f"{new}.nii.gz", brats(et=3))
    record(tmp_path / "a", Task.brats(et_label=4))  # as predict records it for cases of any year
    assert run(tmp_path / "a", tmp_path / "data") == 0
    assert scores(tmp_path / "a")["means"]["dice_brats"]["ET"]["value"] == 1
    save(tmp_path / "a" / f"{new}.nii.gz", brats(et=4))
    assert run(tmp_path / "a", tmp_path / "data") == 1
    assert "has label 4 and no 3" in scores(tmp_path / "a")["failed"][new]
    # The names of single label maps imply no year, so their values decide.
    save(tmp_path / "refs" / f"{old}.nii.gz", brats(et=4))
    save(tmp_path / "b" / f"{old}.nii.gz", brats(et=3))
    capsys.readouterr()
    assert run(tmp_path / "b", tmp_path / "refs", "--task", "brats") == 0
    assert scores(tmp_path / "b")["means"]["dice_brats"]["mean"]["value"] == 1
    assert "label 3 in the prediction and 4 in the reference" in capsys.readouterr().out
    mixed_labels = brats(et=4)
    mixed_labels[0, 0, 0] = 3
    save(tmp_path / "refs" / f"{old}.nii.gz", mixed_labels)
    assert run(tmp_path / "b", tmp_path / "refs", "--task", "brats") == 1
    assert "labels 3 and 4 occur" in capsys.readouterr().err


def brats_2024(seed=0):
    """Returns labels 1 to 4, of which 3 is the enhancing tumour and 4 the resection cavity."""
    labels = brats(seed, et=3)
    labels[-3:, -4:, :3] = 4
    return labels


CLASSES_2024 = {"NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}
REGIONS_2024 = {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3], "RC": [4], "order": [2, 1, 3, 4]}


@pytest.mark.fault("1.4")
@pytest.mark.parametrize("names", [CLASSES_2024, REGIONS_2024], ids=["classes", "regions"])
def test_labels_3_and_4_that_the_data_set_names_are_scored_unchanged(tmp_path, names):
    data = nnunet(tmp_path / "data", brats_2024(), **names)
    save(tmp_path / "out/c.nii.gz", brats_2024())
    assert run(tmp_path / "out", data) == 0
    assert scores(tmp_path / "out")["means"]["dice_brats"]["mean"]["value"] == 1

    swapped = brats_2024()
    swapped[brats_2024() == 3], swapped[brats_2024() == 4] = 4, 3
    save(tmp_path / "out/c.nii.gz", swapped)
    assert run(tmp_path / "out", data) == 0
    case_scores = scores(tmp_path / "out")["cases"]["c"]
    assert case_scores["ET"]["dice_brats"] == case_scores["RC"]["dice_brats"] == 0
    assert case_scores["ET"]["volume_ml"] == pytest.approx((brats_2024() == 4).sum() * 0.002)

    # The reference has no cavity, and the prediction labels all of the enhancing tumour as cavity.
    nnunet(tmp_path / "data", brats(et=3), **names)
    save(tmp_path / "out/c.nii.gz", brats(et=4))
    record(tmp_path / "out", Task.from_labels({k: v for k, v in names.items() if k != "order"}, names.get("order")))
    assert run(tmp_path / "out", data, "--out", tmp_path / "scores") == 0
    case_scores = scores(tmp_path / "scores")["cases"]["c"]
    assert case_scores["ET"]["dice_brats"] == case_scores["RC"]["dice_brats"] == 0


@pytest.mark.fault("1.4")
def test_the_data_sets_meaning_of_label_3_takes_precedence(tmp_path, capsys):
    """The task has only one of the labels 3 and 4, and dataset.json gives the other label another meaning."""
    data = nnunet(tmp_path / "data", brats(et=3), **CLASSES_2024)
    save(tmp_path / "out/c.nii.gz", brats(et=4))
    assert run(tmp_path / "out", data, "--task", "brats") == 0
    assert scores(tmp_path / "out")["cases"]["c"]["ET"]["dice_brats"] == 0
    assert "label 4 of the prediction belongs to no output" in capsys.readouterr().out
    # predict itself recorded that it wrote the enhancing tumour as 4
    record(tmp_path / "out", Task.brats(), c={"inputs": [], "outputs": {}, "et_label": 4})
    assert run(tmp_path / "out", data) == 0
    assert scores(tmp_path / "out")["means"]["dice_brats"]["mean"]["value"] == 1
    assert "label 4 in the prediction and 3 in the reference" in capsys.readouterr().out


@pytest.mark.fault("1.4")
def test_labels_3_and_4_without_names_are_refused_if_the_cases_disagree(tmp_path, capsys):
    save(tmp_path / "refs/a.nii.gz", brats_2024())
    save(tmp_path / "refs/b.nii.gz", np.where(brats_2024() == 3, 1, brats_2024()).astype(np.uint8))  # a cavity and no tumour
    save(tmp_path / "refs/c.nii.gz", np.zeros(SHAPE, np.uint8))
    for name in ("a", "b", "c"):
        save(tmp_path / f"out/{name}.nii.gz", brats(et=4))
    assert run(tmp_path / "out", tmp_path / "refs", "--task", "brats") == 1
    report = scores(tmp_path / "out")
    assert list(report["cases"]) == ["c"] and sorted(report["failed"]) == ["a", "b"]
    assert "no source states which is the enhancing tumour; put a dataset.json" in capsys.readouterr().err


@pytest.mark.fault("1.4")
def test_an_assumption_is_printed(tmp_path, capsys):
    for name in ("a", "b"):
        save(tmp_path / f"refs/{name}.nii.gz", brats(et=4))
        save(tmp_path / f"out/{name}.nii.gz", brats(et=4))
    assert run(tmp_path / "out", tmp_path / "refs", "--task", "brats") == 0
    assert "a, b: note: no source states whether 3 or 4 is the enhancing tumour; 4 is assumed" in capsys.readouterr().out


def partly_annotated(ignore):
    """Returns a label map of which two slabs, one inside the tumour, are not annotated."""
    labels = brats(et=3)
    labels[4:6], labels[-2:] = ignore, ignore
    return labels


@pytest.mark.fault("1.17")
@pytest.mark.parametrize("names", [{"a": 1, "b": 2, "c": 3}, {"all": [1, 2, 3], "core": [1, 3], "c": 3, "order": [2, 1, 3]}])
def test_ignored_voxels_do_not_affect_the_scores(tmp_path, capsys, names):
    data = nnunet(tmp_path / "data", partly_annotated(4), **names, ignore=4)
    elsewhere = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)
    for wrong in (0, 3, 4, elsewhere):  # whatever was predicted there
        save(tmp_path / "out/c.nii.gz", np.where(partly_annotated(4) == 4, wrong, brats(et=3)).astype(np.uint8))
        for references in (data, data / "labelsTr"):
            assert run(tmp_path / "out", references, "--lesion-wise") == 0
            report = scores(tmp_path / "out")
            assert report["ignore"] == 4
            for metrics in report["cases"]["c"].values():
                assert metrics["dice_brats"] == metrics["dice_nnunet"] == metrics["surface_dice"] == metrics["lesion_dice"] == 1
                assert metrics["hd95_brats"] == metrics["hd95_monai"] == metrics["lesion_hd95"] == 0
                assert metrics["volume_ml"] == metrics["reference_ml"] > 0
                assert metrics["false_positives"] == metrics["missed"] == 0
    volume = (partly_annotated(4) == 4).sum() * 0.002
    assert report["notes"]["c"] == [f"{volume:.3g} ml of the reference has the label 4 (ignore) and does not affect the scores"]
    assert "voxels that have the label 4 (ignore) in the references do not affect the scores" in capsys.readouterr().out
    outside = np.where(partly_annotated(4) == 4, 0, brats(et=3))
    outside[0, 0, 0] = 4
    save(tmp_path / "out/c.nii.gz", outside.astype(np.uint8))
    assert run(tmp_path / "out", data) == 0
    assert "label 4 of the prediction belongs to no output" in scores(tmp_path / "out")["notes"]["c"][0]


@pytest.mark.fault("1.17")
def test_the_ignored_label_is_neither_a_class_nor_a_tumour(tmp_path, capsys):
    data = nnunet(tmp_path / "data", partly_annotated(4), a=1, b=2, c=3, ignore=4)
    save(tmp_path / "out/c.nii.gz", brats(et=3))
    for task in ("classes", "brats"):
        assert run(tmp_path / "out", data, "--task", task) == 0
        assert scores(tmp_path / "out")["means"]["dice_brats"]["mean"]["value"] == 1
    record(tmp_path / "out", Task.classes(5))
    assert run(tmp_path / "out", data) == 2
    assert "label 4 means `ignore` in the data set and class 4 in the task" in capsys.readouterr().err
    nnunet(data, np.full(SHAPE, 4, np.uint8), a=1, b=2, c=3, ignore=4)
    (tmp_path / "out/predict.json").unlink()
    assert run(tmp_path / "out", data) == 1
    assert "nothing can be scored" in scores(tmp_path / "out")["failed"]["c"]


def test_a_reference_with_a_label_above_255_is_refused(tmp_path, capsys):
    labels = np.zeros(SHAPE, np.int32)
    labels[2:5, 2:5, 2:5] = 300
    save(tmp_path / "references" / "case.nii.gz", labels)
    save(tmp_path / "results" / "case.nii.gz", np.ones(SHAPE, np.uint8))
    assert run(tmp_path / "results", tmp_path / "references", "--task", "classes") == 2
    assert "case.nii.gz: label 300 is above 255" in capsys.readouterr().err


def test_a_label_of_thousands_of_digits_is_refused(tmp_path, capsys):
    save(tmp_path / "references" / "labelsTr" / "case.nii.gz", np.ones(SHAPE, np.uint8))
    description = {"labels": {"9" * 5000: "a"}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": 1}
    (tmp_path / "references" / "dataset.json").write_text(json.dumps(description))
    save(tmp_path / "results" / "case.nii.gz", np.ones(SHAPE, np.uint8))
    assert run(tmp_path / "results", tmp_path / "references") == 2
    assert "dataset.json: labels is" in capsys.readouterr().err
