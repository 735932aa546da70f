"""Labels and options are integers: those of numpy are accepted, and labels above 255 are refused."""

import json

import numpy as np
import pytest
from helpers.data_sets import SHAPE, ball, save, write_list
from helpers.refusals import refused

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.data.check.check_dataset import check_dataset
from swinunetr_jax.data.discovery.formats import find_cases
from swinunetr_jax.output import Output
from swinunetr_jax.task import Task
from swinunetr_jax.training import Recipe
from swinunetr_jax.training.data import collect_cases


@pytest.mark.fault("4.6")
def test_integers_of_numpy_are_integers():
    size, count = np.int64(24), np.int32(3)
    config = SwinUNETRConfig(in_channels=np.int64(4), out_channels=count, feature_size=size, depths=np.array([1, 1, 1, 1]))
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


@pytest.mark.fault("4.6")
def test_training_names_the_file_of_a_label_above_255(tmp_path):
    for name in "ab":
        save(tmp_path / f"{name}.nii.gz", np.arange(120, dtype=np.float32).reshape(SHAPE))
        save(tmp_path / f"{name}_seg.nii.gz", ball(1).astype(np.int16) * 300)
    with refused(tmp_path / "a_seg.nii.gz", "300", "above 255"):
        collect_cases(Recipe(kind="labels", data=tmp_path, folds=2), tmp_path / "run")
