"""Warnings on implausible results, and on scans that are unlike those of the training."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.fake_predictor import FakePredictor, predict, recorded, scan
from helpers.refusals import refused

from swinunetr_jax import Task
from swinunetr_jax.data.scan_range import ScanRange, differences, merged, range_of, scan_facts
from swinunetr_jax.inference.prepare import prepare
from swinunetr_jax.statistics import implausible

STATISTICS = (np.array([100.0, 20.0]), np.array([50.0, 10.0]))
RAS, LPS = np.diag([1.0, 1.0, 3.0, 1.0]), np.diag([-1.0, -1.0, 3.0, 1.0])
# The first axis points upwards, the second to the left, and the third to the back: voxels of 2 × 1 × 1.5 mm.
TURNED = np.array([[0, -1.0, 0, 0], [0, 0, -1.5, 0], [2.0, 0, 0, 0], [0, 0, 0, 1]])


def test_facts_are_by_direction():
    facts = scan_facts((10, 20, 40), TURNED, STATISTICS)
    assert (facts.orientation, facts.spacing_mm, facts.extent_mm) == ("SLP", (1.0, 1.5, 2.0), (20.0, 60.0, 20.0))
    assert (facts.mean, facts.deviation) == ((100.0, 20.0), (50.0, 10.0))


def test_only_what_is_beyond_the_range_is_a_difference():
    small, large = scan_facts((100, 100, 50), RAS, STATISTICS), scan_facts((120, 100, 50), RAS, tuple(2 * n for n in STATISTICS))
    trained = merged([range_of([small]), range_of([large])])
    assert trained == range_of([small, large])
    assert trained.extent_mm == ((100.0, 120.0), (100.0, 100.0), (150.0, 150.0)) and trained.mean[0] == (100.0, 200.0)

    def found(shape=(110, 100, 50), affine=RAS, statistics=STATISTICS, scaled=False):
        return differences(scan_facts(shape, affine, statistics), trained, ("T1",), scaled=scaled)

    assert found() == found((180, 67, 34)) == found(statistics=(np.array([300.0, 0.0]), np.array([1.0, 1.0]))) == []
    assert found((181, 66, 50)) == [
        "an extent of 181 mm left-right (trained on 100 to 120 mm)",
        "an extent of 66 mm anterior-posterior (trained on 100 mm)",
    ]
    assert found(affine=LPS) == ["the orientation LPS (trained on RAS)"]
    assert found((60, 100, 25), RAS * [2, 1, 2, 1]) == [
        "voxels of 2 mm left-right (trained on 1 mm)",
        "voxels of 6 mm superior-inferior (trained on 3 mm)",
    ]
    far = (np.array([301.0, -1.0]), np.array([50.0, 10.0]))
    assert found(statistics=far) == [
        "a mean intensity of T1 of 301 (trained on 100 to 200)",
        "a mean intensity of channel 2 of -1 (trained on 20 to 40)",
    ]
    assert found(statistics=tuple(1000 * n for n in STATISTICS), scaled=True) == []  # z-scores do not depend on the scale
    assert found(statistics=(np.array([100.0, 20.0]), np.array([50.0, 30.0])), scaled=True) == [
        "a ratio of mean and standard deviation of channel 2 of 0.667 (trained on 2)"
    ]


def test_a_task_stores_the_range_of_its_scans():
    trained = range_of([scan_facts((100, 100, 50), RAS, STATISTICS)])
    plain = Task.classes(2)
    task = replace(plain, scans=trained)
    stored = json.loads(json.dumps(task.to_dict()))
    assert Task.from_dict(stored).scans == trained and "scans" not in plain.to_dict()
    assert task == plain and hash(task) == hash(plain)  # tasks of folds, which have other scans, are equal
    assert Task.brats(scans=trained).with_et_label(3).scans == trained
    for edit in (
        {"mean": []},
        {"mean": [[2, 1], [1, 2]]},
        {"spacing_mm": None},
        {"extent_mm": [[0, 1]]},
        {"mean": [["x", 1]] * 2},
    ):
        with refused("`scans` does not describe the range of scans"):
            ScanRange.from_dict(stored["scans"] | edit)
    with refused("`scans` must be"):
        Task.classes(2, scans={"mean": 1})


@pytest.mark.parametrize("window", [None, (-100.0, 200.0)])
def test_a_fifth_of_the_background_may_be_labelled(window):
    task = Task.classes(2, **({"intensity": "window", "window": window} if window else {}))
    image = np.full((10, 10, 2), 50.0)
    image[:5] = -100.0 if window else 0.0  # 100 voxels of background, in this channel
    other = image.copy()
    other[0, :, :] = 70.0  # 80 in both
    labels = np.zeros(image.shape, np.uint8)
    assert implausible(labels, task, [image, other]) == ("nothing is labelled",)
    labels[5:] = 1
    assert implausible(labels, task, [image, other]) == ()
    labels[0] = 1  # not background
    labels[1, :8] = 1  # 16 of 80
    assert implausible(labels, task, [image, other]) == ()
    labels[2, 0, 0] = 1
    assert implausible(labels, task, [image, other]) == (
        "21 % of the scan's background (voxels that show nothing) is labelled, which is not plausible: check the order of the channels, "
        "the task and the result",
    )
    assert implausible(labels, task, [image + 1000]) == ()  # no background


def test_warnings_are_printed_and_recorded(tmp_path, capsys):
    case = scan(tmp_path, "a")
    trained = range_of([scan_facts((60, 50, 40), np.diag([1.0, 1, 1, 1]), (np.zeros(1), np.ones(1)))])
    task = Task.classes(2, intensity="none", scans=trained)
    prepared = prepare(case, task, 1)
    assert len(prepared.warnings) == 1 and prepared.warnings[0].startswith(
        "the scan is unlike those that the network was trained on: it has an extent of 6 mm left-right (trained on 60 mm), an extent"
    )
    assert prepare(case, Task.classes(2, intensity="none"), 1).warnings == ()
    nothing = Task(kind="regions", outputs=Task.brats().outputs, paint=(1, 0, 2))
    assert predict(tmp_path, "a", fake=FakePredictor(nothing, empty=True), statistics=True) == []
    assert "warning: [1/1] a: nothing is labelled" in capsys.readouterr().err
    assert recorded(tmp_path)["cases"]["a"]["warnings"] == ["nothing is labelled"]
    assert json.loads((tmp_path / "out/a_statistics.json").read_text())["warnings"] == ["nothing is labelled"]
