"""The layouts of data sets, each created here file by file, are recognised and give the expected cases."""

import ast
import json
import sys
from pathlib import Path

import pytest
from refusals import refused

from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.channels import canonical_channel, match_channels, split_name
from swinunetr_jax.data.discovery.formats import case_from_files, find_cases

DATA = Path(__file__).parents[2] / "shared" / "data"
WEIGHTS = ("FLAIR", "T1ce", "T1", "T2")


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def brats(root, name, ends="_flair _t1 _t1ce _t2 _seg", folder=None):
    return touch(root, *(f"{folder or name}/{name}{end}.nii.gz" for end in ends.split()))


def names_of(case):
    return [image.name for image in case.images]


# Names


@pytest.mark.parametrize(
    ("canonical", "names"),
    [
        ("FLAIR", "flair FLAIR t2f T2-FLAIR T2_Flair Flair"),
        ("T1", "t1 T1 t1n T1w T1-weighted"),
        ("T1ce", "t1ce T1CE t1c t1gd T1-Gd T1POST T1_post T1wCE T1+C ce-T1w T1Gd"),
        ("T2", "t2 T2 t2w T2w"),
    ],
)
def test_canonical_channel(canonical, names):
    assert {canonical_channel(name) for name in names.split()} == {canonical}


def test_other_names_are_kept():
    assert canonical_channel(" CT ") == "CT" and canonical_channel("磁共振") == "磁共振" and canonical_channel("b1000") == "b1000"


def test_match_channels():
    assert match_channels(["T1", "T1ce", "T2", "FLAIR"], WEIGHTS) == (3, 1, 0, 2)  # nnU-Net's BraTS order
    assert match_channels(["FLAIR", "T1w", "t1gd", "T2w"], WEIGHTS) == (0, 2, 1, 3)  # the Decathlon's
    assert match_channels(["t2f", "LESION", "t1n", "t2w", "t1c"], WEIGHTS) == (0, 4, 2, 3)
    assert match_channels(["adc", "CT"], ["ct"]) == (1,)
    assert match_channels([], []) == ()
    with refused("T1, T2", "FLAIR, T1ce, T1, T2", "FLAIR is missing", "T1ce is missing"):
        match_channels(["T1", "T2"], WEIGHTS)
    with refused("T1 matches more than once"):
        match_channels(["T1", "t1n", "T2"], ["T1", "T2"])
    with refused("more than once"):
        match_channels(["T1", "T2"], ["T1", "T1w"])


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("BraTS2021_00000_t1ce", ("BraTS2021_00000", "channel", "T1ce")),
        ("BraTS-GLI-00000-000-t2f", ("BraTS-GLI-00000-000", "channel", "FLAIR")),
        ("sub-01_T2_FLAIR", ("sub-01", "channel", "FLAIR")),
        ("sub-01_ce-gd_T1w", ("sub-01", "channel", "T1ce")),
        ("T1POST", ("", "channel", "T1ce")),
        ("a_t1_seg", ("a_t1", "label", "seg")),
        ("W39_1998.09.19_Segm", ("W39_1998.09.19", "label", "Segm")),
        ("brain_mask", ("", "neither", "brain_mask")),
        ("T1_brain", ("T1_brain", None, "")),
        ("hippocampus_001", ("hippocampus_001", None, "")),
        ("fat1", ("fat1", None, "")),
    ],
)
def test_split_name(name, parts):
    assert split_name(name) == parts


@pytest.mark.parametrize("word", "seg segm segmentation label labels mask LESION consensus gt".split())  # noqa: SIM905
def test_labels_are_not_channels(tmp_path, word):
    for end in (f"_{word}", f"-{word}"):
        folder = touch(tmp_path / end, "P1/P1_T1.nii.gz", f"P1/P1{end}.nii.gz")
        (case,) = find_cases(folder).cases
        assert names_of(case) == ["P1_T1.nii.gz"] and case.label.name == f"P1{end}.nii.gz" and case.problem is None


# BraTS


def test_brats_2021(tmp_path):
    for number in (2, 0):
        brats(tmp_path, f"BraTS2021_0000{number}")
    touch(
        tmp_path,
        "._BraTS2021_00000/._x_t1.nii.gz",
        "BraTS2021_00000/._BraTS2021_00000_t1.nii.gz",
        "__MACOSX/a_t1.nii.gz",
        "README.md",
    )
    found = find_cases(tmp_path)
    assert found.layout == "brats" and found.channels == WEIGHTS and found.root == tmp_path and found.et_label == 4
    first, second = found.cases
    folder = tmp_path / "BraTS2021_00000"
    images = tuple(folder / f"BraTS2021_00000_{end}.nii.gz" for end in ("flair", "t1ce", "t1", "t2"))
    assert first == Case("BraTS2021_00000", images, WEIGHTS, folder / "BraTS2021_00000_seg.nii.gz", None, "training", None)
    assert second.name == "BraTS2021_00002" and second.et_label == 4


def test_brats_since_2023(tmp_path):
    brats(tmp_path, "BraTS-GLI-00000-000", "-t1c -t1n -t2f -t2w -seg")
    brats(tmp_path, "BraTS-GLI-00001-000", "-t1c -t1n -t2f -t2w")
    found = find_cases(tmp_path)
    assert found.layout == "brats" and found.et_label == 3 and found.channels == WEIGHTS
    assert [case.split for case in found.cases] == ["training", "test"]
    assert names_of(found.cases[0]) == [f"BraTS-GLI-00000-000-{end}.nii.gz" for end in ("t2f", "t1c", "t1n", "t2w")]
    assert found.cases[0].label.name == "BraTS-GLI-00000-000-seg.nii.gz" and found.cases[1].label is None


def test_brats_cases_of_different_years_side_by_side(tmp_path):
    brats(tmp_path, "BraTS2021_00000")
    brats(tmp_path, "BraTS-GLI-00000-000", "-t1c -t1n -t2f -t2w -seg")
    found = find_cases(tmp_path)
    assert found.et_label is None and [case.et_label for case in found.cases] == [3, 4]


def test_brats_one_case_and_two_levels(tmp_path):
    brats(tmp_path / "HGG", "Brats18_2013_0_1")
    brats(tmp_path / "LGG", "Brats18_2013_0_1")
    found = find_cases(tmp_path)
    assert found.layout == "brats" and [case.name for case in found.cases] == ["HGG_Brats18_2013_0_1", "LGG_Brats18_2013_0_1"]
    (case,) = find_cases(tmp_path / "HGG" / "Brats18_2013_0_1").cases
    assert case.name == "Brats18_2013_0_1" and case.channels == WEIGHTS and case.label is not None


def test_brats_2020_with_an_unusual_label_and_uncompressed_files(tmp_path):
    touch(tmp_path, *(f"BraTS20_Training_355/BraTS20_Training_355_{end}.nii" for end in ("flair", "t1", "t1ce", "t2")))
    touch(tmp_path, "BraTS20_Training_355/W39_1998.09.19_Segm.nii")
    (case,) = find_cases(tmp_path).cases
    assert case.channels == WEIGHTS and case.label.name == "W39_1998.09.19_Segm.nii"


@pytest.mark.parametrize("channels", [None, WEIGHTS])
def test_a_missing_channel_is_the_problem_of_its_case(tmp_path, channels):
    brats(tmp_path, "BraTS2021_00000")
    brats(tmp_path, "BraTS2021_00001", "_flair _t1 _seg")
    brats(tmp_path, "BraTS2021_00002", "_seg")
    good, bad, bare = find_cases(tmp_path, channels=channels).cases
    assert good.problem is None
    assert bad.channels == ("FLAIR", "T1") and len(bad.images) == 2 and bad.label is not None
    assert "BraTS2021_00001 has no T1ce image and has no T2 image" in bad.problem and str(tmp_path) in bad.problem
    assert bare.name == "BraTS2021_00002" and bare.images == () and "no FLAIR" in bare.problem
    (alone,) = find_cases(tmp_path / "BraTS2021_00001", channels=channels).cases
    assert alone.problem == bad.problem


def test_channels_select_and_order_images(tmp_path):
    brats(tmp_path, "BraTS2021_00000")
    found = find_cases(tmp_path, channels=["t2w", "T1-Gd"])
    assert found.channels == found.cases[0].channels == ("T2", "T1ce") and found.cases[0].problem is None
    assert names_of(found.cases[0]) == ["BraTS2021_00000_t2.nii.gz", "BraTS2021_00000_t1ce.nii.gz"]
    (case,) = find_cases(tmp_path, channels=["T1", "ADC"]).cases
    assert case.channels == ("T1",) and "has no ADC image" in case.problem
    with refused("more than once"):
        find_cases(tmp_path, channels=["T1", "t1w"])
    # A network may take a mask, whose file is then a channel.
    (case,) = find_cases(tmp_path, channels=["T1", "seg"]).cases
    assert names_of(case) == ["BraTS2021_00000_t1.nii.gz", "BraTS2021_00000_seg.nii.gz"] and case.label is None


# Case folders and plain files


def test_case_folders(tmp_path):
    for patient in ("patient19", "patient26"):
        touch(tmp_path, *(f"{patient}/{name}.nii.gz" for name in ("FLAIR", "LESION", "T1", "T1POST", "T2")))
    found = find_cases(tmp_path, channels=WEIGHTS)
    assert (
        found.layout == "case-folder"
        and found.et_label is None
        and [case.name for case in found.cases] == ["patient19", "patient26"]
    )
    for case in (found.cases[0], *find_cases(tmp_path / "patient19").cases):
        assert case.name == "patient19" and case.channels == WEIGHTS and case.problem is None
        assert (
            names_of(case) == ["FLAIR.nii.gz", "T1POST.nii.gz", "T1.nii.gz", "T2.nii.gz"] and case.label.name == "LESION.nii.gz"
        )


def test_all_cases_should_have_the_same_channels(tmp_path):
    touch(tmp_path, "a/T1.nii.gz", "a/T2.nii.gz", "b/T1.nii.gz", "a/notes_T9.nii.gz", "b/brain_mask.nii.gz")
    first, second = find_cases(tmp_path).cases
    assert first.problem is None and first.channels == ("T1", "T2") and second.label is None
    assert "case b has no T2 image, expected one each of T1, T2" in second.problem


def test_two_files_for_one_channel(tmp_path):
    touch(tmp_path, "a/T1.nii.gz", "a/T1w.nii.gz", "a/T2.nii.gz")
    (case,) = find_cases(tmp_path).cases
    assert "several T1 images (T1.nii.gz, T1w.nii.gz)" in case.problem


def test_flat_folder_with_several_patients(tmp_path):
    touch(tmp_path, "x_T1.nii.gz", "x_T2.nii.gz", "x_seg.nii.gz", "y_T1.nii.gz", "y_T2.nii.gz")
    found = find_cases(tmp_path)
    assert [(c.name, c.channels, c.label and c.label.name) for c in found.cases] == [
        ("x", ("T1", "T2"), "x_seg.nii.gz"),
        ("y", ("T1", "T2"), None),
    ]


def test_the_most_likely_label_is_used(tmp_path):
    touch(tmp_path, "T1.nii.gz", "mask.nii.gz", "LESION.nii.gz", "seg.nii.gz")
    assert find_cases(tmp_path).cases[0].label.name == "seg.nii.gz"


def test_unknown_names_that_recur_are_channels(tmp_path):
    touch(
        tmp_path,
        "P1/P1_ADC.nii.gz",
        "P1/P1_DWI.nii.gz",
        "P2/P2_ADC.nii.gz",
        "P2/P2_DWI.nii.gz",
        "P3/P3_DWI.nii.gz",
        "P1/P1_seg.nii.gz",
    )
    found = find_cases(tmp_path)
    assert found.layout == "case-folder" and found.channels == ("ADC", "DWI")
    one, two, three = found.cases
    assert one.name == "P1" and names_of(one) == ["P1_ADC.nii.gz", "P1_DWI.nii.gz"] and one.label.name == "P1_seg.nii.gz"
    assert two.problem is None and "P3 has no ADC" in three.problem
    (case,) = find_cases(tmp_path / "P1", channels=["DWI", "ADC"]).cases
    assert names_of(case) == ["P1_DWI.nii.gz", "P1_ADC.nii.gz"]


def test_a_folder_of_other_images_has_a_case_per_file(tmp_path):
    touch(tmp_path, "b.nii.gz", "a.nii", "c.mha", ".hidden.nii.gz", "._a.nii", "a_mask.nii")
    found = find_cases(tmp_path)
    assert found.layout == "files" and found.channels is None
    assert found.cases == (
        Case("a", (tmp_path / "a.nii",), None, tmp_path / "a_mask.nii", None, "training"),
        Case("b", (tmp_path / "b.nii.gz",), None, None, None, "test"),
        Case("c", (), split="test", problem=found.cases[2].problem),
    )
    assert f"{tmp_path / 'c.mha'}: is a MetaImage file" in found.cases[2].problem
    assert found.ignored == "2 entries that are not scans were ignored: ._a.nii, .hidden.nii.gz."
    assert [case.name for case in find_cases(tmp_path, channels=["CT"]).cases] == ["a", "b", "c"]


def test_one_image_per_folder(tmp_path):
    touch(tmp_path, "P1/image.nii.gz", "P1/label.nii.gz", "P2/image.nii.gz")
    found = find_cases(tmp_path)
    assert [(c.name, c.label is None, c.channels) for c in found.cases] == [("P1_image", False, None), ("P2_image", True, None)]


def test_single_file(tmp_path):
    touch(tmp_path, "brain.nii.gz", "x/FLAIR.nii.gz")
    found = find_cases(tmp_path / "brain.nii.gz", channels=WEIGHTS)  # may hold all four
    assert found.layout == "files" and found.cases == (Case("brain", (tmp_path / "brain.nii.gz",), None, split="test"),)
    (case,) = find_cases(tmp_path / "x" / "FLAIR.nii.gz").cases
    assert case.name == "x" and case.channels == ("FLAIR",)
    (case,) = find_cases(tmp_path / "x" / "FLAIR.nii.gz", channels=WEIGHTS).cases
    assert "T1ce is missing" in case.problem


def test_a_case_from_files(tmp_path):
    touch(tmp_path, "p_T2.nii.gz", "p_FLAIR.nii.gz", "one.nii.gz", "two.nii.gz", "p_seg.nii.gz", "scan.mha", "p_t2w.nii.gz")
    case = case_from_files([tmp_path / "p_T2.nii.gz", tmp_path / "p_FLAIR.nii.gz"])
    assert case == Case("p", (tmp_path / "p_T2.nii.gz", tmp_path / "p_FLAIR.nii.gz"), ("T2", "FLAIR"), split="test")
    assert case_from_files([tmp_path / "one.nii.gz", tmp_path / "two.nii.gz"]).channels is None
    assert case_from_files([tmp_path / "one.nii.gz", tmp_path / "two.nii.gz"], ["t1gd", "CT"]).channels == ("T1ce", "CT")
    assert case_from_files([tmp_path / "one.nii.gz"], WEIGHTS).channels == WEIGHTS  # one 4-D file
    with refused("No image"):
        case_from_files([])
    with refused("none.nii.gz"):
        case_from_files([tmp_path / "none.nii.gz"])
    with refused("scan.mha"):
        case_from_files([tmp_path / "scan.mha"])
    with refused("p_seg.nii.gz", "label"):
        case_from_files([tmp_path / "p_T2.nii.gz", tmp_path / "p_seg.nii.gz"])
    with refused("more than once"):
        case_from_files([tmp_path / "p_T2.nii.gz", tmp_path / "p_t2w.nii.gz"])
    with refused("2 files", "FLAIR, T1ce, T1, T2"):
        case_from_files([tmp_path / "one.nii.gz", tmp_path / "two.nii.gz"], WEIGHTS)


# Lists


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
    found = find_cases(path, base=tmp_path / "data")
    assert found.layout == "monai-datalist" and found.root == tmp_path / "data"
    one, _, test = found.cases
    assert one.name == "BraTS2021_00000" and one.channels == WEIGHTS and one.problem is None and one.et_label == 4
    assert one.label == tmp_path / "data/TrainingData/BraTS2021_00000/BraTS2021_00000_seg.nii.gz"
    assert [(c.fold, c.split) for c in found.cases] == [(0, "training"), (1, "training"), (None, "test")]
    assert test.name == "x" and test.channels is None
    # Without a base folder the list's own folder is used, in which the files do not exist.
    assert all("does not exist" in case.problem and case.images == () for case in find_cases(path).cases)


def test_a_datalist_is_ordered_by_names(tmp_path):
    path = write_json(tmp_path / "list.json", {"training": datalist(tmp_path, ("t1", "t1ce", "t2", "flair"))})
    assert find_cases(path).channels == ("T1", "T1ce", "T2", "FLAIR")
    (case, _) = find_cases(path, channels=WEIGHTS).cases
    assert case.channels == WEIGHTS and [n.split("_")[-1] for n in names_of(case)] == [
        "flair.nii.gz",
        "t1ce.nii.gz",
        "t1.nii.gz",
        "t2.nii.gz",
    ]


def test_datalist_without_known_names(tmp_path):
    touch(tmp_path, "a/0.nii.gz", "a/1.nii.gz", "b/0.nii.gz", "b/1.nii.gz", "c/0.nii.gz")
    entries = [{"image": ["a/0.nii.gz", "a/1.nii.gz"]}, {"image": ["b/0.nii.gz", "b/1.nii.gz"]}]
    path = write_json(tmp_path / "list.json", {"validation": entries, "testing": ["c/0.nii.gz"]})
    found = find_cases(path)
    assert [(c.name, c.split) for c in found.cases] == [("a_0", "validation"), ("b_0", "validation"), ("c_0", "test")]
    assert found.channels is None and find_cases(path, channels=["x", "y"]).cases[0].problem is None  # its order is kept
    assert "2 images" in find_cases(path, channels=WEIGHTS).cases[0].problem


def test_a_missing_file_is_the_problem_of_its_case(tmp_path):
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


def test_paths_inside_the_folder(tmp_path):
    touch(tmp_path, "far/x.nii.gz", "data/a.nii.gz")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "far")
    entries = ["./a.nii.gz", "b/../a.nii.gz", str(tmp_path / "data" / "a.nii.gz"), "link/x.nii.gz"]
    found = find_cases(write_json(tmp_path / "data" / "list.json", {"test": entries}))
    assert [(case.name, case.images[0].name) for case in found.cases] == [("a", "a.nii.gz"), ("x", "x.nii.gz")]
    assert not any(case.problem for case in found.cases)
    assert found.warnings == (f"{tmp_path / 'data' / 'list.json'}: a is listed more than once and used once.",)


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
def test_malformed_lists(tmp_path, content, words):
    path = write_json(tmp_path / "dataset.json", content)
    with refused(path, words):
        find_cases(path)
    with refused(words):
        find_cases(tmp_path)


# Decathlon


def decathlon(root, modality, count=2):
    numbers = [f"BRATS_00{i}.nii.gz" for i in range(count)]
    touch(root, *(f"imagesTr/{n}" for n in numbers), *(f"labelsTr/{n}" for n in numbers), "imagesTs/BRATS_900.nii.gz")
    touch(root, *(f"imagesTr/._{n}" for n in numbers))
    training = [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in numbers]
    info = {
        "modality": modality,
        "labels": {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"},
        "training": [{"image": "./imagesTr/._BRATS_000.nii.gz", "label": "./labelsTr/._BRATS_000.nii.gz"}, *training],
        "test": ["./imagesTs/BRATS_900.nii.gz"],
    }
    return write_json(root / "dataset.json", info)


def test_decathlon(tmp_path):
    path = decathlon(tmp_path, {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"})
    for found in (find_cases(tmp_path), find_cases(path), find_cases(tmp_path, channels=WEIGHTS)):
        assert found.layout == "decathlon" and found.channels == ("FLAIR", "T1", "T1ce", "T2")
        assert found.labels == {"background": 0, "edema": 1, "non-enhancing tumor": 2, "enhancing tumour": 3}
        assert [(c.name, c.split, c.problem) for c in found.cases] == [
            ("BRATS_000", "training", None),
            ("BRATS_001", "training", None),
            ("BRATS_900", "test", None),
        ]
        assert found.cases[0].images == (tmp_path / "imagesTr/BRATS_000.nii.gz",)
        assert found.cases[0].label == tmp_path / "labelsTr/BRATS_000.nii.gz" and found.cases[2].label is None
    assert "ADC is missing" in find_cases(tmp_path, channels=["ADC"]).cases[0].problem
    found = find_cases(tmp_path / "imagesTs")
    assert found.layout == "decathlon" and found.channels == ("FLAIR", "T1", "T1ce", "T2") and found.cases[0].name == "BRATS_900"
    assert find_cases(tmp_path / "imagesTr").cases[0].label == tmp_path / "labelsTr/BRATS_000.nii.gz"


def test_repeated_names_are_not_used(tmp_path):
    decathlon(tmp_path, {"0": "MRI", "1": "MRI", "2": "MRI", "3": "MRI"})
    found = find_cases(tmp_path, channels=WEIGHTS)
    assert found.channels is None and not any(case.problem for case in found.cases)


# nnU-Net


def nnunet(root, names, cases=("BRATS_0001", "BRATS_0002"), **info):
    for case in cases:
        touch(root, *(f"imagesTr/{case}_{i:04d}.nii.gz" for i in range(len(names))), f"labelsTr/{case}.nii.gz")
    touch(root, *(f"imagesTs/BRATS_0900_{i:04d}.nii.gz" for i in range(len(names))))
    info = {"channel_names": {str(i): n for i, n in enumerate(names)}, "file_ending": ".nii.gz", "numTraining": len(cases)} | info
    return write_json(root / "dataset.json", info)


def test_nnunet(tmp_path):
    labels = {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]}
    path = nnunet(tmp_path, ["T1", "T1ce", "T2", "Flair"], labels=labels, regions_class_order=[1, 2, 3])
    for found in (find_cases(tmp_path), find_cases(path)):
        assert found.layout == "nnunet" and found.channels == ("T1", "T1ce", "T2", "FLAIR")
        assert found.labels == labels and found.regions_class_order == (1, 2, 3)
        assert [(c.name, c.split) for c in found.cases] == [
            ("BRATS_0001", "training"),
            ("BRATS_0002", "training"),
            ("BRATS_0900", "test"),
        ]
        assert names_of(found.cases[0]) == [f"BRATS_0001_{i:04d}.nii.gz" for i in range(4)]
        assert found.cases[0].label == tmp_path / "labelsTr/BRATS_0001.nii.gz" and found.cases[2].label is None
    for folder in ("", "imagesTs"):  # dataset.json next to the folder gives the names
        case = find_cases(tmp_path / folder, channels=WEIGHTS).cases[-1]
        assert case.channels == WEIGHTS and [n[-11:-7] for n in names_of(case)] == ["0003", "0001", "0000", "0002"]


def test_nnunet_without_dataset_json(tmp_path):
    nnunet(tmp_path, WEIGHTS).unlink()
    found = find_cases(tmp_path / "imagesTs", channels=WEIGHTS)
    assert (
        found.layout == "nnunet" and found.channels is None and found.cases[0].problem is None and len(found.cases[0].images) == 4
    )
    assert "has 4 images" in find_cases(tmp_path / "imagesTs", channels=["CT", "PET"]).cases[0].problem
    assert [case.split for case in find_cases(tmp_path).cases] == ["training", "training", "test"]
    assert find_cases(tmp_path / "imagesTr").cases[0].label is not None


def test_nnunet_broken_cases(tmp_path):
    nnunet(tmp_path, WEIGHTS, cases=("a", "b", "c"))
    (tmp_path / "imagesTr/b_0002.nii.gz").unlink()
    (tmp_path / "imagesTr/c_0000.nii.gz").unlink()
    touch(tmp_path, "imagesTr/d.nii.gz", "imagesTr/a_0004.nii.gz", "imagesTr/._a_0000.nii.gz")
    cases = {case.name: case for case in find_cases(tmp_path).cases}
    assert set(cases) == {"a", "b", "c", "d", "BRATS_0900"} and cases["BRATS_0900"].problem is None
    assert "a has the channels 0000, 0001, 0002, 0003, 0004" in cases["a"].problem
    assert "expected 0000, 0001, 0002, 0003" in cases["b"].problem and cases["b"].channels == ("FLAIR", "T1ce", "T2")
    assert len(cases["c"].images) == 3 and "_0000" in cases["d"].problem


def test_numbered_cases_are_not_channels(tmp_path):
    touch(tmp_path, *(f"case_{i:04d}.nii.gz" for i in range(1, 5)))
    assert [c.name for c in find_cases(tmp_path).cases] == ["case_0001", "case_0002", "case_0003", "case_0004"]
    touch(tmp_path, "case_0000.nii.gz")
    assert len(find_cases(tmp_path, channels=["CT"]).cases) == 5
    touch(tmp_path / "one", "a_0000.nii.gz", "b_0000.nii.gz")
    found = find_cases(tmp_path / "one", channels=["CT"])
    assert found.layout == "nnunet" and [case.name for case in found.cases] == ["a", "b"]


# Nothing is found


def test_nothing_found(tmp_path):
    with refused("does not exist"):
        find_cases(tmp_path / "none")
    with refused(tmp_path, "no case"):
        find_cases(tmp_path)
    touch(tmp_path, "a.txt", "sub/b.dcm")
    with refused("no case"):
        find_cases(tmp_path)
    with refused("a.txt", ".nii.gz"):
        find_cases(tmp_path / "a.txt")
    decathlon(tmp_path / "Task01", {"0": "MRI"})
    with refused("Task01", "give one of them"):
        find_cases(tmp_path)


@pytest.mark.parametrize("package", ["discovery", "nifti"])
def test_data_needs_numpy_and_nibabel_only(package):
    """Processes that only look for scans and read them never start an accelerator."""
    sources = [path.read_text("utf-8") for path in (Path(__file__).parents[1] / "swinunetr_jax/data" / package).glob("*.py")]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        name
        for node in imports
        for name in (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if node.module != "swinunetr_jax"
            else [f"swinunetr_jax.{a.name}" for a in node.names]
        )
    }
    others = {name for name in names if name.split(".")[0] not in {*sys.stdlib_module_names, "numpy", "nibabel"}}
    others = {name for name in others if not name.startswith(("swinunetr_jax.data.discovery", "swinunetr_jax.data.nifti"))}
    assert others <= {f"swinunetr_jax.{name}" for name in ("console", "errors", "files", "data", "data.brats", "task")}


# Real data


@pytest.fixture
def real():
    if not DATA.is_dir():
        pytest.skip("no real data here")
    return DATA


def test_real_decathlon(real):
    found = find_cases(real / "Task04_Hippocampus")
    assert found.layout == "decathlon" and len(found.cases) == 200 and not any(case.problem for case in found.cases)
    assert found.channels == ("MRI",) and found.labels == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert all(case.label.is_file() and case.split == "training" for case in found.cases)
    assert find_cases(real / "Task04_Hippocampus" / "imagesTr").cases[0].label == found.cases[0].label


def test_real_case_folders(real):
    found = find_cases(real / "open_ms", channels=WEIGHTS)
    assert [case.name for case in found.cases] == ["patient19", "patient26"] and found.layout == "case-folder"
    for case in found.cases:
        assert names_of(case) == ["FLAIR.nii.gz", "T1POST.nii.gz", "T1.nii.gz", "T2.nii.gz"]
        assert case.label.name == "LESION.nii.gz" and case.problem is None
