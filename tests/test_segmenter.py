"""The Segmenter: the boxes that windows cover, crops, classes and sizes of windows."""

import nibabel as nib
import numpy as np
import pytest
from flax import nnx
from helpers.prediction import read_image, run
from helpers.small_network import SmallNetwork, forget, replace_swin_unetr

from swinunetr_jax import InputError, SwinUNETR, SwinUNETRConfig, Task, save_checkpoint
from swinunetr_jax.inference.crop import expand_box, foreground_box
from swinunetr_jax.inference.plan import Plan
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.output import Output


def test_expanded_boxes_have_few_shapes():
    """Windows of 96 voxels that overlap by half cover 96, 144, 192, … voxels; the last axis has only 155."""
    overlap, roi, grid = 0.5, (96, 96, 96), (240, 240, 155)
    shapes = set()
    for size in (90, 96, 97, 120, 144, 145, 150, 155):
        box = tuple(slice(length - size, length) for length in grid)
        plan = Plan.of((size,) * 3, roi, overlap)
        covered = expand_box(box, plan.max_extent(overlap), grid)
        assert all(
            outer.start >= 0 and outer.start <= inner.start and inner.stop <= outer.stop <= length
            for inner, outer, length in zip(box, covered, grid)
        )
        shape = tuple(part.stop - part.start for part in covered)
        assert Plan.of(shape, roi, overlap).windows == plan.windows
        shapes.add(shape)
    assert shapes == {(96, 96, 96), (144, 144, 144), (192, 192, 155)}
    assert expand_box((slice(10, 20),), (13,), (40,)) == (slice(9, 22),)
    assert expand_box((slice(1, 20),), (30,), (25,)) == (slice(0, 25),)


def test_the_foreground_box_contains_every_voxel_that_is_not_zero():
    array = np.zeros((5, 4, 3, 2), np.float32)
    assert foreground_box(array) == (slice(0, 5), slice(0, 4), slice(0, 3))  # without any foreground, the whole grid
    array[1, 2, 0, 1] = -1
    array[3, 2, 1, 0] = 2
    assert foreground_box(array) == (slice(1, 4), slice(2, 3), slice(0, 2))


def test_a_crop_requires_a_background_class():
    network = SmallNetwork(SwinUNETRConfig(in_channels=1, out_channels=2, feature_size=12), rngs=nnx.Rngs(0))
    task = Task(kind="classes", outputs=(Output(name="grey", value=1), Output(name="white", value=2)))
    Segmenter([network], task)
    with pytest.raises(InputError, match="grey, white"):
        Segmenter([network], task, crop=True)
    segmenter = Segmenter([network], Task.classes(2), roi=(64, 32, 32), crop=True, overlap=0.0)
    array = np.zeros((80, 32, 32, 1), np.float32)
    array[4:20] = 1
    labels, probabilities, _ = segmenter.run(array, probabilities=True)
    np.testing.assert_array_equal(probabilities[:4], np.broadcast_to(np.float32([1, 0]), (4, 32, 32, 2)))
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    assert not labels[20:].any()


def test_labels_are_the_values_of_the_classes(tmp_path, monkeypatch):
    replace_swin_unetr(monkeypatch)
    network = SmallNetwork(SwinUNETRConfig(in_channels=1, out_channels=3, feature_size=12, depths=(1, 1, 1, 1)), rngs=nnx.Rngs(0))
    save_checkpoint(tmp_path / "net", network, task=Task.classes(3, roi=(64, 32, 32)))
    image = nib.Nifti1Image(np.random.default_rng(0).normal(100, 9, (20, 33, 31)).astype(np.float32), np.eye(4))
    nib.save(image, tmp_path / "scan.nii.gz")
    assert run("predict", "-i", tmp_path / "scan.nii.gz", "-o", tmp_path / "out", "-m", tmp_path / "net") == 0
    assert set(np.unique(read_image(tmp_path / "out/scan.nii.gz")[0])) <= {0, 1, 2}
    monkeypatch.undo()
    forget()


@pytest.mark.fault("5.8")
def test_a_window_size_is_one_number_or_three():
    network = SwinUNETR(SwinUNETRConfig(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1)), rngs=nnx.Rngs(0))
    assert Segmenter([network], Task.classes(2), roi=64).roi == (64, 64, 64)
    for roi, got in ((90, "90 90 90"), ((96, 96), "96 96"), ((), "none"), ((64, 64, -32), "64 64 -32")):
        with pytest.raises(InputError, match=f"three multiples of 32, such as 96 96 96, got {got}"):
            Segmenter([network], Task.classes(2), roi=roi)


def test_the_old_name_of_spatial_shards_works_with_a_warning():
    network = SmallNetwork(SwinUNETRConfig(in_channels=1, out_channels=2, feature_size=12), rngs=nnx.Rngs(0))
    with pytest.warns(DeprecationWarning, match="use `spatial_shards`"):
        assert Segmenter([network], Task.classes(2), depth=1).spatial_shards == 1
    with pytest.warns(DeprecationWarning), pytest.raises(InputError, match="3 devices cannot share windows"):
        Segmenter([network], Task.classes(2), depth=3, roi=64)
