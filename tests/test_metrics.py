"""Scores equal those computed by hand, by MONAI and by the package that BraTS uses."""

import json
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, gaussian_filter, generate_binary_structure
from scipy.ndimage import label as components_of

from swinunetr_jax import InputError, Task
from swinunetr_jax.metrics import dice, hd95, lesion_scores, score_case, surface_dice, volume_ml

SPACINGS = [(1.0, 1.0, 1.0), (0.7, 1.3, 2.5)]
UNIT = SPACINGS[0]


def mask(shape=(12, 11, 9), **boxes):
    """Returns a mask of boxes of voxels, each given as (x0, x1, y0, y1, z0, z1)."""
    m = np.zeros(shape, bool)
    for x0, x1, y0, y1, z0, z1 in boxes.values():
        m[x0:x1, y0:y1, z0:z1] = True
    return m


def pairs():
    """Yields pairs of masks with irregular surfaces, some at the border of the volume and some of a single voxel."""
    rng = np.random.default_rng(0)
    for share in (0.5, 0.9, 0.99):
        ref_field = gaussian_filter(rng.normal(size=(19, 14, 11)), 1.5)
        pred_field = ref_field + gaussian_filter(rng.normal(size=ref_field.shape), 1.5)
        yield pred_field > np.quantile(pred_field, share), ref_field > np.quantile(ref_field, share)
    yield mask(a=(0, 1, 0, 1, 0, 1)), mask(a=(11, 12, 10, 11, 8, 9))
    yield mask(a=(0, 12, 0, 11, 0, 9)), mask(a=(3, 5, 4, 5, 2, 8))


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_surfaces_equal_the_package_of_brats(spacing):
    package = pytest.importorskip("surface_distance")
    for pred, ref in pairs():
        distances = package.compute_surface_distances(ref, pred, spacing)
        assert hd95(pred, ref, spacing) == pytest.approx(package.compute_robust_hausdorff(distances, 95), abs=1e-6)
        for tolerance in (0.0, 1.0, 2.6):
            expected = package.compute_surface_dice_at_tolerance(distances, tolerance)
            assert surface_dice(pred, ref, spacing, tolerance) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_monais_convention_equals_monai(spacing):
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    empty, dot = mask(), mask(a=(2, 3, 2, 3, 2, 3))
    for pred, ref in (*pairs(), (empty, dot), (dot, empty), (empty, empty), (dot, dot), (empty, mask(a=(1, 4, 1, 4, 1, 4)))):
        p, r = (torch.tensor(m)[None, None] for m in (pred, ref))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MONAI warns about empty masks
            expected = metrics.compute_hausdorff_distance(p, r, include_background=True, percentile=95, spacing=spacing)
        got = hd95(pred, ref, spacing, convention="monai")
        # MONAI computes the rank 0.95 · (n - 1) in float32.
        assert got == pytest.approx(expected.item(), rel=1e-5, nan_ok=True)
        expected = metrics.compute_dice(p, r, include_background=True, ignore_empty=True)
        assert dice(pred, ref, empty="monai") == pytest.approx(expected.item(), abs=1e-6, nan_ok=True)


def test_empty_masks_under_every_convention():
    empty, cube = mask(), mask(a=(2, 5, 2, 5, 2, 5))
    cases = {"both": (empty, empty), "ref": (cube, empty), "pred": (empty, cube)}
    expected = {
        "both": {"brats": 1.0, "monai": math.nan, "nnunet": math.nan},
        "ref": {"brats": 0.0, "monai": math.nan, "nnunet": 0.0},
        "pred": {"brats": 0.0, "monai": 0.0, "nnunet": 0.0},
    }
    for name, (pred, ref) in cases.items():
        for convention, value in expected[name].items():
            assert dice(pred, ref, empty=convention) == pytest.approx(value, nan_ok=True), (name, convention)
    assert {name: hd95(*pair, UNIT) for name, pair in cases.items()} == {"both": 0.0, "ref": 374.0, "pred": 374.0}
    assert all(math.isnan(hd95(*pair, UNIT, convention="monai")) for pair in cases.values())
    assert [surface_dice(*cases[name], UNIT, 1.0) for name in ("ref", "pred")] == [0.0, 0.0]
    assert math.isnan(surface_dice(empty, empty, UNIT, 1.0))


def test_scores_computed_by_hand():
    ref, pred = mask(a=(2, 6, 2, 6, 2, 6)), mask(a=(2, 6, 2, 6, 4, 8))  # moved by two voxels
    assert dice(pred, ref) == 0.5
    assert hd95(pred, ref, (1.0, 1.0, 3.0)) == 6.0
    assert hd95(pred, ref, (1.0, 1.0, 3.0), convention="monai") == 6.0
    assert surface_dice(pred, ref, (1.0, 1.0, 3.0), 6.0) == 1.0
    assert volume_ml(ref, (2.0, 2.5, 10.0)) == 3.2


def test_lesions_by_hand():
    """Cubes of 4³ = 64 voxels in a row, 20 voxels apart.

    One lesion of the reference is predicted exactly, one by half, one is missed, one consists of two pieces of which one is
    predicted, and one is too small to count. Another cube exists only in the prediction.
    """
    shape = (130, 12, 12)
    cubes = {name: (x, x + 4, 4, 8, 4, 8) for name, x in zip(("exact", "half", "missed", "split", "invented"), range(4, 130, 20))}
    rest = {
        "piece": (29 + 44, 29 + 48, 4, 8, 4, 8),
        "small": (104, 107, 4, 8, 4, 8),
    }  # "piece" is 5 voxels from "split"; "small" has 48 voxels
    ref = mask(shape, **{n: b for n, b in (cubes | rest).items() if n != "invented"})
    half, small = (24, 28, 4, 8, 6, 10), (106, 110, 4, 8, 4, 8)
    pred = mask(shape, exact=cubes["exact"], half=half, split=cubes["split"], invented=cubes["invented"])
    scores = lesion_scores(pred, ref, UNIT)
    # "piece" and "split" touch when they are dilated by three voxels, so they are one lesion of 128 voxels, of which 64 are predicted.
    assert [lesion.dice for lesion in scores.lesions] == [1.0, 0.5, 0.0, pytest.approx(2 / 3)]
    assert [lesion.components for lesion in scores.lesions] == [1, 1, 0, 1]
    assert [lesion.volume_mm3 for lesion in scores.lesions] == [64, 64, 64, 128]
    assert [lesion.hd95 for lesion in scores.lesions] == [0.0, 2.0, 374.0, 9.0]
    assert (scores.missed, scores.ignored, scores.false_positives) == (1, 1, 1)
    assert scores.dice == pytest.approx((1 + 0.5 + 0 + 2 / 3 + 0) / 5)
    assert scores.hd95 == pytest.approx((0 + 2 + 374 + 9 + 374) / 5)
    small_only = lesion_scores(mask(shape, small=small), ref, UNIT)
    assert (len(small_only.lesions), small_only.missed, small_only.ignored, small_only.false_positives) == (4, 4, 1, 0)
    large = lesion_scores(pred, ref, (1.0, 1.0, 1.1))  # 48 voxels are now 52.8 mm³
    assert (len(large.lesions), large.ignored) == (5, 0)
    assert lesion_scores(pred, ref, UNIT, ignore_mm3=2).ignored == 0
    separate = lesion_scores(pred, ref, UNIT, dilation=1)
    assert [lesion.volume_mm3 for lesion in separate.lesions] == [64] * 5


def test_lesions_of_empty_masks():
    empty, small, large = mask(), mask(a=(2, 4, 2, 4, 2, 4)), mask(a=(2, 6, 2, 6, 2, 6))
    scores = {n: lesion_scores(p, r, UNIT) for n, p, r in (("no", empty, empty), ("ref", small, empty), ("pred", empty, large))}
    scores["small"] = lesion_scores(empty, small, UNIT)
    assert {n: (s.dice, s.hd95) for n, s in scores.items()} == {"no": (1, 0), "ref": (0, 374), "pred": (0, 374), "small": (1, 0)}


def test_a_component_may_belong_to_two_lesions():
    ref = mask((30, 8, 8), a=(1, 6, 2, 6, 2, 6), b=(20, 25, 2, 6, 2, 6))
    scores = lesion_scores(mask((30, 8, 8), bridge=(1, 25, 2, 6, 2, 6)), ref, UNIT)
    assert [lesion.components for lesion in scores.lesions] == [1, 1]
    assert [lesion.dice for lesion in scores.lesions] == [pytest.approx(2 * 5 / 29)] * 2
    assert scores.false_positives == 0


def test_cropping_to_boxes_changes_no_score():
    """Compares with the same rules applied to the whole volume, without boxes."""
    rng = np.random.default_rng(3)
    ref_field = gaussian_filter(rng.normal(size=(40, 33, 21)), 1.7)
    pred_field = ref_field + 0.8 * gaussian_filter(rng.normal(size=ref_field.shape), 1.7)
    for share in (0.9, 0.97, 0.99):
        ref, pred = ref_field > np.quantile(ref_field, share), pred_field > np.quantile(pred_field, share)
        grow, all_26 = generate_binary_structure(3, 2), np.ones((3, 3, 3))
        merged, count = components_of(binary_dilation(ref, grow, 3), all_26)
        components, number = components_of(pred, all_26)
        rows, used = [], set()
        for i in range(1, count + 1):
            lesion = (merged == i) & ref
            ids = set(np.unique(components[binary_dilation(lesion, grow, 3)])) - {0}
            used |= ids
            predicted = np.isin(components, list(ids))
            if lesion.sum() * 0.7 * 1.3 * 2.5 > 50:
                rows.append((dice(predicted, lesion), hd95(predicted, lesion, SPACINGS[1])))
        got = lesion_scores(pred, ref, SPACINGS[1])
        assert got.lesions
        np.testing.assert_allclose([(lesion.dice, lesion.hd95) for lesion in got.lesions], rows)
        assert got.false_positives == number - len(used)


def test_a_case_of_regions_and_of_classes():
    ref = np.zeros((9, 9, 9), np.uint8)
    ref[1:7, 1:7, 1:7], ref[2:5, 2:5, 2:5], ref[2:4, 2:4, 2:4] = 2, 1, 4
    pred = ref.copy()
    pred[pred == 4] = 1  # the enhancing tumour is missed, the other regions are complete
    scores = score_case(pred, ref, UNIT, Task.brats(), tolerance_mm=0.5, lesion_wise=True)
    assert list(scores) == ["TC", "WT", "ET"]
    assert [scores[name]["dice_brats"] for name in scores] == [1, 1, 0]
    assert [scores[name]["hd95_brats"] for name in scores] == [0, 0, 374]
    assert [scores[name]["reference_ml"] for name in scores] == [0.027, 0.216, 0.008]
    assert scores["ET"]["volume_ml"] == 0
    assert (scores["WT"]["lesions"], scores["WT"]["missed"], scores["WT"]["lesion_dice"]) == (1, 0, 1)
    assert scores["ET"]["lesion_dice"] == 1  # 8 mm³ are ignored
    classes = score_case(ref, ref.astype(np.int32), UNIT, Task.classes(5))
    assert list(classes) == [f"class {i}" for i in range(1, 5)]
    assert classes["class 3"]["dice_brats"] == 1
    assert math.isnan(classes["class 3"]["dice_nnunet"])
    assert "lesion_dice" not in classes["class 3"]
    json.dumps(scores)  # raises an error if a score is a number of NumPy


def test_invalid_arguments_are_named():
    m = mask()
    faults = {
        "shapes (12, 11, 9) and (12, 11, 8)": lambda: dice(m, m[..., :8]),
        "`spacing`": lambda: hd95(m, m, (1.0, 0.0, 1.0)),
        "`empty`": lambda: dice(m, m, empty="other"),
        "`convention`": lambda: hd95(m, m, UNIT, convention="nnunet"),
        "`tolerance_mm`": lambda: surface_dice(m, m, UNIT, math.nan),
        "expected the same [x, y, z]": lambda: score_case(m[0], m[0], UNIT, Task.brats()),
    }
    for text, fault in faults.items():
        with pytest.raises(InputError) as caught:
            fault()
        assert text in str(caught.value)


def test_scoring_does_not_start_jax():
    code = "import sys, swinunetr_jax.evaluation.evaluate; sys.exit('jax' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
