"""One scan in every format has the same values at the same places, and faulty scans are refused with one sentence."""

import os
import shutil
import subprocess
import zipfile

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from helpers.refusals import refused
from helpers.scan_formats import (
    dataset,
    write_enhanced,
    write_itk,
    write_nifti,
    write_pair,
    write_series,
    write_zip,
)
from scipy.spatial.transform import Rotation

from swinunetr_jax.data.formats import read_dicom_header, read_geometry, read_labels, read_volume, scan_files, scan_status
from swinunetr_jax.data.nifti import reorient

SCAN = np.random.default_rng(0).integers(-500, 2000, (11, 9, 7), dtype=np.int16)
AFFINE = np.array([[-0.9, 0, 0, 50], [0, 1.1, 0, -30], [0, 0, 3, 10], [0, 0, 0, 1.0]])  # LAS, left-handed
TURNED = np.eye(4)
TURNED[:3, :3] = Rotation.from_euler("xyz", [10, 5, -20], degrees=True).as_matrix() @ np.diag([0.9, -1.1, 3])
TURNED[:3, 3] = 5, -7, 11


def write(kind, folder, array=SCAN, affine=AFFINE):
    """Writes a scan in a format, and returns its path."""
    if kind == "series":
        return write_series(folder / "series", array, affine)
    if kind == "enhanced":
        return write_enhanced(folder / "enhanced.dcm", array, affine)
    if kind == "zip":
        return write_zip(folder / "scan.zip", write_series(folder / "series", array, affine))
    if kind == "hdr":
        return write_pair(folder / "scan.hdr", array, affine)
    if kind == "nii.gz":
        return write_nifti(folder / "scan.nii.gz", array, affine)
    return write_itk(folder / f"scan.{kind}", array, affine, compressed=kind in ("mha", "nrrd"))


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


def test_compressed_dicom_is_decoded(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    for index in range(7):
        image = dataset(SCAN, AFFINE, index)
        image.compress("1.2.840.10008.1.2.5")  # RLE
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Modality": "CT"}, "Hounsfield"),
        ({"RescaleSlope": "2"}, "RescaleIntercept"),
        ({"RescaleSlope": "0", "RescaleIntercept": "0"}, "RescaleSlope is 0"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "colour"),
        ({"ImagePositionPatient": None}, "ImagePositionPatient"),
        ({"PixelSpacing": ["0", "1"]}, "pixel size"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "directions"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"BitsAllocated": 1}, "bits"),
        ({"NumberOfFrames": 3}, "3 frames without their positions"),
    ],
)
def test_faulty_headers_are_refused(tmp_path, changes, words):
    with refused(tmp_path, words):
        read_volume(write_series(tmp_path / "s", SCAN, AFFINE, **changes))


def _one_slice(folder, index, **changes):
    dataset(SCAN, AFFINE, index, **changes).save_as(folder / "other.dcm", enforce_file_format=True)


def _remove_slice(folder):
    next(file for file in folder.iterdir() if read_dicom_header(file).InstanceNumber == 4).unlink()


def _truncate(folder, size):
    file = sorted(folder.iterdir())[2]
    file.write_bytes(file.read_bytes()[:size])


def _unknown_syntax(folder):
    file = sorted(folder.iterdir())[2]
    file.write_bytes(file.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.X\0"))


def _tilt(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    for index in range(7):
        position = [0, 0.5 * index, 3 * index]
        dataset(SCAN, np.eye(4), index, ImagePositionPatient=position).save_as(folder / f"{index}.dcm", enforce_file_format=True)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_remove_slice, "slices are missing"),
        (lambda f: _one_slice(f, 3), "position of another one"),
        (lambda f: _one_slice(f, 6, SeriesInstanceUID="1.9"), "2 series (7 and 1 files)"),
        (lambda f: _one_slice(f, 0, StudyInstanceUID="1.9"), "2 studies"),
        (lambda f: _one_slice(f, 0, ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), "different orientations"),
        (lambda f: _one_slice(f, 0, Rows=8), "different sizes"),
        (lambda f: _one_slice(f, 0, PixelSpacing=["1", "1"]), "pixels have different sizes"),
        (lambda f: _truncate(f, 40), "cannot be read as DICOM"),
        (lambda f: _truncate(f, -60), "truncated"),
        (_unknown_syntax, "no decoder"),
        (_tilt, "gantry tilt of 9.5°"),
    ],
)
def test_faulty_series_are_refused(tmp_path, damage, words):
    folder = write_series(tmp_path / "s", SCAN, AFFINE)
    damage(folder)
    with refused(tmp_path, words):
        read_volume(folder)


def test_localizers_and_reports_are_left_out_with_a_note(tmp_path):
    folder = write_series(tmp_path / "s", SCAN, AFFINE)
    _one_slice(folder, 0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID="1.9")
    volume = read_volume(folder)
    assert volume.array.shape == SCAN.shape and volume.notes == ("1 localizer image was left out",)


def test_faulty_files_are_refused(tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 3, 4, 5), np.int16), isVector=False), str(tmp_path / "4d.nrrd"))
    with refused("has 4 axes", "three"):
        read_volume(tmp_path / "4d.nrrd")
    raw = write_itk(tmp_path / "scan.mhd", SCAN, AFFINE)
    (tmp_path / "scan.raw").rename(tmp_path / "else.raw")
    with refused("scan.raw, which does not exist"):
        read_volume(raw)
    (tmp_path / "scan.raw").write_bytes(bytes(100))
    with refused("scan.mhd"):
        read_volume(raw)
    raw.write_text(raw.read_text().replace("scan.raw", "../scan.raw"))
    with refused("outside the folder"):
        read_volume(raw)
    pair = write_pair(tmp_path / "pair.hdr", SCAN, AFFINE)
    (tmp_path / "pair.img").write_bytes(bytes(100))
    with refused("truncated"):
        read_volume(pair)
    (tmp_path / "pair.img").unlink()
    with refused("pair.img: does not exist"):
        read_volume(pair)
    sheared = tmp_path / "sheared.nrrd"
    text = write_itk(tmp_path / "a.nrrd", SCAN, AFFINE).read_bytes()
    head, _, voxels = text.partition(b"\n\n")
    lines = [
        b"space directions: (1,0,0) (0.5,1,0) (0,0,1)" if x.startswith(b"space directions") else x for x in head.split(b"\n")
    ]
    sheared.write_bytes(b"\n".join(lines) + b"\n\n" + voxels)
    with refused("sheared.nrrd", "90°"):
        read_volume(sheared)
    nowhere = tmp_path / "nowhere.nrrd"
    nowhere.write_bytes(b"\n".join(x for x in head.split(b"\n") if not x.startswith(b"space")) + b"\n\n" + voxels)
    with refused("no position in space"):
        read_volume(nowhere)
    (tmp_path / "a.nrrd").write_bytes(text[:-50])
    with refused("a.nrrd"):
        read_volume(tmp_path / "a.nrrd")
    (tmp_path / "empty.mha").write_bytes(b"")
    with refused("empty.mha"):
        read_volume(tmp_path / "empty.mha")
    with refused("no DICOM files"):
        (tmp_path / "empty").mkdir()
        read_volume(tmp_path / "empty")
    with refused("limit is 100 bytes"):
        read_volume(write("series", tmp_path), max_bytes=100)


def _zip(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_hostile_zips_are_refused(tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with refused("outside its own folder"):
        read_volume(_zip(tmp_path / "a.zip", **{"../../evil.dcm": b"x"}))
    with refused("outside its own folder"):
        read_volume(_zip(tmp_path / "a.zip", **{"/etc/evil.dcm": b"x"}))
    link = zipfile.ZipInfo("link.dcm")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with refused("the link"):
        read_volume(tmp_path / "a.zip")
    bomb = _zip(tmp_path / "a.zip", **{"a/1.dcm": bytes(1000)})
    data = bytearray(bomb.read_bytes())
    at = data.rindex(b"PK\x01\x02") + 24  # the size that the list of members claims
    data[at : at + 4] = (4_000_000_000).to_bytes(4, "little")
    bomb.write_bytes(data)
    with refused("4.0 GB", "do not trust"):
        read_volume(bomb)
    bomb.write_bytes(b"PK\x03\x04" + bytes(40))
    with refused("cannot be read"):
        read_volume(bomb)
    with refused("no DICOM"):
        read_volume(_zip(tmp_path / "a.zip", **{"a/1.txt": b"x"}))
    assert sorted(tmp_path.rglob("*")) == [*before, tmp_path / "a.zip"]


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
