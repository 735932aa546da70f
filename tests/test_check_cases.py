"""The checks of single cases and of data sets: sound data have no findings, and each kind of fault has its own."""

import gzip
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.sound_cases import LPS, SHAPE, brats, decathlon, image, label, save

from swinunetr_jax.commands import validate
from swinunetr_jax.data.check.check_case import check_case
from swinunetr_jax.data.check.check_dataset import check_dataset
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.formats import find_cases


def test_a_sound_data_set_has_facts_and_no_findings(tmp_path):
    for number, values in enumerate([(1, 2, 2, 4), (2, 2)]):
        brats(tmp_path, number, values=values)
    report = check_dataset(find_cases(tmp_path))
    assert report.findings == ()
    first = report.cases[0]
    assert (first.shape, first.spacing, first.orientation) == (SHAPE, (1, 1, 1), "LPS")
    assert first.volumes_ml == pytest.approx({0: 0.206, 1: 0.001, 2: 0.002, 4: 0.001})
    flair = first.channels[0]
    assert (flair.name, flair.low, flair.high) == ("FLAIR", image(0).min(), image(0).max()) and flair.nonzero == 1
    summary = report.summary()
    assert summary["labels"]["2"] == {"cases": 2, "median": 0.002, "min": 0.002, "max": 0.002}
    assert summary["labels"]["4"]["cases"] == 1 and summary["with_label"] == 2
    assert summary["shape"] == {"median": [7, 6, 5], "min": [7, 6, 5], "max": [7, 6, 5]} and summary["orientations"] == {"LPS": 2}


def one_case(tmp_path, array, values=(1, 2), **fields):
    fields = {"label": save(tmp_path / "b.nii.gz", label(*values))} | fields
    return Case("one", (save(tmp_path / "a.nii.gz", array),), **fields)


def kinds(case, **options):
    return [finding.kind for finding in check_case(case, **options).findings]


def test_known_labels(tmp_path):
    case = one_case(tmp_path, image(1), (0, 1, 5, 44))
    assert kinds(case) == []  # no name states the labels
    assert kinds(case, labels=(1, 5, 44)) == []
    assert kinds(case, labels=(1, 5)) == ["unknown-label"]
    save(case.label, label(1, 70000, dtype=np.int32))
    assert kinds(case, labels=(1, 5)) == ["unknown-label"]
    assert check_case(case).volumes_ml == pytest.approx({0: 0.208, 1: 0.001, 70000: 0.001})


def test_channels_in_one_file(tmp_path):
    array = np.stack([image(1), image(2), image(1)], -1)
    array[..., 1] = 0
    case = one_case(tmp_path, array, channels=("FLAIR", "T1", "T2"))
    report = check_case(case)
    assert [channel.name for channel in report.channels] == ["FLAIR", "T1", "T2"] and report.shape == SHAPE
    assert [(f.kind, f.message.split(":")[0]) for f in report.findings[:1]] == [("constant", "channel T1")]
    assert (
        report.findings[1].kind == "duplicate" and "channel T2 has the same voxels as channel FLAIR" in report.findings[1].message
    )
    assert kinds(one_case(tmp_path, array[..., 0], channels=("FLAIR", "T1"))) == ["channel-count"]
    assert kinds(one_case(tmp_path, array[..., 0]), channels=("FLAIR", "T1")) == ["channel-count"]
    assert kinds(one_case(tmp_path, array[..., 0]), channels=("FLAIR",)) == []
    assert kinds(one_case(tmp_path, array[..., 0], channels=("T2",)), channels=("FLAIR",)) == ["channel-count"]


def test_missing_labels(tmp_path):
    assert kinds(one_case(tmp_path, image(1), label=None)) == ["missing-label"]
    assert kinds(one_case(tmp_path, image(1), label=None, split="test")) == []
    assert kinds(one_case(tmp_path, image(1), label=tmp_path / "no.nii.gz", split="validation")) == ["missing-label"]


def test_all_voxels_nan(tmp_path):
    report = check_case(one_case(tmp_path, np.full(SHAPE, np.nan, np.float32)))
    assert [f.kind for f in report.findings] == ["not-finite"] and report.channels[0].low is None


def test_scaled_labels_are_sound(tmp_path):
    label_image = nib.Nifti1Image(label(1, 2, 4).astype(np.int16) * 10, LPS)
    label_image.header.set_slope_inter(0.1, 0)
    nib.save(label_image, tmp_path / "b.nii.gz")
    path = tmp_path / "c.nii.gz"
    data = bytearray(gzip.decompress((tmp_path / "b.nii.gz").read_bytes()))
    data[112:116] = np.float32(0.1).tobytes()  # nibabel rescales the voxels when it writes, so the scale is set afterwards
    path.write_bytes(gzip.compress(bytes(data)))
    report = check_case(one_case(tmp_path, image(1), label=path), labels=(1, 2, 4))
    assert report.findings == ()


def test_channel_counts_differ(tmp_path):
    arrays = [np.stack([image(n), image(n + 50)], -1) for n in range(3)] + [image(9)]
    (finding,) = check_dataset(decathlon(tmp_path, arrays, modality=["MRI", "MRI"])).findings
    assert (finding.case, finding.kind, finding.severity) == ("case_3", "channel-count", "error")
    assert finding.message.startswith("it has 1 channel, but 3 of 4 cases have 2;")


def test_labels_that_dataset_json_does_not_name_are_found(tmp_path):
    dataset = decathlon(tmp_path, [image(1), image(2)], [label(1), label(1, 2)])
    (finding,) = check_dataset(dataset).findings
    assert (finding.case, finding.kind) == ("case_1", "unknown-label")
    assert check_dataset(dataset, labels=(1, 2)).findings == ()


@pytest.mark.fault("1.4")
def test_labels_3_and_4_that_the_data_set_names_are_no_warning(tmp_path):
    named = {"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}
    dataset = decathlon(tmp_path, [image(1), image(2)], [label(1, 2, 3), label(1, 4)], labels=named)
    assert check_dataset(dataset).findings == ()


@pytest.mark.fault("1.4")
@pytest.mark.parametrize(("values", "kind"), [((1, 2, 3, 4), "unknown-label"), ((1, 2, 4), "et-label")])
def test_label_4_since_2023_may_be_the_resection_cavity(tmp_path, values, kind):
    folder = tmp_path / "BraTS-GLI-02062-100"
    for number, end in enumerate(("t2f", "t1c", "t1n", "t2w")):
        save(folder / f"{folder.name}-{end}.nii.gz", image(number))
    save(folder / f"{folder.name}-seg.nii.gz", label(*values))
    (finding,) = check_dataset(find_cases(tmp_path)).findings
    assert finding.kind == kind
    assert finding.message.endswith("give --label-values 0 1 2 3 4 where 4 is the resection cavity, as in BraTS 2024.")
    assert check_dataset(find_cases(tmp_path), labels=range(5)).findings == ()


def test_labels_3_and_4_in_different_cases_are_one_warning(tmp_path):
    dataset = decathlon(tmp_path, [image(1), image(2), image(3)], [label(1, 2, 3), label(1, 4), label(2, 4)], labels=None)
    (finding,) = check_dataset(dataset).findings
    assert (finding.case, finding.severity, finding.kind) == (None, "warning", "et-label")
    assert finding.message.startswith("label 3 occurs in 1 of the cases and label 4 in 2 others")


def test_spacings_without_a_majority_are_one_finding(tmp_path):
    for number in range(3):
        brats(tmp_path, number, affine=np.diag([-1.0, -1, 1 + number, 1]))
    (finding,) = check_dataset(find_cases(tmp_path)).findings
    assert (finding.case, finding.kind) == (None, "spacing") and finding.message.startswith("3 different spacings")


def test_real_data_are_sound(shared_data):
    report = check_dataset(find_cases(shared_data / "Task04_Hippocampus"))
    assert report.findings == () and len(report.cases) == 200
    assert report.summary()["shape"] == {"median": [35, 50, 36], "min": [31, 40, 24], "max": [43, 59, 47]}
    assert report.summary()["labels"]["2"]["cases"] == 200


@pytest.mark.parametrize("module", ["check_case", "check_dataset", "check_labels", "findings", "problems"])
def test_data_are_checked_without_jax(module):
    source = (Path(validate.__file__).parents[1] / "data/check" / f"{module}.py").read_text("utf-8")
    imports = [line.split()[1].split(".")[:2] for line in source.splitlines() if line.startswith(("import ", "from "))]
    own = {name[1] for name in imports if name[0] == "swinunetr_jax"}
    others = {name[0] for name in imports if name[0] != "swinunetr_jax"}
    assert own <= {"console", "data", "errors", "files", "version"} and others <= {*sys.stdlib_module_names, "numpy"}
