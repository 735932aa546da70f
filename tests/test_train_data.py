"""The cases and the samples of a run: labels, windows of CT, lists, mirroring, and grids that differ."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from swinunetr_jax import InputError, Task
from swinunetr_jax.data.augment.crops import RandomCrop
from swinunetr_jax.data.augment.transforms import RandomFlip
from swinunetr_jax.inference.prepare import normalized
from swinunetr_jax.training import (
    Augment,
    Recipe,
)
from swinunetr_jax.training.data import Cases, batches, class_notes, collect_cases, grid_notes
from swinunetr_jax.training.transforms import host_transforms
from swinunetr_jax.training.validation import can_crop, case_dice, full_grid


def dataset(root: Path, values: tuple[int, ...], modality: str | None = None, **lists) -> Path:
    """Writes six tiny cases with the labels `values` and their list. With a modality, the list also names the labels."""
    rng = np.random.default_rng(0)
    for number in range(6):
        for kind, array in (
            ("image", rng.normal(0, 300, (20, 40, 24)).astype(np.float32)),
            ("label", rng.choice(values, (20, 40, 24)).astype(np.uint8)),
        ):
            nib.save(nib.Nifti1Image(array, np.diag([2.0, 1, 1, 1])), root / f"{kind}{number}.nii.gz")
    entries = [{"image": f"image{n}.nii.gz", "label": f"label{n}.nii.gz"} for n in range(6)]
    names = {} if modality is None else {"modality": {"0": modality}, "labels": {str(v): f"organ {v}" for v in values}}
    path = root / "dataset.json"
    path.write_text(json.dumps(names | ({"training": entries} if not lists else {k: entries[v] for k, v in lists.items()})))
    return path


def test_labels_without_names_are_read_from_the_label_maps(tmp_path):
    cases = collect_cases(Recipe(kind="labels", data=dataset(tmp_path, (0, 1, 3)), folds=3), tmp_path / "run")
    assert [(output.name, output.value) for output in cases.task.outputs] == [("background", 0), ("label 1", 1), ("label 3", 3)]
    assert cases.task.roi == (32, 64, 32) and cases.in_channels == 1
    assert len(cases.train) == 4 and len(cases.validation) == 2
    scans = cases.task.scans  # of the training cases, for warnings about other scans
    assert scans.orientations == ("RAS",) and scans.spacing_mm == ((2.0, 2.0), (1.0, 1.0), (1.0, 1.0))
    assert scans.extent_mm == ((40.0, 40.0), (40.0, 40.0), (24.0, 24.0)) and len(scans.mean) == 1
    means = sorted(float(np.asarray(case.image).mean()) for case in cases.train)
    assert scans.mean[0] == pytest.approx((means[0], means[-1]), rel=1e-3)


def test_ct_has_the_same_window_in_training_and_validation(tmp_path):
    recipe = Recipe(kind="labels", data=dataset(tmp_path, (0, 2), "CT"), folds=3, batch=2, augment=Augment(flips=()))
    cases = collect_cases(recipe, tmp_path / "run")
    assert (cases.task.intensity, cases.task.window) == ("window", (-175.0, 250.0))
    assert [output.name for output in cases.task.outputs] == ["background", "organ 2"]
    batch = next(batches(recipe, cases))
    image, reference = full_grid(cases.validation[0])
    windowed = normalized(image, cases.task)
    assert windowed.min() == 0 and windowed.max() == 1 and reference.shape == (20, 40, 24)
    assert batch["image"].min() >= -0.1 and batch["image"].max() <= 1.2  # at most a tenth brighter or darker
    assert 0.3 < batch["image"][batch["image"] > 0.01].mean() < 0.7
    assert not can_crop(cases.task)


def test_the_validation_list_of_the_data_set_is_used(tmp_path):
    data_list = dataset(tmp_path, (0, 1), training=slice(0, 4), validation=slice(4, 6))
    cases = collect_cases(Recipe(kind="labels", data=data_list, fold=None), tmp_path / "run")
    assert cases.names == {"train": [f"image{n}" for n in range(4)], "validation": ["image4", "image5"]}


def test_a_wrong_base_folder_is_reported_in_one_sentence_for_all_cases(tmp_path):
    data_list = dataset(tmp_path, (0, 1))
    for image in tmp_path.glob("image*.nii.gz"):
        image.unlink()
    with pytest.raises(InputError) as refused:
        collect_cases(Recipe(kind="labels", data=data_list), tmp_path / "run")
    message = str(refused.value)
    assert message.count("does not exist") == 1 and "6 cases" in message and "image0" in message and "--base" in message


def two_kidneys(tmp_path: Path) -> Path:
    data_list = dataset(tmp_path, (0, 1, 2), "MRI")
    values = json.loads(data_list.read_text()) | {"labels": {"0": "background", "1": "kidney_left", "2": "kidney_right"}}
    data_list.write_text(json.dumps(values))
    return data_list


def axes_of_samples(recipe: Recipe, cases: Cases, monkeypatch) -> tuple[int, ...]:
    """Returns the axes along which samples of these cases are mirrored."""
    used = []
    monkeypatch.setattr("swinunetr_jax.training.data.TrainingData", lambda _, transforms, **__: used.extend(transforms))
    batches(recipe, cases)
    return next(transform.axes for transform in used if isinstance(transform, RandomFlip))


@pytest.mark.fault("1.0")
def test_samples_are_not_mirrored_along_an_axis_if_labels_name_its_sides(tmp_path, capsys, monkeypatch):
    recipe = Recipe(kind="labels", data=two_kidneys(tmp_path), folds=3, batch=2)
    assert collect_cases(recipe, tmp_path / "run").flips == ()  # 300 passes over four cases are few samples
    assert "this one has 1200 samples and sees each case 300 times" in capsys.readouterr().out
    recipe = replace(recipe, epochs=500)
    cases = collect_cases(recipe, tmp_path / "run")
    assert cases.flips == (1, 2)
    text = capsys.readouterr().out
    assert "samples are not mirrored along axis 0 (left-right: kidney_left, kidney_right)" in text and "--augment.flips" in text
    reoriented = collect_cases(replace(recipe, orientation="SAL"), tmp_path / "run")
    assert reoriented.flips == (0, 1)
    chosen = collect_cases(replace(recipe, augment=Augment(flips=(0,))), tmp_path / "run")
    assert chosen.flips == (0,)
    warning = capsys.readouterr().err
    assert "mirrored along axis 0 (left-right: kidney_left, kidney_right), as --augment.flips asks" in warning
    for mirrored in (cases, chosen):
        assert axes_of_samples(recipe, mirrored, monkeypatch) == mirrored.flips


def test_ignored_voxels_are_trained_on_and_scored_as_if_they_did_not_exist(tmp_path):
    data_list = dataset(tmp_path, (0, 1, 2, 5), "CT")
    label_names = {"0": "background", "1": "liver", "2": "tumour", "5": "ignore"}
    data_list.write_text(json.dumps(json.loads(data_list.read_text()) | {"labels": label_names}))
    recipe = Recipe(kind="labels", data=data_list, folds=3, batch=2, augment=Augment(flips=()))
    cases = collect_cases(recipe, tmp_path / "run")
    assert cases.task.ignore == 5 and [output.name for output in cases.task.outputs] == ["background", "liver", "tumour"]
    assert 5 in next(batches(recipe, cases))["label"]
    reference = np.array([[[0, 1, 2, 5, 5]]], np.uint8)
    right, wrong = np.array([[[0, 1, 2, 1, 2]]], np.uint8), np.array([[[1, 1, 2, 1, 2]]], np.uint8)
    assert case_dice(right, reference, cases.task) == {"liver": 1.0, "tumour": 1.0}
    assert case_dice(wrong, reference, cases.task) == {"liver": 2 / 3, "tumour": 1.0}
    nib.save(nib.Nifti1Image(np.full((20, 40, 24), 5, np.uint8), np.diag([2.0, 1, 1, 1])), tmp_path / "label3.nii.gz")
    with pytest.raises(InputError, match="every voxel has the label 5, which is ignored; annotate voxels, or leave the case out"):
        collect_cases(recipe, tmp_path / "run")


def test_a_share_of_each_batch_is_centred_on_a_class(tmp_path, capsys):
    """A rare class of one voxel, which a crop at a random position seldom contains, is in about half of the last samples of batches."""
    data_list = dataset(tmp_path, (0, 1), "MRI")
    label_names = {"0": "background", "1": "organ", "2": "lesion", "3": "absent"}
    data_list.write_text(json.dumps(json.loads(data_list.read_text()) | {"labels": label_names}))
    for number in range(6):
        label = np.zeros((20, 40, 24), np.uint8)
        label[:, 20:30], label[3, 2, 20] = 1, 2
        nib.save(nib.Nifti1Image(label, np.diag([2.0, 1, 1, 1])), tmp_path / f"label{number}.nii.gz")
    recipe = Recipe(
        kind="labels", data=data_list, folds=3, batch=2, roi=(32, 32, 64), class_share=0.33, augment=Augment(flips=())
    )
    cases = collect_cases(recipe, tmp_path / "run")
    printed = capsys.readouterr()
    assert (
        "33 % of the samples are centred on a voxel of a class" in printed.out
        and "those of organ, lesion, absent that" in printed.out
    )
    first, second = [line for line in printed.err.splitlines() if line.startswith("warning")]
    assert class_notes(cases.task, cases.train, [], sampled=False) == [second.removeprefix("warning: ")]
    class_voxels = replace(cases.validation[0].class_voxels, counts=(9, 0, 0))
    (lesion, _) = class_notes(cases.task, cases.train, [replace(cases.validation[0], class_voxels=class_voxels)], sampled=False)
    assert lesion.startswith("lesion occurs in no validation case") and "choose another fold" in lesion
    assert "lesion has at most 1 voxel in any training case, fewer than the 8 of one patch" in first
    assert "absent occurs in no training case" in second
    pipeline = batches(recipe, cases)
    samples = [next(pipeline)["label"] for _ in range(40)]
    pipeline.close()
    lesion = np.array([[(sample == 2).any() for sample in labels] for labels in samples]).mean(axis=0)
    assert 0.35 < lesion[1] < 0.65  # about half of these samples are centred on the lesion
    assert [
        crop.size for crop in host_transforms(replace(recipe, class_share=0.0), cases.task, ()) if isinstance(crop, RandomCrop)
    ]
    with pytest.raises(InputError, match=r"`class_share` must be between 0 and 1, got 1\.5"):
        replace(recipe, class_share=1.5).check()
    with pytest.raises(InputError, match="the recipe gives a function for `transforms`: leave one of them out"):
        replace(recipe, transforms=lambda task: []).check()


@pytest.mark.fault("5.17")
def test_mixed_orientations_and_voxel_sizes_are_reported():
    ras, lps, thick = np.eye(4), np.diag([-1.0, -1, 1, 1]), np.diag([1.0, 1, 5, 1])
    task = Task.classes(2)
    assert grid_notes(task, [ras, ras]) == []
    (note,) = grid_notes(task, [ras, ras, lps])
    assert "2 orientations, RAS (2), LPS (1)" in note and "--orientation RAS" in note and note.endswith(".")
    (note,) = grid_notes(task, [ras, thick, thick])
    assert "superior-inferior 1 to 5 mm" in note and "left-right" not in note and "--spacing 1 1 5" in note
    sagittal = np.array([[0, 0, -1.0, 0], [2, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]])  # the same voxels in another order
    assert len(grid_notes(task, [sagittal, np.diag([1.0, 2, 3, 1])])) == 1
    assert grid_notes(Task.classes(2, spacing=(1.0, 1.0, 1.0), orientation="RAS"), [ras, ras]) == []
