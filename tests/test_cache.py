"""The cache of training cases: made once, whole, and for as long as nothing that it was made of has changed."""

import json
import os
import pickle
import subprocess
import sys
import textwrap

import nibabel as nib
import numpy as np
import pytest

from swinunetr_jax.data import cache
from swinunetr_jax.data.cache import prepare_training_cases
from swinunetr_jax.data.cases import Case
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task

SHAPE = (9, 8, 7)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
BRATS = Task.brats(channels=("FLAIR", "T1"))


def write_case(folder, name="a", seed=0, shape=SHAPE, affine=LPS):
    """Two channels in a frame of zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for end in ("flair", "t1"):
        image = np.zeros(shape, np.float32)
        image[2:7, 1:6, 2:5] = rng.gamma(4.0, 90.0, (5, 5, 3))
        paths.append(folder / f"{name}_{end}.nii.gz")
        nib.save(nib.Nifti1Image(image, affine), paths[-1])
    label = np.zeros(shape, np.uint8)
    label[3:5, 2:4, 3] = [[1, 2], [4, 0]]
    nib.save(nib.Nifti1Image(label, affine), folder / f"{name}_seg.nii.gz")
    return Case(name, tuple(paths), ("FLAIR", "T1"), folder / f"{name}_seg.nii.gz")


def prepare(cases, folder, task=BRATS, **options):
    return prepare_training_cases(cases, task, folder, **{"in_channels": 2, **options})


@pytest.fixture
def made(monkeypatch):
    """The names of the cases that are read."""
    names = []
    read = cache.read_case
    monkeypatch.setattr(cache, "read_case", lambda case, *rest: names.append(case.name) or read(case, *rest))
    return names


def test_what_is_kept(tmp_path):
    case = write_case(tmp_path / "data", affine=np.eye(4))  # RAS; the task wants LPS
    seen = []
    (prepared,) = prepare([case], tmp_path / "cache", progress=lambda *step: seen.append(step))
    assert seen == [(1, 1)]
    flair, t1, label = (np.asarray(nib.load(p).dataobj)[::-1, ::-1] for p in (*case.images, case.label))
    assert prepared.name == "a" and prepared.shape == SHAPE and prepared.box == ((2, 7), (2, 7), (2, 5))
    assert isinstance(prepared.image, np.memmap) and prepared.image.flags.c_contiguous
    np.testing.assert_array_equal(prepared.image, np.stack([flair, t1], -1)[2:7, 2:7, 2:5])
    assert prepared.label.dtype == np.uint8
    np.testing.assert_array_equal(prepared.label, label[2:7, 2:7, 2:5])
    np.testing.assert_array_equal(prepared.affine, [[-1, 0, 0, 8], [0, -1, 0, 7], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert prepared.foreground == ((0, 5), (0, 5), (0, 3)) and prepared.above == 0
    inside = flair[flair != 0].astype(np.float64)
    np.testing.assert_allclose([prepared.statistics[0][0], prepared.statistics[1][0]], [inside.mean(), inside.std()])
    assert not prepared.image.flags.writeable
    again = pickle.loads(pickle.dumps(prepared))
    np.testing.assert_array_equal(again.image, prepared.image)
    assert len(pickle.dumps(prepared)) < 5000
    example = prepared.example()
    assert type(example["image"]) is np.ndarray and example["foreground"] == {0.0: prepared.foreground}


def test_a_label_outside_the_image_is_not_cut_off(tmp_path):
    case = write_case(tmp_path)
    label = np.zeros(SHAPE, np.uint8)
    label[0, 7, 6] = 1
    nib.save(nib.Nifti1Image(label, LPS), case.label)
    (prepared,) = prepare([case], tmp_path / "cache")
    assert prepared.box == ((0, 7), (1, 8), (2, 7)) and prepared.label.sum() == 1
    assert prepared.foreground == ((2, 7), (0, 5), (0, 3))


def test_a_windowed_image_is_kept_whole(tmp_path):
    case = write_case(tmp_path)
    task = Task.brats(channels=("FLAIR", "T1"), intensity="window", window=(100.0, 500.0))
    (prepared,) = prepare([case], tmp_path / "cache", task)
    assert prepared.image.shape == (*SHAPE, 2) and prepared.above == 100
    assert prepared.box == ((0, 9), (0, 8), (0, 7))
    assert (np.array(prepared.foreground) >= [[2, 2], [1, 1], [2, 2]]).all()


def test_half_precision(tmp_path):
    case = write_case(tmp_path)
    (half,), (whole,) = prepare([case], tmp_path / "cache", dtype="float16"), prepare([case], tmp_path / "cache")
    assert half.image.dtype == np.float16 and whole.image.dtype == np.float32 and half.image_path != whole.image_path
    np.testing.assert_array_equal(half.image, whole.image.astype(np.float16))
    for factor in (1e4, 1e-12):
        image = nib.load(case.images[1])
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * np.float32(factor), LPS), case.images[1])
        with pytest.raises(InputError, match=r"do not fit float16.*keep this cache in"):
            prepare([case], tmp_path / "cache", dtype="float16")
        assert np.isfinite(prepare([case], tmp_path / "cache")[0].image).all()
        case = write_case(tmp_path)


def test_finished_cases_are_skipped(tmp_path, made, monkeypatch):
    cases = [write_case(tmp_path / "data", name, seed) for seed, name in enumerate("abc")]
    first = prepare(cases[:2], tmp_path / "cache")
    assert sorted(made) == ["a", "b"]
    monkeypatch.setattr(cache.hashlib, "file_digest", None)  # neither read nor hashed again
    again = prepare(cases[1::-1], tmp_path / "cache")
    assert [p.name for p in again] == ["b", "a"] and again[1].path == first[0].path and sorted(made) == ["a", "b"]
    monkeypatch.undo()


def test_a_touched_file_is_hashed_and_a_changed_one_read(tmp_path, made):
    case = write_case(tmp_path / "data")
    (first,) = prepare([case], tmp_path / "cache")
    os.utime(case.images[0], ns=(1, 1))
    (same,) = prepare([case], tmp_path / "cache")
    assert made == ["a"] and same.image_path == first.image_path
    assert json.loads(same.path.read_text())["sources"][0]["modified_ns"] == 1
    write_case(tmp_path / "data", seed=1)
    (changed,) = prepare([case], tmp_path / "cache")
    assert made == ["a", "a"] and changed.image_path != first.image_path
    assert not first.image_path.exists() and not first.label_path.exists()
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_other_settings_are_another_entry(tmp_path, made):
    case = write_case(tmp_path / "data")
    (first,) = prepare([case], tmp_path / "cache")
    (turned,) = prepare([case], tmp_path / "cache", Task.brats(channels=("FLAIR", "T1"), orientation="RAS"))
    (coarse,) = prepare([case], tmp_path / "cache", Task.brats(channels=("FLAIR", "T1"), spacing=(2, 2, 2)))
    (swapped,) = prepare([case], tmp_path / "cache", Task.brats(channels=("T1", "FLAIR")))
    assert len({first.path, turned.path, coarse.path, swapped.path}) == 4 and len(made) == 4
    assert coarse.shape == (5, 4, 4)
    np.testing.assert_array_equal(swapped.image, first.image[..., ::-1])
    prepare([case], tmp_path / "cache", Task.brats(channels=("FLAIR", "T1"), roi=(64, 64, 64)))  # not of the cache's concern
    assert len(made) == 4


@pytest.mark.parametrize("damage", ["image", "label", "truncated", "json", "empty", "foreign"])
def test_what_is_missing_or_cut_short_is_made_again(tmp_path, made, damage):
    case = write_case(tmp_path / "data")
    (first,) = prepare([case], tmp_path / "cache")
    content = first.image_path.read_bytes()
    if damage == "truncated":
        first.image_path.write_bytes(content[:-1])
    elif damage in ("empty", "foreign"):
        first.path.write_text({"empty": "", "foreign": '{"key": 1}'}[damage])
    else:
        {"image": first.image_path, "label": first.label_path, "json": first.path}[damage].unlink()
    (again,) = prepare([case], tmp_path / "cache")
    assert made == ["a", "a"] and again.image_path.read_bytes() == content
    np.testing.assert_array_equal(again.label, first.label)


def test_every_faulty_case_is_listed(tmp_path):
    data = tmp_path / "data"
    good = [write_case(data, "good"), write_case(data, "fine", 3)]
    nan, constant, no_label, foreign, missing = (
        write_case(data / n, n) for n in ("nan", "constant", "nolabel", "foreign", "missing")
    )
    image = np.asarray(nib.load(nan.images[0]).dataobj).copy()
    image[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(image, LPS), nan.images[0])
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.float32), LPS), constant.images[1])
    nib.save(nib.Nifti1Image(np.full(SHAPE, 3, np.uint8), LPS), foreign.label)
    missing.label.unlink()
    told = Case("told", missing.images, problem="it is broken.")
    no_label = Case("nolabel", no_label.images, no_label.channels)
    with pytest.raises(InputError) as caught:
        prepare([good[0], nan, constant, no_label, foreign, missing, told, good[1]], tmp_path / "cache")
    head, *lines = str(caught.value).splitlines()
    assert head == "6 of 8 cases cannot be used for training:"
    for line, (name, word) in zip(
        lines,
        [
            ("nan", "NaN or Inf"),
            ("constant", "channel T1 is constant"),
            ("nolabel", "has no label map"),
            ("foreign", "label 3 is none of the task's (0, 1, 2, 4)"),
            ("missing", "cannot be read"),
            ("told", "it is broken."),
        ],
        strict=True,
    ):
        assert line.startswith(f"{name}: ") and word in line, line
    assert [p.name for p in prepare(good, tmp_path / "cache")] == ["good", "fine"]
    assert not list((tmp_path / "cache").glob(".*"))


def test_arguments_that_cannot_be(tmp_path):
    case = write_case(tmp_path)
    with pytest.raises(InputError, match="must be one of float32, float16, got 'int8'"):
        prepare([case], tmp_path, dtype="int8")
    with pytest.raises(InputError, match="several cases are called a;"):
        prepare([case, case], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        prepare([case], tmp_path / "file")


def test_a_full_disk_is_the_folders_fault(tmp_path, monkeypatch):
    case = write_case(tmp_path / "data")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np.lib.format, "write_array", full)
    with pytest.raises(InputError, match=r"cache: cannot be written \(No space left on device\)"):
        prepare([case], tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_names_that_are_no_file_names(tmp_path):
    case = write_case(tmp_path / "data")
    names = ("../up", "a/b", "a_b", "ä" * 200)
    cases = [Case(name, case.images, case.channels, case.label) for name in names]
    prepared = prepare(cases, tmp_path / "cache")
    assert len({p.path for p in prepared}) == 4 and {p.path.parent for p in prepared} == {tmp_path / "cache"}


def test_processes_at_once(tmp_path):
    for seed, name in enumerate("abcd"):
        write_case(tmp_path / "data", name, seed, shape=(30, 30, 30))
    program = textwrap.dedent("""
        import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])
        from test_cache import BRATS, Case, prepare
        data = Path(sys.argv[1]) / "data"
        names = {n: [data / f"{n}_{end}.nii.gz" for end in ("flair", "t1", "seg")] for n in "abcd"}
        cases = [Case(n, (flair, t1), ("FLAIR", "T1"), seg) for n, (flair, t1, seg) in names.items()]
        for p in prepare(cases, Path(sys.argv[1]) / "cache"):
            print(p.name, float(p.image.sum()), int(p.label.sum()))
    """)
    command = [sys.executable, "-c", program, str(tmp_path), os.path.dirname(__file__)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    one, other = (process.communicate(timeout=120)[0] for process in running)
    assert one == other and len(one.splitlines()) == 4
    assert len(list((tmp_path / "cache").iterdir())) == 12
