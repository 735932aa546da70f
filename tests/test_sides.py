"""The axes that must not be mirrored: labels that name sides, and the axes of a scan that these sides belong to."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from swinunetr_jax import InputError
from swinunetr_jax.data.augment.sides import axes_of_affine, describe, sided_axes, sided_directions
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.inference.prepare import Prepared
from swinunetr_jax.task import Task
from swinunetr_jax.training.data import fitted_roi
from swinunetr_jax.training.recipes import brats21, msd
from swinunetr_jax.training.transforms import mirrored_axes

LR, AP, SI = "left-right", "anterior-posterior", "superior-inferior"


@pytest.mark.parametrize(
    ("names", "directions"),
    [
        (["Anterior", "Posterior"], {AP}),  # the Decathlon's hippocampus
        (["spleen", "right kidney", "left kidney", "inferior vena cava"], {LR}),  # BTCV
        (["spleen", "rkid", "lkid", "gall", "eso", "liver", "IVC", "rad", "lad"], {LR}),
        (["kidney_left", "kidney_right", "liver"], {LR}),  # TotalSegmentator
        (["lung_upper_lobe_left", "lung_lower_lobe_left"], {LR, SI}),
        (["superior_vena_cava", "inferior_vena_cava"], {SI}),  # both occur, so they are sides
        (["inferior_vena_cava"], set()),  # only one occurs, as a part of a name
        (["vertebrae_L1", "vertebrae_L5", "vertebrae_T1", "vertebra L 2"], set()),
        (["Left-Hippocampus", "ctx-rh-insula"], {LR}),  # FreeSurfer
        (["LV", "RV", "MYO"], {LR}),  # ACDC
        (["left atrium"], {LR}),
        (["LeftKidney"], {LR}),
        (["KIDNEY_RIGHT"], {LR}),
        (["leftkidney"], {LR}),
        (["kidney_l"], {LR}),
        (["Kidney (R)"], {LR}),
        (["lungL", "lungR"], {LR}),
        (["LKidney"], {LR}),
        (["Lt kidney"], {LR}),
        (["L", "R"], {LR}),
        (["front", "back"], {AP}),
        (["back muscle", "post-operative cavity", "class a"], set()),
        (["hippo_A", "hippo_P"], {AP}),
        (["ventral horn", "dorsal horn"], {AP}),
        (["upper jaw", "lower jaw"], {SI}),
        (["cranial half", "caudal half"], {SI}),
        (["anterosuperior part"], {AP, SI}),
        (["TC", "WT", "ET", "edema", "non-enhancing tumor", "bright lesion", "cleft", "background"], set()),
        (["label 1", "organ 2", "Prostate PZ", "portal vein and splenic vein", "pancreas", "cancer"], set()),
    ],
)
def test_the_directions_whose_sides_occur_in_the_names_of_labels(names, directions):
    assert set(sided_directions(names)) == directions


def task(*names: str, **changes) -> Task:
    return Task.classes(len(names) + 1, ("background", *names), **changes)


def test_the_axes_are_those_of_the_tasks_orientation_or_of_the_scans():
    kidneys = task("kidney_left", "kidney_right")
    sagittal = np.array([[0, 0, -1.0, 5], [2, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]])
    assert set(sided_axes(kidneys, [np.eye(4)])) == {0}
    assert set(sided_axes(kidneys, [sagittal])) == {2}
    assert set(sided_axes(kidneys, [np.eye(4), sagittal])) == {0, 2}  # the scans are mixed, so neither axis is mirrored
    reoriented = task("kidney_left", "kidney_right", orientation="SPL")
    assert set(sided_axes(reoriented, [np.eye(4)])) == {2}  # all scans are reoriented to SPL
    assert sided_axes(task("liver"), [sagittal]) == {}
    assert describe(sided_axes(kidneys, [sagittal])) == "axis 2 (left-right: kidney_left, kidney_right)"


def test_an_oblique_axis_belongs_to_both_directions():
    angle = np.deg2rad(45)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert [set(axis) for axis in axes_of_affine(affine)] == [{LR, AP}, {LR, AP}, {SI}]
    angle = np.deg2rad(20)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert [set(axis) for axis in axes_of_affine(affine)] == [{LR}, {AP}, {SI}]


@pytest.mark.fault("1.0")
def test_prediction_does_not_average_over_windows_with_swapped_sides(monkeypatch):
    """With `--mirror` and networks that keep the orientation of scans, the axes are those of each scan."""
    segmenter, inputs = object.__new__(Segmenter), []
    segmenter.task, segmenter.mirror, segmenter.uncertainty = task("kidney_left", "kidney_right"), True, False
    segmenter._networks = [lambda patches: inputs[-1].append(patches.tolist()) or patches]
    patch = jnp.arange(8.0).reshape(1, 2, 2, 2, 1)

    def segment(network, **_):
        inputs.append([])
        np.testing.assert_array_equal(network(patch), patch)  # the logits are mirrored back
        return np.zeros((2, 2, 2), np.uint8), None

    scan_passes = SimpleNamespace(segment=segment, plan=SimpleNamespace(windows=1), background_windows=0)
    monkeypatch.setattr(Segmenter, "passes", lambda *_: scan_passes)
    sagittal = np.array([[0, 0, -1.0, 5], [2, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]])
    for affine in (np.eye(4), sagittal):
        scan, back = SimpleNamespace(affine=affine), SimpleNamespace(apply=lambda part: part)
        result = segmenter.segment_prepared(Prepared(np.zeros((2, 2, 2, 1)), back, scan, ("a note",)))
        assert (
            result.notes[0] == "a note" and "are not mirrored along axis" in result.notes[1] and "kidney_left" in result.notes[1]
        )
    axes = [[(), (2,), (3,), (2, 3)], [(), (1,), (2,), (1, 2)]]  # axes of [n, x, y, z, c] that are mirrored
    assert inputs == [[jnp.flip(patch, flips).tolist() for flips in combinations] for combinations in axes]
    with pytest.raises(InputError, match="without the scan's affine it is not known along which axes"):
        segmenter.logits(patch)
    segmenter.task, segmenter.uncertainty, segmenter.mc_dropout = task("kidney_left", "anterior", "upper"), True, 0
    with pytest.raises(InputError, match="along every axis, so that windows are not mirrored and the only network has nothing"):
        segmenter.segment_prepared(Prepared(np.zeros((2, 2, 2, 1)), back, scan, ()))
    segmenter.task, segmenter.uncertainty = task("liver"), False
    assert segmenter.segment_prepared(Prepared(np.zeros((2, 2, 2, 1)), back, scan, ())).notes == () and len(inputs[-1]) == 8


@pytest.mark.fault("1.0")
def test_short_runs_and_sided_axes_are_not_mirrored_by_default(capsys):
    hippocampus = task("Anterior", "Posterior")
    assert mirrored_axes(None, hippocampus, [np.eye(4)], passes=100) == (0, 2)
    assert "samples are not mirrored along axis 1" in capsys.readouterr().out
    assert mirrored_axes(None, hippocampus, [np.eye(4)], passes=5) == ()
    assert "sees each case 5 times" in capsys.readouterr().out
    assert mirrored_axes(None, hippocampus, [np.eye(4)], passes=37.5, samples=600) == ()
    assert "this one has 600 samples and sees each case 37.5 times" in capsys.readouterr().out
    assert mirrored_axes(None, hippocampus, [np.eye(4)], passes=25, samples=2000) == (0, 2)
    assert "samples are not mirrored along axis 1" in capsys.readouterr().out
    assert mirrored_axes((0,), hippocampus, [np.eye(4)], passes=5) == (0,)
    assert capsys.readouterr() == ("", "")
    assert msd.RECIPE.augment.flips is None and brats21.RECIPE.augment.flips == (0, 1, 2)


@pytest.mark.fault("1.0")
def test_crops_are_about_as_large_as_the_scans_and_not_padded_to_many_times_their_volume():
    assert fitted_roi([(35, 50, 36), (36, 50, 35)]) == (32, 64, 32)
    assert fitted_roi([(20, 40, 24)]) == (32, 64, 32)  # 32³ is the one size that the network does not accept
    assert fitted_roi([(240, 240, 155)]) == (96, 96, 96)
    assert fitted_roi([(41, 81, 10)]) == (64, 96, 32)
