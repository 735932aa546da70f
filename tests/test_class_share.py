"""Sampling by class: the samples centred on a class, the stored voxels of classes, and the position of crops around them."""

import numpy as np
import pytest
from helpers.training_cases import BRATS, prepare, write_case

from swinunetr_jax.data.augment.class_share import ClassShare
from swinunetr_jax.data.augment.crops import CropByClass, CropByLabel, ForegroundCrop, RandomCrop, SourceCrop
from swinunetr_jax.data.prepare import class_voxels
from swinunetr_jax.data.prepare.class_voxels import ClassVoxels, class_names, find_class_voxels
from swinunetr_jax.output import Output
from swinunetr_jax.task import Task

ALWAYS = ClassShare(1.0, 2)


@pytest.mark.parametrize(("batch", "share", "chosen"), [(2, 0.33, [1]), (4, 0.33, [3]), (4, 0.5, [2, 3]), (8, 0.33, [5, 6, 7])])
def test_the_last_samples_of_each_batch_are_centred_on_a_class_as_in_nnunet(batch, share, chosen):
    by_class = ClassShare(share, batch)
    for step in range(3):
        assert [position for position in range(batch) if by_class.chooses(step * batch + position)] == chosen


def test_the_share_of_batches_of_one_holds_over_the_run():
    assert sum(ClassShare(0.33, 1).chooses(number) for number in range(100)) == 33
    assert sum(ClassShare(0.1, 2).chooses(number) for number in range(100)) == 10
    assert not any(ClassShare(0.0, 2).chooses(number) for number in range(10))
    assert all(ALWAYS.chooses(number) for number in range(10))


def test_voxels_of_each_class_are_listed_up_to_a_number(monkeypatch):
    label = np.zeros((6, 7, 8), np.uint8)
    label[1:3], label[5, 6, 7], label[0] = 1, 2, 9
    task = Task.classes(4, ignore=9)
    voxels, counts = find_class_voxels(label, task)
    assert counts == [112, 1, 0] and class_names(task) == ("class 1", "class 2", "class 3")
    assert (voxels[:112] == np.argwhere(label == 1)).all() and voxels[112].tolist() == [5, 6, 7]
    regions = Task(
        kind="regions", outputs=(Output(name="all", value=1, members=(1, 2)), Output(name="one", value=2)), paint=(0, 1)
    )
    assert find_class_voxels(label, regions)[1] == [113, 1]
    monkeypatch.setattr(class_voxels, "MAX_VOXELS", 10)
    limited, counts = find_class_voxels(label, task)
    assert counts == [10, 1, 0] and (label[tuple(limited[:10].T)] == 1).all() and len(np.unique(limited[:10], axis=0)) == 10
    assert (find_class_voxels(label, task)[0] == limited).all()


def example(tmp_path, sample=0):
    """Returns an example of 20×21×22 voxels: class 1 has half of them and class 2 has one."""
    label = np.zeros((20, 21, 22), np.uint8)
    label[10:], label[0, 20, 4] = 1, 2
    voxels, counts = find_class_voxels(label, Task.classes(4))
    np.save(tmp_path / "voxels.npy", voxels)
    image = np.ones((*label.shape, 1), np.float32)
    return {
        "image": image,
        "label": label,
        "class_voxels": ClassVoxels(tmp_path / "voxels.npy", tuple(counts)),
        "foreground": {0.0: ((0, 20), (0, 21), (6, 22))},
        "sample": sample,
    }


@pytest.mark.parametrize(
    ("base", "first"), [(RandomCrop((5, 6, 7)), (0, 15, 1)), (CropByLabel((5, 6, 7), inside=ForegroundCrop()), (0, 15, 4))]
)
def test_the_class_is_drawn_first_and_its_voxel_is_the_centre(tmp_path, base, first):
    """The crop around (0, 20, 4) is moved into the volume, or into the foreground, which is extended to that voxel."""
    sample_case, rng = example(tmp_path), np.random.default_rng(0)
    crop = CropByClass(base, ALWAYS)
    starts = [crop.draw(rng, sample_case) for _ in range(400)]
    assert 150 < starts.count(first) < 250
    crops = [crop.apply(sample_case, start) for start in starts]
    assert all(part["image"].shape == (5, 6, 7, 1) and part["label"].any() for part in crops)
    assert (crops[starts.index(first)]["label"] == 2).sum() == 1
    assert len(set(starts)) > 100


def test_a_crop_with_a_margin_has_the_same_centre(tmp_path):
    """The margin may extend beyond the volume."""
    sample_case = example(tmp_path)
    crop = CropByClass(RandomCrop((5, 6, 7), inside=ForegroundCrop()), ALWAYS)
    for seed in range(10):
        part, source = (t(sample_case, np.random.default_rng(seed)) for t in (crop, SourceCrop(crop, (9, 10, 11))))
        assert source["label"].shape == (9, 10, 11)
        np.testing.assert_array_equal(source["label"][2:7, 2:8, 2:9], part["label"])
        np.testing.assert_array_equal(source["image"][2:7, 2:8, 2:9], part["image"])


def test_other_samples_and_cases_without_a_class_are_cropped_as_usual(tmp_path):
    base = RandomCrop((5, 6, 7), inside=ForegroundCrop())
    usual = base(example(tmp_path), np.random.default_rng(3))
    for by_class, sample, counts in ((ClassShare(0.5, 2), 0, (1, 1, 1)), (ALWAYS, 1, (0, 0, 0))):
        sample_case = example(tmp_path, sample)
        sample_case["class_voxels"] = ClassVoxels(tmp_path / "voxels.npy", counts)
        got = CropByClass(base, by_class)(sample_case, np.random.default_rng(3))
        np.testing.assert_array_equal(got["label"], usual["label"])
        np.testing.assert_array_equal(got["image"], usual["image"])


def test_a_volume_smaller_than_the_crop_is_padded_on_both_sides(tmp_path):
    crop = CropByClass(RandomCrop((32, 32, 32)), ALWAYS)
    sample_case = example(tmp_path)
    start = crop.draw(np.random.default_rng(0), sample_case)
    assert start == (-6, -5, -5)
    assert (crop.apply(sample_case, start)["label"] > 0).sum() == (sample_case["label"] > 0).sum()


def test_prepared_cases_hold_the_voxels_of_their_classes(tmp_path):
    (case,) = prepare([write_case(tmp_path / "data")], tmp_path / "cache")
    assert case.class_voxels.counts == (2, 3, 1) and class_names(BRATS) == ("TC", "WT", "ET")
    drawn = {case.class_voxels.draw(np.random.default_rng(seed)) for seed in range(30)}
    assert {int(case.label[voxel]) for voxel in drawn} == {1, 2, 4}
