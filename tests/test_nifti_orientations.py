"""Grids are compared in millimetres, and reorientation is inverted exactly."""

import itertools

import nibabel as nib
import numpy as np
import pytest
from helpers.nifti_files import COUNT, LPS, oblique, volume_of
from helpers.refusals import refused

from swinunetr_jax.data.nifti import check_same_grid, read_labels, read_volume, reorient, write_volume

pytestmark = pytest.mark.usefixtures("nothing_printed")


CODES = ["".join(c) for pick in itertools.permutations(("RL", "AP", "SI")) for c in itertools.product(*pick)]


def test_images_on_different_grids_are_refused():
    volume = volume_of((100, 100, 50))  # 100 mm: corners may move by 0.1 mm
    check_same_grid([])
    check_same_grid([volume])
    near_affine, far_affine = LPS.copy(), LPS.copy()
    near_affine[0, 3] += 0.09
    far_affine[0, 3] += 0.11
    check_same_grid([volume, volume_of((100, 100, 50, 4)), volume_of((100, 100, 50), near_affine)])
    with refused("a.nii.gz", "b.nii.gz", "0.11 mm"):
        check_same_grid([volume, volume, volume_of((100, 100, 50), far_affine, "b.nii.gz")])
    with refused("b.nii.gz", "(100, 100, 51)"):
        check_same_grid([volume, volume_of((100, 100, 51), name="b.nii.gz")])
    other_orientation = volume_of((100, 100, 50), np.diag([1, 1, 2, 1]), "b.nii.gz")
    with refused("LPS", "RAS", "mm apart"):
        check_same_grid([volume, other_orientation])


def test_there_are_48_orientations():
    assert len(set(CODES)) == 48


@pytest.mark.parametrize("codes", CODES)
def test_orientations_are_inverted_exactly(codes):
    """One array is reoriented from this orientation to RAS, and another from LPS to this orientation.

    Each voxel keeps its position in mm, and the inverse returns the original array, with and without channels.
    """
    affine = np.eye(4)
    for axis, code in enumerate(codes):
        row = next(i for i, pair in enumerate(("LR", "PA", "IS")) if code in pair)
        affine[:3, axis] = 0
        affine[row, axis] = (1.0, 2.0, 3.0)[axis] * (1 if code in "RAS" else -1)
    affine[:3, 3] = 5, -6, 7
    for source_affine, target in ((affine, "RAS"), (LPS, codes)):
        reoriented, reoriented_affine, inverse = reorient(COUNT, source_affine, target)
        assert "".join(nib.aff2axcodes(reoriented_affine)) == target
        np.testing.assert_array_equal(inverse.apply(reoriented), COUNT)
        for index in np.ndindex(reoriented.shape):
            source_index = np.argwhere(reoriented[index] == COUNT)[0]
            np.testing.assert_array_equal(reoriented_affine @ [*index, 1], source_affine @ [*source_index, 1])
        channels = np.stack([COUNT, -COUNT], -1)
        reoriented, _, _ = reorient(channels, source_affine, target)
        np.testing.assert_array_equal(inverse.apply(reoriented), channels)


def test_a_literal_array_is_reoriented():
    array = np.array([[[1, 2]], [[3, 4]]])  # x 2, y 1, z 2
    reoriented, affine, inverse = reorient(array, np.diag([-1.0, -1, 1, 1]), "SRA")
    np.testing.assert_array_equal(reoriented, [[[3], [1]], [[4], [2]]])
    np.testing.assert_array_equal(affine, [[0, 1, 0, -1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_array_equal(inverse.apply(reoriented), array)


@pytest.mark.parametrize("degrees", [5, 25, 44, 46, 80, 130])
def test_oblique_grids_are_oriented_by_their_closest_axes(degrees):
    affine = oblique(degrees)
    reoriented, reoriented_affine, inverse = reorient(COUNT, affine)
    assert "".join(nib.aff2axcodes(reoriented_affine)) == "RAS"
    for index in np.ndindex(reoriented.shape):
        source_index = np.argwhere(reoriented[index] == COUNT)[0]
        np.testing.assert_allclose(reoriented_affine @ [*index, 1], affine @ [*source_index, 1], atol=1e-12)
    np.testing.assert_array_equal(inverse.apply(reoriented), COUNT)


def test_invalid_codes_and_arrays_of_another_shape_are_refused():
    for codes in ("RA", "RAR", "RAX", "ras", "RASS", ""):
        with refused("codes"):
            reorient(COUNT, LPS, codes)
    _, _, inverse = reorient(COUNT, LPS, "SRA")
    with refused("(2, 3, 4)", "(4, 2, 3)"):
        inverse.apply(COUNT)


def test_a_real_brain_is_reoriented_to_ras_and_back(shared_data, tmp_path):
    folder = shared_data / "open_ms" / "patient19"
    flair, lesion = read_volume(folder / "FLAIR.nii.gz"), read_labels(folder / "LESION.nii.gz")
    assert flair.orientation == "LAS" and flair.spacing == (1.0, 1.0, 1.0) and flair.array.shape == (182, 218, 182)
    check_same_grid([flair, lesion])
    reoriented, _, inverse = reorient(lesion.array, lesion.affine)
    path = write_volume(tmp_path / "out.nii.gz", inverse.apply(reoriented), flair)
    np.testing.assert_array_equal(
        np.asanyarray(nib.load(path).dataobj), np.asanyarray(nib.load(folder / "LESION.nii.gz").dataobj)
    )
    np.testing.assert_array_equal(nib.load(path).affine, nib.load(folder / "FLAIR.nii.gz").affine)
