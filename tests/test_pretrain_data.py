"""The data of pre-training: scans without label maps, in any layout, as one-channel cases."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.refusals import refused

from swinunetr_jax import Task
from swinunetr_jax.commands.validate import Validate
from swinunetr_jax.data.discovery.formats import find_cases
from swinunetr_jax.data.discovery.unlabelled import one_channel_cases, without_labels
from swinunetr_jax.training import Augmentation, Optim, Pretrain, Recipe, Validation
from swinunetr_jax.training.data import batches, collect_cases
from swinunetr_jax.training.pretrain.crops import FIRST_NUMBER, held_out_batch
from swinunetr_jax.training.pretrain.objectives import few_views_note
from swinunetr_jax.training.start import intensity_note
from swinunetr_jax.training.validation import full_grid

SHAPE = (20, 40, 24)


def scan(path: Path, *, channels: int = 1, seed: int = 0, offset: float = 0.0) -> np.ndarray:
    """Writes a scan of noise in a border of zeros, and returns its array."""
    shape = SHAPE if channels == 1 else (*SHAPE, channels)
    array = np.zeros(shape, np.float32)
    array[2:-2, 3:-3, 4:-4] = np.random.default_rng(seed).normal(offset, 300, shape)[2:-2, 3:-3, 4:-4]
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 1, 1, 1])), path)
    return array


def recipe(data: Path, **changes) -> Recipe:
    fields = {"kind": "scans", "data": data, "folds": 2, "batch": 2, "augment": Augmentation(())}
    return Recipe(**fields | changes)


def test_scans_with_different_numbers_of_channels_become_one_channel_cases(tmp_path):
    planes = scan(tmp_path / "data" / "stacked" / "stacked.nii.gz", channels=2)
    alone = scan(tmp_path / "data" / "alone" / "alone.nii.gz", seed=1)
    for name in ("flair", "t1"):
        scan(tmp_path / "data" / "patient" / f"patient_{name}.nii.gz", seed=2)
    cases = collect_cases(recipe(tmp_path / "data"), tmp_path / "run")
    found = {case.name: case for case in (*cases.train, *cases.validation)}
    assert set(found) == {"stacked_0", "stacked_1", "alone", "patient_FLAIR", "patient_T1"}
    assert cases.in_channels == 1 and cases.task.kind == "images" and cases.task.channels == ()
    assert [(output.name, output.value) for output in cases.task.outputs] == [("image", 0)]
    for name, expected in (("stacked_0", planes[..., 0]), ("stacked_1", planes[..., 1]), ("alone", alone)):
        image, content = full_grid(found[name])
        np.testing.assert_array_equal(image[..., 0], expected)
        np.testing.assert_array_equal(content, expected != 0)
    # The channels of a patient are never divided between training and validation.
    for part in (cases.train, cases.validation):
        names = {case.name for case in part}
        assert len(names & {"patient_FLAIR", "patient_T1"}) != 1 and len(names & {"stacked_0", "stacked_1"}) != 1
    batch = next(batches(recipe(tmp_path / "data"), cases))
    assert batch["image"].shape == (2, *cases.task.roi, 1) and set(np.unique(batch["label"])) == {0, 1}


def test_named_channels_make_a_network_of_several_channels(tmp_path):
    for number in range(3):
        for name in ("flair", "t1", "t2"):
            scan(tmp_path / f"p{number}" / f"p{number}_{name}.nii.gz", seed=number)
    cases = collect_cases(recipe(tmp_path, channels=("T2", "FLAIR")), tmp_path / "run")
    assert cases.in_channels == 2 and [output.name for output in cases.task.outputs] == ["T2", "FLAIR"]


def test_labels_are_not_read(tmp_path):
    for number in range(4):
        scan(tmp_path / "imagesTr" / f"case_{number}.nii.gz", seed=number)
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "labelsTr" / "case_0.nii.gz").write_bytes(b"no image")
    pairs = [{"image": f"imagesTr/case_{n}.nii.gz", "label": f"labelsTr/case_{n}.nii.gz"} for n in range(4)]
    (tmp_path / "dataset.json").write_text(
        json.dumps({"modality": {"0": "MRI"}, "labels": {"0": "a", "1": "b"}, "training": pairs})
    )
    cases = collect_cases(recipe(tmp_path), tmp_path / "run")
    assert len(cases.train) + len(cases.validation) == 4


def test_the_test_cases_of_a_list_are_not_used_and_this_is_said(tmp_path, capsys):
    for number in range(5):
        scan(tmp_path / f"case_{number}.nii.gz", seed=number)
    pairs = [{"image": f"case_{n}.nii.gz", "label": f"label_{n}.nii.gz"} for n in range(4)]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"modality": {"0": "MRI"}, "training": pairs, "test": ["case_4.nii.gz"]}))
    cases = collect_cases(recipe(path), tmp_path / "run")
    assert len(cases.train) + len(cases.validation) == 4
    assert "1 test scan of the data set's list is not used, so that scores on them stay independent" in " ".join(
        capsys.readouterr().out.split()
    )
    dataset, note = without_labels(find_cases(tmp_path / "case_4.nii.gz"))
    assert note is None and [case.split for case in dataset.cases] == ["training"]


def test_ct_gets_a_wide_window_and_other_scans_a_z_score(tmp_path, capsys):
    for number in range(4):
        scan(tmp_path / "data" / f"case_{number}.nii.gz", seed=number)
    path = tmp_path / "data" / "dataset.json"
    entries = [f"case_{n}.nii.gz" for n in range(4)]
    path.write_text(json.dumps({"modality": {"0": "CT"}, "training": [{"image": e, "label": e} for e in entries]}))
    cases = collect_cases(recipe(path), tmp_path / "run")
    assert cases.task.window == (-1000.0, 1000.0) and "-1000 to 1000 HU are scaled to 0 to 1" in capsys.readouterr().out
    assert all((np.asarray(case.label) == 1).all() for case in cases.train)  # zeros are no background of a CT
    batch = held_out_batch(cases.validation[:1], cases.task, 3, 2)
    assert batch["image"].min() >= 0 and batch["image"].max() <= 1 and batch["image"].shape == (2, *cases.task.roi, 1)
    path.write_text(path.read_text().replace("CT", "MRI"))
    assert collect_cases(recipe(path), tmp_path / "other").task.window is None


def test_held_out_crops_cover_the_middle_of_the_foreground(tmp_path):
    for number in range(2):
        scan(tmp_path / "data" / f"case_{number}.nii.gz", seed=number)
    cases = collect_cases(recipe(tmp_path / "data", roi=(32, 64, 32)), tmp_path / "run")
    case = cases.validation[0]
    batch = held_out_batch([case], cases.task, 3, 2)
    assert batch["sample"].tolist() == [FIRST_NUMBER + 6, FIRST_NUMBER + 7] and batch["sample"].dtype == np.int32
    image, content = full_grid(case)
    for crop, mask in zip(batch["image"], batch["label"]):  # a scan smaller than the crop is in its middle
        assert mask.sum() == content.sum() and (crop[mask == 0] == 0).all()
        assert crop[mask > 0].mean() == pytest.approx(0, abs=1e-4) and crop[mask > 0].std() == pytest.approx(1, abs=1e-3)
    np.testing.assert_array_equal(batch["image"], held_out_batch([case], cases.task, 3, 2)["image"])
    assert image.shape[:3] == SHAPE


def test_a_case_that_lacks_channels_has_those_that_exist(tmp_path):
    for name in ("flair", "t1", "t1ce"):
        scan(tmp_path / "BraTS2021_00001" / f"BraTS2021_00001_{name}.nii.gz")
    for name in ("flair", "t1", "t1ce", "t2"):
        scan(tmp_path / "BraTS2021_00002" / f"BraTS2021_00002_{name}.nii.gz")
    dataset, _ = without_labels(find_cases(tmp_path))
    found = one_channel_cases(dataset.cases)
    assert len(found) == 7 and not any(case.problem for case in found)


def test_faulty_entries_are_reported_as_in_a_training_with_labels(tmp_path, capsys):
    for number in range(3):
        for name in ("t1", "t2"):
            scan(tmp_path / f"scan{number}" / f"scan{number}_{name}.nii.gz", seed=number)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "volume.mnc").write_bytes(b"MINC")  # a format that is not read
    cases = collect_cases(recipe(tmp_path), tmp_path.with_name("run"))
    assert len(cases.train) + len(cases.validation) == 6
    assert "other" in capsys.readouterr().out
    scan(tmp_path / "scan1" / "scan1_t1.nii")  # the same channel twice
    dataset, _ = without_labels(find_cases(tmp_path))
    assert [case.name for case in one_channel_cases(dataset.cases) if case.problem and case.images]


def test_the_validation_cases_of_a_list_with_folds_are_in_every_training_set(tmp_path):
    for number in range(6):
        scan(tmp_path / f"case_{number}.nii.gz", seed=number)
    entries = [{"image": f"case_{n}.nii.gz", "label": f"label_{n}.nii.gz"} for n in range(6)]
    folds = [entry | {"fold": n % 2} for n, entry in enumerate(entries[:4])]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": folds, "validation": entries[4:]}))
    cases = collect_cases(recipe(path), tmp_path / "run")
    assert {case.name for case in cases.train} >= {"case_4", "case_5"} and len(cases.validation) == 2


def test_validate_checks_scans_without_labels(tmp_path, capsys):
    for number in range(3):
        scan(tmp_path / f"case_{number}.nii.gz", seed=number, channels=2)
    pairs = [{"image": f"case_{n}.nii.gz", "label": f"label_{n}.nii.gz"} for n in range(3)]
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"modality": {"0": "T1", "1": "T2"}, "labels": {"0": "a", "1": "b"}, "training": pairs}))
    assert Validate(path).run() == 1 and "label map" in capsys.readouterr().out
    assert Validate(path, unlabelled=True).run() == 0
    text = capsys.readouterr().out
    assert "6 cases" in text and "sound: no error in 6 cases, no warning" in text and "T1: " in text and "T2: " in text
    (tmp_path / "case_1.nii.gz").write_bytes(b"no image")
    assert Validate(path, unlabelled=True).run() == 1
    with refused("--unlabelled reads no label maps, so --label-values has no effect"):
        Validate(path, unlabelled=True, label_values=(0, 1)).run()


def test_a_step_with_few_views_is_reported():
    assert few_views_note("mim", 1) is None and few_views_note("swin3", 8) is None
    assert "a step has 4 views, and contrast needs many" in (few_views_note("swin3", 2) or "")


def test_other_intensities_than_those_of_a_checkpoint_are_reported():
    wide, narrow = (Task.classes(2, intensity="window", window=window) for window in ((-1000, 1000), (-175, 250)))
    assert intensity_note(Path("run"), None, wide) is None and intensity_note(Path("run"), wide, wide) is None
    note = intensity_note(Path("run"), wide, narrow) or ""
    assert "(-1000 to 1000 scaled to 0 to 1) than those of this run (-175 to 250 scaled to 0 to 1)" in note
    assert "(a z-score of each scan)" in (intensity_note(Path("run"), narrow, Task.classes(2)) or "")


def test_mistakes_are_refused_in_one_sentence(tmp_path):
    scan(tmp_path / "data" / "case.nii.gz")
    with refused("the data set has 1 patient", "needs at least 2: add cases"):
        collect_cases(recipe(tmp_path / "data"), tmp_path / "run")
    for changes, word in (
        ({"fold": "all"}, "fold all"),
        ({"class_share": 0.3}, "class_share"),
        ({"deep_supervision": True}, "deep_supervision"),
        ({"validation": Validation(mirror=True)}, "validation.mirror"),
        ({"validation": Validation(pseudo=4)}, "validation.pseudo"),
    ):
        with refused(word, "is for a training with labels, and pre-training has none"):
            replace(recipe(tmp_path), **changes).check()
    swin3 = recipe(tmp_path, task="swin3", batch=8)
    swin3.check()
    for changed, words in (
        (replace(swin3, pretrain=Pretrain(mask_block=8)), "`pretrain.mask_block` is an option of --task mim"),
        (recipe(tmp_path, pretrain=Pretrain(contrast="all")), "`pretrain.contrast` is an option of --task swin3"),
        (
            replace(swin3, optim=Optim(accumulate=4), pretrain=Pretrain(local_batch=4)),
            "a batch of 8 in 4 parts cannot be divided",
        ),
        (replace(swin3, optim=Optim(accumulate=2), pretrain=Pretrain(contrast="all")), "but with --optim.accumulate only a part"),
        (replace(swin3, optim=Optim(ema=0.9)), "--optim.ema averages the network, but not the heads"),
        (replace(swin3, validation=Validation(overlap=0.25)), "validation.overlap"),
    ):
        with refused(words):
            changed.check()
