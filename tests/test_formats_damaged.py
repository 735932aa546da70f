"""Faulty scans in other formats than NIfTI are refused with one sentence."""

import random
import shutil
import sys
import zipfile

import numpy as np
import pytest
import SimpleITK as sitk
from helpers.refusals import refused
from helpers.scan_formats import AFFINE, SCAN, dataset, write, write_itk, write_pair, write_series
from pydicom import Dataset

from swinunetr_jax.data.discovery.formats import find_cases
from swinunetr_jax.data.formats import read_dicom_header, read_geometry, read_labels, read_volume
from swinunetr_jax.errors import InputError


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
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "mosaic"),
        ({"BitsAllocated": 1}, "bits"),
        ({"BitsStored": 12, "HighBit": 15}, "expected 11 as HighBit"),
        ({"NumberOfFrames": 3}, "3 frames without their positions"),
        ({"ModalityLUTSequence": [Dataset()]}, "a table of its values (ModalityLUTSequence)"),
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
        (lambda f: _one_slice(f, 0, FrameOfReferenceUID="1.9"), "2 frames of reference"),
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


def test_a_lost_slice_is_refused_or_noted(tmp_path):
    folder = write_series(tmp_path / "s", SCAN, AFFINE)
    (folder / "slice").write_bytes(b"")  # without an ending, DICOM is recognised by its start
    note = "1 file that is not DICOM was left out, such as slice"
    assert read_volume(folder).notes == (note,)
    (folder / "slice").unlink()
    (folder / "slice").symlink_to("missing")
    assert read_volume(folder).notes == (note,)
    (folder / "slice").rename(folder / "slice.dcm")
    with refused("slice.dcm: cannot be read (No such file"):
        read_volume(folder)


def test_values_do_not_depend_on_how_a_screen_shows_them(tmp_path):
    folder = write_series(tmp_path / "s", SCAN, AFFINE, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_volume(folder).array, SCAN[:, :, ::-1])


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
    raw.write_text(raw.read_text().replace("ElementDataFile =", "ElementDataFile :"))
    with refused("outside the folder"):
        read_volume(raw)
    mha = write_itk(tmp_path / "a.mha", SCAN, AFFINE)
    mha.write_bytes(mha.read_bytes()[:-100])
    with refused("a.mha: the voxels cannot be read (File cannot be read"):
        read_volume(mha)
    pair = write_pair(tmp_path / "pair.hdr", SCAN, AFFINE)
    (tmp_path / "pair.img").write_bytes(bytes(100))
    with refused("truncated"):
        read_volume(pair)
    (tmp_path / "pair.img").unlink()
    with refused("pair.img: does not exist"):
        read_volume(pair)
    sheared = tmp_path / "sheared.nrrd"
    text = write_itk(tmp_path / "a.nrrd", SCAN, AFFINE).read_bytes()
    (tmp_path / "a.nrrd").write_bytes(text.replace(b"space: left-posterior-superior", b"space: 3D-right-handed"))
    with refused("its space is 3D-right-handed"):  # the sides are unknown
        read_volume(tmp_path / "a.nrrd")
    in_um = b'space: left-posterior-superior\nspace units: "um" "um" "um"'
    (tmp_path / "a.nrrd").write_bytes(text.replace(b"space: left-posterior-superior", in_um))
    with refused("the unit of length is um, expected mm"):
        read_volume(tmp_path / "a.nrrd")
    head, _, voxels = text.partition(b"\n\n")
    lines = [
        b"space directions: (1,0,0) (0.5,1,0) (0,0,1)" if x.startswith(b"space directions") else x for x in head.split(b"\n")
    ]
    sheared.write_bytes(b"\n".join(lines) + b"\n\n" + voxels)
    with refused("sheared.nrrd", "90°"):
        read_volume(sheared)
    nowhere = tmp_path / "nowhere.nrrd"
    nowhere.write_bytes(b"\n".join(x for x in head.split(b"\n") if not x.startswith(b"space")) + b"\n\n" + voxels)
    with refused("no position in the body (its space is none)"):
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
    with refused("holds 'a//1.dcm' twice"):
        read_volume(_zip(tmp_path / "a.zip", **{"a/1.dcm": b"x", "a//1.dcm": b"y"}))
    assert sorted(tmp_path.rglob("*")) == [*before, tmp_path / "a.zip"]


@pytest.mark.parametrize("count", [8, pytest.param(400, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["hdr", "nrrd", "nhdr", "mha", "mhd", "series", "enhanced", "zip"])
def test_random_damage_gives_a_scan_or_one_sentence(tmp_path, kind, count):
    path = write(kind, tmp_path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    intact = {file: file.read_bytes() for file in files}
    rng = random.Random(kind)
    for _ in range(count):
        file = rng.choice(files)
        data = bytearray(intact[file])
        for _ in range(rng.choice([1, 2, 10])):
            at = rng.randrange(min(len(data), rng.choice([400, 2000, len(data)])))
            size = rng.choice([1, 1, 4])
            data[at : at + rng.choice([0, size])] = rng.randbytes(size)
        file.write_bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data))])])
        for read in (read_volume, read_labels, read_geometry, find_cases):
            try:
                read(path)
            except InputError as error:
                assert str(error).endswith(".") and "\n" not in str(error) and len(str(error)) < 600, error
        file.write_bytes(intact[file])
    assert read_volume(path).array.shape == SCAN.shape


def test_a_missing_library_is_one_sentence(tmp_path, monkeypatch):
    series, nrrd = write("series", tmp_path), write("nrrd", tmp_path)
    for name in ("pydicom", "SimpleITK"):
        monkeypatch.setitem(sys.modules, name, None)
    for path, name in ((series, "pydicom"), (nrrd, "SimpleITK")):
        with refused(path, f"needs {name}", 'pip install "swinunetr-jax[formats]"'):
            read_volume(path)
    assert [case.problem for case in find_cases(tmp_path).cases] == [None, None]  # reading them says what is missing
