"""The names of files and channels determine the channel of each image."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.data_sets import WEIGHTS, image_names, touch
from helpers.refusals import refused

from swinunetr_jax.commands.options import TaskOptions
from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.data.discovery.channels import canonical_channel, match_channels, split_name
from swinunetr_jax.data.discovery.formats import find_cases
from swinunetr_jax.task import Task


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
        assert image_names(case) == ["P1_T1.nii.gz"] and case.label.name == f"P1{end}.nii.gz" and case.problem is None


@pytest.mark.fault("1.13")
@pytest.mark.parametrize(
    "name",
    [
        "sub-01_ce-gadolinium_T1w",
        "sub-01_acq-postcontrast_T1w",
        "pat_post_T1",
        "T1_gad",
        "P1_T1wCE",
        "P1_gad_axial_T1",
        "sub-01_ce-gd_run-1_T1w",
        "P1-T1-post-Gd",
        "sub-01_acq-mprageGd_T1w",
        "ce-gadolinium_T1w",
        "T1_contrast",
    ],
)
def test_names_that_mention_contrast_are_not_t1(name):
    assert split_name(name)[1:] == ("channel", "T1ce")


@pytest.mark.fault("1.13")
def test_names_without_contrast():
    for name in [
        "sub-01_ses-post_T1w",
        "pat_postop_T1",
        "P1_no_gad_T1",
        "sub-01_ce-none_T1w",
        "gad_001_T1",
        "T1_pre",
        "P1_native_T1",
    ]:
        assert split_name(name)[1:] == ("channel", "T1"), name
    assert split_name("P1_T1_FLAIR")[1] is None and split_name("P1_gad_FLAIR")[2] == "FLAIRce"
    assert canonical_channel("T1 post-contrast") == "T1ce" and canonical_channel("T1 without contrast") == "T1"
    assert canonical_channel("T2*") == "T2*"  # another sequence than T2


@pytest.mark.fault("1.14")
def test_channels_in_another_order_than_the_checkpoint_are_refused(capsys):
    task = Task.brats()
    checkpoint = SimpleNamespace(config=SwinUNETRConfig(in_channels=4, out_channels=3), task=task)
    with refused("run.pt", "T1, T1ce", "leave --channels out"):
        TaskOptions(channels=("FLAIR", "T1", "T1ce", "T2")).apply(checkpoint, Path("run.pt"))
    assert TaskOptions(channels=("t2f", "t1gd", "T1", "T2w")).apply(checkpoint, Path("run.pt")).channels[0] == "t2f"
    assert capsys.readouterr().out == ""
    TaskOptions(channels=("FLAIR", "T1ce", "T1", "PD")).apply(checkpoint, Path("run.pt"))
    assert "replaces FLAIR T1ce T1 T2" in capsys.readouterr().out
