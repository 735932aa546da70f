"""`swinunetr evaluate` as a user runs it, on synthetic label maps."""

import csv
import json
import math

import nibabel as nib
import numpy as np
import pytest

from swinunetr_jax import Task, cli
from swinunetr_jax.evaluation.evaluate import CONVENTIONS, Evaluation
from swinunetr_jax.metrics import score_case

SHAPE = (14, 12, 11)
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate", *map(str, arguments)])
    return stopped.value.code


def save(path, labels, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, affine), path)
    return path


def brats(seed=0, et=4):
    """Nested boxes: whole tumour, core, enhancing tumour."""
    x, y, z = np.random.default_rng(seed).integers(0, 4, 3)
    labels = np.zeros(SHAPE, np.uint8)
    labels[x : x + 8, y : y + 8, z : z + 7] = 2
    labels[x + 1 : x + 6, y + 1 : y + 6, z + 1 : z + 5] = 1
    labels[x + 2 : x + 5, y + 2 : y + 5, z + 2 : z + 4] = et
    return labels


def brats_case(folder, name, labels, modern=False):
    ends, sep = (("t2f", "t1c", "t1n", "t2w"), "-") if modern else (("flair", "t1ce", "t1", "t2"), "_")
    for end in ends:
        save(folder / name / f"{name}{sep}{end}.nii.gz", np.ones(SHAPE, np.float32))
    return save(folder / name / f"{name}{sep}seg.nii.gz", labels)


def record(folder, task, **cases):
    (folder / "predict.json").write_text(json.dumps({"settings": {"task": task.to_dict()}, "cases": cases}))


def scores(folder):
    return json.loads((folder / "scores.json").read_text())


def test_a_brats_folder(tmp_path, capsys):
    names = ("BraTS2021_00001", "BraTS2021_00002")
    for i, name in enumerate(names):
        brats_case(tmp_path / "data", name, brats(i))
        save(tmp_path / "out" / f"{name}.nii.gz", brats(i + 5))
    save(tmp_path / "out" / f"{names[0]}_probabilities.nii.gz", np.zeros((*SHAPE, 3), np.float32))
    record(tmp_path / "out", Task.brats())
    assert run(tmp_path / "out", tmp_path / "data", "--lesion-wise", "--tolerance", 2) == 0
    report = scores(tmp_path / "out")
    assert list(report)[-4:] == ["notes", "failed", "missing_predictions", "missing_references"]
    assert not any(list(report.values())[-4:])
    spacing = (1.0, 1.0, 2.0)
    for i, name in enumerate(names):
        expected = score_case(brats(i + 5), brats(i), spacing, Task.brats(), tolerance_mm=2, lesion_wise=True)
        assert report["cases"][name] == expected
    dice = [report["cases"][name]["WT"]["dice_brats"] for name in names]
    assert 0 < dice[0] < 1
    assert report["means"]["dice_brats"]["WT"] == {"value": pytest.approx(np.mean(dice)), "cases": 2, "left_out": 0}
    across = np.mean([report["means"]["hd95_brats"][output]["value"] for output in ("TC", "WT", "ET")])
    assert report["means"]["hd95_brats"]["mean"]["value"] == pytest.approx(across)
    assert report["conventions"] == {metric: CONVENTIONS[metric] for metric in report["means"]}
    rows = list(csv.DictReader((tmp_path / "out/scores.csv").open()))
    assert [(row["case"], row["output"]) for row in rows[:4]] == [*((names[0], o) for o in ("TC", "WT", "ET")), (names[1], "TC")]
    assert [row["case"] for row in rows[6:]] == ["(mean)"] * 4 + ["(left out)"] * 4
    assert float(rows[1]["dice_brats"]) == pytest.approx(dice[0])
    printed = capsys.readouterr()
    assert "Dice (BraTS)" in printed.out
    assert "surface Dice (2 mm)" in printed.out
    assert "means over 2 cases" in printed.out
    assert f"[2/2] {names[1]}" in printed.err
    assert not list((tmp_path / "out").glob(".*"))


def test_names_and_values_decide_the_label_of_the_enhancing_tumour(tmp_path, capsys):
    """It is 4 up to 2022 and 3 since 2023. A prediction with the other label is scored, or the message names the label."""
    old, new = "BraTS2021_00001", "BraTS-GLI-00001-000"
    brats_case(tmp_path / "data", new, brats(et=3), modern=True)
    save(tmp_path / "a" / f"{new}.nii.gz", brats(et=3))
    record(tmp_path / "a", Task.brats(et_label=4))  # as predict records it for cases of any year
    assert run(tmp_path / "a", tmp_path / "data") == 0
    assert scores(tmp_path / "a")["means"]["dice_brats"]["ET"]["value"] == 1
    save(tmp_path / "a" / f"{new}.nii.gz", brats(et=4))
    assert run(tmp_path / "a", tmp_path / "data") == 1
    assert "has label 4 and no 3" in scores(tmp_path / "a")["failed"][new]
    # The names of single label maps imply no year, so their values decide.
    save(tmp_path / "refs" / f"{old}.nii.gz", brats(et=4))
    save(tmp_path / "b" / f"{old}.nii.gz", brats(et=3))
    capsys.readouterr()
    assert run(tmp_path / "b", tmp_path / "refs", "--task", "brats") == 0
    assert scores(tmp_path / "b")["means"]["dice_brats"]["mean"]["value"] == 1
    assert "label 3 in the prediction and 4 in the reference" in capsys.readouterr().out
    both = brats(et=4)
    both[0, 0, 0] = 3
    save(tmp_path / "refs" / f"{old}.nii.gz", both)
    assert run(tmp_path / "b", tmp_path / "refs", "--task", "brats") == 1
    assert "labels 3 and 4 occur" in capsys.readouterr().err


def brats_2024(seed=0):
    """Labels 1 to 4, of which 3 is the enhancing tumour and 4 the resection cavity."""
    labels = brats(seed, et=3)
    labels[-3:, -4:, :3] = 4
    return labels


def nnunet(folder, labels, **names):
    """A data set in nnU-Net's layout with one case `c`, whose dataset.json names the labels."""
    save(folder / "imagesTr/c_0000.nii.gz", np.ones(SHAPE, np.float32))
    save(folder / "labelsTr/c.nii.gz", labels)
    order = names.pop("order", None)
    info = {"channel_names": {"0": "T1"}, "file_ending": ".nii.gz", "numTraining": 1, "labels": {"background": 0, **names}}
    (folder / "dataset.json").write_text(json.dumps(info | ({"regions_class_order": order} if order else {})))
    return folder


CLASSES_2024 = {"NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}
REGIONS_2024 = {"WT": [1, 2, 3], "TC": [1, 3], "ET": [3], "RC": [4], "order": [2, 1, 3, 4]}


@pytest.mark.fault("1.4")
@pytest.mark.parametrize("names", [CLASSES_2024, REGIONS_2024], ids=["classes", "regions"])
def test_labels_3_and_4_that_the_data_set_names_are_scored_unchanged(tmp_path, names):
    data = nnunet(tmp_path / "data", brats_2024(), **names)
    save(tmp_path / "out/c.nii.gz", brats_2024())
    assert run(tmp_path / "out", data) == 0
    assert scores(tmp_path / "out")["means"]["dice_brats"]["mean"]["value"] == 1

    swapped = brats_2024()
    swapped[brats_2024() == 3], swapped[brats_2024() == 4] = 4, 3
    save(tmp_path / "out/c.nii.gz", swapped)
    assert run(tmp_path / "out", data) == 0
    found = scores(tmp_path / "out")["cases"]["c"]
    assert found["ET"]["dice_brats"] == found["RC"]["dice_brats"] == 0
    assert found["ET"]["volume_ml"] == pytest.approx((brats_2024() == 4).sum() * 0.002)

    # A case without a cavity, in which the prediction calls all of the enhancing tumour one.
    nnunet(tmp_path / "data", brats(et=3), **names)
    save(tmp_path / "out/c.nii.gz", brats(et=4))
    record(tmp_path / "out", Task.from_labels({k: v for k, v in names.items() if k != "order"}, names.get("order")))
    assert run(tmp_path / "out", data, "--out", tmp_path / "scores") == 0
    found = scores(tmp_path / "scores")["cases"]["c"]
    assert found["ET"]["dice_brats"] == found["RC"]["dice_brats"] == 0


@pytest.mark.fault("1.4")
def test_the_data_sets_meaning_of_label_3_takes_precedence(tmp_path, capsys):
    """The task has only one of the two labels; the data set's dataset.json gives the other one another meaning."""
    data = nnunet(tmp_path / "data", brats(et=3), **CLASSES_2024)
    save(tmp_path / "out/c.nii.gz", brats(et=4))
    assert run(tmp_path / "out", data, "--task", "brats") == 0
    assert scores(tmp_path / "out")["cases"]["c"]["ET"]["dice_brats"] == 0
    assert "label 4 of the prediction belongs to no output" in capsys.readouterr().out
    # predict itself recorded that it wrote the enhancing tumour as 4
    record(tmp_path / "out", Task.brats(), c={"inputs": [], "outputs": {}, "et_label": 4})
    assert run(tmp_path / "out", data) == 0
    assert scores(tmp_path / "out")["means"]["dice_brats"]["mean"]["value"] == 1
    assert "label 4 in the prediction and 3 in the reference" in capsys.readouterr().out


@pytest.mark.fault("1.4")
def test_labels_3_and_4_without_names_are_refused_if_the_cases_disagree(tmp_path, capsys):
    save(tmp_path / "refs/a.nii.gz", brats_2024())
    save(tmp_path / "refs/b.nii.gz", np.where(brats_2024() == 3, 1, brats_2024()).astype(np.uint8))  # a cavity and no tumour
    save(tmp_path / "refs/c.nii.gz", np.zeros(SHAPE, np.uint8))
    for name in ("a", "b", "c"):
        save(tmp_path / f"out/{name}.nii.gz", brats(et=4))
    assert run(tmp_path / "out", tmp_path / "refs", "--task", "brats") == 1
    report = scores(tmp_path / "out")
    assert list(report["cases"]) == ["c"] and sorted(report["failed"]) == ["a", "b"]
    assert "no source states which is the enhancing tumour; put a dataset.json" in capsys.readouterr().err


@pytest.mark.fault("1.4")
def test_an_assumption_is_printed(tmp_path, capsys):
    for name in ("a", "b"):
        save(tmp_path / f"refs/{name}.nii.gz", brats(et=4))
        save(tmp_path / f"out/{name}.nii.gz", brats(et=4))
    assert run(tmp_path / "out", tmp_path / "refs", "--task", "brats") == 0
    assert "a, b: note: no source states whether 3 or 4 is the enhancing tumour; 4 is assumed" in capsys.readouterr().out


def partly_annotated(ignore):
    """Two slabs of the label map, one inside the tumour, are not annotated."""
    labels = brats(et=3)
    labels[4:6], labels[-2:] = ignore, ignore
    return labels


@pytest.mark.fault("1.17")
@pytest.mark.parametrize("names", [{"a": 1, "b": 2, "c": 3}, {"all": [1, 2, 3], "core": [1, 3], "c": 3, "order": [2, 1, 3]}])
def test_ignored_voxels_do_not_affect_the_scores(tmp_path, capsys, names):
    data = nnunet(tmp_path / "data", partly_annotated(4), **names, ignore=4)
    elsewhere = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)
    for wrong in (0, 3, 4, elsewhere):  # whatever was predicted there
        save(tmp_path / "out/c.nii.gz", np.where(partly_annotated(4) == 4, wrong, brats(et=3)).astype(np.uint8))
        for references in (data, data / "labelsTr"):
            assert run(tmp_path / "out", references, "--lesion-wise") == 0
            report = scores(tmp_path / "out")
            assert report["ignore"] == 4
            for metrics in report["cases"]["c"].values():
                assert metrics["dice_brats"] == metrics["dice_nnunet"] == metrics["surface_dice"] == metrics["lesion_dice"] == 1
                assert metrics["hd95_brats"] == metrics["hd95_monai"] == metrics["lesion_hd95"] == 0
                assert metrics["volume_ml"] == metrics["reference_ml"] > 0
                assert metrics["false_positives"] == metrics["missed"] == 0
    volume = (partly_annotated(4) == 4).sum() * 0.002
    assert report["notes"]["c"] == [f"{volume:.3g} ml of the reference has the label 4 (ignore) and does not affect the scores"]
    assert "voxels that have the label 4 (ignore) in the references do not affect the scores" in capsys.readouterr().out
    outside = np.where(partly_annotated(4) == 4, 0, brats(et=3))
    outside[0, 0, 0] = 4
    save(tmp_path / "out/c.nii.gz", outside.astype(np.uint8))
    assert run(tmp_path / "out", data) == 0
    assert "label 4 of the prediction belongs to no output" in scores(tmp_path / "out")["notes"]["c"][0]


@pytest.mark.fault("1.17")
def test_the_ignored_label_is_neither_a_class_nor_a_tumour(tmp_path, capsys):
    data = nnunet(tmp_path / "data", partly_annotated(4), a=1, b=2, c=3, ignore=4)
    save(tmp_path / "out/c.nii.gz", brats(et=3))
    for task in ("classes", "brats"):
        assert run(tmp_path / "out", data, "--task", task) == 0
        assert scores(tmp_path / "out")["means"]["dice_brats"]["mean"]["value"] == 1
    record(tmp_path / "out", Task.classes(5))
    assert run(tmp_path / "out", data) == 2
    assert "label 4 means `ignore` in the data set and class 4 in the task" in capsys.readouterr().err
    nnunet(data, np.full(SHAPE, 4, np.uint8), a=1, b=2, c=3, ignore=4)
    (tmp_path / "out/predict.json").unlink()
    assert run(tmp_path / "out", data) == 1
    assert "nothing can be scored" in scores(tmp_path / "out")["failed"]["c"]


@pytest.mark.fault("3.10")
def test_names_from_data_are_neither_formulas_nor_commands_to_a_terminal(tmp_path, capsys):
    labels = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    data = nnunet(tmp_path / "data", labels, **{'=HYPERLINK("http://a")': 1, "b\x1b[2J\nc": 2})
    for name in ("@SUM(A1)", "d\x1b]0;title\x07", "lost\nline"):
        save(data / f"labelsTr/{name}.nii.gz", labels)
        save(tmp_path / f"out/{name}.nii.gz", labels)
    (tmp_path / "out/lost\nline.nii.gz").unlink()
    (data / "labelsTr/c.nii.gz").unlink()
    assert run(tmp_path / "out", data / "labelsTr") == 1
    rows = list(csv.reader((tmp_path / "out/scores.csv").open()))
    assert len(rows) == 1 + 2 * 2 + 2 * 3
    assert not any(cell.startswith(("=", "+", "-", "@")) or "\x1b" in cell or "\n" in cell for row in rows for cell in row)
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err and "\x07" not in printed.out + printed.err
    assert "1 without a prediction: lost\\nline" in printed.err
    assert "@SUM(A1)" in scores(tmp_path / "out")["cases"]  # JSON keeps names as they are


def test_empty_references_are_counted_by_convention(tmp_path, capsys):
    """Neither case has an enhancing tumour; none is predicted in a, and one is predicted in b."""
    none = brats()
    none[none == 4] = 1
    for name, pred in (("a", none), ("b", brats()), ("c", brats())):
        save(tmp_path / "refs" / f"{name}_seg.nii.gz", brats() if name == "c" else none)
        save(tmp_path / "out" / f"{name}.nii.gz", pred)
    assert run(tmp_path / "out", tmp_path / "refs", "--task", "brats", "--out", tmp_path / "scores") == 0
    means = scores(tmp_path / "scores")["means"]
    assert means["dice_brats"]["ET"] == {"value": pytest.approx(2 / 3), "cases": 3, "left_out": 0}
    assert means["dice_monai"]["ET"] == {"value": 1, "cases": 1, "left_out": 2}
    assert means["dice_nnunet"]["ET"] == {"value": 0.5, "cases": 2, "left_out": 1}
    assert means["hd95_brats"]["ET"]["value"] == pytest.approx(374 / 3)
    assert means["hd95_monai"]["ET"] == {"value": 0, "cases": 1, "left_out": 2}
    text = (tmp_path / "scores/scores.json").read_text()
    assert "NaN" not in text  # which is no JSON
    assert scores(tmp_path / "scores")["cases"]["a"]["ET"]["dice_monai"] is None
    printed = capsys.readouterr().out
    assert "MONAI: empty references are left out [left out: 2 ET]" in printed
    assert not (tmp_path / "out/scores.json").exists()


def test_data_sets_state_the_meaning_of_labels(tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)
    nnunet = tmp_path / "nnunet"
    save(nnunet / "imagesTr/c_0000.nii.gz", np.ones(SHAPE, np.float32))
    save(nnunet / "labelsTr/c.nii.gz", labels)
    info = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": 1}
    info["labels"] = {"background": 0, "all": [1, 2, 3], "core": [2, 3], "rim": 3}
    info["regions_class_order"] = [1, 2, 3]
    (nnunet / "dataset.json").write_text(json.dumps(info))
    save(tmp_path / "out/c.nii.gz", labels)
    for references in (nnunet, nnunet / "labelsTr"):
        assert run(tmp_path / "out", references) == 0
        report = scores(tmp_path / "out")
        assert list(report["cases"]["c"]) == ["all", "core", "rim"]
        assert report["cases"]["c"]["core"]["reference_ml"] == pytest.approx((labels > 1).sum() * 0.002)
    decathlon = tmp_path / "decathlon"
    save(decathlon / "imagesTr/c.nii.gz", np.ones(SHAPE, np.float32))
    save(decathlon / "labelsTr/c.nii.gz", labels)
    info = {"modality": {"0": "CT"}, "labels": {"0": "background", "2": "spleen", "1": "liver"}}
    info["training"] = [{"image": "./imagesTr/c.nii.gz", "label": "./labelsTr/c.nii.gz"}]
    (decathlon / "dataset.json").write_text(json.dumps(info))
    assert run(tmp_path / "out", decathlon / "dataset.json") == 0
    report = scores(tmp_path / "out")
    assert list(report["cases"]["c"]) == ["liver", "spleen"]
    assert report["notes"]["c"] == [
        f"label 3 of the {which} belongs to no output and counts as background" for which in ("prediction", "reference")
    ]
    # predict.json takes precedence over the data set, and the option over both
    record(tmp_path / "out", Task.classes(4))
    assert run(tmp_path / "out", decathlon) == 0
    assert list(scores(tmp_path / "out")["cases"]["c"]) == ["class 1", "class 2", "class 3"]
    (tmp_path / "out/predict.json").unlink()
    assert run(tmp_path / "out/c.nii.gz", tmp_path / "nnunet/labelsTr/c.nii.gz", "--task", "classes") == 0
    assert list(scores(tmp_path / "out")["cases"]["c"]) == ["class 1", "class 2", "class 3"]
    assert run(tmp_path / "out", nnunet, "--task", "brats") == 0
    assert list(scores(tmp_path / "out")["cases"]["c"]) == ["TC", "WT", "ET"]


def test_two_given_files_are_a_pair_under_any_names(tmp_path):
    ref, pred = save(tmp_path / "a/truth.nii.gz", brats()), save(tmp_path / "b/result.nii.gz", brats())
    assert run(pred, ref, "--task", "brats") == 0
    assert list(scores(tmp_path / "b")["cases"]) == ["result"]


def test_cases_that_cannot_be_scored_are_listed_and_the_others_are_scored(tmp_path, capsys):
    out, refs = tmp_path / "out", tmp_path / "refs"
    for name in ("good", "moved", "cut", "other", "stale", "unpredicted"):
        save(refs / f"{name}.nii.gz", brats())
    for name in ("good", "moved", "cut", "other", "stale", "unknown"):
        save(out / f"{name}.nii.gz", brats())
    moved = AFFINE.copy()
    moved[0, 3] = 5
    save(out / "moved.nii.gz", brats(), moved)
    save(out / "other.nii.gz", brats()[:-1])
    (out / "cut.nii.gz").write_bytes((out / "cut.nii.gz").read_bytes()[:100])
    record(out, Task.brats(), stale={"error": "out of memory", "inputs": []})
    assert run(out, refs) == 1
    report = scores(out)
    assert list(report["cases"]) == ["good"]
    assert sorted(report["failed"]) == ["cut", "moved", "other", "stale"]
    assert "same grid" in report["failed"]["moved"]
    assert "(13, 12, 11)" in report["failed"]["other"]
    assert "older run" in report["failed"]["stale"]
    assert (report["missing_predictions"], report["missing_references"]) == (["unpredicted"], ["unknown"])
    errors = capsys.readouterr().err
    assert "1 without a prediction: unpredicted" in errors
    assert "1 without a reference: unknown" in errors
    assert "cut: FAILED" in errors
    assert "Traceback" not in errors


def test_nothing_could_be_scored(tmp_path):
    save(tmp_path / "refs/a.nii.gz", brats())
    save(tmp_path / "out/a.nii.gz", brats()[1:])
    assert run(tmp_path / "out", tmp_path / "refs", "--task", "brats") == 1
    assert scores(tmp_path / "out")["means"] == {}


def test_bad_input_is_one_sentence(tmp_path, capsys):
    out, refs = tmp_path / "out", tmp_path / "refs"
    save(out / "a.nii.gz", brats())
    save(out / "b.nii.gz", brats())
    save(refs / "a.nii.gz", brats())
    save(tmp_path / "others/c.nii.gz", brats())
    save(tmp_path / "unlabelled/P1/FLAIR.nii.gz", np.ones(SHAPE, np.float32))
    save(tmp_path / "broken/a.nii.gz", brats())
    (tmp_path / "broken/predict.json").write_text("{")
    (tmp_path / "file").write_text("")
    commands = {
        "no label map was found": (tmp_path / "no", refs),
        "does not exist": (out, tmp_path / "no"),
        "give --task": (out, refs),
        "no prediction has a reference": (out, tmp_path / "others", "--task", "brats"),
        "no label map was found among 1 cases": (out, tmp_path / "unlabelled"),
        "predict.json is damaged": (tmp_path / "broken", refs),
        "--tolerance": (out, refs, "--tolerance", -1),
        "--out": (out, refs, "--task", "brats", "--out", tmp_path / "file"),
    }
    for text, command in commands.items():
        assert run(*command) == 2, text
        printed = capsys.readouterr().err
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1, printed
        assert text in printed
    assert not list(tmp_path.rglob("scores.*"))


def test_labels_that_are_not_outputs():
    assert Task.from_labels({"background": 0, "ignore": 2}) is None
    task = Task.from_labels({"background": 0, "tumour": 2, "ignore": 3, "liver": 1})
    assert [(output.name, output.value) for output in task.outputs] == [("background", 0), ("liver", 1), ("tumour", 2)]


def test_means_without_scores():
    found = Evaluation(Task.classes(3), 1.0)
    found.scores["a"] = {name: {"dice_monai": math.nan} for name in ("class 1", "class 2")}
    mean = found.means()["dice_monai"]
    assert math.isnan(mean["mean"].value)
    assert [(mean[name].cases, mean[name].left_out) for name in ("class 1", "class 2", "mean")] == [(0, 1), (0, 1), (0, 2)]
