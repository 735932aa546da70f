"""Folders of BraTS, case folders and plain files give the expected cases."""

import ast
import sys
from pathlib import Path

import pytest
from helpers.data_sets import WEIGHTS, brats, decathlon, image_names, touch
from helpers.refusals import refused

from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.formats import case_from_files, find_cases


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
    dataset = find_cases(tmp_path)
    assert dataset.layout == "brats" and dataset.channels == WEIGHTS and dataset.root == tmp_path and dataset.et_label == 4
    first, second = dataset.cases
    folder = tmp_path / "BraTS2021_00000"
    images = tuple(folder / f"BraTS2021_00000_{end}.nii.gz" for end in ("flair", "t1ce", "t1", "t2"))
    assert first == Case("BraTS2021_00000", images, WEIGHTS, folder / "BraTS2021_00000_seg.nii.gz", None, "training", None)
    assert second.name == "BraTS2021_00002" and second.et_label == 4


def test_brats_since_2023(tmp_path):
    brats(tmp_path, "BraTS-GLI-00000-000", "-t1c -t1n -t2f -t2w -seg")
    brats(tmp_path, "BraTS-GLI-00001-000", "-t1c -t1n -t2f -t2w")
    dataset = find_cases(tmp_path)
    assert dataset.layout == "brats" and dataset.et_label == 3 and dataset.channels == WEIGHTS
    assert [case.split for case in dataset.cases] == ["training", "test"]
    assert image_names(dataset.cases[0]) == [f"BraTS-GLI-00000-000-{end}.nii.gz" for end in ("t2f", "t1c", "t1n", "t2w")]
    assert dataset.cases[0].label.name == "BraTS-GLI-00000-000-seg.nii.gz" and dataset.cases[1].label is None


def test_brats_cases_of_different_years_side_by_side(tmp_path):
    brats(tmp_path, "BraTS2021_00000")
    brats(tmp_path, "BraTS-GLI-00000-000", "-t1c -t1n -t2f -t2w -seg")
    dataset = find_cases(tmp_path)
    assert dataset.et_label is None and [case.et_label for case in dataset.cases] == [3, 4]


def test_brats_one_case_and_two_levels(tmp_path):
    brats(tmp_path / "HGG", "Brats18_2013_0_1")
    brats(tmp_path / "LGG", "Brats18_2013_0_1")
    dataset = find_cases(tmp_path)
    assert dataset.layout == "brats" and [case.name for case in dataset.cases] == ["HGG_Brats18_2013_0_1", "LGG_Brats18_2013_0_1"]
    (case,) = find_cases(tmp_path / "HGG" / "Brats18_2013_0_1").cases
    assert case.name == "Brats18_2013_0_1" and case.channels == WEIGHTS and case.label is not None


def test_brats_2020_with_an_unusual_label_and_uncompressed_files(tmp_path):
    touch(tmp_path, *(f"BraTS20_Training_355/BraTS20_Training_355_{end}.nii" for end in ("flair", "t1", "t1ce", "t2")))
    touch(tmp_path, "BraTS20_Training_355/W39_1998.09.19_Segm.nii")
    (case,) = find_cases(tmp_path).cases
    assert case.channels == WEIGHTS and case.label.name == "W39_1998.09.19_Segm.nii"


@pytest.mark.parametrize("channels", [None, WEIGHTS])
def test_a_missing_channel_is_reported_for_its_case(tmp_path, channels):
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
    dataset = find_cases(tmp_path, channels=["t2w", "T1-Gd"])
    assert dataset.channels == dataset.cases[0].channels == ("T2", "T1ce") and dataset.cases[0].problem is None
    assert image_names(dataset.cases[0]) == ["BraTS2021_00000_t2.nii.gz", "BraTS2021_00000_t1ce.nii.gz"]
    (case,) = find_cases(tmp_path, channels=["T1", "ADC"]).cases
    assert case.channels == ("T1",) and "has no ADC image" in case.problem
    with refused("more than once"):
        find_cases(tmp_path, channels=["T1", "t1w"])
    # A mask may be an input of the network; its file is then a channel.
    (case,) = find_cases(tmp_path, channels=["T1", "seg"]).cases
    assert image_names(case) == ["BraTS2021_00000_t1.nii.gz", "BraTS2021_00000_seg.nii.gz"] and case.label is None


def test_case_folders(tmp_path):
    for patient in ("patient19", "patient26"):
        touch(tmp_path, *(f"{patient}/{name}.nii.gz" for name in ("FLAIR", "LESION", "T1", "T1POST", "T2")))
    dataset = find_cases(tmp_path, channels=WEIGHTS)
    assert (
        dataset.layout == "case-folder"
        and dataset.et_label is None
        and [case.name for case in dataset.cases] == ["patient19", "patient26"]
    )
    for case in (dataset.cases[0], *find_cases(tmp_path / "patient19").cases):
        assert case.name == "patient19" and case.channels == WEIGHTS and case.problem is None
        assert (
            image_names(case) == ["FLAIR.nii.gz", "T1POST.nii.gz", "T1.nii.gz", "T2.nii.gz"]
            and case.label.name == "LESION.nii.gz"
        )


def test_all_cases_should_have_the_same_channels(tmp_path):
    touch(tmp_path, "a/T1.nii.gz", "a/T2.nii.gz", "b/T1.nii.gz", "a/notes_T9.nii.gz", "b/brain_mask.nii.gz")
    first, second = find_cases(tmp_path).cases
    assert first.problem is None and first.channels == ("T1", "T2") and second.label is None
    assert "case b has no T2 image, expected one each of T1, T2" in second.problem


def test_two_files_for_one_channel_are_reported_for_their_case(tmp_path):
    touch(tmp_path, "a/T1.nii.gz", "a/T1w.nii.gz", "a/T2.nii.gz")
    (case,) = find_cases(tmp_path).cases
    assert "several T1 images (T1.nii.gz, T1w.nii.gz)" in case.problem


def test_flat_folder_with_several_patients(tmp_path):
    touch(tmp_path, "x_T1.nii.gz", "x_T2.nii.gz", "x_seg.nii.gz", "y_T1.nii.gz", "y_T2.nii.gz")
    dataset = find_cases(tmp_path)
    assert [(c.name, c.channels, c.label and c.label.name) for c in dataset.cases] == [
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
    dataset = find_cases(tmp_path)
    assert dataset.layout == "case-folder" and dataset.channels == ("ADC", "DWI")
    one, two, three = dataset.cases
    assert one.name == "P1" and image_names(one) == ["P1_ADC.nii.gz", "P1_DWI.nii.gz"] and one.label.name == "P1_seg.nii.gz"
    assert two.problem is None and "P3 has no ADC" in three.problem
    (case,) = find_cases(tmp_path / "P1", channels=["DWI", "ADC"]).cases
    assert image_names(case) == ["P1_DWI.nii.gz", "P1_ADC.nii.gz"]


def test_a_folder_of_other_images_has_a_case_per_file(tmp_path):
    touch(tmp_path, "b.nii.gz", "a.nii", "c.mgz", ".hidden.nii.gz", "._a.nii", "a_mask.nii")
    dataset = find_cases(tmp_path)
    assert dataset.layout == "files" and dataset.channels is None
    assert dataset.cases == (
        Case("a", (tmp_path / "a.nii",), None, tmp_path / "a_mask.nii", None, "training"),
        Case("b", (tmp_path / "b.nii.gz",), None, None, None, "test"),
        Case("c", (), split="test", problem=dataset.cases[2].problem),
    )
    assert f"{tmp_path / 'c.mgz'}: is a FreeSurfer file" in dataset.cases[2].problem
    assert dataset.ignored == "2 entries that are not scans were ignored: ._a.nii, .hidden.nii.gz."
    assert [case.name for case in find_cases(tmp_path, channels=["CT"]).cases] == ["a", "b", "c"]


def test_one_image_per_folder(tmp_path):
    touch(tmp_path, "P1/image.nii.gz", "P1/label.nii.gz", "P2/image.nii.gz")
    dataset = find_cases(tmp_path)
    assert [(c.name, c.label is None, c.channels) for c in dataset.cases] == [("P1_image", False, None), ("P2_image", True, None)]


def test_single_file(tmp_path):
    touch(tmp_path, "brain.nii.gz", "x/FLAIR.nii.gz")
    dataset = find_cases(tmp_path / "brain.nii.gz", channels=WEIGHTS)  # may hold all four
    assert dataset.layout == "files" and dataset.cases == (Case("brain", (tmp_path / "brain.nii.gz",), None, split="test"),)
    (case,) = find_cases(tmp_path / "x" / "FLAIR.nii.gz").cases
    assert case.name == "x" and case.channels == ("FLAIR",)
    (case,) = find_cases(tmp_path / "x" / "FLAIR.nii.gz", channels=WEIGHTS).cases
    assert "T1ce is missing" in case.problem


def test_a_case_from_files(tmp_path):
    touch(tmp_path, "p_T2.nii.gz", "p_FLAIR.nii.gz", "one.nii.gz", "two.nii.gz", "p_seg.nii.gz", "scan.mgz", "p_t2w.nii.gz")
    case = case_from_files([tmp_path / "p_T2.nii.gz", tmp_path / "p_FLAIR.nii.gz"])
    assert case == Case("p", (tmp_path / "p_T2.nii.gz", tmp_path / "p_FLAIR.nii.gz"), ("T2", "FLAIR"), split="test")
    assert case_from_files([tmp_path / "one.nii.gz", tmp_path / "two.nii.gz"]).channels is None
    assert case_from_files([tmp_path / "one.nii.gz", tmp_path / "two.nii.gz"], ["t1gd", "CT"]).channels == ("T1ce", "CT")
    assert case_from_files([tmp_path / "one.nii.gz"], WEIGHTS).channels == WEIGHTS  # one 4-D file
    with refused("No image"):
        case_from_files([])
    with refused("none.nii.gz"):
        case_from_files([tmp_path / "none.nii.gz"])
    with refused("scan.mgz"):
        case_from_files([tmp_path / "scan.mgz"])
    with refused("p_seg.nii.gz", "label"):
        case_from_files([tmp_path / "p_T2.nii.gz", tmp_path / "p_seg.nii.gz"])
    with refused("more than once"):
        case_from_files([tmp_path / "p_T2.nii.gz", tmp_path / "p_t2w.nii.gz"])
    with refused("2 files", "FLAIR, T1ce, T1, T2"):
        case_from_files([tmp_path / "one.nii.gz", tmp_path / "two.nii.gz"], WEIGHTS)


def test_a_path_without_cases_is_refused(tmp_path):
    with refused("does not exist"):
        find_cases(tmp_path / "none")
    with refused(tmp_path, "no case"):
        find_cases(tmp_path)
    touch(tmp_path, "a.txt", "sub/b.mgz")
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
    rooms = tuple(f"swinunetr_jax.data.{room}" for room in ("discovery", "nifti", "formats"))
    others = {name for name in others if not name.startswith(rooms)}
    assert others <= {f"swinunetr_jax.{name}" for name in ("console", "errors", "files", "data", "data.brats", "task")}


def test_real_case_folders(shared_data):
    dataset = find_cases(shared_data / "open_ms", channels=WEIGHTS)
    assert [case.name for case in dataset.cases] == ["patient19", "patient26"] and dataset.layout == "case-folder"
    for case in dataset.cases:
        assert image_names(case) == ["FLAIR.nii.gz", "T1POST.nii.gz", "T1.nii.gz", "T2.nii.gz"]
        assert case.label.name == "LESION.nii.gz" and case.problem is None
