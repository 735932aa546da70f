"""Label maps as NRRD and DICOM-SEG: other libraries read the same voxels at the same places, with names, codes and references."""

import json
import resource

import nibabel as nib
import numpy as np
import pydicom
import pytest
from flax import nnx
from helpers.dicom_masks import masks_by_hand
from helpers.fake_predictor import FakePredictor, predict, recorded
from helpers.prediction import run
from helpers.refusals import refused
from helpers.scan_formats import LPS, write_enhanced, write_series, write_zip
from helpers.small_network import SmallNetwork, forget, replace_swin_unetr

from swinunetr_jax import InputError, SwinUNETRConfig, Task, save_checkpoint
from swinunetr_jax.data.formats import read_volume, segment_codes
from swinunetr_jax.data.formats.segments import segments_of
from swinunetr_jax.data.nifti import Volume
from swinunetr_jax.evaluation.pairs import find_predictions
from swinunetr_jax.inference.label_files import generic_note
from swinunetr_jax.inference.segmentation import Segmentation
from swinunetr_jax.output import Output
from swinunetr_jax.viz.labels import label_colours, label_names

sitk = pytest.importorskip("SimpleITK")
hd = pytest.importorskip("highdicom")

# Voxels of 0.9 × 1.2 × 2 mm, whose first axis points to the front and the second to the left, tilted by 36.87° around the first.
OBLIQUE = np.array([[0, -0.96, 1.2, 30], [0.9, 0, 0, -20], [0, 0.72, 1.6, 5], [0, 0, 0, 1]])
SHAPE = (9, 7, 5)
PATIENT = {"PatientName": "Müller^Jörg", "PatientID": "17-42", "PatientBirthDate": "19700203", "PatientSex": "M"}


def result(scan: Volume, task: Task, empty: bool = False) -> Segmentation:
    values = np.array([0, *(output.value for output in task.outputs if output.value)], np.uint8)
    labels = values[np.random.default_rng(1).integers(0, len(values), scan.array.shape)]
    labels[:, :, 1] = 0  # a plane without a label
    return Segmentation(labels * (not empty), None, scan, task, 1, ())


def scan_in_memory(shape=SHAPE, affine=OBLIQUE, path="scan.nii.gz") -> Volume:
    return Volume(np.zeros(shape, np.float32), affine, nib.Nifti1Header(), path)


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    folder = write_series(
        tmp_path_factory.mktemp("dicom") / "series", array(), OBLIQUE, SpecificCharacterSet="ISO_IR 100", **PATIENT
    )
    return read_volume(folder)


def array() -> np.ndarray:
    return np.random.default_rng(0).integers(-100, 1000, SHAPE).astype(np.int16)


@pytest.mark.parametrize("mirrored", [False, True])
def test_nrrd_is_read_by_simpleitk_voxel_for_voxel(tmp_path, mirrored):
    affine = OBLIQUE @ np.diag([-1.0 if mirrored else 1.0, 1, 1, 1])  # also left-handed axes
    segmentation = result(scan_in_memory(affine=affine), Task.brats())
    image = sitk.ReadImage(str(segmentation.save(tmp_path / "labels.seg.nrrd")))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), segmentation.labels)
    for index in ((0, 0, 0), (8, 2, 4)):
        expected = (LPS @ affine @ [*index, 1])[:3]
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), expected, atol=1e-9)
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys() if key.startswith("Segment")}
    assert [fields[f"Segment{index}_Name"] for index in range(3)] == ["necrotic core", "oedema", "enhancing tumour"]
    assert [fields[f"Segment{index}_LabelValue"] for index in range(3)] == ["1", "2", "4"]
    assert fields["Segment0_Color"] == "0.337255 0.705882 0.913725" and fields["Segment2_Extent"] == "0 8 0 6 0 4"
    assert "~SCT^79654002^Edema~" in fields["Segment1_Tags"] and "Segment3_Name" not in fields
    again = segmentation.save(tmp_path / "again.nrrd")
    assert again.read_bytes() == (tmp_path / "labels.seg.nrrd").read_bytes()


@pytest.mark.parametrize("kind", ["series", "zip", "enhanced"])
def test_dicom_seg_is_read_by_highdicom_and_by_hand_voxel_for_voxel(series, tmp_path, kind):
    scan = series
    if kind == "zip":
        scan = read_volume(write_zip(tmp_path / "scan.zip", series.path))
    elif kind == "enhanced":
        scan = read_volume(write_enhanced(tmp_path / "scan.dcm", array(), OBLIQUE))
    np.testing.assert_array_equal(scan.array, array())
    segmentation = result(scan, Task.brats())
    path = segmentation.save(tmp_path / "labels.dcm")
    read = hd.seg.segread(path)
    volume = read.get_volume(combine_segments=True).match_geometry(
        hd.VolumeGeometry(LPS @ OBLIQUE, SHAPE, coordinate_system="PATIENT")
    )
    np.testing.assert_array_equal(np.array([0, 1, 2, 4])[volume.array], segmentation.labels)
    np.testing.assert_allclose(LPS @ volume.affine, OBLIQUE, atol=1e-5)
    masks = masks_by_hand(path)
    assert sorted(masks) == [1, 2, 3] and read.NumberOfFrames == 12  # the plane without a label is omitted
    for number, value in ((1, 1), (2, 2), (3, 4)):
        by_plane = {round(float((np.linalg.inv(OBLIQUE) @ LPS @ [*where, 1])[2])): mask for where, mask in masks[number].items()}
        assert sorted(by_plane) == [0, 2, 3, 4]
        for plane, mask in by_plane.items():
            np.testing.assert_array_equal(mask.T, segmentation.labels[:, :, plane] == value)


def test_dicom_seg_states_the_patient_the_codes_and_the_files_that_it_refers_to(series, tmp_path):
    dataset = pydicom.dcmread(result(series, Task.brats()).save(tmp_path / "labels.dcm"))
    source = pydicom.dcmread(series.slices[0])
    assert {name: str(dataset.get(name)) for name in PATIENT} == PATIENT
    for name in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert dataset.get(name) == source.get(name)
    assert dataset.SeriesInstanceUID != source.SeriesInstanceUID and dataset.Modality == "SEG"
    assert dataset.file_meta.TransferSyntaxUID.name == "Explicit VR Little Endian" and dataset.SegmentationType == "BINARY"
    instances = dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    expected = {pydicom.dcmread(path).SOPInstanceUID for path in series.slices}
    assert {instance.ReferencedSOPInstanceUID for instance in instances} == expected
    for group in dataset.PerFrameFunctionalGroupsSequence:  # each frame refers to the file of its own plane
        uid = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        origin = next(file for file in map(pydicom.dcmread, series.slices) if file.SOPInstanceUID == uid)
        assert origin.ImagePositionPatient == group.PlanePositionSequence[0].ImagePositionPatient
    first, _, third = dataset.SegmentSequence
    assert (first.SegmentLabel, third.SegmentLabel, first.SegmentAlgorithmType) == (
        "necrotic core",
        "enhancing tumour",
        "AUTOMATIC",
    )
    assert (first.SegmentDescription, third.SegmentDescription) == ("Label 1 of the label map.", "Label 4 of the label map.")
    assert first.SegmentAlgorithmName.startswith("swinunetr_jax ")
    assert third.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Enhancing Lesion"


def test_dicom_seg_states_the_codes_of_the_task(series, tmp_path, capsys):
    nodule = ("27925004", "SCT", "Nodule", "49755003", "SCT", "Morphologically Abnormal Structure")
    outputs = (
        Output(name="background", value=0),
        Output(name="a", value=3, code=nodule),
        Output(name="spleen", value=5, code=nodule[:3]),
    )
    task = Task(kind="classes", outputs=outputs)
    assert Task.from_dict(json.loads(json.dumps(task.to_dict()))) == task
    first, second = pydicom.dcmread(result(series, task).save(tmp_path / "labels.dcm")).SegmentSequence
    codes = [(item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning) for item in first.SegmentedPropertyTypeCodeSequence]
    codes += [
        (item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning) for item in first.SegmentedPropertyCategoryCodeSequence
    ]
    assert codes == [nodule[:3], nodule[3:]] and first.SegmentDescription == "Label 3 of the label map."
    assert second.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Nodule"
    assert second.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert "any tissue" not in capsys.readouterr().out
    with refused("`code` of a must hold the value, the scheme and the meaning of a code", "got 2 texts"):
        Output(name="a", value=3, code=nodule[:2])
    for code in (("1", "SCT", "x" * 65), ("1", "S" * 17, "x"), ("1\\2", "SCT", "x"), ("1", "SCT", "x\n")):
        with refused("`code` of a holds", "as DICOM requires"):
            Output(name="a", value=3, code=code)


def test_dicom_seg_without_a_label_and_with_other_letters_is_written(series, tmp_path, capsys):
    task = Task.classes(3, ("background", "Leber Läsion", "left kidney\\x" + "y" * 80))
    path = result(series, task, empty=True).save(tmp_path / "empty.dcm")
    assert "the code of any tissue for Leber Läsion, left kidney" in capsys.readouterr().out
    read = hd.seg.segread(path)
    assert not read.get_volume(combine_segments=True).array.any() and read.number_of_segments == 2
    dataset = pydicom.dcmread(path)
    assert dataset.SegmentSequence[0].SegmentLabel == "Leber Läsion" and dataset.PatientName == PATIENT["PatientName"]
    assert (
        len(dataset.SegmentSequence[1].SegmentLabel) == 64
        and "not in the tables" in dataset.SegmentSequence[0].SegmentDescription
    )


def test_labels_have_names_and_codes(series):
    abdomen = ("background", "spleen", "right kidney", "Left_Kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta", "IVC",
               "portal vein and splenic vein", "pancreas", "right adrenal gland", "lad")  # fmt: skip
    task = Task.classes(14, abdomen)
    names = label_names(task)
    segments = segments_of(task, names, label_colours(names))
    assert generic_note(task) is None and [segment.value for segment in segments] == list(range(1, 14))
    assert segments[2].code == segment_codes.SegmentCode(
        segment_codes.ANATOMY,
        segment_codes.Concept("64033007", "SCT", "Kidney"),
        segment_codes.Concept("7771000", "SCT", "Left"),
    )
    hippocampus = Task.classes(3, ("background", "Anterior", "Posterior"))
    codes = segment_codes.codes_of(hippocampus)
    assert [codes[value].kind.meaning for value in (1, 2)] == ["Hippocampus", "Hippocampus"]
    assert [codes[value].modifier.meaning for value in (1, 2)] == ["Anterior", "Posterior"]
    assert segment_codes.codes_of(Task.classes(2))[1] == segment_codes.GENERIC
    atrium = segment_codes.codes_of(Task.classes(2, ("background", "Left_Atrium")))[1]
    assert (atrium.kind.meaning, atrium.modifier) == ("Left atrium", None)


def test_every_code_is_one_of_dicoms_tables():
    from pydicom.sr._concepts_dict import concepts

    tables = [
        segment_codes.Concept(*code) for table in (segment_codes._STRUCTURES, segment_codes._LESIONS) for code in table.values()
    ]
    for concept in (
        *tables,
        segment_codes.ANATOMY,
        segment_codes.ABNORMAL,
        segment_codes.TISSUE,
        *segment_codes.MODIFIERS.values(),
    ):
        meanings = [named[concept.value][0] for named in concepts[concept.scheme].values() if concept.value in named]
        assert concept.meaning in meanings, concept


def test_what_cannot_be_written_is_one_sentence(series, tmp_path, monkeypatch):
    task = Task.classes(2)
    with refused("a DICOM-SEG refers to the DICOM files of the scan, and scan.nii.gz is none: give the folder"):
        result(scan_in_memory(), task).save(tmp_path / "a.dcm")
    other = Volume(np.zeros(SHAPE, np.float32), OBLIQUE @ np.diag([1, 1, 1.5, 1]), series.header, series.path, series.slices)
    with refused("the frames of its DICOM files are not the planes of the scan's array"):
        result(other, task).save(tmp_path / "a.dcm")
    fewer = Volume(series.array, OBLIQUE, series.header, series.path, series.slices[1:])
    with refused("its DICOM files have 4 frames, and the scan has 5 planes"):
        result(fewer, task).save(tmp_path / "a.dcm")
    for path in (series.slices[2], series.path / "new.nii.gz", series.path / "new.nrrd"):
        with refused("is in the folder of the DICOM files of the scan"):
            result(series, task).save(path, overwrite=True)
    enhanced = read_volume(write_enhanced(tmp_path / "frames.dcm", array(), OBLIQUE))
    with refused("would overwrite the image that it was computed from"):
        result(enhanced, task).save(tmp_path / "frames.dcm", overwrite=True)
    (tmp_path / "frames.dcm").unlink()
    lost = Volume(series.array, OBLIQUE, series.header, series.path, (tmp_path / "lost.dcm", *series.slices[1:]))
    with refused("lost.dcm", "cannot be read"):
        result(lost, task).save(tmp_path / "a.dcm")
    for name in ("a.nrrd", "a.dcm"):
        with refused("no/" + name, "cannot be written"):
            result(series, task).save(tmp_path / "no" / name)
    whole = result(series, task).save(tmp_path / "whole.nrrd")
    size = whole.stat().st_size
    whole.unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name, limit in (("a.nrrd", size - 1), ("a.nrrd", 10), ("a.dcm", 1000)):  # as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            with refused(name, "cannot be written (", "File too large" if name == "a.dcm" else "give an existing folder"):
                result(series, task).save(tmp_path / name)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with refused('writing NRRD needs SimpleITK, which is not installed: pip install "swinunetr-jax[formats]"'):
        result(series, task).save(tmp_path / "a.nrrd")
    assert not list(tmp_path.iterdir())


def test_a_message_holds_no_personal_data(tmp_path, capfd):
    series = write_series(tmp_path / "a", array(), OBLIQUE, PatientName="Zebedee", PatientSex="W")
    task = Task.classes(2)
    saved = pydicom.dcmread(result(read_volume(series), task).save(tmp_path / "a.dcm"))
    assert "Zebedee" not in "".join(capfd.readouterr())  # highdicom warns of a name that has a single part
    assert (saved.PatientName, saved.PatientSex) == ("Zebedee", "")  # the sex is none that DICOM knows
    broken = write_series(tmp_path / "b", array(), OBLIQUE, FrameOfReferenceUID=None)
    with refused("has no FrameOfReferenceUID, without which a DICOM-SEG cannot refer to it; choose nifti or nrrd"):
        result(read_volume(broken), task).save(tmp_path / "b.dcm")
    invalid = read_volume(write_series(tmp_path / "c", array(), OBLIQUE, PatientBirthDate="Zebedee's"))
    with pytest.raises(InputError, match=r"do not allow a DICOM-SEG \(") as caught:
        result(invalid, task).save(tmp_path / "c.dcm")
    assert "Zebedee" not in str(caught.value)


def test_predict_writes_and_resumes_other_formats(tmp_path, capsys):
    assert predict(tmp_path, "a", "b", label_format="nrrd") == []
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["a.seg.nrrd", "b.seg.nrrd", "predict.json"]
    assert recorded(tmp_path)["cases"]["a"]["outputs"]["labels"]["path"] == "a.seg.nrrd"
    capsys.readouterr()
    assert predict(tmp_path, "a", label_format="nrrd") == [] and "done already" in capsys.readouterr().out
    assert predict(tmp_path, "a") == []  # another format is another result
    assert "a.seg.nrrd of an earlier run is kept" in capsys.readouterr().out and (out / "a.nii.gz").exists()
    for label_format in ("nrrd", "nifti"):  # the files of both formats are still known to be results
        assert predict(tmp_path, "a", label_format=label_format) == []
    assert "a.seg.nrrd of an earlier run is kept" in capsys.readouterr().out
    assert predict(tmp_path, "c", fake=FakePredictor(fails=("c",)), label_format="dicom-seg") == ["c"]
    assert "c_flair.nii.gz: a DICOM-SEG refers to the DICOM files of a scan, and this is none" in capsys.readouterr().err
    (out / "a.nii.gz").rename(out / "a_probabilities.nii.gz")
    assert find_predictions(out).cases == {"a": out / "a.seg.nrrd", "b": out / "b.seg.nrrd"}
    (out / "a_probabilities.nii.gz").unlink()
    for name in ("a", "b"):
        (out / f"{name}.seg.nrrd").rename(out / f"{name}.dcm")
    assert find_predictions(out).cases == {"a": out / "a.dcm", "b": out / "b.dcm"}


@pytest.mark.long
def test_a_real_scan_has_the_same_labels_as_nifti_nrrd_and_dicom_seg(shared_data, tmp_path, monkeypatch):
    """The scan is read as NIfTI and as a DICOM series, and its label maps are compared in the orientation RAS."""
    image = nib.load(shared_data / "open_ms/patient19/FLAIR.nii.gz")
    voxels = np.rint(np.asarray(image.dataobj)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, image.affine), tmp_path / "scan.nii.gz")
    write_series(tmp_path / "series", voxels, image.affine)
    replace_swin_unetr(monkeypatch)
    task = Task.classes(3, ("background", "left hippocampus", "edema"), roi=(64, 64, 64), orientation="RAS")
    config = SwinUNETRConfig(in_channels=1, out_channels=3, feature_size=12, depths=(1, 1, 1, 1))
    save_checkpoint(tmp_path / "net", SmallNetwork(config, rngs=nnx.Rngs(0)), task=task)
    for source, name in (("scan.nii.gz", "a.nii.gz"), ("scan.nii.gz", "a.seg.nrrd"), ("series", "b.nii.gz"), ("series", "b.dcm")):
        assert run("predict", "-i", tmp_path / source, "-o", tmp_path / name, "-m", tmp_path / "net", "--overlap", "0") == 0
    forget()
    expected = nib.as_closest_canonical(nib.load(tmp_path / "a.nii.gz"))
    values = np.asarray(expected.dataobj)
    assert len(np.unique(values)) > 1
    np.testing.assert_array_equal(np.asarray(nib.as_closest_canonical(nib.load(tmp_path / "b.nii.gz")).dataobj), values)
    nrrd = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "a.seg.nrrd")), "RAS")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(nrrd).transpose(2, 1, 0), values)
    grid = hd.VolumeGeometry(LPS @ expected.affine, values.shape, coordinate_system="PATIENT")
    volume = hd.seg.segread(tmp_path / "b.dcm").get_volume(combine_segments=True).match_geometry(grid)
    np.testing.assert_array_equal(volume.array, values)
    to_voxels = np.linalg.inv(expected.affine) @ LPS
    by_hand = np.zeros_like(values)
    for number, frames in masks_by_hand(tmp_path / "b.dcm").items():
        for position, mask in frames.items():
            corner = np.rint(to_voxels @ [*position, 1])[:3].astype(int)
            steps = np.rint((to_voxels @ LPS @ image.affine)[:3, :2]).astype(int)  # of a column and of a row
            rows, columns = np.nonzero(mask)
            by_hand[tuple(corner[:, None] + steps @ [columns, rows])] = number
    np.testing.assert_array_equal(by_hand, values)
