"""Lists of cases: datalists of MONAI, the rules for their paths, and malformed lists."""

import numpy as np
import pytest
from helpers.data_sets import SHAPE, WEIGHTS, brats, case_names, image_names, save, touch, write_json, write_list
from helpers.refusals import refused

from swinunetr_jax import cli
from swinunetr_jax.commands.cases import input_cases
from swinunetr_jax.data.discovery.formats import find_cases
from swinunetr_jax.task import Task


def datalist(root, order=("flair", "t1ce", "t1", "t2")):
    entries = []
    for number in (0, 1):
        name = f"BraTS2021_0000{number}"
        brats(root / "TrainingData", name)
        images = [f"TrainingData/{name}/{name}_{end}.nii.gz" for end in order]
        entries.append({"fold": number, "image": images, "label": f"TrainingData/{name}/{name}_seg.nii.gz"})
    return entries


def test_monai_datalist(tmp_path):
    content = {"training": datalist(tmp_path / "data"), "validation": [], "test": [{"image": "TrainingData/x.nii.gz"}]}
    touch(tmp_path / "data", "TrainingData/x.nii.gz")
    path = write_json(tmp_path / "lists" / "brats21.json", content)
    dataset = find_cases(path, base=tmp_path / "data")
    assert dataset.layout == "monai-datalist" and dataset.root == tmp_path / "data"
    one, _, test = dataset.cases
    assert one.name == "BraTS2021_00000" and one.channels == WEIGHTS and one.problem is None and one.et_label == 4
    assert one.label == tmp_path / "data/TrainingData/BraTS2021_00000/BraTS2021_00000_seg.nii.gz"
    assert [(c.fold, c.split) for c in dataset.cases] == [(0, "training"), (1, "training"), (None, "test")]
    assert test.name == "x" and test.channels is None
    # Without a base folder the list's own folder is used, in which the files do not exist.
    assert all("not exist" in case.problem and case.images == () for case in find_cases(path).cases)


def test_a_datalist_is_ordered_by_names(tmp_path):
    path = write_json(tmp_path / "list.json", {"training": datalist(tmp_path, ("t1", "t1ce", "t2", "flair"))})
    assert find_cases(path).channels == ("T1", "T1ce", "T2", "FLAIR")
    (case, _) = find_cases(path, channels=WEIGHTS).cases
    assert case.channels == WEIGHTS and [n.split("_")[-1] for n in image_names(case)] == [
        "flair.nii.gz",
        "t1ce.nii.gz",
        "t1.nii.gz",
        "t2.nii.gz",
    ]


def test_datalist_without_known_names(tmp_path):
    touch(tmp_path, "a/0.nii.gz", "a/1.nii.gz", "b/0.nii.gz", "b/1.nii.gz", "c/0.nii.gz")
    entries = [{"image": ["a/0.nii.gz", "a/1.nii.gz"]}, {"image": ["b/0.nii.gz", "b/1.nii.gz"]}]
    path = write_json(tmp_path / "list.json", {"validation": entries, "testing": ["c/0.nii.gz"]})
    dataset = find_cases(path)
    assert [(c.name, c.split) for c in dataset.cases] == [("a_0", "validation"), ("b_0", "validation"), ("c_0", "test")]
    assert dataset.channels is None and find_cases(path, channels=["x", "y"]).cases[0].problem is None  # its order is kept
    assert "2 images" in find_cases(path, channels=WEIGHTS).cases[0].problem


def test_a_missing_file_is_reported_for_its_case(tmp_path):
    path = write_json(tmp_path / "list.json", {"training": datalist(tmp_path)})
    (tmp_path / "TrainingData/BraTS2021_00001/BraTS2021_00001_t1.nii.gz").unlink()
    (tmp_path / "TrainingData/BraTS2021_00000/BraTS2021_00000_seg.nii.gz").unlink()
    good, bad = find_cases(path, channels=WEIGHTS).cases
    assert good.problem is None and good.label is not None  # a missing label is reported only where the label is needed
    assert "training[1]" in bad.problem and "BraTS2021_00001_t1.nii.gz" in bad.problem
    assert bad.name == "BraTS2021_00001" and bad.channels == ("FLAIR", "T1ce", "T2") and len(bad.images) == 3


@pytest.mark.parametrize("layout", [{}, {"modality": {"0": "MRI"}}])
@pytest.mark.parametrize(
    "hostile", ["../secret.nii.gz", "/etc/passwd", "a/../../secret.nii.gz", "..", "/", "../data_too/x.nii.gz"]
)
def test_paths_that_lead_out_of_the_folder_are_refused(tmp_path, layout, hostile):
    touch(tmp_path, "secret.nii.gz", "data/a.nii.gz", "data_too/x.nii.gz")
    path = tmp_path / "data" / "dataset.json"
    for entry in (hostile, {"image": hostile}, {"image": ["a.nii.gz", hostile]}, {"image": "a.nii.gz", "label": hostile}):
        write_json(path, layout | {"training": ["a.nii.gz", entry]})
        with refused(path, "training[1]", repr(hostile), "not allowed"):
            find_cases(path)
        with refused(repr(hostile)):
            find_cases(path.parent)


def test_paths_inside_the_folder_are_accepted(tmp_path):
    touch(tmp_path, "far/x.nii.gz", "data/a.nii.gz")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "far")
    entries = ["./a.nii.gz", "b/../a.nii.gz", str(tmp_path / "data" / "a.nii.gz"), "link/x.nii.gz"]
    dataset = find_cases(write_json(tmp_path / "data" / "list.json", {"test": entries}))
    assert [(case.name, case.images[0].name) for case in dataset.cases] == [("a", "a.nii.gz"), ("x", "x.nii.gz")]
    assert not any(case.problem for case in dataset.cases)
    assert dataset.warnings == (f"{tmp_path / 'data' / 'list.json'}: a is listed more than once and used once.",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "JSON"),
        ("{", "JSON"),
        ("\0\1", "JSON"),
        ("[" * 100_000, "JSON"),
        ("[]", "object"),
        ({}, "no case"),
        ({"name": "x"}, "no case"),
        ({"training": {}}, "list"),
        ({"training": [5]}, "training[0]"),
        ({"training": [{}]}, "training[0]"),
        ({"training": [{"image": []}]}, "training[0]"),
        ({"training": [{"image": [3]}]}, "training[0]"),
        ({"training": [{"image": ""}]}, "training[0]"),
        ({"training": [{"image": "a\0b"}]}, "training[0]"),
        ({"training": [{"image": "a.nii.gz", "label": 5}]}, "training[0]"),
        ({"training": [{"image": "a.nii.gz", "label": ["a", "b"]}]}, "training[0]"),
        ({"training": [{"image": "a.nii.gz", "fold": "zero"}]}, "fold"),
        ({"training": ["a.nii.gz"], "labels": [1]}, "labels"),
        ({"training": ["a.nii.gz"], "labels": {"tumour": "x"}}, "labels"),
        ({"training": ["a.nii.gz"], "labels": {"tumour": [1, "x"]}}, "labels"),
        ({"training": ["a.nii.gz"], "modality": {"1": "CT"}}, "modality"),
        ({"training": ["a.nii.gz"], "modality": 7}, "modality"),
        ({"channel_names": {}}, "channel_names"),
        ({"channel_names": {"0": "CT"}, "file_ending": ".png"}, ".png"),
        ({"channel_names": {"0": "CT"}, "regions_class_order": "x"}, "regions_class_order"),
        ({"channel_names": {"0": "CT"}}, "no case"),
    ],
)
def test_malformed_lists_are_refused(tmp_path, content, words):
    path = write_json(tmp_path / "dataset.json", content)
    with refused(path, words):
        find_cases(path)
    with refused(words):
        find_cases(tmp_path)


@pytest.mark.fault("4.3")
def test_lists_with_a_base_folder(tmp_path, capsys):
    data = tmp_path / "data"
    save(data / "a.nii.gz", np.arange(120, dtype=np.float32).reshape(SHAPE))
    path = write_list(tmp_path / "lists" / "list.json", test=["a.nii.gz", str(data / "a.nii.gz")])
    with refused("--base"):
        find_cases(path)
    assert case_names(find_cases(path, base=data)) == ["a"]
    assert [case.name for case in input_cases((path,), Task.classes(2), data)[0]] == ["a"]
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
