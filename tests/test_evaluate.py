"""`swinunetr evaluate` as a user runs it, on synthetic label maps."""

import csv
import json
import math

import numpy as np
import pytest
from helpers.evaluation_data import AFFINE, SHAPE, brats, brats_case, nnunet, record, run, save, scores

from swinunetr_jax import Task
from swinunetr_jax.evaluation.evaluate import CONVENTIONS, Evaluation
from swinunetr_jax.metrics import score_case


def test_predictions_of_a_brats_folder_are_scored(tmp_path, capsys):
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
    assert "1 case without a prediction: lost\\nline" in printed.err
    assert "@SUM(A1)" in scores(tmp_path / "out")["cases"]  # JSON keeps names as they are


def test_empty_references_are_counted_by_convention(tmp_path, capsys):
    """The references a and b have no enhancing tumour; it is predicted in b but not in a. Case c is predicted exactly."""
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
    assert "NaN" not in text  # because NaN is not JSON
    assert scores(tmp_path / "scores")["cases"]["a"]["ET"]["dice_monai"] is None
    printed = capsys.readouterr().out
    assert "MONAI: empty references are left out [left out: 2 ET]" in printed
    assert not (tmp_path / "out/scores.json").exists()


def test_data_sets_state_the_meaning_of_labels(tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)
    nnunet_folder = tmp_path / "nnunet"
    save(nnunet_folder / "imagesTr/c_0000.nii.gz", np.ones(SHAPE, np.float32))
    save(nnunet_folder / "labelsTr/c.nii.gz", labels)
    info = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": 1}
    info["labels"] = {"background": 0, "all": [1, 2, 3], "core": [2, 3], "rim": 3}
    info["regions_class_order"] = [1, 2, 3]
    (nnunet_folder / "dataset.json").write_text(json.dumps(info))
    save(tmp_path / "out/c.nii.gz", labels)
    for references in (nnunet_folder, nnunet_folder / "labelsTr"):
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
        f"label 3 of the {side} belongs to no output and counts as background" for side in ("prediction", "reference")
    ]
    # predict.json takes precedence over the data set, and the option over both
    record(tmp_path / "out", Task.classes(4))
    assert run(tmp_path / "out", decathlon) == 0
    assert list(scores(tmp_path / "out")["cases"]["c"]) == ["class 1", "class 2", "class 3"]
    (tmp_path / "out/predict.json").unlink()
    assert run(tmp_path / "out/c.nii.gz", tmp_path / "nnunet/labelsTr/c.nii.gz", "--task", "classes") == 0
    assert list(scores(tmp_path / "out")["cases"]["c"]) == ["class 1", "class 2", "class 3"]
    assert run(tmp_path / "out", nnunet_folder, "--task", "brats") == 0
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
    assert "1 case without a prediction: unpredicted" in errors
    assert "1 case without a reference: unknown" in errors
    assert "cut: FAILED" in errors
    assert "Traceback" not in errors


def test_the_exit_code_is_1_if_no_case_can_be_scored(tmp_path):
    save(tmp_path / "refs/a.nii.gz", brats())
    save(tmp_path / "out/a.nii.gz", brats()[1:])
    assert run(tmp_path / "out", tmp_path / "refs", "--task", "brats") == 1
    assert scores(tmp_path / "out")["means"] == {}


def test_bad_input_is_refused_in_one_sentence(tmp_path, capsys):
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
        "none of its cases (1) has a label map": (out, tmp_path / "unlabelled"),
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


def test_an_ignored_label_is_not_an_output():
    assert Task.from_labels({"background": 0, "ignore": 2}) is None
    task = Task.from_labels({"background": 0, "tumour": 2, "ignore": 3, "liver": 1})
    assert [(output.name, output.value) for output in task.outputs] == [("background", 0), ("liver", 1), ("tumour", 2)]


def test_means_without_scores():
    evaluation = Evaluation(Task.classes(3), 1.0)
    evaluation.scores["a"] = {name: {"dice_monai": math.nan} for name in ("class 1", "class 2")}
    mean = evaluation.means()["dice_monai"]
    assert math.isnan(mean["mean"].value)
    assert [(mean[name].cases, mean[name].left_out) for name in ("class 1", "class 2", "mean")] == [(0, 1), (0, 1), (0, 2)]
