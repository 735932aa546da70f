"""The task of a network: its construction, its checks, and its conversion to JSON and back."""

import json
import math

import pytest

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.output import Output
from swinunetr_jax.task import Task

REGION = Output(name="lesion", value=1, members=(1,))


def fields(**changes):
    return {"kind": "regions", "outputs": (REGION,), "paint": (0,), **changes}


@pytest.mark.parametrize(
    "task",
    [
        Task.brats(),
        Task.brats(et_label=3, channels=("T1", "T2"), roi=(96, 128, 96)),
        Task.classes(14),
        Task.classes(2, ("background", "spleen"), intensity="window", window=(-175, 250.5), orientation="RAS"),
        Task(**fields(intensity="none")),
        Task(**fields(spacing=(1.5, 1.5, 2))),
    ],
)
def test_a_task_is_the_same_after_writing_and_reading_json(task):
    restored = Task.from_dict(json.loads(json.dumps(task.to_dict())))
    assert restored == task and hash(restored) == hash(task)
    assert Task.from_dict(task.to_dict()) == task


@pytest.mark.parametrize("et", [3, 4])
def test_brats(et):
    task = Task.brats(et_label=et)
    assert [(output.name, output.value, output.members) for output in task.outputs] == [
        ("TC", 1, (1, et)),
        ("WT", 2, (1, 2, et)),
        ("ET", et, (et,)),
    ]
    assert task.paint == (1, 0, 2)  # the whole tumour is painted first, and the others over it
    assert task.channels == ("FLAIR", "T1ce", "T1", "T2") and task.orientation == "LPS" and task.intensity == "zscore"
    task.check(SwinUNETRConfig.brats21())


def test_another_et_label():
    assert Task.brats().with_et_label(3) == Task.brats(et_label=3)
    assert Task.brats(et_label=3).with_et_label(4) == Task.brats()
    assert Task.classes(5).with_et_label(3) == Task.classes(5)


NAMED = {"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}  # BraTS 2024, glioma after treatment
BRATS_2024 = (
    Task.from_labels(NAMED),
    Task.from_labels({"background": 0, "TC": [1, 3], "WT": [1, 2, 3], "ET": [3], "RC": [4]}, (1, 2, 3, 4)),
    Task.from_labels({"background": 0, "WT": [1, 2, 4], "TC": [1, 4], "ET": [4], "cyst": 3}, (2, 1, 4, 3)),
)


@pytest.mark.fault("1.4")
@pytest.mark.parametrize("task", BRATS_2024, ids=["classes", "regions", "et-4-and-a-3"])
def test_a_task_with_both_labels_3_and_4_is_never_renamed(task):
    assert task.et_label is None
    assert task.with_et_label(3) == task and task.with_et_label(4) == task


def test_the_label_of_the_enhancing_tumour():
    assert (Task.brats().et_label, Task.brats(et_label=3).et_label, Task.classes(5).et_label) == (4, 3, None)
    with pytest.raises(InputError, match="enhancing tumour's label is 1, expected 4"):
        Task.brats().with_et_label(1)


def test_regions_without_an_order_are_written_as_different_labels():
    task = Task.from_labels({"background": 0, "core": [1, 3], "all": [1, 2, 3], "rim": [3]})
    assert [(output.name, output.value) for output in task.outputs] == [("core", 1), ("all", 2), ("rim", 3)]
    assert task.paint == (1, 0, 2)


@pytest.mark.parametrize(
    ("labels", "order", "message"),
    [
        ({"a": [1, 2], "b": [2]}, (2, 2), "`value` of b is 2, the value of a"),
        ({"a": [1, 2], "b": [2]}, (0, 2), "`value` of a is 0, the value of the background"),
        ({"a": [1, 2], "b": [2]}, (2, 1), "`value` of b is 1, which is not among its `members`"),
        ({"a": [1], "b": [1]}, None, "`value` of b is 1, the value of a"),
    ],
)
def test_regions_that_a_label_map_cannot_distinguish_are_refused(labels, order, message):
    with pytest.raises(InputError, match=message):
        Task.from_labels(labels, order)


def test_classes():
    task = Task.classes(3)
    assert [(output.name, output.value) for output in task.outputs] == [("background", 0), ("class 1", 1), ("class 2", 2)]
    assert task.paint == () and task.kind == "classes"
    assert [output.name for output in Task.classes(2, ("air", "body")).outputs] == ["air", "body"]
    assert len(Task.classes(256).outputs) == 256
    with pytest.raises(InputError, match="`names` must name 3 classes, got 2: air, body"):
        Task.classes(3, ("air", "body"))
    for count in (257, 1, 0):
        with pytest.raises(InputError):
            Task.classes(count)


def test_default():
    assert Task.default(SwinUNETRConfig.brats21()) == Task.brats()
    assert Task.default(SwinUNETRConfig.btcv()) == Task.classes(14)
    assert Task.default(SwinUNETRConfig(in_channels=4, out_channels=3, spatial_dims=2)) == Task.classes(3)
    single = Task.default(SwinUNETRConfig(in_channels=1, out_channels=1))
    assert single.kind == "regions" and [output.value for output in single.outputs] == [1]
    for config in (SwinUNETRConfig(in_channels=i, out_channels=o) for i in (1, 4) for o in (1, 2, 3)):
        Task.default(config).check(config)


def test_any_sequence_is_accepted():
    task = Task(**fields(outputs=[REGION], paint=[0], channels=["CT"], roi=[64, 64, 64]))
    assert task == Task(**fields(channels=("CT",), roi=(64, 64, 64))) and hash(task)
    assert Output(name="lesion", value=1, members=[1]) == REGION


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "labels"}, "`kind` must be one of regions, classes, images, got 'labels'"),
        ({"outputs": ()}, "`outputs` must hold at least one"),
        ({"outputs": ("lesion",)}, "`outputs` must be a sequence of Output"),
        ({"outputs": (REGION, REGION), "paint": (0, 1)}, r"all with different names, got \['lesion', 'lesion'\]"),
        ({"paint": ()}, r"`paint` must order the 1 regions, got \(\)"),
        ({"paint": (1,)}, "`paint` must order the 1 regions"),
        ({"paint": ("0",)}, "`paint` must be a sequence of channel numbers"),
        ({"paint": None}, "`paint` must be a sequence of channel numbers, got None"),
        ({"kind": "classes", "paint": ()}, "`outputs` holds one class, expected at least two"),
        ({"kind": "classes", "outputs": Task.classes(2).outputs}, r"`paint` must be empty for classes, got \(0,\)"),
        ({"channels": "CT"}, "`channels` must be a sequence of names, got 'CT'"),
        ({"channels": ("",)}, "`channels` must be a sequence of names"),
        ({"intensity": "minmax"}, "`intensity` must be one of zscore, window, none, got 'minmax'"),
        (
            {"intensity": "window"},
            "`window` .low and high. must be given with the intensity 'window' and only then: got intensity 'window' ",
        ),
        ({"window": (0, 1)}, "got intensity 'zscore' and window .0, 1."),
        ({"intensity": "window", "window": (1, 1)}, "`window` must hold a low value and a higher one"),
        ({"intensity": "window", "window": (0, math.nan)}, "`window` must hold a low value and a higher one"),
        ({"intensity": "window", "window": (-math.inf, 0)}, "`window` must hold a low value and a higher one"),
        ({"intensity": "window", "window": (0,)}, "`window` must hold a low value and a higher one"),
        ({"intensity": "window", "window": (0, 1, 2)}, "`window` must hold a low value and a higher one"),
        ({"intensity": "window", "window": ("0", "1")}, "`window` must be a sequence of two intensities"),
        ({"orientation": "RL"}, "`orientation` must name one direction per axis, such as 'RAS' or 'LPS', got 'RL'"),
        ({"orientation": "RLS"}, "`orientation` must name"),
        ({"orientation": "ras"}, "`orientation` must name"),
        ({"orientation": 3}, "`orientation` must name"),
        ({"roi": (96, 96, 100)}, r"`roi` must be a sequence of multiples of 32, got \(96, 96, 100\)"),
        ({"roi": (0, 96, 96)}, "`roi` must be a sequence of multiples of 32"),
        ({"roi": (96.0, 96.0, 96.0)}, "`roi` must be a sequence of multiples of 32"),
        ({"spacing": 1.5}, "`spacing` must be a sequence of three voxel sizes in mm, got 1.5"),
        ({"spacing": (1, 1)}, "`spacing` must hold three voxel sizes in mm, all above 0, got .1, 1."),
        ({"spacing": (1, 1, 0)}, "`spacing` must hold three voxel sizes"),
        ({"spacing": (1, 1, math.nan)}, "`spacing` must hold three voxel sizes"),
        ({"roi": 96}, "`roi` must be a sequence of multiples of 32"),
    ],
)
def test_bad_values_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        Task(**fields(**changes))


@pytest.mark.parametrize("value", [-1, 256, 1.0, "1", None, True])
def test_bad_label_values_are_refused(value):
    with pytest.raises(InputError, match="`value` of lesion must be an integer in 0 … 255"):
        Output(name="lesion", value=value)
    with pytest.raises(InputError, match="`members` must be a sequence of label values"):
        Output(name="lesion", value=1, members=(value,))


@pytest.mark.parametrize("name", ["", None, 3])
def test_bad_names_are_refused(name):
    with pytest.raises(InputError, match="`name` of an output must be text"):
        Output(name=name, value=1)


@pytest.mark.parametrize(
    "values",
    [
        {},
        [],
        None,
        "regions",
        fields(outputs=None),
        fields(outputs=[3]),
        fields(outputs=["lesion"]),
        fields(outputs=[{"name": "lesion"}]),
        fields(outputs=[{"name": "lesion", "value": 1, "colour": 3}]),
        fields(outputs=[{"name": "lesion", "value": "one"}]),
        fields(outputs=[{"name": "lesion", "value": 1, "members": 1}]),
        fields(outputs=[{"name": "lesion", "value": 1}], threshold=0.5),
        {"outputs": [{"name": "lesion", "value": 1}]},
    ],
)
def test_descriptions_that_cannot_be_read_are_refused(values):
    with pytest.raises(InputError):
        Task.from_dict(values)


def test_members_are_optional():
    assert Task.from_dict(fields(outputs=[{"name": "lesion", "value": 1}])).outputs == (Output(name="lesion", value=1),)


def test_a_description_without_a_spacing():
    values = Task.brats().to_dict()
    del values["spacing"]
    assert Task.from_dict(values) == Task.brats()


def test_check_against_a_network():
    config = SwinUNETRConfig(in_channels=2, out_channels=1)
    Task(**fields()).check(config)
    Task(**fields(channels=("a", "b"), roi=(64, 64, 96))).check(config)
    for changes, message in (
        ({"channels": ("a",)}, "the task names 1 channels, but the network has 2"),
        ({"kind": "classes", "outputs": Task.classes(2).outputs, "paint": ()}, "the task names 2 outputs, but the network has 1"),
        ({"roi": (64, 64)}, "expected 3 spatial axes, got 2"),
        ({"roi": (32, 32, 32)}, "one voxel at 1/32 resolution"),
    ):
        with pytest.raises(InputError, match=message):
            Task(**fields(**changes)).check(config)
