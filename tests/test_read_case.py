"""Reading a case on the task's grid: orientation, voxel size, the label, and the inverse."""

import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from helpers.refusals import refused

from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.nifti import read_volume, write_volume
from swinunetr_jax.data.prepare.read_case import read_case, read_case_label
from swinunetr_jax.data.prepare.resample import interpolated, resample, resample_labels, spacing_grid
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
    shape, target = spacing_grid((5, 1, 1), RAS2, (3, 2, 2))  # voxels at 0, 3, 6, 9 mm; the last is outside the scan
    assert resample(line, RAS2, shape, target).ravel().tolist() == [0, 15, 30, 40]
    assert resample_labels(line.astype(np.uint8), RAS2, shape, target).ravel()[[0, 2, 3]].tolist() == [0, 30, 40]


def test_orientation_and_label(tmp_path):
    image, label = noise(), np.zeros((11, 9, 7), np.uint8)
    label[1, 2, 3] = 2
    case = save(tmp_path, image, label)  # stored LPS
    read_scan = read_case(case, task(orientation="RAS"), 1)
    assert read_scan.array.shape == (11, 9, 7, 1) and read_scan.array.dtype == np.float32 and read_scan.orientation == "RAS"
    np.testing.assert_array_equal(read_scan.array[..., 0], image[::-1, ::-1])
    np.testing.assert_allclose(read_scan.affine @ [9, 6, 3, 1], LPS @ [1, 2, 3, 1], rtol=1e-6)
    reoriented = read_case_label(case, read_scan)
    assert reoriented.dtype == np.uint8 and np.argwhere(reoriented).tolist() == [[9, 6, 3]]
    np.testing.assert_array_equal(read_scan.back.apply(reoriented), label)
    assert nib.aff2axcodes(read_case(case, task(), 1).affine) == ("L", "P", "S")


def test_a_scan_that_has_the_spacing_already_is_unchanged(tmp_path):
    case = save(tmp_path, noise())
    stored = read_case(case, task(), 1)
    resampled = read_case(case, task(spacing=(0.9, 1.1004, 2.3)), 1)
    np.testing.assert_array_equal(resampled.array, stored.array)
    np.testing.assert_allclose(resampled.affine, stored.affine, atol=1e-12)


@pytest.mark.parametrize("affine", [LPS, oblique(), SHEARED, RAS2], ids=["LPS", "oblique", "sheared", "RAS"])
@pytest.mark.parametrize("spacing", [(1.3, 0.8, 1.7), (1.5, 1.5, 2.0), (0.61, 2.57, 3.14)])
def test_resampled_voxels_equal_those_of_monai(tmp_path, affine, spacing):
    pytest.importorskip("monai")
    from monai.data import MetaTensor
    from monai.transforms import Compose, Orientation, Spacing

    shape = (13, 10, 7)
    labels = np.random.default_rng(1).integers(0, 3, shape).astype(np.uint8)
    case = save(tmp_path, noise(shape), labels, affine)
    read_scan = read_case(case, task(orientation="RAS", spacing=spacing), 1)
    stored = read_scan.scan.affine  # rounded to float32 in the file

    def by_monai(array, mode):
        transform = Compose([Orientation(axcodes="RAS", labels=None), Spacing(spacing, mode=mode)])
        return transform(MetaTensor(array[None], affine=stored))

    expected = by_monai(noise(shape), "bilinear")
    np.testing.assert_allclose(read_scan.affine, expected.affine.numpy(), atol=1e-5)
    np.testing.assert_allclose(read_scan.array[..., 0], expected[0].numpy(), rtol=1e-5, atol=1e-5)
    votes = np.stack([by_monai((labels == label).astype(np.float32), "bilinear")[0].numpy() for label in range(3)])
    check_most_votes(read_case_label(case, read_scan), votes)


def check_most_votes(labels, votes):
    """Asserts that each label has the most votes, and that few voxels are ties, because ties would make the test meaningless."""
    votes_of_labels = np.take_along_axis(votes, labels[None].astype(int), 0)[0]
    assert (votes_of_labels >= votes.max(0) - 2e-3).all()
    ordered = np.sort(votes, 0)
    assert (ordered[-1] - ordered[-2] < 2e-3).mean() < 0.3


@pytest.mark.fault("1.2")
@pytest.mark.parametrize("affine", [LPS, oblique(), SHEARED], ids=["LPS", "oblique", "sheared"])
def test_a_label_map_is_the_argmax_of_its_resampled_masks_however_many_labels_it_has(affine):
    labels = np.random.default_rng(0).integers(0, 200, (11, 9, 8)).astype(np.int32) * 1000
    shape, target = spacing_grid(labels.shape, affine, (1.3, 0.8, 1.7))
    resampled = resample_labels(labels, affine, shape, target)
    values = np.unique(labels)
    masks = np.stack([labels == value for value in values], -1).astype(np.float32)
    votes = np.moveaxis(resample(masks, affine, shape, target), -1, 0)
    assert resampled.dtype == labels.dtype
    check_most_votes(np.searchsorted(values, resampled), votes)


def ellipsoid(shape, affine, centre, radii):
    """Returns the squared distance of each voxel from the centre, where the surface of the ellipsoid has the distance 1."""
    positions = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    return (((positions - centre) / radii) ** 2).sum(-1)


def extent(mask, affine):
    """Returns (centre of mass in mm, volume in mm³)."""
    centre = affine[:3, :3] @ np.argwhere(mask).mean(0) + affine[:3, 3]
    return centre, mask.sum() * abs(np.linalg.det(affine[:3, :3]))


@pytest.mark.fault("1.2")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((2, 2, 2), (1, 1, 1)),
        ((1, 1, 5), (1, 1, 2.5)),
        ((3, 3, 3), (1, 1, 1)),
        ((1, 1, 1), (1.5, 1.5, 1.5)),
        ((1, 1, 1), (2, 2, 2)),
    ],
)
def test_a_symmetric_object_keeps_its_centre_and_its_size(old, new):
    """This holds for nested and neighbouring labels. Nearest-neighbour resampling moved all of them by half a voxel if old/new is even."""
    affine = np.diag([*old, 1.0])
    shape = tuple(int(48 // size) + 1 for size in old)
    centre = affine[:3, :3] @ (np.array(shape) // 2)
    squared_distance = ellipsoid(shape, affine, centre, (16, 14, 15))
    labels = np.where(squared_distance < 0.3, 3, np.where(squared_distance < 1, 1, 0)).astype(np.uint8)
    # The halves have different labels, and the middle plane belongs to the left half.
    labels[np.indices(shape)[0] > shape[0] // 2] *= 2
    grid, target = spacing_grid(shape, affine, new)
    resampled = resample_labels(labels, affine, grid, target)
    for members in ((1, 2, 3, 6), (3, 6), (1, 3), (2, 6)):
        before, after = (extent(np.isin(a, members), m) for a, m in ((labels, affine), (resampled, target)))
        assert np.abs(after[0] - before[0]).max() <= 0.2 * max(new), members
        assert abs(after[1] / before[1] - 1) < (0.08 if max(new) <= max(old) else 0.12), members


@pytest.mark.fault("1.2")
def test_a_box_halved_in_voxel_size_keeps_its_faces_on_average():
    """All voxels on the faces of the box are ties, half of which are assigned to the box, so that each face keeps its position."""
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[3:9, 4:8, 2:10] = 5
    shape, target = spacing_grid(labels.shape, np.diag([2.0, 2, 2, 1]), (1, 1, 1))
    resampled = resample_labels(labels, np.diag([2.0, 2, 2, 1]), shape, target)
    (centre, volume), (centre_before, volume_before) = extent(resampled, target), extent(labels, np.diag([2.0, 2, 2, 1]))
    np.testing.assert_allclose(centre, centre_before, atol=0.05)
    assert volume == pytest.approx(volume_before, rel=0.05)
    for axis in range(3):
        np.testing.assert_array_equal(np.unique(resampled), np.unique(labels))
        np.testing.assert_array_equal((resampled > 0).sum(axis), np.flip((resampled > 0).sum(axis)))  # no side is favoured


@pytest.mark.fault("1.2")
def test_memory_of_resampling_labels_does_not_grow_with_their_number(monkeypatch):
    monkeypatch.setattr("swinunetr_jax.data.prepare.resample.PIECE_VOXELS", 4096)
    labels = (np.indices((40, 40, 40)).sum(0) * 2).astype(np.uint8)  # 118 labels
    shape, target = spacing_grid(labels.shape, RAS2, (1, 1, 1))
    tracemalloc.start()
    try:
        resampled = resample_labels(labels, RAS2, shape, target)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < resampled.nbytes + 4096 * 500  # 500 bytes for each voxel of a piece


@pytest.mark.fault("1.2")
@pytest.mark.parametrize("slices", [24, 26])
def test_a_size_that_is_a_tie_does_not_depend_on_rounding(slices):
    """The first and the last of 24 slices of 3 mm are 34.5 steps of 2 mm apart, so there are 35.5 voxels, which is rounded to even: 36."""
    rng, sizes = np.random.default_rng(0), set()
    for _ in range(40):
        rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        affine = nib.affines.from_matvec((rotation @ np.diag([0.7, 0.7, 3.0])).astype(np.float32), rng.normal(size=3) * 100)
        affine[:3, :3] *= 1 + rng.normal() * 1e-7
        sizes.add(spacing_grid((30, 30, slices), affine, (1.0, 1.0, 2.0))[0])
    assert {size[2] for size in sizes} == {{24: 36, 26: 38}[slices]} and len(sizes) == 1


@pytest.mark.parametrize("affine", [LPS, oblique(), SHEARED], ids=["LPS", "oblique", "sheared"])
def test_the_inverse_returns_to_the_scans_own_grid(tmp_path, affine):
    shape = (15, 12, 9)
    prepared = prepare(save(tmp_path, noise(shape), affine=affine), task(orientation="RAS", spacing=(0.5, 0.5, 0.5)), 1)
    inverse, fine = prepared.back, prepared.array.shape[:3]
    assert fine == inverse.shape != shape and inverse.axis_aligned == (affine is not SHEARED)
    # A linear ramp is restored where the finer grid covers it.
    ramp = np.stack([np.tensordot(axis, np.indices(fine), 1) for axis in np.eye(3)], axis=-1).astype(np.float32)
    restored = inverse.reorient.apply(interpolated(ramp, inverse.matrix, inverse.reorient.shape))
    assert restored.shape == (*shape, 3) and restored.dtype == np.float32
    expected = np.moveaxis(np.indices(shape), 0, -1) @ prepared.scan.affine[:3, :3].T + prepared.scan.affine[:3, 3]
    expected = (expected - inverse.affine[:3, 3]) @ np.linalg.inv(inverse.affine[:3, :3]).T
    covered = ((expected >= 0) & (expected <= np.array(fine) - 1)).all(-1)
    assert covered.mean() > 0.6
    np.testing.assert_allclose(restored[covered], expected[covered], atol=1e-4)
    path = write_volume(tmp_path / "out.nii.gz", np.zeros(shape, np.uint8), prepared.scan)
    np.testing.assert_array_equal(read_volume(path).affine, prepared.scan.affine)


def test_labels_that_do_not_fit_their_images_are_refused(tmp_path):
    case = save(tmp_path, noise())
    read_scan = read_case(case, task(), 1)
    with refused("ct.nii", "no label map"):
        read_case_label(case, read_scan)
    label = np.zeros((11, 9, 7), np.int32)
    label[0, 0, 0] = 300
    case = save(tmp_path, noise(), label)
    with refused("seg.nii", "label 300 is above 255"):
        read_case_label(case, read_scan)
    nib.save(nib.Nifti1Image(np.zeros((11, 9, 7), np.uint8), oblique()), tmp_path / "seg.nii")
    with refused("are not on the same grid"):
        read_case_label(case, read_scan)
