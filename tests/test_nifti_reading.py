"""NIfTI files are read as nibabel reads them, into float32 images and integer label maps."""

import warnings

import nibabel as nib
import numpy as np
import pytest
from helpers.nifti_files import COUNT, LPS, patch, save
from helpers.refusals import refused

from swinunetr_jax.data.nifti import check_same_grid, read_geometry, read_labels, read_volume, write_volume

pytestmark = pytest.mark.usefixtures("nothing_printed")


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_reads_what_nibabel_reads(tmp_path, kind, name):
    path = save(tmp_path / name.lower(), COUNT.astype(np.int16), kind=kind).rename(tmp_path / name)
    volume = read_volume(path)
    assert volume.array.dtype == np.float32 and volume.affine.dtype == np.float64 and volume.path == path
    np.testing.assert_array_equal(volume.array, COUNT)
    np.testing.assert_array_equal(volume.affine, LPS)
    assert volume.spacing == (1.0, 1.0, 2.0) and volume.orientation == "LPS"
    shape, affine, orientation = read_geometry(path)
    assert shape == (2, 3, 4) and orientation == "LPS" and (affine == LPS).all()


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
)
def test_all_integer_and_float_types_are_read(tmp_path, dtype):
    path = save(tmp_path / "a.nii.gz", COUNT.astype(dtype))
    np.testing.assert_array_equal(read_volume(path).array, COUNT.astype(np.float32))
    np.testing.assert_array_equal(read_labels(path).array, COUNT)


def test_big_endian(tmp_path):
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(COUNT.astype(">i2"), LPS, nib.Nifti1Header(endianness=">")), path)
    assert path.read_bytes()[:4] == b"\0\0\1\\"
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, COUNT)
    written = nib.load(write_volume(tmp_path / "b.nii.gz", COUNT, volume))
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), COUNT)
    np.testing.assert_array_equal(written.affine, LPS)


def test_four_dimensions_and_trailing_singletons(tmp_path):
    channels = np.arange(48).reshape(2, 3, 4, 2).astype(np.float32)
    np.testing.assert_array_equal(read_volume(save(tmp_path / "a.nii.gz", channels)).array, channels)
    for shape in [(2, 3, 4, 1), (2, 3, 4, 1, 1, 1)]:
        path = save(tmp_path / "a.nii.gz", COUNT.astype(np.uint8).reshape(shape))
        assert read_volume(path).array.shape == read_labels(path).array.shape == read_geometry(path)[0] == (2, 3, 4)
    assert read_volume(save(tmp_path / "a.nii.gz", np.ones((2, 3, 1), np.uint8))).array.shape == (2, 3, 1)


def test_scale_factors(tmp_path):
    path = save(tmp_path / "a.nii.gz", COUNT.astype(np.int16), scl_slope=0.5, scl_inter=-1)
    np.testing.assert_array_equal(read_volume(path).array, COUNT * 0.5 - 1)
    for inter in (0, 7, np.nan):  # a slope of 0 means no scaling, whatever the intercept
        np.testing.assert_array_equal(read_volume(patch(path, scl_slope=0, scl_inter=inter)).array, COUNT)
    for slope, inter in [(np.nan, 0), (np.inf, 0), (1, np.nan), (2, -np.inf)]:
        with refused(path, "scl_slope", "finite"):
            read_volume(patch(path, scl_slope=slope, scl_inter=inter))
    # Values are rounded as by nibabel's own scaling.
    path = save(tmp_path / "b.nii", np.arange(-500, 500, dtype=np.int16).reshape(10, 10, 10), scl_slope=0.0037, scl_inter=1.1)
    np.testing.assert_array_equal(read_volume(path).array, np.asanyarray(nib.load(path).dataobj).astype(np.float32))


def test_scaled_labels_are_integers_again(tmp_path):
    path = save(tmp_path / "a.nii.gz", (COUNT % 3 * 10).astype(np.uint8), scl_slope=0.1)  # 0.1 in float32 is 0.100000001
    labels = read_labels(path).array
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, COUNT % 3)


def test_labels(tmp_path):
    path = tmp_path / "a.nii.gz"
    assert read_labels(save(path, COUNT.astype(np.float32))).array.dtype == np.uint8
    assert read_labels(save(path, COUNT.astype(np.int16) * 100)).array.dtype == np.int32
    with refused(path, "-1"):
        read_labels(save(path, COUNT.astype(np.int16) - 1))
    with refused(path, "0.5", "(0, 0, 1)", "not an integer"):
        read_labels(save(path, COUNT / 2))
    with refused(path, "23000000000"):
        read_labels(save(path, COUNT.astype(np.float64) * 1e9))
    with refused(path, "(2, 3, 4, 2)", "3-D"):
        read_labels(save(path, np.zeros((2, 3, 4, 2), np.uint8)))
    bad = COUNT.astype(np.float32)
    bad[0, 1, 2] = np.nan
    with refused(path, "NaN", "(0, 1, 2)"):
        read_labels(save(path, bad))


def test_voxels_that_are_not_finite(tmp_path):
    bad = COUNT.astype(np.float32)
    bad[0, 1, 2], bad[1, 2, 3] = np.nan, -np.inf
    path = save(tmp_path / "a.nii.gz", bad)
    with refused(path, "2 of 24", "(0, 1, 2)"):
        read_volume(path)
    np.testing.assert_array_equal(read_volume(path, require_finite=False).array, bad)
    bad = COUNT.astype(np.float64)
    bad[1, 0, 0] = 1e300
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with refused(path, "Inf", "(1, 0, 0)"):
            read_volume(save(path, bad))


def test_an_affine_without_codes_is_that_of_nibabel(tmp_path):
    path = save(tmp_path / "a.nii.gz", COUNT.astype(np.uint8), qform_code=0, sform_code=0, pixdim=[0, 2, 3, 4, 0, 0, 0, 0])
    np.testing.assert_array_equal(read_volume(path).affine, nib.load(path).affine)


def test_real_hippocampus(shared_data):
    for image in sorted((shared_data / "Task04_Hippocampus" / "imagesTr").glob("*.nii.gz"))[::20]:
        volume, labels = read_volume(image), read_labels(image.parents[1] / "labelsTr" / image.name)
        np.testing.assert_array_equal(volume.array, np.asanyarray(nib.load(image).dataobj))
        assert labels.array.max() == 2
        check_same_grid([volume, labels])
