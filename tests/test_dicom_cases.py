"""Data sets of DICOM folders and zips, and the results for scans in every format."""

import json
import os
import zipfile

import nibabel as nib
import numpy as np
import pytest
from flax import nnx
from helpers.fake_predictor import FakePredictor
from helpers.prediction import read_image, run
from helpers.refusals import refused
from helpers.scan_formats import (
    BIRTH,
    ID,
    NAME,
    dataset,
    write_enhanced,
    write_itk,
    write_nifti,
    write_pair,
    write_series,
    write_zip,
)
from helpers.small_network import SmallNetwork, forget, replace_swin_unetr
from pydicom import dcmread

from swinunetr_jax import SwinUNETR, SwinUNETRConfig, Task, open_segmenter, save_checkpoint, segment
from swinunetr_jax.commands.cases import check_no_input_is_replaced
from swinunetr_jax.data.check.check_case import check_case
from swinunetr_jax.data.discovery.formats import case_from_files, find_cases
from swinunetr_jax.data.discovery.prediction_record import input_files
from swinunetr_jax.data.formats import read_geometry, read_volume
from swinunetr_jax.data.nifti import reorient
from swinunetr_jax.data.prepare.cache import prepare_training_cases
from swinunetr_jax.data.prepare.read_case import read_case, read_case_label
from swinunetr_jax.evaluation.evaluate import evaluate
from swinunetr_jax.evaluation.pairs import Reference, References
from swinunetr_jax.inference.batch import predict_cases

CHANNELS = ("FLAIR", "T1ce", "T1", "T2")
SMALL = np.random.default_rng(0).integers(1, 900, (6, 5, 4), dtype=np.int16)
AXIAL = np.array([[-1.0, 0, 0, 8], [0, -1.0, 0, 9], [0, 0, 2.0, -7], [0, 0, 0, 1]])


def study(folder, names=CHANNELS, **changes):
    """Writes a series for each name, whose values differ."""
    for number, name in enumerate(names):
        write_series(folder / name, SMALL + number, AXIAL, SeriesInstanceUID=f"1.2.{number + 5}", **changes)
    return folder


def names_of(data):
    return [(case.name, [path.name for path in case.images], case.channels) for case in data.cases]


def test_series_that_are_named_after_channels_are_one_case(tmp_path):
    study(tmp_path / "data/P1/visit", ("T2", "T1", "T1POST", "flair"))
    study(tmp_path / "data/P2/visit")
    nib.save(nib.Nifti1Image((SMALL % 2).astype(np.uint8), AXIAL), tmp_path / "data/P2/visit/seg.nii.gz")
    data = find_cases(tmp_path / "data", channels=CHANNELS)
    assert names_of(data) == [
        ("P1_visit", ["flair", "T1POST", "T1", "T2"], CHANNELS),
        ("P2_visit", list(CHANNELS), CHANNELS),
    ]
    assert data.cases[1].label.name == "seg.nii.gz" and not any(case.problem for case in data.cases)
    assert check_case(data.cases[1], channels=CHANNELS).findings == ()
    (case,) = find_cases(tmp_path / "data/P2").cases
    assert len(case.images) == 4 and case_from_files(case.images).channels == CHANNELS


def test_a_zip_is_like_its_folder(tmp_path):
    study(tmp_path / "data/P1")
    study(tmp_path / "data/P2")
    path = write_zip(tmp_path / "export.zip", tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    data = find_cases(path)
    assert names_of(data) == [("data_P1", list(CHANNELS), CHANNELS), ("data_P2", list(CHANNELS), CHANNELS)]
    assert data.cases[0].images[0] == path / "data/P1/FLAIR" and check_case(data.cases[0]).findings == ()
    (tmp_path / "other").mkdir()
    path.rename(tmp_path / "other/P9.zip")
    assert [case.name for case in find_cases(tmp_path / "other").cases] == ["P9_data_P1", "P9_data_P2"]
    with zipfile.ZipFile(tmp_path / "other/notes.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    (tmp_path / "other/broken.zip").write_bytes(b"PK\x03\x04")
    data = find_cases(tmp_path / "other")
    assert "broken.zip: the zip cannot be read" in data.cases[-1].problem
    assert "notes.zip is an archive and is not read" in " ".join(data.warnings)
    assert [path for path in before if not path.exists()] == [tmp_path / "export.zip"]


def test_one_series_is_one_case(tmp_path):
    folder = write_series(tmp_path / "MR 7", SMALL, AXIAL)
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(folder / f"1.2.840.{number}")  # names without an ending
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (case,) = find_cases(folder, channels=["CT"]).cases
    assert (case.name, case.images, case.problem) == ("MR 7", (folder,), None)
    (case,) = find_cases(tmp_path).cases
    assert (case.name, case.images) == ("MR 7", (folder,))
    with refused("MR 7 is the folder of the DICOM files of MR 7", "choose another --output"):
        check_no_input_is_replaced([case], folder, ())
    (case,) = find_cases(write_enhanced(tmp_path / "e.dcm", SMALL, AXIAL)).cases
    assert case.name == "e"
    (tmp_path / "frames").mkdir()
    for name in ("T1", "FLAIR"):
        write_enhanced(tmp_path / f"frames/{name}.dcm", SMALL, AXIAL)
    assert names_of(find_cases(tmp_path / "frames")) == [("frames", ["FLAIR.dcm", "T1.dcm"], ("FLAIR", "T1"))]


def test_other_series_are_cases_and_localizers_are_not(tmp_path):
    study(tmp_path, ("301 AX", "302 COR"))
    study(tmp_path, ("loc",), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    data = find_cases(tmp_path)
    assert [case.name for case in data.cases] == ["301 AX", "302 COR"]
    assert data.warnings == (f"{tmp_path / 'loc'} is a localizer and is not used.",)
    with refused("is a localizer"):
        find_cases(tmp_path / "loc")


def test_an_image_that_is_left_out_of_a_series_is_a_warning(tmp_path):
    folder = write_series(tmp_path / "a", SMALL, AXIAL)
    image = dataset(SMALL, AXIAL, 0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SOPInstanceUID="1.2.9")
    image.save_as(folder / "scout.dcm", enforce_file_format=True)
    (case,) = find_cases(tmp_path).cases
    (finding,) = check_case(case).findings
    assert (finding.kind, finding.severity, finding.message) == ("left-out", "warning", "1 localizer image was left out.")


def test_slices_with_the_ending_of_a_companion_are_read(tmp_path):
    """The names of slices may be numbers with dots, so that any ending can occur."""
    folder = write_series(tmp_path / "a", SMALL, AXIAL)
    for file, ending in zip(sorted(folder.iterdir()), (".log", ".txt", ".exe", "")):
        file.rename(file.with_suffix(ending))
    (folder / "protocol.json").write_text("{}")
    (case,) = find_cases(tmp_path).cases
    assert not check_case(case).findings
    np.testing.assert_array_equal(read_volume(case.images[0]).array, SMALL)


def test_a_link_to_a_folder_above_gives_no_case_twice(tmp_path):
    write_series(tmp_path / "study/a", SMALL, AXIAL)
    write_series(tmp_path / "study/b", SMALL, AXIAL)
    (tmp_path / "study/again").symlink_to(tmp_path)
    data = find_cases(tmp_path)
    assert len(data.cases) == 2 and "again" in (data.ignored or "")


def test_the_folders_of_a_cd(tmp_path):
    """Series are in DICOM/ST0/SE0 without endings, next to a DICOMDIR and a program."""
    for name in ("SE0", "SE1"):
        for file in write_series(tmp_path / "cd/DICOM/ST0" / name, SMALL, AXIAL).iterdir():
            file.rename(file.with_suffix(""))
    (tmp_path / "cd/DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "cd/viewer.exe").write_bytes(b"MZ")
    data = find_cases(tmp_path / "cd")
    assert [(case.name, case.problem) for case in data.cases] == [("DICOM_ST0_SE0", None), ("DICOM_ST0_SE1", None)]
    assert data.warnings == () and "DICOMDIR" in data.ignored and "viewer.exe" in data.ignored
    path = write_zip(tmp_path / "cd.zip", tmp_path / "cd")
    assert [case.name for case in find_cases(path).cases] == ["cd_DICOM_ST0_SE0", "cd_DICOM_ST0_SE1"]
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as archive:
        for file in (tmp_path / "cd/DICOM/ST0/SE0").iterdir():
            archive.write(file, file.name)
    assert [case.images for case in find_cases(tmp_path / "flat.zip").cases] == [(tmp_path / "flat.zip",)]
    assert read_geometry(tmp_path / "flat.zip")[0] == SMALL.shape


def test_lists_can_name_series_and_folders_in_zips(tmp_path):
    study(tmp_path / "P1")
    path = write_zip(tmp_path / "P2.zip", tmp_path / "P1")
    entries = [{"image": [f"P1/{name}" for name in CHANNELS]}, {"image": [f"P2.zip/P1/{name}" for name in CHANNELS]}]
    (tmp_path / "list.json").write_text(json.dumps({"training": entries, "validation": [{"image": "P3"}]}))
    one, two, three = find_cases(tmp_path / "list.json", channels=CHANNELS).cases
    assert one.problem is None and two.problem is None and "does not exist" in three.problem
    assert two.images[0] == path / "P1/FLAIR" and two.channels == CHANNELS


def test_a_dicom_seg_refers_to_the_slices_of_a_zip(tmp_path):
    path = write_zip(tmp_path / "export.zip", write_series(tmp_path / "series", SMALL, AXIAL))
    (case,) = find_cases(path).cases
    task = Task.classes(2)
    failed = predict_cases(FakePredictor(task), [case], tmp_path / "out", identity={}, label_format="dicom-seg")
    assert failed == []
    (written,) = (tmp_path / "out").glob("*.dcm")
    segments = dcmread(written)
    assert segments.PatientID == ID and len(segments.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 4


def test_two_files_of_a_pair_are_one_image(tmp_path):
    write_pair(tmp_path / "a.hdr", SMALL, AXIAL)
    write_itk(tmp_path / "b.mhd", SMALL, AXIAL)
    write_itk(tmp_path / "c.nhdr", SMALL, AXIAL)
    (tmp_path / "d.img").write_bytes(bytes(10))
    data = find_cases(tmp_path)
    assert [(case.name, case.problem is None) for case in data.cases] == [("a", True), ("b", True), ("c", True), ("d", False)]
    assert data.ignored is None and "a pair without its .hdr" in data.cases[-1].problem


def test_a_changed_slice_is_noticed(tmp_path):
    """By the cache of a training and by predict.json, although neither the size nor the latest time changes."""
    study(tmp_path / "P1", ("FLAIR",))
    nib.save(nib.Nifti1Image((SMALL % 2).astype(np.uint8), AXIAL), tmp_path / "P1/seg.nii.gz")
    (case,) = find_cases(tmp_path / "P1").cases
    task, before = Task.classes(2), input_files(case)

    def prepared():
        return np.array(prepare_training_cases([case], task, tmp_path / "cache", in_channels=1)[0].image)

    first = prepared()
    entry = next((tmp_path / "cache").glob("*.json"))
    assert len(json.loads(entry.read_text())["sources"]) == 5  # four slices and the label map
    written = entry.stat().st_mtime_ns
    assert (prepared() == first).all() and entry.stat().st_mtime_ns == written
    file = sorted((tmp_path / "P1/FLAIR").iterdir())[1]
    data, modified = bytearray(file.read_bytes()), file.stat().st_mtime_ns
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(modified - 7, modified - 7))
    after = input_files(case)
    assert after[0]["bytes"] == before[0]["bytes"] and after[0]["files"] != before[0]["files"]
    assert (prepared() != first).sum() == 1


def test_label_maps_with_flipped_axes_fit_the_series(tmp_path):
    """dcm2niix flips the rows of DICOM, and a label map that was drawn on its NIfTI file has the same voxels in another order."""
    study(tmp_path / "P1", ("FLAIR",))
    labels = (SMALL > 450).astype(np.uint8)
    flip = np.diag([1.0, -1.0, 1.0, 1.0])
    flip[1, 3] = labels.shape[1] - 1
    nib.save(nib.Nifti1Image(labels[:, ::-1], AXIAL @ flip), tmp_path / "P1/seg.nii.gz")
    (case,) = find_cases(tmp_path / "P1").cases
    assert check_case(case).findings == ()
    read = read_case(case, Task.classes(2), 1)
    np.testing.assert_array_equal(read_case_label(case, read), labels)
    prediction = write_nifti(tmp_path / "P1.nii.gz", labels, AXIAL)
    result = evaluate({"P1": prediction}, References({"P1": Reference(case.label)}), Task.classes(2))
    assert result.failed == {} and result.scores["P1"]
    write_series(tmp_path / "P2/T1", SMALL, AXIAL)
    nib.save(nib.Nifti1Image(labels[:, ::-1], AXIAL @ flip @ np.diag([1, 1, 1.1, 1])), tmp_path / "P2/seg.nii.gz")
    (case,) = find_cases(tmp_path / "P2").cases
    with refused("not on the same grid", "apart"):
        read_case_label(case, read_case(case, Task.classes(2), 1))


def test_results_hold_no_personal_data(tmp_path, capsys):
    """Other cases go on after a faulty one, and no result holds what the DICOM headers say about the patient."""
    study(tmp_path / "data", ("one", "two"))
    sorted((tmp_path / "data/one").iterdir())[0].write_bytes(b"damaged")
    write_series(tmp_path / "data/three", SMALL, AXIAL, PatientBirthDate="not a date")
    data = find_cases(tmp_path / "data")
    failed = predict_cases(FakePredictor(), data.cases, tmp_path / "out", identity={}, preview=True, probabilities=True)
    assert failed == ["one"]
    results = sorted(path.name for path in (tmp_path / "out").iterdir())
    maps = [f"{name}{end}" for name in ("three", "two") for end in (".nii.gz", ".png", "_probabilities.nii.gz")]
    assert results == ["predict.json", *maps]
    printed = capsys.readouterr()
    contents = [printed.out.encode(), printed.err.encode()]
    for path in (tmp_path / "out").iterdir():
        contents.append(nib.load(path).to_bytes() if path.name.endswith(".gz") else path.read_bytes())
    for word in (*NAME.split("^"), ID, BIRTH, "not a date"):
        assert not any(word.lower().encode() in content.lower() for content in contents)
    assert "one: FAILED" in printed.err and "cannot be read as DICOM" in printed.err


def every_format(folder, array, affine):
    """Returns the path of the scan in each format."""
    series = write_series(folder / "series", array, affine)
    return {
        "nifti": write_nifti(folder / "nifti.nii.gz", array, affine),
        "pair": write_pair(folder / "pair.hdr", array, affine),
        "nrrd": write_itk(folder / "nrrd.nrrd", array, affine, compressed=True),
        "mha": write_itk(folder / "mha.mha", array, affine),
        "mhd": write_itk(folder / "mhd.mhd", array, affine),
        "series": series,
        "enhanced": write_enhanced(folder / "enhanced.dcm", array, affine),
        "zip": write_zip(folder / "zip.zip", series),
    }


def check_results(model, folder, array, affine, commands):
    """Checks that the label maps of all formats are equal voxel for voxel, and some of them equal those of the command."""
    segmenter, maps = open_segmenter(model), {}
    for kind, path in every_format(folder, array, affine).items():
        result = segment(path, segmenter)
        labels, position, _ = reorient(result.labels, result.affine)
        np.testing.assert_allclose(position, reorient(array, affine)[1], atol=1e-4)
        maps[kind] = labels
        if kind not in commands:
            continue
        assert run("predict", "-i", path, "-o", folder / "out", "-m", model) == 0
        assert result.save(folder / f"{kind}.saved.nii.gz").read_bytes() == (folder / f"out/{kind}.nii.gz").read_bytes()
        saved, image = read_image(folder / f"out/{kind}.nii.gz")
        np.testing.assert_allclose(image.affine, result.affine, atol=1e-4)
        np.testing.assert_array_equal(saved, result.labels)
    assert len(np.unique(maps["nifti"])) > 1
    for labels in maps.values():
        np.testing.assert_array_equal(labels, maps["nifti"])


def test_every_format_gives_the_same_label_map(tmp_path, capsys):
    patch = pytest.MonkeyPatch()
    replace_swin_unetr(patch)
    config = SwinUNETRConfig(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1))
    task = Task.classes(2, roi=(64, 32, 32), orientation="RAS")
    try:
        save_checkpoint(tmp_path / "model", SmallNetwork(config, rngs=nnx.Rngs(0)), task=task)
        (tmp_path / "data").mkdir()
        array = np.random.default_rng(1).normal(100, 30, (20, 18, 9)).astype(np.int16)
        check_results(tmp_path / "model", tmp_path / "data", array, np.diag([-1.0, 1.0, 2.0, 1.0]), ("series",))
    finally:
        patch.undo()
        forget()


@pytest.mark.long
def test_every_format_of_a_real_scan_gives_the_same_label_map(tmp_path, capsys, shared_data):
    image = nib.load(shared_data / "open_ms/patient19/FLAIR.nii.gz")
    array = np.rint(image.get_fdata()[40:140, 40:150, 60:120]).astype(np.int16)
    config = SwinUNETRConfig(in_channels=1, out_channels=3, feature_size=12, depths=(1, 1, 1, 1))
    task = Task.classes(3, roi=(64, 64, 64), orientation="RAS")
    save_checkpoint(tmp_path / "model", SwinUNETR(config, rngs=nnx.Rngs(0)), task=task)
    (tmp_path / "data").mkdir()
    check_results(tmp_path / "model", tmp_path / "data", array, image.affine, ("series",))
