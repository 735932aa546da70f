"""Post-processing: operations on label maps, their choice on out-of-fold cases, the stored file, and its use in `predict`."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers import fake_predictor
from helpers.refusals import refused

from swinunetr_jax import Task
from swinunetr_jax.inference.open_networks import chosen_postprocess
from swinunetr_jax.output import Output
from swinunetr_jax.postprocess import (
    Postprocess,
    Step,
    check_task,
    fallback,
    keep_largest_component,
    read_postprocess,
    replace_small,
    write_postprocess,
)
from swinunetr_jax.training import fold_labels
from swinunetr_jax.training.choose_postprocess import Pair, choose_postprocess
from swinunetr_jax.weights.checkpoint import DESCRIPTION
from swinunetr_jax.weights.run_folder import cross_validation_of

BRATS = Task.brats()
CLASSES = Task.classes(3, names=("background", "liver", "tumour"))
LARGEST = Step(operation="largest_component")


def volume(*boxes, shape=(12, 12, 12)):
    """Returns a label map with boxes (value, start, size) of equal sides, where later ones replace earlier ones."""
    labels = np.zeros(shape, np.uint8)
    for value, start, size in boxes:
        labels[tuple(slice(at, at + size) for at in start)] = value
    return labels


def test_the_largest_component_is_kept_with_26_neighbours():
    labels = volume((1, (0, 0, 0), 3), (2, (3, 3, 3), 1), (1, (8, 8, 8), 2))
    kept = keep_largest_component(labels, CLASSES)
    np.testing.assert_array_equal(kept, volume((1, (0, 0, 0), 3), (2, (3, 3, 3), 1)))  # voxels that share a corner are connected
    assert labels[8, 8, 8] == 1  # the argument is unchanged
    liver = keep_largest_component(labels, CLASSES, "liver")
    np.testing.assert_array_equal(liver, kept)
    assert keep_largest_component(labels, CLASSES, "tumour") is labels
    assert not keep_largest_component(np.zeros_like(labels), CLASSES).any()


def test_equal_components_are_all_kept():
    labels = volume((1, (0, 0, 0), 2), (1, (8, 8, 8), 2), (1, (5, 0, 0), 1))
    np.testing.assert_array_equal(keep_largest_component(labels, CLASSES), volume((1, (0, 0, 0), 2), (1, (8, 8, 8), 2)))


@pytest.mark.parametrize("et", [3, 4])
def test_a_small_enhancing_tumour_becomes_the_rest_of_the_core(et):
    task = BRATS.with_et_label(et)
    assert [fallback(task, output) for output in task.outputs] == [2, 0, 1]  # TC, WT, ET
    labels = volume((2, (0, 0, 0), 8), (1, (1, 1, 1), 4), (et, (2, 2, 2), 2))
    assert replace_small(labels, task, "ET", 8) is labels
    np.testing.assert_array_equal(replace_small(labels, task, "ET", 9), np.where(labels == et, 1, labels))
    island = labels.copy()
    island[7, 7, 7] = 1
    np.testing.assert_array_equal(
        keep_largest_component(island, task, "TC"), volume((2, (0, 0, 0), 8), (1, (1, 1, 1), 4), (et, (2, 2, 2), 2))
    )
    with refused("'NET'", "TC, WT, ET"):
        replace_small(labels, task, "NET", 9)


def test_largest_component_is_chosen_where_the_dice_rises():
    reference, island = volume((1, (0, 0, 0), 4), (2, (4, 0, 0), 3)), (1, (9, 9, 9), 2)
    pairs = [Pair.of(volume((1, (0, 0, 0), 4), (2, (4, 0, 0), 3), island), reference), Pair.of(reference, reference)]
    chosen = choose_postprocess(pairs, CLASSES)
    assert chosen.steps == (LARGEST,) and chosen.cases == 2
    assert chosen.before == {"liver": pytest.approx((128 / 136 + 1) / 2), "tumour": 1.0}
    assert chosen.after == {"liver": 1.0, "tumour": 1.0}
    assert chosen.decisions[0] == (
        "keep the largest component of the whole foreground: mean Dice of 2 out-of-fold cases liver 0.9706 → 1.0000, tumour 1.0000 → "
        "1.0000: chosen"
    )
    assert chosen.decisions[1].endswith("not chosen, because the Dice of liver does not rise") and len(chosen.decisions) == 3


def test_nothing_is_chosen_if_the_dice_of_a_class_falls():
    """The largest component of the whole foreground lacks a true tumour, and that of the liver alone lacks only a false island."""
    reference = volume((1, (0, 0, 0), 4), (2, (9, 9, 9), 2))
    pairs = [Pair.of(volume((1, (0, 0, 0), 4), (2, (9, 9, 9), 2), (1, (0, 9, 0), 2)), reference)]
    chosen = choose_postprocess(pairs, CLASSES)
    assert chosen.decisions[0].endswith("not chosen, because tumour would fall")
    assert chosen.steps == (Step(operation="largest_component", output="liver"),)
    empty = choose_postprocess([Pair.of(reference, reference)], CLASSES)
    assert empty.steps == () and empty.before == empty.after and all("not chosen" in text for text in empty.decisions)


def test_the_smallest_volume_with_the_highest_dice_is_chosen():
    core = [(2, (0, 0, 0), 10), (1, (1, 1, 1), 8)]
    false_et, true_et = volume(*core, (4, (2, 2, 2), 4)), volume(*core, (4, (2, 2, 2), 6))  # 64 and 216 voxels
    pairs = [Pair.of(false_et, volume(*core)), Pair.of(true_et, true_et)]
    chosen = choose_postprocess(pairs, BRATS)
    assert chosen.steps == (Step(operation="smallest_volume", output="ET", voxels=100),)
    assert chosen.before == {"TC": 1.0, "WT": 1.0, "ET": 0.5} and chosen.after == {"TC": 1.0, "WT": 1.0, "ET": 1.0}
    assert "replace ET if it has fewer than 100 voxels, the best of 10, 50, 100, 200, 500, 1000: mean" in chosen.decisions[-1]
    assert len(chosen.decisions) == 4  # the whole tumour is the whole foreground, which is not tried twice


def test_outputs_that_no_reference_contains_are_ignored():
    reference, predicted = volume((1, (0, 0, 0), 4)), volume((1, (0, 0, 0), 4), (2, (4, 0, 0), 1))
    chosen = choose_postprocess([Pair.of(predicted, reference)], CLASSES)
    assert (
        chosen.decisions[0]
        == "no out-of-fold reference contains tumour, so that post-processing is chosen only by the other outputs"
    )
    assert chosen.steps == () and not any("tumour 0" in decision for decision in chosen.decisions)
    assert choose_postprocess([Pair.of(predicted, np.zeros_like(reference))], CLASSES).decisions == (
        "no out-of-fold reference contains liver, tumour, so that post-processing is chosen only by the other outputs",
    )
    tissue = Task(kind="classes", outputs=(Output(name="grey", value=1), Output(name="white", value=2)))
    assert "no class is the background" in choose_postprocess([], tissue).decisions[0]


def test_a_pair_keeps_both_label_maps_within_their_box():
    labels, reference = volume((1, (2, 3, 4), 2)), volume((2, (5, 5, 5), 3))
    arrays = Pair.of(labels, reference).arrays()
    np.testing.assert_array_equal(arrays, [labels[2:8, 3:8, 4:8], reference[2:8, 3:8, 4:8]])
    assert Pair.of(np.zeros_like(labels), np.zeros_like(labels)).arrays()[0].shape == (1, 1, 1)


def test_label_maps_of_folds_are_read_back_or_computed_again(tmp_path):
    labels = volume((1, (2, 3, 4), 2))
    fold_labels._write_labels(tmp_path / "a.npz", labels, "digest")
    np.testing.assert_array_equal(fold_labels.read_labels(tmp_path / "a.npz", "digest"), labels)
    assert fold_labels.read_labels(tmp_path / "a.npz", "another") is None and fold_labels.read_labels(tmp_path / "b.npz") is None
    data = (tmp_path / "a.npz").read_bytes()
    for damaged in (data[:-30], data[: len(data) // 2], b"", data[:60] + b"\0\0" + data[62:]):
        (tmp_path / "a.npz").write_bytes(damaged)
        assert fold_labels.read_labels(tmp_path / "a.npz", "digest") is None


STORED = Postprocess(
    BRATS, (LARGEST, Step(operation="smallest_volume", output="ET", voxels=200)), 4, {"TC": 0.5}, {"TC": 0.6}, ("a",)
)


def test_the_file_is_read_back_and_damage_is_refused(tmp_path):
    path = tmp_path / "postprocess.json"
    write_postprocess(path, STORED)
    assert read_postprocess(path) == STORED
    intact = path.read_text()
    for text, words in (
        (intact.replace("200", "201"), "does not match its digest"),
        (intact[:-20], "damaged"),
        ("[" * 10_000, "postprocess.json"),
        ("[]", "unexpected content"),
    ):
        path.write_text(text)
        with refused(path, words, "restore it, or give --no-postprocess"):
            read_postprocess(path)
    write_postprocess(path, replace(STORED, steps=(Step(operation="largest_component", output="liver"),)))
    with refused(path, "a step for the output 'liver'"):
        read_postprocess(path)


def test_a_file_for_other_labels_is_refused():
    check_task("p.json", STORED, BRATS.with_et_label(3))
    check_task("p.json", STORED, replace(BRATS, roi=(64, 64, 64)))
    with refused("p.json", "liver 1", "--no-postprocess"):
        check_task("p.json", STORED, CLASSES)


def cross_validation(folder, steps=STORED.steps):
    for fold in ("fold0", "fold1"):
        (folder / fold / "best").mkdir(parents=True)
        (folder / fold / "best" / DESCRIPTION).write_text("{}")
    write_postprocess(folder / "postprocess.json", replace(STORED, steps=steps))
    return folder


def test_predict_finds_the_post_processing_of_its_networks(tmp_path, monkeypatch, capsys):
    run, other = cross_validation(tmp_path / "cv"), cross_validation(tmp_path / "other", (LARGEST,))
    for models in (
        [run],
        [run / "fold0", run / "fold1"],
        [run / "fold1"],
        [run / "fold0" / "best"],
        [run / "fold0" / "last"],
        [run / "fold0/checkpoints/00000004"],
    ):
        assert chosen_postprocess(models, BRATS) == STORED.steps
        printed = capsys.readouterr().out
        assert "keep the largest component of the whole foreground, then replace ET if it has fewer than 200 voxels" in printed
        assert f"{run / 'postprocess.json'}; --no-postprocess leaves it out" in printed
    monkeypatch.chdir(run / "fold0")
    assert cross_validation_of(".") == run and cross_validation_of("best") == run and cross_validation_of(tmp_path) is None
    for models in ([run, other], [run / "fold0", tmp_path / "model.pt"]):
        assert chosen_postprocess(models, BRATS) == ()
        assert "no post-processing is applied, because" in capsys.readouterr().err
    assert chosen_postprocess([tmp_path / "model.pt"], BRATS) == ()
    assert chosen_postprocess([cross_validation(tmp_path / "none", ())], CLASSES) == ()
    assert capsys.readouterr() == ("", "")
    with refused("chosen for other labels"):
        chosen_postprocess([run], CLASSES)


def test_predicted_label_maps_are_post_processed_and_the_record_says_so(tmp_path, capsys):
    step = Step(operation="smallest_volume", output="ET", voxels=1000)
    assert fake_predictor.predict(tmp_path, "a", postprocess=(step,)) == []
    record = fake_predictor.recorded(tmp_path)
    assert record["settings"]["postprocess"] == [{"operation": "smallest_volume", "output": "ET", "voxels": 1000}]
    entry = record["cases"]["a"]
    assert entry["notes"] == ["post-processing has changed 30 voxels"] and entry["volumes_ml"]["ET"] == 0
    assert "a: note: post-processing has changed 30 voxels" in capsys.readouterr().out
    assert fake_predictor.predict(tmp_path, "a") == []  # without post-processing the settings differ
    record = fake_predictor.recorded(tmp_path)
    assert "postprocess" not in record["settings"] and record["cases"]["a"]["volumes_ml"]["ET"] > 0
    assert json.loads(json.dumps(record["cases"]["a"]["notes"])) == []
