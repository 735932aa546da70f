"""Names of cases, patients, pairs and the meaning of labels follow from explicit statements, and every entry of a folder is reported."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from refusals import refused

from swinunetr_jax import cli
from swinunetr_jax.commands.options import TaskOptions
from swinunetr_jax.commands.predict import Predict
from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.data.check.check_dataset import check_dataset
from swinunetr_jax.data.check.problems import problem_lines
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.channels import canonical_channel, split_name
from swinunetr_jax.data.discovery.folds import find_splits, fold_numbers, fold_split, unlabelled, with_folds
from swinunetr_jax.data.discovery.formats import find_cases
from swinunetr_jax.data.discovery.patients import find_patients
from swinunetr_jax.evaluation.pairing import pair_cases
from swinunetr_jax.evaluation.pairs import Reference, References, find_predictions, find_references
from swinunetr_jax.task import Output, Task
from swinunetr_jax.training import Recipe
from swinunetr_jax.training.data import gather

SHAPE = (6, 5, 4)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def ball(at):
    labels = np.zeros(SHAPE, np.uint8)
    labels[at : at + 2, 1:3, 1:3] = 1
    return labels


def write_list(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def names_of(found):
    return [case.name for case in found.cases]


# Names


@pytest.mark.fault("1.5")
def test_three_scans_of_one_file_name_have_three_case_names(tmp_path):
    touch(tmp_path, "A/ct/scan.nii.gz", "B/ct/scan.nii.gz", "C/ct_scan_2.nii.gz")
    assert len(set(names_of(find_cases(tmp_path)))) == 3
    assert names_of(find_cases(tmp_path))[:2] == ["A_ct_scan", "B_ct_scan"]


@pytest.mark.fault("1.5")
def test_an_additional_case_does_not_rename_others(tmp_path):
    touch(tmp_path, "P002/CT/image.nii.gz")
    assert names_of(find_cases(tmp_path)) == ["P002_CT_image"]
    touch(tmp_path, "P001/CT/image.nii.gz", "P003/CT/image.nii.gz")
    assert names_of(find_cases(tmp_path)) == ["P001_CT_image", "P002_CT_image", "P003_CT_image"]
    touch(tmp_path / "b", "HGG/Brats18_1_2_1/Brats18_1_2_1_flair.nii.gz")
    assert names_of(find_cases(tmp_path / "b")) == ["Brats18_1_2_1"]


@pytest.mark.fault("1.5")
def test_names_that_no_folder_distinguishes_are_refused(tmp_path):
    touch(tmp_path, "A/ct_scan.nii.gz", "A_ct/scan.nii.gz")
    with refused("A_ct_scan", "rename"):
        find_cases(tmp_path)


# Pairs


def reference(path):
    return Reference(path / "label.nii.gz", (path / "image.nii.gz",))


@pytest.mark.fault("1.5")
def test_predictions_are_scored_against_the_label_of_their_own_scan(tmp_path):
    """Formerly the name CT_image meant P001 if P001 was among the references, and the result of P002 had Dice 0.28 instead of 1."""
    out = tmp_path / "out"
    cases = {}
    for at, (patient, name) in enumerate([("P001", None), ("P002", "CT_image"), ("P003", "CT_image_2")]):
        folder = tmp_path / "data" / patient / "CT"
        save(folder / "image.nii.gz", np.ones(SHAPE, np.float32))
        save(folder / "label.nii.gz", ball(at))
        if name:
            save(out / f"{name}.nii.gz", ball(at))
            scan = {"path": str(folder / "image.nii.gz"), "bytes": 1, "modified_ns": 1}
            cases[name] = {"inputs": [scan], "outputs": {"labels": {"path": f"{name}.nii.gz", "bytes": 1}}}
    write_list(out / "predict.json", settings={"task": Task.classes(2).to_dict()}, cases=cases)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", str(out), str(tmp_path / "data")])
    report = json.loads((out / "scores.json").read_text())
    assert stopped.value.code == 1 and report["missing_predictions"] == ["P001_CT_image"]
    assert {name: case["class 1"]["dice_brats"] for name, case in report["cases"].items()} == {"CT_image": 1, "CT_image_2": 1}


@pytest.mark.fault("1.5")
def test_uncertain_pairs_are_refused(tmp_path):
    one, other = tmp_path / "P001" / "CT", tmp_path / "P002" / "CT"
    touch(one, "image.nii.gz", "label.nii.gz")
    scans = {"CT_image": {"inputs": [{"path": str(other / "image.nii.gz"), "bytes": 7}]}}
    pairs = pair_cases({"CT_image": Path("CT_image.nii.gz")}, References({"CT_image": reference(one)}), {"cases": scans})
    assert "different scan" in pairs.refused["CT_image"] and not pairs.predictions
    # two results of one scan
    scans = {name: {"inputs": [{"path": str(one / "image.nii.gz"), "bytes": 1}]} for name in ("a", "b")}
    maps = {name: Path(f"{name}.nii.gz") for name in scans}
    pairs = pair_cases(maps, References({"c": reference(one)}), {"cases": scans})
    assert set(pairs.refused) == {"a", "b"} and "same scan" in pairs.refused["a"]
    # one result and one reference of different names are a pair only if the user gave both
    one_each = {"a": Path("a.nii.gz")}, References({"b": Reference(Path("b.nii.gz"))}), {}
    assert "a" not in pair_cases(*one_each).references.cases
    assert "a" in pair_cases(*one_each, same=True).references.cases


@pytest.mark.fault("1.5")
def test_two_label_maps_for_one_case_are_refused(tmp_path):
    touch(tmp_path, "a.nii", "a.nii.gz", "b.nii.gz", "labels/c_seg.nii.gz", "labels/c_mask.nii.gz", "labels/d_seg.nii.gz")
    found = find_predictions(tmp_path)
    assert list(found.cases) == ["b"] and "a.nii, a.nii.gz" in found.refused["a"]
    found = find_references(tmp_path / "labels")
    assert list(found.cases) == ["d"] and "several label maps" in found.refused["c"]


# Patients


@pytest.mark.fault("1.6")
@pytest.mark.parametrize(
    ("names", "patients"),
    [
        (["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"], 2),
        ([f"genius_{number:04}" for number in (800, 801, 802, 900, 901, 1000)], 3),
        ([f"P{patient:03}_{visit}" for patient in range(5) for visit in (1, 2)], 5),
        ([f"patient{patient:03}_frame{frame:02}" for patient in range(5) for frame in (1, 12)], 5),
        (["P1_baseline", "P1_followup", "P2_20190101", "P2_20200101", "Patient-003_week-004", "Patient-003_week-044"], 3),
        (["BraTS-GLI-00001-000", "BraTS-GLI-00001-001", "UPENN-GBM-00001_11", "UPENN-GBM-00001_21"], 2),
        (["hippocampus_001", "hippocampus_003"], 2),
        ([f"la_{number:03}" for number in (3, 4, 5, 7, 9, 10, 11, 14)], 8),
        ([f"liver_{number}" for number in range(131)], 131),
        ([f"BraTS20_Training_{number:03}" for number in range(1, 4)] + ["BraTS20_Validation_001"], 4),
        ([f"s{site}_{number:03}" for site in (1, 2) for number in range(100)], 200),
    ],
)
def test_patients_by_names(names, patients):
    found = find_patients(names)
    assert len(set(found.of.values())) == patients and f"{patients} patients" in found.note


@pytest.mark.fault("1.6")
def test_ambiguous_patients_need_an_option():
    names = [f"P{patient}_{number}" for patient in (1, 2) for number in range(12)]
    with refused("P1_0 and P1_1", "--patient"):
        find_patients(names)
    assert len(set(find_patients(names, r"P\d+").of.values())) == 2
    assert len(set(find_patients(names, ".+").of.values())) == 24
    with refused("--patient", "matches every case"):
        find_patients(names, "(X)")
    with refused("not a regular expression"):
        find_patients(names, "(")


def labelled(name, **fields):
    return Case(name, (Path(f"{name}.nii"),), label=Path(f"{name}_seg.nii"), **fields)


@pytest.mark.fault("1.6")
def test_all_cases_of_a_patient_are_in_one_fold_and_the_number_of_patients_is_printed():
    said = []
    cases = with_folds([labelled(f"sub-{n:02}_ses-{s}") for n in range(10) for s in (1, 2)], notify=said.append)
    folds = {}
    for case in cases:
        folds.setdefault(case.name[:6], set()).add(case.fold)
    assert all(len(of) == 1 for of in folds.values()) and "20 cases of 10 patients" in said[0]
    given = [labelled("sub-01_ses-1", fold=0), labelled("sub-01_ses-2", fold=1)]
    with_folds(given, notify=said.append)
    assert "sub-01" in said[-1] and "several folds" in said[-1]


@pytest.mark.fault("1.6")
def test_the_splits_of_nnunet_are_used(tmp_path):
    raw, said = tmp_path / "nnUNet_raw" / "Dataset001_A", []
    raw.mkdir(parents=True)
    path = write_list(tmp_path / "nnUNet_preprocessed" / "Dataset001_A" / "splits_final.json")
    path.write_text(json.dumps([{"train": ["a", "b"], "val": ["c"]}, {"train": ["c", "b"], "val": ["a"]}]))
    assert find_splits(raw) == path
    cases = with_folds([labelled(name) for name in "abcd"], splits=path, notify=said.append)
    assert [case.fold for case in cases] == [1, -1, 0, None] and fold_numbers(cases) == [0, 1]
    train, validation = fold_split(cases, 0)
    assert [c.name for c in train] == ["a", "b"] and [c.name for c in validation] == ["c"]
    assert f"2 of {path}" in said[0] and "not used: d" in said[1]
    path.write_text(json.dumps([{"train": ["b"], "val": ["a", "c"]}, {"train": ["c", "b"], "val": ["a"]}]))
    with refused(path, "a is validated on in the splits 0 and 1"):
        with_folds([labelled(name) for name in "abc"], splits=path)
    path.write_text("{")
    with refused(path, "not a list of splits"):
        with_folds([labelled("a")], splits=path)


# Channels


@pytest.mark.fault("1.13")
@pytest.mark.parametrize(
    "name",
    [
        "sub-01_ce-gadolinium_T1w",
        "sub-01_acq-postcontrast_T1w",
        "pat_post_T1",
        "T1_gad",
        "P1_T1wCE",
        "P1_gad_axial_T1",
        "sub-01_ce-gd_run-1_T1w",
        "P1-T1-post-Gd",
        "sub-01_acq-mprageGd_T1w",
        "ce-gadolinium_T1w",
        "T1_contrast",
    ],
)
def test_names_that_mention_contrast_are_not_t1(name):
    assert split_name(name)[1:] == ("channel", "T1ce")


@pytest.mark.fault("1.13")
def test_names_without_contrast():
    for name in [
        "sub-01_ses-post_T1w",
        "pat_postop_T1",
        "P1_no_gad_T1",
        "sub-01_ce-none_T1w",
        "gad_001_T1",
        "T1_pre",
        "P1_native_T1",
    ]:
        assert split_name(name)[1:] == ("channel", "T1"), name
    assert split_name("P1_T1_FLAIR")[1] is None and split_name("P1_gad_FLAIR")[2] == "FLAIRce"
    assert canonical_channel("T1 post-contrast") == "T1ce" and canonical_channel("T1 without contrast") == "T1"
    assert canonical_channel("T2*") == "T2*"  # another sequence than T2


@pytest.mark.fault("1.14")
def test_channels_in_another_order_than_the_checkpoint_are_refused(capsys):
    task = Task.brats()
    checkpoint = SimpleNamespace(config=SwinUNETRConfig(in_channels=4, out_channels=3), task=task)
    with refused("run.pt", "T1, T1ce", "leave --channels out"):
        TaskOptions(channels=("FLAIR", "T1", "T1ce", "T2")).apply(checkpoint, Path("run.pt"))
    assert TaskOptions(channels=("t2f", "t1gd", "T1", "T2w")).apply(checkpoint, Path("run.pt")).channels[0] == "t2f"
    assert capsys.readouterr().out == ""
    TaskOptions(channels=("FLAIR", "T1ce", "T1", "PD")).apply(checkpoint, Path("run.pt"))
    assert "replaces FLAIR T1ce T1 T2" in capsys.readouterr().out


# Entries


@pytest.mark.fault("2.1")
def test_every_entry_is_a_case_or_is_named(tmp_path):
    touch(tmp_path, "a.nii", "a.nii.gz", "b.nii.gz", "d.mha", "h.nii.gz.part", "README.md", ".DS_Store", "extra/f.nii.gz")
    (tmp_path / "c.nii.gz").symlink_to("/nowhere/c.nii.gz")
    os.mkfifo(tmp_path / "e.nii.gz")
    found = find_cases(tmp_path)
    problems = {case.name: case.problem for case in found.cases if case.problem}
    words = {
        "a": "several files of the same name (a.nii, a.nii.gz)",
        "c": "a link to /nowhere",
        "d": "MetaImage",
        "e": "not a regular file",
    }
    words["h"] = ".nii in its name"
    assert set(problems) == set(words) and names_of(found).count("b") == 1
    assert all(text in problems[name] for name, text in words.items())
    assert found.ignored == "2 entries that are not scans were ignored: .DS_Store, README.md."
    assert len(found.warnings) == 1 and "extra" in found.warnings[0]


@pytest.mark.fault("2.1")
def test_folders_without_scans_are_named(tmp_path):
    brats = [f"BraTS2021_00000/BraTS2021_00000_{end}.nii.gz" for end in ("flair", "t1", "t1ce", "t2", "seg")]
    touch(tmp_path, *brats, "BraTS2021_00001/1.dcm", "BraTS2021_00001/2.dcm", "docs/x.pdf", "BraTS2021_00000/T1_brain.nii.gz")
    (tmp_path / "P3").mkdir()
    found = find_cases(tmp_path)
    assert names_of(found) == ["BraTS2021_00000", "BraTS2021_00001", "P3"]
    assert "2 DICOM files" in found.cases[1].problem and "is empty" in found.cases[2].problem
    assert "docs" in found.ignored and "T1_brain" in found.warnings[0]


@pytest.mark.fault("2.1")
def test_a_folder_that_cannot_be_read_is_one_case(tmp_path, monkeypatch):
    touch(tmp_path, "P1/P1_T1.nii.gz", "P2/P2_T1.nii.gz")
    scan = os.scandir

    def closed(path):
        if Path(path).name == "P2":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    one, two = find_cases(tmp_path).cases
    assert one.problem is None and two.name == "P2" and "Permission denied" in two.problem


def nnunet(root, labels=("c0.nii.gz", "c1.nii.gz", "c2.nii")):
    touch(root, *(f"imagesTr/c{n}_0000.nii.gz" for n in range(4)), *(f"labelsTr/{name}" for name in labels))
    return write_list(root / "dataset.json", channel_names={"0": "CT"}, labels={"background": 0, "x": 1})


@pytest.mark.fault("2.1")
def test_labels_with_another_ending_are_found_and_missing_ones_are_reported(tmp_path):
    nnunet(tmp_path, ("c0.nii.gz", "c1.nii.gz", "c2.nii", "z.nii.gz"))
    found = find_cases(tmp_path)
    assert [case.label and case.label.name for case in found.cases] == ["c0.nii.gz", "c1.nii.gz", "c2.nii", None]
    assert [case.name for case in unlabelled(found)] == ["c3"]
    assert any("1 label maps have no image" in text and "z" in text for text in found.warnings)


@pytest.mark.fault("2.3")
def test_results_in_the_folder_of_the_scans_are_not_scans(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii.gz", "results/a.nii.gz", "P3.nii.gz")
    record = {"settings": {}, "cases": {"a": {"outputs": {"labels": {"path": "a.nii.gz", "bytes": 1}}}}}
    write_list(tmp_path / "results" / "predict.json", **record)
    found = find_cases(tmp_path)
    assert names_of(found) == ["P3", "a", "b"] and "results" in found.ignored
    write_list(tmp_path / "predict.json", settings={}, cases={"P3": {"outputs": {"labels": {"path": "P3.nii.gz", "bytes": 1}}}})
    assert names_of(find_cases(tmp_path)) == ["a", "b"]


@pytest.mark.fault("2.3")
def test_a_result_never_replaces_a_scan(tmp_path):
    touch(tmp_path, "a.nii.gz")
    with refused("a.nii.gz", "choose another --output"):
        Predict(input=(tmp_path,), output=tmp_path, model=(Path("m"),), overwrite=True)._cases(Task.classes(2))


# Lists


@pytest.mark.fault("4.3")
def test_nnunet_version_1(tmp_path):
    touch(tmp_path, *(f"imagesTr/la_00{n}_000{c}.nii.gz" for n in (1, 2, 3) for c in (0, 1)), "labelsTr/la_001.nii.gz")
    entries = [{"image": f"./imagesTr/la_00{n}.nii.gz", "label": f"./labelsTr/la_00{n}.nii.gz"} for n in (1, 2)]
    write_list(tmp_path / "dataset.json", modality={"0": "T1", "1": "T2"}, labels={"0": "background", "1": "x"}, training=entries)
    found = find_cases(tmp_path, channels=("T2", "T1"))
    assert found.layout == "nnunet" and names_of(found) == ["la_001", "la_002"] and not any(c.problem for c in found.cases)
    assert [image.name for image in found.cases[0].images] == ["la_001_0001.nii.gz", "la_001_0000.nii.gz"]
    assert "2 images are not listed" in found.warnings[0]
    write_list(tmp_path / "dataset.json", modality={"0": "T1", "1": "T2"}, labels={"0": "background", "1": "x"})
    assert names_of(find_cases(tmp_path)) == ["la_001", "la_002", "la_003"]


@pytest.mark.fault("4.3")
def test_lists_with_a_base_folder(tmp_path, capsys):
    data = tmp_path / "data"
    save(data / "a.nii.gz", np.arange(120, dtype=np.float32).reshape(SHAPE))
    path = write_list(tmp_path / "lists" / "list.json", test=["a.nii.gz", str(data / "a.nii.gz")])
    with refused("--base"):
        find_cases(path)
    assert names_of(find_cases(path, base=data)) == ["a"]
    predict = Predict(input=(path,), output=tmp_path / "out", model=(Path("m"),), base=data)
    assert [case.name for case in predict._cases(Task.classes(2))[0]] == ["a"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["validate", str(path), "--base", str(data)])
    assert stopped.value.code == 0 and "monai-datalist, 1 case" in capsys.readouterr().out
    with refused("only the paths of a list have a base folder"):
        find_cases(data, base=tmp_path)
    write_list(path, test=["../secret.nii.gz"])
    with refused("leads out of", "not allowed"):
        find_cases(path, base=data)


@pytest.mark.fault("3.9")
def test_lone_surrogates_in_a_list_are_refused_with_one_sentence(tmp_path):
    for content in (
        {"training": ["a\ud800.nii.gz"]},
        {"training": ["a.nii.gz"], "labels": {"0": "background", "1": "\ud800"}},
        {"training": ["a.nii.gz"], "modality": {"0": "\udfff"}},
    ):
        path = write_list(tmp_path / "list.json", **content)
        with refused(path):
            find_cases(path)


# Numbers


@pytest.mark.fault("4.6")
def test_integers_of_numpy_are_integers():
    eight, three = np.int64(24), np.int32(3)
    config = SwinUNETRConfig(in_channels=np.int64(4), out_channels=three, feature_size=eight, depths=np.array([1, 1, 1, 1]))
    assert config == SwinUNETRConfig(in_channels=4, out_channels=3, feature_size=24, depths=(1, 1, 1, 1))
    outputs = tuple(Output(name=str(value), value=np.uint8(value)) for value in (0, 1))
    task = Task(kind="classes", outputs=outputs, roi=(np.int64(96),) * 3, spacing=np.array([1.0, 1, 2]))
    assert json.dumps([config.to_dict(), task.to_dict()]) and type(task.roi[0]) is int
    with refused("`roi`"):
        Task(kind="classes", outputs=outputs, roi=(True, 96, 96))


@pytest.mark.fault("4.6")
def test_labels_above_255_are_refused_with_the_name_of_the_file(tmp_path):
    save(tmp_path / "x.nii.gz", np.arange(120, dtype=np.float32).reshape(SHAPE))
    save(tmp_path / "x_seg.nii.gz", ball(1).astype(np.int16) * 300)
    (finding,) = check_dataset(find_cases(tmp_path)).findings
    assert (finding.kind, finding.severity, finding.path) == ("label-values", "error", tmp_path / "x_seg.nii.gz")
    path = write_list(tmp_path / "b" / "dataset.json", training=["x.nii.gz"], labels={"background": 0, "x": 300})
    with refused(path, "x is 300"):
        find_cases(path)


@pytest.mark.fault("5.7")
def test_a_fault_of_200_cases_is_reported_once(tmp_path):
    touch(tmp_path, *(f"P{n:03}_T1.nii.gz" for n in range(200)))
    cases = find_cases(tmp_path, channels=("FLAIR", "T1")).cases
    (line,) = problem_lines([(case.name, case.problem) for case in cases])
    assert line.startswith("200 cases for the same reason (P000, P001, P002, P003, P004 and 195 more), such as P000: ")
    with refused("all 200 cases have the same fault", "has no FLAIR image"):
        Predict(input=(tmp_path,), output=tmp_path / "out", model=(Path("m"),))._cases(Task.classes(2, channels=("FLAIR", "T1")))


@pytest.mark.fault("4.6")
def test_training_names_the_file_of_a_label_above_255(tmp_path):
    for name in "ab":
        save(tmp_path / f"{name}.nii.gz", np.arange(120, dtype=np.float32).reshape(SHAPE))
        save(tmp_path / f"{name}_seg.nii.gz", ball(1).astype(np.int16) * 300)
    with refused(tmp_path / "a_seg.nii.gz", "300", "above 255"):
        gather(Recipe(kind="labels", data=tmp_path, folds=2), tmp_path / "run")


@pytest.mark.fault("2.1")
def test_training_reports_the_cases_that_it_does_not_use(tmp_path, capsys):
    nnunet(tmp_path, ())
    for number in range(4):
        save(tmp_path / f"imagesTr/c{number}_0000.nii.gz", np.arange(120, dtype=np.float32).reshape(SHAPE) + number)
    for number in range(2):
        save(tmp_path / f"labelsTr/c{number}.nii", ball(number))
    found = gather(Recipe(kind="labels", data=tmp_path, folds=2), tmp_path / "run")
    assert len(found.train) == len(found.validation) == 1
    said = capsys.readouterr().out
    assert "2 of 4 scans have no label map and are not trained on: c2, c3" in said and "2 cases count as 2 patients" in said
