"""Reading a case on the task's grid: orientation and voxel size, the label with it, and the way back."""

import nibabel as nib
import numpy as np
import pytest
from refusals import refused

from swinunetr_jax.data.cases import Case
from swinunetr_jax.data.nifti import read_volume, write_volume
from swinunetr_jax.data.read_case import read_case, read_case_label
from swinunetr_jax.data.resample import resample, spacing_grid
from swinunetr_jax.inference.prepare import prepare
from swinunetr_jax.task import Task

RAS2 = np.diag([2.0, 2, 2, 1])
LPS = np.array([[-0.9, 0, 0, 30], [0, -1.1, 0, 20], [0, 0, 2.3, -40], [0, 0, 0, 1]])
SHEARED = np.array([[0.9, 0.3, 0, 30], [0, -1.1, 0.4, 20], [0, 0, 2.3, -40], [0, 0, 0, 1]])


def oblique():
    a, b = 0.3, 0.2
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    return nib.affines.from_matvec(x @ z @ np.diag([-0.7, 1.0, 3.0]), [5, -7, 11])


def save(folder, image, label=None, affine=LPS):
    nib.save(nib.Nifti1Image(image, affine), folder / "ct.nii")
    if label is not None:
        nib.save(nib.Nifti1Image(label, affine), folder / "seg.nii")
    return Case("ct", (folder / "ct.nii",), label=folder / "seg.nii" if label is not None else None)


def task(**changes):
    return Task.classes(3, intensity="none", **changes)


def noise(shape=(11, 9, 7)):
    return np.random.default_rng(0).normal(50, 20, shape).astype(np.float32)


def test_a_grid_of_half_the_voxels():
    line = np.arange(5, dtype=np.float32).reshape(5, 1, 1) * 10
    shape, target = spacing_grid((5, 1, 1), RAS2, (4, 2, 2))
    assert shape == (3, 1, 1)
    np.testing.assert_allclose(target, np.diag([4.0, 2, 2, 1]))
    assert resample(line, RAS2, shape, target).ravel().tolist() == [0, 20, 40]
    shape, target = spacing_grid((5, 1, 1), RAS2, (3, 2, 2))  # voxels at 0, 3, 6, 9 mm; the last lies outside
    assert resample(line, RAS2, shape, target).ravel().tolist() == [0, 15, 30, 40]
    assert resample(line, RAS2, shape, target, nearest=True).ravel()[[0, 2, 3]].tolist() == [0, 30, 40]


def test_orientation_and_label(tmp_path):
    image, label = noise(), np.zeros((11, 9, 7), np.uint8)
    label[1, 2, 3] = 2
    case = save(tmp_path, image, label)  # stored LPS
    read = read_case(case, task(orientation="RAS"), 1)
    assert read.array.shape == (11, 9, 7, 1) and read.array.dtype == np.float32 and read.orientation == "RAS"
    np.testing.assert_array_equal(read.array[..., 0], image[::-1, ::-1])
    np.testing.assert_allclose(read.affine @ [9, 6, 3, 1], LPS @ [1, 2, 3, 1], rtol=1e-6)
    turned = read_case_label(case, read)
    assert turned.dtype == np.uint8 and np.argwhere(turned).tolist() == [[9, 6, 3]]
    np.testing.assert_array_equal(read.back.apply(turned), label)
    assert nib.aff2axcodes(read_case(case, task(), 1).affine) == ("L", "P", "S")


def test_the_spacing_a_scan_has_already_changes_nothing(tmp_path):
    case = save(tmp_path, noise())
    stored = read_case(case, task(), 1)
    same = read_case(case, task(spacing=(0.9, 1.1004, 2.3)), 1)
    np.testing.assert_array_equal(same.array, stored.array)
    np.testing.assert_allclose(same.affine, stored.affine, atol=1e-12)


@pytest.mark.parametrize("affine", [LPS, oblique(), SHEARED, RAS2], ids=["LPS", "oblique", "sheared", "RAS"])
@pytest.mark.parametrize("spacing", [(1.3, 0.8, 1.7), (1.5, 1.5, 2.0), (0.61, 2.57, 3.14)])
def test_the_same_voxels_as_monai(tmp_path, affine, spacing):
    pytest.importorskip("monai")
    from monai.data import MetaTensor
    from monai.transforms import Compose, Orientation, Spacing

    shape = (13, 10, 7)
    labels = np.random.default_rng(1).integers(0, 3, shape).astype(np.uint8)
    case = save(tmp_path, noise(shape), labels, affine)
    read = read_case(case, task(orientation="RAS", spacing=spacing), 1)
    stored = read.scan.affine  # rounded to float32 in the file

    def theirs(array, mode):
        monai = Compose([Orientation(axcodes="RAS", labels=None), Spacing(spacing, mode=mode)])
        return monai(MetaTensor(array[None], affine=stored))

    want = theirs(noise(shape), "bilinear")
    np.testing.assert_allclose(read.affine, want.affine.numpy(), atol=1e-5)
    np.testing.assert_allclose(read.array[..., 0], want[0].numpy(), rtol=1e-5, atol=1e-5)
    # halfway between two voxels the nearest one is a matter of rounding: there alone the labels may differ
    inside = np.linalg.solve(read.scan.affine, read.affine)[:3, :3] @ np.indices(read.array.shape[:3]).reshape(3, -1)
    halfway = (np.abs(np.abs(inside - np.rint(inside)) - 0.5) < 1e-6).any(0).reshape(read.array.shape[:3])
    differ = read_case_label(case, read) != theirs(labels, "nearest")[0].numpy()
    assert not (differ & ~halfway).any()


@pytest.mark.parametrize("affine", [LPS, oblique(), SHEARED], ids=["LPS", "oblique", "sheared"])
def test_back_on_the_scans_own_grid(tmp_path, affine):
    label = np.zeros((15, 12, 9), np.uint8)
    label[4:11, 3:9, 2:7] = 1
    case = save(tmp_path, noise(label.shape), label, affine)
    prepared = prepare(case, task(orientation="RAS", spacing=(0.5, 0.5, 0.5)), 1)
    fine = read_case_label(case, read_case(case, task(orientation="RAS", spacing=(0.5, 0.5, 0.5)), 1))
    assert fine.shape == prepared.array.shape[:3] != label.shape
    again = prepared.back.apply(fine)
    assert again.dtype == np.uint8 and again.shape == label.shape
    if affine is SHEARED:  # right angles lose the corners of a sheared box
        assert (again != label).mean() < 0.05
    else:
        np.testing.assert_array_equal(again, label)
    # a value that grows evenly in space comes back as it is, where the finer grid reaches
    ramp = np.stack([np.tensordot(axis, np.indices(fine.shape), 1) for axis in np.eye(3)], axis=-1).astype(np.float32)
    back = prepared.back.apply(ramp)
    assert back.shape == (*label.shape, 3) and back.dtype == np.float32
    want = np.moveaxis(np.indices(label.shape), 0, -1) @ prepared.scan.affine[:3, :3].T + prepared.scan.affine[:3, 3]
    grid = prepared.back.affine
    want = (want - grid[:3, 3]) @ np.linalg.inv(grid[:3, :3]).T
    reached = ((want >= 0) & (want <= np.array(fine.shape) - 1)).all(-1)
    assert reached.mean() > 0.6
    np.testing.assert_allclose(back[reached], want[reached], atol=1e-4)
    path = write_volume(tmp_path / "out.nii.gz", again, prepared.scan)
    np.testing.assert_array_equal(read_volume(path).affine, prepared.scan.affine)


def test_labels_that_do_not_fit(tmp_path):
    case = save(tmp_path, noise())
    read = read_case(case, task(), 1)
    with refused("ct.nii", "no label map"):
        read_case_label(case, read)
    high = np.zeros((11, 9, 7), np.int32)
    high[0, 0, 0] = 300
    case = save(tmp_path, noise(), high)
    with refused("seg.nii", "label 300 is above 255"):
        read_case_label(case, read)
    nib.save(nib.Nifti1Image(np.zeros((11, 9, 7), np.uint8), oblique()), tmp_path / "seg.nii")
    with refused("do not lie on the same grid"):
        read_case_label(case, read)
