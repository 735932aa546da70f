"""The statistics of labels: numbers that are known by construction, in JSON and CSV, and complete after several runs."""

import csv
import json

import numpy as np
import pytest
from helpers.fake_predictor import FakePredictor, predict, recorded
from helpers.refusals import refused

from swinunetr_jax import Task
from swinunetr_jax.statistics import Intensities, label_statistics

# Voxels of 1 × 2 × 3 mm, whose axes point to the left, to the back and upwards.
AFFINE = np.array([[-1.0, 0, 0, 10], [0, -2.0, 0, 20], [0, 0, 3.0, -30], [0, 0, 0, 1]])


def test_numbers_of_boxes_of_voxels():
    labels = np.zeros((10, 8, 6), np.uint8)
    labels[1:4, 2:4, 1:3] = 2  # 12 voxels
    labels[4, 4, 3] = 1  # touches the others at a corner
    labels[8:10, 7, 5] = 4  # another component
    image = np.arange(labels.size, dtype=np.float32).reshape(labels.shape)
    whole, core, enhancing = (
        {output.output: output for output in label_statistics(labels, AFFINE, Task.brats(), {"T1": image, "T2": -image})}[name]
        for name in ("WT", "TC", "ET")
    )
    assert (whole.labels, whole.voxels, whole.volume_ml) == ((1, 2, 4), 15, 0.09)
    assert (whole.components, whole.largest_component_ml) == (2, 0.078)  # 13 and 2 voxels of 6 mm³
    assert whole.box_voxels == ((1, 10), (2, 8), (1, 6))
    assert whole.box_mm == ((0.5, 9.5), (5.0, 17.0), (-28.5, -13.5))
    assert (core.voxels, core.components) == (3, 2)
    assert (enhancing.voxels, enhancing.box_voxels) == (2, ((8, 10), (7, 8), (5, 6)))
    # The voxels have the intensities 8·48 + 7·6 + 5 = 431 and 48 more.
    assert enhancing.intensities["T1"] == Intensities(455.0, 24.0, 431.0, 479.0, 455.0)
    assert enhancing.intensities["T2"] == Intensities(-455.0, 24.0, -479.0, -431.0, -455.0)
    nothing = label_statistics(np.zeros_like(labels), AFFINE, Task.classes(2), {"T1": image})
    assert len(nothing) == 1 and (nothing[0].voxels, nothing[0].components, nothing[0].box_mm) == (0, 0, None)
    assert nothing[0].intensities == {"T1": None}


def rows(folder):
    with open(folder / "out/statistics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_is_complete_after_several_runs(tmp_path, capsys):
    assert predict(tmp_path, "b", "=1+1", statistics=True) == []
    assert [(row["case"], row["output"]) for row in rows(tmp_path)] == [
        (case, output) for case in ("'=1+1", "b") for output in ("TC", "WT", "ET")
    ]
    assert predict(tmp_path, "a", "b", "c", statistics=True, fake=FakePredictor(fails=("c",))) == ["c"]
    assert "b: done already" in capsys.readouterr().out
    assert [row["case"] for row in rows(tmp_path)] == ["'=1+1"] * 3 + ["a"] * 3 + ["b"] * 3
    content = json.loads((tmp_path / "out/a_statistics.json").read_text())
    assert (content["case"], content["spacing_mm"], content["orientation"]) == ("a", [1, 1, 1], "RAS")
    entry, (core, whole, _) = recorded(tmp_path)["cases"]["a"], content["outputs"]
    assert (
        whole["volume_ml"] == entry["volumes_ml"]["WT"] == 0.09 and entry["outputs"]["statistics"]["path"] == "a_statistics.json"
    )
    row = rows(tmp_path)[3]
    assert list(row)[:7] == ["case", "output", "labels", "volume_ml", "voxels", "components", "largest_component_ml"]
    box = [row[name] for name in ("first_z_voxel", "last_z_voxel", "low_up_mm", "high_up_mm")]
    assert row["labels"] == "1 4" and box == ["1", "3", "0.5", "3.5"]  # the labels of a column of voxels are 0, 1, 2, 4
    assert float(row["FLAIR_mean_intensity"]) == core["intensities"]["FLAIR"]["mean"]


@pytest.mark.parametrize("text", ["name,age\n", "\xff"])
def test_a_foreign_table_is_not_replaced(tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/statistics.csv").write_text(text, encoding="latin-1")
    with refused("statistics.csv exists and was not written by `predict --statistics`"):
        predict(tmp_path, "a", statistics=True)
    assert predict(tmp_path, "a", statistics=True, overwrite=True) == [] and len(rows(tmp_path)) == 3


def test_a_damaged_file_is_named(tmp_path):
    assert predict(tmp_path, "a", statistics=True) == []
    path = tmp_path / "out/a_statistics.json"
    path.write_text(path.read_text().replace('"voxels": ', '"voxels": "x", "more": '))
    with refused("a_statistics.json has unexpected content", "predict the case again with --overwrite"):
        predict(tmp_path, "b", statistics=True)
