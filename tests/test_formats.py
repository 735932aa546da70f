"""One scan in every format has the same values at the same places."""

import os
import subprocess

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from helpers.refusals import refused
from helpers.scan_formats import (
    AFFINE,
    SCAN,
    compress_by_gdcm,
    dataset,
    write,
    write_enhanced,
    write_itk,
    write_nifti,
    write_series,
)
from scipy.spatial.transform import Rotation

from swinunetr_jax.data.formats import read_dicom_header, read_geometry, read_labels, read_volume, scan_files, scan_status
from swinunetr_jax.data.nifti import reorient

TURNED = np.eye(4)
TURNED[:3, :3] = Rotation.from_euler("xyz", [10, 5, -20], degrees=True).as_matrix() @ np.diag([0.9, -1.1, 3])
TURNED[:3, 3] = 5, -7, 11


@pytest.mark.parametrize("affine", [AFFINE, TURNED], ids=["left-handed", "turned"])
@pytest.mark.parametrize("kind", ["nii.gz", "hdr", "nrrd", "nhdr", "mha", "mhd", "series", "enhanced", "zip"])
def test_every_format_has_the_same_values_at_the_same_places(tmp_path, kind, affine):
    path = write(kind, tmp_path, affine=affine)
    volume = read_volume(path)
    assert volume.array.dtype == np.float32 and volume.array.flags.f_contiguous and volume.path == path
    shape, header_affine, orientation = read_geometry(path)
    assert shape == volume.array.shape and orientation == volume.orientation
    np.testing.assert_array_equal(header_affine, volume.affine)
    np.testing.assert_allclose(volume.header.get_best_affine(), volume.affine, atol=1e-5)
    array, in_ras, _ = reorient(volume.array, volume.affine)
    expected, expected_affine, _ = reorient(SCAN, affine)
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_allclose(in_ras, expected_affine, atol=1e-5)


def test_the_axes_of_dicom_are_columns_rows_and_slices_along_the_normal(tmp_path):
    """For an axial series they point to the left, the back and upwards; dcm2niix would flip the second axis."""
    axial = np.diag([-1.0, -1.0, 2.0, 1.0])
    volume = read_volume(write_series(tmp_path / "up", SCAN, axial))
    assert volume.orientation == "LPS"
    np.testing.assert_array_equal(volume.array, SCAN)
    downwards = read_volume(write_series(tmp_path / "down", SCAN, axial @ np.diag([1.0, 1.0, -1.0, 1.0])))
    assert downwards.orientation == "LPS"
    np.testing.assert_array_equal(downwards.array, SCAN[:, :, ::-1])
    itk = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "up")))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(itk).T, SCAN)
    assert [read_dicom_header(path).InstanceNumber for path in downwards.slices] == [7, 6, 5, 4, 3, 2, 1]


def test_slices_of_a_zip_can_be_opened(tmp_path):
    volume = read_volume(write("zip", tmp_path) / "series")
    assert [read_dicom_header(path).InstanceNumber for path in volume.slices] == [
        7,
        6,
        5,
        4,
        3,
        2,
        1,
    ]  # from the left-handed scan
    assert read_volume(tmp_path / "scan.zip").slices == volume.slices


def test_the_scale_of_each_slice_and_each_frame_is_applied(tmp_path):
    """GDCM alone would ignore the scale of an MR image, and apply that of the first frame to all."""
    scales = [(0.5 + index, 10.0 * index - 3) for index in range(7)]
    expected = np.stack([SCAN[..., i] * scale + shift for i, (scale, shift) in enumerate(scales)], -1).astype(np.float32)
    axial = np.diag([-1.0, -1.0, 2.0, 1.0])
    np.testing.assert_array_equal(read_volume(write_enhanced(tmp_path / "e.dcm", SCAN, axial, scales)).array, expected)
    (tmp_path / "s").mkdir()
    for index, (scale, shift) in enumerate(scales):
        image = dataset(SCAN, axial, index, RescaleSlope=str(scale), RescaleIntercept=str(shift))
        image.save_as(tmp_path / "s" / f"{index}.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_volume(tmp_path / "s").array, expected)


@pytest.mark.parametrize("kind", ["RLE", "JPEG", "JPEG2000"])
def test_compressed_dicom_is_decoded(tmp_path, kind):
    """JPEG is the lossless process 14, which many archives use and pydicom alone does not decode."""
    folder = tmp_path / "s"
    folder.mkdir()
    for index in range(7):
        image = dataset(SCAN, AFFINE, index)
        if kind == "RLE":
            image.compress("1.2.840.10008.1.2.5")
        else:
            compress_by_gdcm(image, SCAN[:, :, index], kind, tmp_path / "x.dcm")
        image.save_as(folder / f"{index}", enforce_file_format=True)
    array, *_ = reorient(read_volume(folder).array, read_volume(folder).affine)
    np.testing.assert_array_equal(array, reorient(SCAN, AFFINE)[0])


@pytest.mark.parametrize("kind", ["hdr", "nrrd", "mha", "series"])
def test_label_maps_in_other_formats(tmp_path, kind):
    labels = (SCAN % 3).astype(np.int16)
    volume = read_labels(write(kind, tmp_path, labels))
    assert volume.array.dtype == np.uint8
    np.testing.assert_array_equal(reorient(volume.array, volume.affine)[0], reorient(labels, AFFINE)[0])
    (tmp_path / "x").mkdir()
    path = write(kind, tmp_path / "x", labels - 1)
    with refused("outside 0"):
        read_labels(path)


def test_channels_of_a_vector_image(tmp_path):
    channels = np.stack([SCAN, SCAN + 1], -1)
    for name in ("a.nrrd", "a.mha"):
        np.testing.assert_array_equal(read_volume(write_itk(tmp_path / name, channels, AFFINE)).array, channels)


def test_an_analyze_file_is_read_with_a_note(tmp_path):
    nib.save(nib.AnalyzeImage(SCAN, np.diag([-2.0, 2, 2, 1])), tmp_path / "a.img")
    volume = read_volume(tmp_path / "a.hdr")
    np.testing.assert_array_equal(volume.array, SCAN)
    assert volume.orientation == "LAS" and "left and right" in volume.notes[0]


def test_the_files_of_a_scan_and_their_state(tmp_path):
    folder = write_series(tmp_path / "s", SCAN, AFFINE)
    before = scan_status(folder)
    file = scan_files(folder)[3]
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns - 5  # a change that leaves size and the latest time as they are
    os.utime(file, ns=times)
    after = scan_status(folder)
    assert before.bytes == after.bytes and before.digest != after.digest
    pair = [path.name for path in scan_files(write_itk(tmp_path / "a.mhd", SCAN, AFFINE))]
    assert pair == ["a.mhd", "a.raw"]
    assert scan_status(write_nifti(tmp_path / "a.nii", SCAN, AFFINE)).digest is None


@pytest.mark.long
@pytest.mark.parametrize("kind", ["series", "enhanced"])
@pytest.mark.parametrize("affine", [AFFINE, TURNED], ids=["left-handed", "turned"])
def test_dcm2niix_puts_the_same_values_at_the_same_places(tmp_path, kind, affine):
    dcm2niix = pytest.importorskip("dcm2niix")
    path = write(kind, tmp_path, affine=affine)
    (tmp_path / "out").mkdir()
    folder = path if path.is_dir() else path.parent
    subprocess.run([dcm2niix.bin, "-z", "n", "-b", "n", "-f", "x", "-o", tmp_path / "out", folder], check=True)
    (converted,) = (tmp_path / "out").glob("*.nii")
    theirs, ours = read_volume(converted), read_volume(path)
    array, in_ras, _ = reorient(ours.array, ours.affine)
    expected, expected_affine, _ = reorient(theirs.array, theirs.affine)
    np.testing.assert_array_equal(array, expected)
    np.testing.assert_allclose(in_ras, expected_affine, atol=2e-3)
    np.testing.assert_array_equal(theirs.array, ours.array[:, ::-1])  # dcm2niix flips the rows
