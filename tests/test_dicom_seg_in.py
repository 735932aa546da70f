"""A DICOM-SEG as a label map: the same labels on the grid of the scan as the label map from which it was written."""

import csv
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from helpers.prediction import run
from helpers.refusals import refused
from helpers.scan_formats import write_enhanced, write_series, write_zip
from pydicom.sr.codedict import codes

from swinunetr_jax import InputError, Task
from swinunetr_jax.data.formats import read_labels, read_volume
from swinunetr_jax.data.formats.source_frames import read_sources
from swinunetr_jax.data.nifti import Volume, on_grid_of, write_volume
from swinunetr_jax.inference.segmentation import Segmentation

pytest.importorskip("SimpleITK")
hd = pytest.importorskip("highdicom")

AFFINE = np.array([[0, -0.96, 1.2, 30], [0.9, 0, 0, -20], [0, 0.72, 1.6, 5], [0, 0, 0, 1]])  # oblique voxels of 0.9 × 1.2 × 2 mm
SHAPE = (9, 7, 6)
read_segmentation = functools.partial(read_labels, may_be_part=True)
NAMES = {1: "necrotic core", 2: "oedema", 4: "enhancing tumour"}


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Volume:
    voxels = np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)
    return read_volume(write_series(tmp_path_factory.mktemp("dicom") / "series", voxels, AFFINE, PatientName="Secret^Name"))


def labels(planes: slice = slice(1, 5)) -> np.ndarray:
    """Returns labels in these planes; the others are empty, and a DICOM-SEG omits them."""
    array = np.zeros(SHAPE, np.uint8)
    array[2:7, 1:6, planes] = np.random.default_rng(1).choice([0, 1, 2, 4], (5, 5, len(range(*planes.indices(SHAPE[2])))))
    return array


def save(path: Path, scan: Volume, array: np.ndarray) -> Path:
    return Segmentation(array, None, scan, Task.brats(), 1, ()).save(path)


@pytest.mark.parametrize("kind", ["series", "zip", "enhanced"])
@pytest.mark.parametrize("planes", [slice(1, 5), slice(3, 4), slice(0, 6), slice(0, 6, 2)], ids=str)
def test_the_labels_are_those_from_which_it_was_written(scan, tmp_path, kind, planes):
    if kind == "zip":
        scan = read_volume(write_zip(tmp_path / "scan.zip", scan.path))
    elif kind == "enhanced":
        scan = read_volume(write_enhanced(tmp_path / "scan.dcm", scan.array.astype(np.int16), AFFINE))
    read = read_segmentation(save(tmp_path / "labels.dcm", scan, labels(planes)))
    assert read.is_part and read.array.dtype == np.uint8 and read.names == NAMES and not read.notes
    np.testing.assert_array_equal(on_grid_of(read, scan).array, labels(planes))
    flipped = Volume(scan.array[::-1], scan.affine @ np.diag([-1.0, 1, 1, 1]), scan.header, scan.path)
    flipped.affine[:3, 3] += scan.affine[:3, 0] * (SHAPE[0] - 1)
    np.testing.assert_array_equal(on_grid_of(read, flipped).array, labels(planes)[::-1])


def test_a_label_map_outside_of_the_grid_of_a_scan_is_refused(scan, tmp_path):
    read = read_segmentation(save(tmp_path / "labels.dcm", scan, labels()))
    half_a_voxel, larger = np.eye(4), np.diag([1, 1, 1.01, 1])
    half_a_voxel[2, 3] = 0.5
    for change in (half_a_voxel, larger):
        with refused("are not on the same grid"):
            on_grid_of(read, Volume(scan.array, AFFINE @ change, scan.header, scan.path))
    cropped = Volume(scan.array[:, :, :3], AFFINE, scan.header, scan.path)
    with refused("are not on the same grid"):
        on_grid_of(read, cropped)


def test_the_labels_of_another_program_are_the_numbers_of_the_segments(scan, tmp_path):
    dataset = pydicom.dcmread(save(tmp_path / "labels.dcm", scan, labels()))
    dataset.ManufacturerModelName = "another program"
    dataset.save_as(tmp_path / "other.dcm")
    read = read_segmentation(tmp_path / "other.dcm")
    np.testing.assert_array_equal(on_grid_of(read, scan).array, np.array([0, 1, 2, 0, 3])[labels()])
    assert read.names == {1: "necrotic core", 2: "oedema", 3: "enhancing tumour"}
    assert read.notes[0].endswith("states no known values: 1 necrotic core, 2 oedema, 3 enhancing tumour")


@pytest.mark.parametrize("padding", [None, 77])
@pytest.mark.parametrize("values", [(0, 1, 2, 3), (0, 2, 5, 300)])
def test_a_segmentation_of_the_type_labelmap(scan, tmp_path, values, padding):
    """Its voxels hold the numbers of the segments, and a padding value stands for no segment."""
    numbers = np.array(values, np.uint16)[np.array([0, 1, 2, 0, 3])[labels()]]
    descriptions = [
        hd.seg.SegmentDescription(value, f"s{value}", codes.SCT.Tissue, codes.SCT.Liver, hd.seg.SegmentAlgorithmTypeValues.MANUAL)
        for value in values[1:]
    ]
    arguments = (hd.UID(), 1, hd.UID(), 1, "maker", "model", "1", "1")
    dataset = hd.seg.Segmentation(
        read_sources(scan.slices), numbers.transpose(2, 1, 0), hd.seg.SegmentationTypeValues.LABELMAP, descriptions, *arguments
    )
    if padding is not None:
        stored = np.frombuffer(dataset.PixelData, np.uint8 if max(values) < 256 else np.uint16)
        dataset.PixelData = np.where(stored == 0, padding, stored).astype(stored.dtype).tobytes()
        dataset.PixelPaddingValue = padding
        dataset.SegmentSequence[0].SegmentNumber = padding  # the background
    dataset.save_as(tmp_path / "labels.dcm")
    read = read_segmentation(tmp_path / "labels.dcm")
    np.testing.assert_array_equal(on_grid_of(read, scan).array, numbers)
    assert {value: read.names[value] for value in values[1:]} == {value: f"s{value}" for value in values[1:]}


def test_faulty_segmentations_are_refused_without_personal_data(scan, tmp_path):
    path = save(tmp_path / "labels.dcm", scan, labels())
    content = path.read_bytes()
    dataset = pydicom.dcmread(path)
    dataset.PixelData = b"\xff" * len(dataset.PixelData)
    dataset.save_as(path)
    with refused("the segments of this DICOM-SEG overlap or are fractional"):
        read_segmentation(path)
    dataset = pydicom.dcmread(path)
    dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = [0, 0, 0.123]
    dataset.save_as(path)
    with refused("are not parallel planes at equal distances"):
        read_segmentation(path)
    del dataset.SegmentSequence
    dataset.save_as(path)
    with refused("cannot be read as a DICOM-SEG"):
        read_segmentation(path)
    for change in ("frames", "segment", "rows"):
        path.write_bytes(content)
        dataset = pydicom.dcmread(path)
        if change == "frames":
            del dataset.NumberOfFrames
        elif change == "segment":
            dataset.SegmentSequence[0].SegmentNumber = 9
        else:
            dataset.Rows = None
        dataset.save_as(path)
        with refused("cannot be read as a DICOM-SEG"):
            read_segmentation(path)
    (tmp_path / "two").mkdir()
    for name in ("a.dcm", "b.dcm"):
        (tmp_path / "two" / name).write_bytes(content)
    with refused("holds 2 DICOM files, of which a.dcm is a segmentation, expected one label map"):
        read_segmentation(tmp_path / "two")
    path.write_bytes(content[: len(content) * 9 // 10])
    with pytest.raises(InputError, match=r"labels\.dcm: ") as caught:
        read_segmentation(path)
    assert "Secret" not in str(caught.value)
    path.write_bytes(content)
    with refused("is a DICOM segmentation, expected a scan"):
        read_volume(path)
    with refused("is a DICOM-SEG, which may cover only a part of the scan", "convert it to NIfTI"):
        read_labels(path)  # as a label map for training, and as a reference
    with refused("voxels take"):
        read_segmentation(path, max_bytes=100)


def test_evaluate_and_view_read_it(scan, tmp_path, capsys):
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    predictions.mkdir()
    references.mkdir()
    save(predictions / "a.dcm", scan, labels())
    shutil.copy(scan.slices[0], predictions / "slice.dcm")  # a scan is no prediction
    write_volume(references / "a.nii.gz", labels(), scan)
    assert run("evaluate", predictions, references, "--task", "brats", "--out", tmp_path / "scores") == 0
    with open(tmp_path / "scores/scores.csv") as file:
        scores = {row["output"]: float(row["dice_brats"]) for row in csv.DictReader(file) if row["case"] == "a"}
    assert scores == {"TC": 1, "WT": 1, "ET": 1}
    capsys.readouterr()
    assert run("evaluate", references, predictions / "a.dcm", "--task", "brats", "--out", tmp_path / "other") == 2
    assert "a.dcm" in capsys.readouterr().err
    page = tmp_path / "page.html"
    assert run("view", scan.path, predictions / "a.dcm", "-o", page) == 0
    text = page.read_text()
    description = json.loads(text[text.index('{"title"') : text.index("</script>", text.index('{"title"'))])
    shown = {label["value"]: (label["name"], label["ml"]) for label in description["maps"][0]["labels"]}
    ml = {value: round(float((labels() == value).sum() * 0.9 * 1.2 * 2 / 1000), 3) for value in NAMES}
    assert shown == {value: (name, ml[value]) for value, name in NAMES.items()}
    assert "Secret" not in text
