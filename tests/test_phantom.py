"""The phantom is reproducible, has the same head on every grid and the contrasts of MRI, and is read as a BraTS data set."""

import ast
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.refusals import refused
from scipy import ndimage

from swinunetr_jax.data import brats
from swinunetr_jax.data.discovery.formats import find_cases
from swinunetr_jax.data.nifti import check_same_grid, read_labels, read_volume
from swinunetr_jax.data.phantom import dataset as phantom
from swinunetr_jax.data.phantom.dataset import phantom_case, write_phantom
from swinunetr_jax.data.phantom.images import Body
from swinunetr_jax.data.phantom.lesion import LESIONS
from swinunetr_jax.data.phantom.shapes import Waves, ellipse, soft, tube, union

SMALL = (96, 96, 62)
TINY = (40, 40, 26)


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Shapes


def points(*rows):
    return tuple(np.array(column, np.float32) for column in zip(*rows))


def test_distances_by_hand():
    ball = ellipse(points((5, 0, 0), (0, 3, 0), (0, 0, 1)), (0, 0, 0), (3, 3, 3))
    np.testing.assert_allclose(ball, [2, 0, -2], atol=1e-5)
    np.testing.assert_allclose(ellipse(points((4, 0, 0), (0, 2, 0), (0, 0, 1)), (0, 0, 0), (4, 2, 1)), 0, atol=1e-6)
    rod = tube(points((0, 0, 0), (5, 3, 0), (12, 0, 0), (10, 0, 5)), (0, 0, 0, 1), (10, 0, 0, 2))
    np.testing.assert_allclose(rod, [-1, 1.5, 0, 3], atol=1e-6)
    bent = tube(points((10, 7, 0)), (0, 0, 0, 1), (10, 0, 0, 1), (10, 10, 0, 1))
    np.testing.assert_allclose(bent, [-1], atol=1e-6)
    np.testing.assert_allclose(union(np.array([1.0, 2, 3]), np.array([9.0, 2, -4]), 4), [1, 1, -4])
    np.testing.assert_allclose(soft(np.array([-9.0, -1, 0, 1, 9]), 2), [1, 1, 0.5, 0, 0])


def test_noise_has_its_standard_deviation_wavelength_and_gradient():
    waves = Waves.make(np.random.default_rng(0), 20.0, 64, 0.0)
    np.testing.assert_allclose(np.linalg.norm(waves.k, axis=1), 2 * np.pi / 20, rtol=1e-6)
    positions = np.random.default_rng(1).uniform(-500, 500, (3, 40_000)).astype(np.float32)  # more than one chunk
    value, gradient = waves.with_gradient(positions)
    assert abs(value.mean()) < 0.05 and abs(value.std() - 1) < 0.05
    np.testing.assert_allclose(waves(positions), value, atol=1e-3)
    for axis in range(3):
        moved = positions[:, -100:].astype(np.float64)
        moved[axis] += 1e-3
        slope = (waves(moved) - waves(positions[:, -100:].astype(np.float64))) / 1e-3
        np.testing.assert_allclose(slope, gradient[axis, -100:], atol=5e-3)


# Cases


def test_a_case_is_always_the_same():
    images, labels = phantom_case(2, size=TINY, seed=5)
    again, labels_again = phantom_case(2, size=TINY, seed=5)
    assert list(images) == ["FLAIR", "T1ce", "T1", "T2"]
    for channel in brats.CHANNELS:
        assert images[channel].dtype == np.int16 and images[channel].shape == TINY
        np.testing.assert_array_equal(images[channel], again[channel])
    assert labels.dtype == np.uint8 and labels.shape == TINY
    np.testing.assert_array_equal(labels, labels_again)
    for other in (phantom_case(3, size=TINY, seed=5), phantom_case(2, size=TINY, seed=6)):
        assert (other[0]["T1"] != images["T1"]).mean() > 0.1 and (other[1] != labels).any()


@pytest.mark.parametrize(("size", "count"), [(SMALL, 4), ((64, 72, 50), 6), (TINY, 25), ((32, 32, 20), 25)])
def test_every_label_is_in_the_brain_and_nothing_is_outside(size, count):
    volumes = []
    for index in range(count):
        images, labels = phantom_case(index, size=size)
        assert np.unique(labels).tolist() == [0, 1, 2, 4]
        brain = images["T1"] > 0
        assert all(((image > 0) == brain).all() and image.min() == 0 for image in images.values())
        assert not labels[~brain].any()
        assert not brain[[0, -1]].any() and not brain[:, [0, -1]].any()
        volumes.append(brain.sum() * 240 * 240 * 155 / np.prod(size) / 1000)
        pieces = ndimage.label(brain)[0]
        assert np.bincount(pieces.ravel())[1:].max() > 0.999 * brain.sum()
        assert all(200 < np.percentile(image[brain], 99) < 6000 for image in images.values())
    assert min(volumes) > 1500 and max(volumes) < 2300 and np.std(volumes) > 10  # ml; the heads differ


def test_cases_vary():
    sides, sizes = [], []
    for index in range(24):
        _, labels = phantom_case(index, size=TINY)
        core = (labels == 1) | (labels == 4)
        sides.append(np.argwhere(core)[:, 0].mean() > TINY[0] / 2)
        sizes.append(core.sum())
    assert 4 < sum(sides) < 20 and max(sizes) > 4 * min(sizes)


def test_the_label_of_enhancing_tumour():
    _, labels_with_4 = phantom_case(0, size=TINY)
    _, labels_with_3 = phantom_case(0, size=TINY, et_label=3)
    np.testing.assert_array_equal(np.where(labels_with_4 == 4, 3, labels_with_4), labels_with_3)


def test_the_same_head_on_every_grid():
    fine, fine_labels = phantom_case(1, size=(96, 96, 62))
    coarse, coarse_labels = phantom_case(1, size=(48, 48, 31))
    means = fine["T1"].reshape(48, 2, 48, 2, 31, 2).mean((1, 3, 5))
    inside = (coarse["T1"] > 0) & (means > 0)
    assert np.corrcoef(means[inside], coarse["T1"][inside])[0, 1] > 0.9
    for value in (1, 2, 4):
        assert abs((fine_labels == value).sum() / 8 / (coarse_labels == value).sum() - 1) < 0.35


def medians(index):
    """Returns the median intensity of voxels that hold a single tissue, by channel and tissue."""
    body = Body.make(np.random.default_rng((0, index)), SMALL)
    images, labels = phantom_case(index, size=SMALL)
    np.testing.assert_array_equal(body.volume(body.labels(4)), labels)
    pure = {name: body.volume(values) > 0.95 for name, values in body.tissues.items()}
    assert all(pure[name].sum() > 10 for name in ("csf", "gm", "wm", *LESIONS))
    return {
        channel: {name: np.median(image[where]) for name, where in pure.items() if where.any()}
        for channel, image in images.items()
    }


@pytest.mark.parametrize("index", [0, 1, 2])
def test_tissues_have_the_contrasts_of_mri(index):
    intensities = medians(index)
    t1, t1ce, t2, flair = (intensities[channel] for channel in ("T1", "T1ce", "T2", "FLAIR"))
    assert t1["wm"] > 1.2 * t1["gm"] > 1.2 * 2 * t1["csf"]
    assert t1ce["wm"] > 1.2 * t1ce["gm"] > 1.2 * 2 * t1ce["csf"]
    assert t2["csf"] > 1.5 * t2["gm"] > 1.5 * 1.2 * t2["wm"]
    assert flair["gm"] > 1.1 * flair["wm"] > 1.1 * 3 * flair["csf"]
    assert t1ce["rim"] > 1.1 * max(value for name, value in t1ce.items() if name != "rim")
    assert t1ce["rim"] / t1ce["wm"] > 2 * t1["rim"] / t1["wm"]
    assert flair["oedema"] > 1.1 * max(value for name, value in flair.items() if name != "oedema")
    assert t1["necrosis"] < 0.8 * t1["gm"] and t2["necrosis"] > 1.3 * t2["gm"]
    assert t1["oedema"] < 0.9 * t1["wm"] and t2["oedema"] > 1.3 * t2["gm"]


def test_fractions_add_up():
    tissues = Body.make(np.random.default_rng(0), TINY).tissues
    np.testing.assert_allclose(sum(tissues.values()), 1, atol=1e-5)
    assert all(values.min() > -1e-5 for values in tissues.values())


@pytest.mark.long
def test_a_case_of_full_size_has_the_volumes_of_a_small_one():
    images, labels = phantom_case(0)
    assert labels.shape == (240, 240, 155) and np.unique(labels).tolist() == [0, 1, 2, 4]
    small, small_labels = phantom_case(0, size=SMALL)
    ml = {value: ((labels == value).sum() / 1000, (small_labels == value).sum() * 2.5**3 / 1000) for value in (1, 2, 4)}
    assert all(abs(full_ml / small_ml - 1) < 0.2 for full_ml, small_ml in ml.values()), ml
    assert abs(np.median(images["T1"][images["T1"] > 0]) / np.median(small["T1"][small["T1"] > 0]) - 1) < 0.1


@pytest.mark.parametrize(
    "wrong", [{"size": (31, 96, 62)}, {"size": (96, 96)}, {"size": (96, 96, 62.5)}, {"size": 96}, {"seed": -1}, {"et_label": 2}]
)
def test_wrong_parameters_are_refused(tmp_path, wrong):
    (name,) = wrong
    with refused(f"`{name}`"):
        phantom_case(0, **wrong)
    with refused(f"`{name}`"):
        write_phantom(tmp_path / "a", cases=1, **wrong)
    assert not (tmp_path / "a").exists()


def test_wrong_counts_are_refused(tmp_path):
    for index in (-1, 0.5, True):
        with refused("`index`", index):
            phantom_case(index, size=TINY)
    for cases in (0, -1, 1.5):
        with refused("`cases`", cases):
            write_phantom(tmp_path, cases=cases, size=TINY)


# Folders


def test_the_folder_is_read_as_brats(tmp_path):
    progress = []
    write_phantom(tmp_path / "a" / "b", cases=2, size=TINY, progress=lambda *counts: progress.append(counts))
    assert progress == [(1, 2), (2, 2)]
    data_set = find_cases(tmp_path / "a" / "b")
    assert data_set.layout == "brats" and data_set.channels == brats.CHANNELS and data_set.et_label == 4
    assert [case.name for case in data_set.cases] == ["BraTS2021_00000", "BraTS2021_00001"]
    for index, case in enumerate(data_set.cases):
        assert case.problem is None and case.split == "training" and case.channels == brats.CHANNELS
        images, labels = phantom_case(index, size=TINY)
        volumes = [read_volume(path) for path in case.images]
        for channel, volume in zip(case.channels, volumes):
            np.testing.assert_array_equal(volume.array, images[channel])
            assert volume.header.get_data_dtype() == np.int16
        label = read_labels(case.label)
        np.testing.assert_array_equal(label.array, labels)
        check_same_grid([*volumes, label])
        assert {p.name for p in case.label.parent.iterdir()} == {
            f"{case.name}_{end}.nii.gz" for end in ("flair", "t1", "t1ce", "t2", "seg")
        }


def test_label_3_comes_with_the_file_names_of_brats_since_2023(tmp_path):
    write_phantom(tmp_path, cases=1, size=TINY, et_label=3)
    data_set = find_cases(tmp_path)
    assert data_set.et_label == 3 and data_set.layout == "brats" and data_set.channels == brats.CHANNELS
    assert data_set.cases[0].label == tmp_path / "BraTS-GLI-00000-000" / "BraTS-GLI-00000-000-seg.nii.gz"
    assert np.unique(read_labels(data_set.cases[0].label).array).tolist() == [0, 1, 2, 3]


def test_geometry(tmp_path):
    write_phantom(tmp_path, cases=1, size=(48, 60, 31))
    image = nib.load(tmp_path / "BraTS2021_00000" / "BraTS2021_00000_t1.nii.gz")
    # The spacing is 5, 4, 5 mm. The first voxel has its outer corner at (0.5, 239.5, -0.5), as in BraTS.
    expected = [[-5, 0, 0, -2], [0, -4, 0, 237.5], [0, 0, 5, 2], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.affine, expected)
    np.testing.assert_allclose(image.get_qform(coded=True)[0], expected, atol=1e-6)
    assert image.header["qform_code"] == image.header["sform_code"] == 1
    assert image.header.get_xyzt_units()[0] == "mm"
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")


def test_geometry_of_the_full_size_is_that_of_brats():
    volume = phantom._volume_of(np.zeros((240, 240, 155), np.uint8), Path())
    np.testing.assert_array_equal(volume.affine, [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])


def test_additional_cases_do_not_change_existing_ones(tmp_path):
    write_phantom(tmp_path / "a", cases=1, size=TINY)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.gz")}
    write_phantom(tmp_path / "a", cases=3, size=TINY)
    assert before == {p: p.stat().st_mtime_ns for p in before}
    write_phantom(tmp_path / "b", cases=3, size=TINY)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert len(files_of(tmp_path / "a")) == 1 + 3 * 5


def test_an_interrupted_data_set_is_completed(tmp_path, monkeypatch):
    write_phantom(tmp_path / "complete", cases=2, size=TINY)
    write_volume, remaining = phantom.write_volume, iter(range(7))

    def write_until_killed(*args):
        if next(remaining, None) is None:
            raise KeyboardInterrupt
        return write_volume(*args)

    monkeypatch.setattr(phantom, "write_volume", write_until_killed)
    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "interrupted", cases=2, size=TINY)
    monkeypatch.undo()
    assert len(files_of(tmp_path / "interrupted")) == 1 + 7
    progress = []
    write_phantom(tmp_path / "interrupted", cases=2, size=TINY, progress=lambda *counts: progress.append(counts))
    assert progress == [(1, 2), (2, 2)]
    assert files_of(tmp_path / "interrupted") == files_of(tmp_path / "complete")
    (tmp_path / "interrupted" / "BraTS2021_00000" / "BraTS2021_00000_t2.nii.gz").unlink()
    write_phantom(tmp_path / "interrupted", cases=2, size=TINY)
    assert files_of(tmp_path / "interrupted") == files_of(tmp_path / "complete")


@pytest.mark.parametrize("other", [{"size": (44, 40, 26)}, {"seed": 1}, {"et_label": 3}, {"cases": 1}])
def test_other_parameters_need_another_folder(tmp_path, other):
    write_phantom(tmp_path, cases=2, size=TINY)
    before = files_of(tmp_path)
    with refused(tmp_path, "another folder"):
        write_phantom(tmp_path, **{"cases": 2, "size": TINY, **other})
    assert files_of(tmp_path) == before


def test_folders_with_other_content_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with refused(tmp_path, "notes.txt"):
        write_phantom(tmp_path, cases=1, size=TINY)
    (tmp_path / "phantom.json").symlink_to("nothing")
    with refused("phantom.json", "cannot be read"):
        write_phantom(tmp_path, cases=1, size=TINY)
    (tmp_path / "phantom.json").unlink()
    for name in ("notes.txt", "notes.txt/deeper", "a" * 300, "a\0b"):
        with refused(name, "cannot be created"):
            write_phantom(tmp_path / name, cases=1, size=TINY)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt"]


RECORDS = (
    "",
    "{",
    "[1]",
    "null",
    "[" * 100_000,
    '{"recipe": 1}',
    '{"recipe": 1, "size": 3, "seed": 0, "et_label": 4}',
    '{"recipe": 1, "size": [NaN], "seed": 0, "et_label": 4}',
    '{"recipe": 1, "size": [1], "seed": "\\ud800", "et_label": 4}',
)


@pytest.mark.fault("3.3")
@pytest.mark.parametrize("record", RECORDS, ids=lambda text: text[:40])
def test_a_damaged_record_is_refused_with_one_sentence(tmp_path, record):
    (tmp_path / "phantom.json").write_text(record)
    with refused("phantom.json", "give another folder, or delete this one"):
        write_phantom(tmp_path, cases=1, size=TINY)
    assert (tmp_path / "phantom.json").read_text() == record


@pytest.mark.parametrize("module", ["dataset", "anatomy", "images", "lesion", "shapes"])
def test_the_phantom_needs_no_jax(module):
    source = Path(phantom.__file__).with_name(f"{module}.py").read_text("utf-8")
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {n for node in imports for n in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])}
    others = {name for name in names if name.split(".")[0] not in {*sys.stdlib_module_names, "numpy", "scipy", "nibabel"}}
    assert all(name in ("swinunetr_jax", "swinunetr_jax.errors") or name.startswith("swinunetr_jax.data") for name in others)
