"""The cache of training cases: entries are written once and are used until their sources or settings change."""

import json
import os
import pickle
import subprocess
import sys
import textwrap

import nibabel as nib
import numpy as np
import pytest
from helpers.training_cases import LPS, SHAPE, prepare, write_case

from swinunetr_jax import files
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task


def test_a_prepared_case_has_the_expected_arrays_and_facts(tmp_path):
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
    voxels = np.load(prepared.class_voxels.path)
    assert voxels.dtype == np.int32 and prepared.class_voxels.counts == (2, 3, 1)  # TC, WT, ET
    assert sorted(prepared.label[tuple(voxels.T)].tolist()) == [1, 1, 2, 4, 4, 4]
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


def test_a_windowed_image_is_stored_uncropped(tmp_path):
    case = write_case(tmp_path)
    task = Task.brats(channels=("FLAIR", "T1"), intensity="window", window=(100.0, 500.0))
    (prepared,) = prepare([case], tmp_path / "cache", task)
    assert prepared.image.shape == (*SHAPE, 2) and prepared.above == 100
    assert prepared.box == ((0, 9), (0, 8), (0, 7))
    assert (np.array(prepared.foreground) >= [[2, 2], [1, 1], [2, 2]]).all()


def test_a_float16_cache_refuses_values_that_do_not_fit(tmp_path):
    case = write_case(tmp_path)
    (half,), (single,) = prepare([case], tmp_path / "cache", dtype="float16"), prepare([case], tmp_path / "cache")
    assert half.image.dtype == np.float16 and single.image.dtype == np.float32 and half.image_path != single.image_path
    np.testing.assert_array_equal(half.image, single.image.astype(np.float16))
    for factor in (1e4, 1e-12):
        image = nib.load(case.images[1])
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * np.float32(factor), LPS), case.images[1])
        with pytest.raises(InputError, match=r"do not fit float16.*store this cache in"):
            prepare([case], tmp_path / "cache", dtype="float16")
        assert np.isfinite(prepare([case], tmp_path / "cache")[0].image).all()
        case = write_case(tmp_path)


def test_finished_cases_are_skipped(tmp_path, names_read, monkeypatch):
    cases = [write_case(tmp_path / "data", name, seed) for seed, name in enumerate("abc")]
    first = prepare(cases[:2], tmp_path / "cache")
    assert sorted(names_read) == ["a", "b"]
    hashed = []
    digest_of_file = files.digest_of_file
    monkeypatch.setattr(files, "digest_of_file", lambda path: hashed.append(path) or digest_of_file(path))
    again = prepare(cases[1::-1], tmp_path / "cache")
    assert [p.name for p in again] == ["b", "a"] and again[1].path == first[0].path and sorted(names_read) == ["a", "b"]
    assert sorted(hashed) == sorted(
        path for p in first for path in (p.image_path, p.label_path, p.class_voxels.path)
    )  # no source was hashed


def test_a_touched_file_is_hashed_and_a_changed_file_is_read(tmp_path, names_read):
    case = write_case(tmp_path / "data")
    (first,) = prepare([case], tmp_path / "cache")
    os.utime(case.images[0], ns=(1, 1))
    (same,) = prepare([case], tmp_path / "cache")
    assert names_read == ["a"] and same.image_path == first.image_path
    assert json.loads(same.path.read_text())["sources"][0]["modified_ns"] == 1
    write_case(tmp_path / "data", seed=1)
    (changed,) = prepare([case], tmp_path / "cache")
    assert names_read == ["a", "a"] and changed.image_path != first.image_path and changed.path == first.path
    assert first.image.any() and first.label.any()  # this process may still use them


def test_different_settings_have_separate_entries(tmp_path, names_read):
    case = write_case(tmp_path / "data")
    (first,) = prepare([case], tmp_path / "cache")
    (reoriented,) = prepare([case], tmp_path / "cache", Task.brats(channels=("FLAIR", "T1"), orientation="RAS"))
    (coarse,) = prepare([case], tmp_path / "cache", Task.brats(channels=("FLAIR", "T1"), spacing=(2, 2, 2)))
    (swapped,) = prepare([case], tmp_path / "cache", Task.brats(channels=("T1", "FLAIR")))
    assert len({first.path, reoriented.path, coarse.path, swapped.path}) == 4 and len(names_read) == 4
    assert coarse.shape == (5, 4, 4)
    np.testing.assert_array_equal(swapped.image, first.image[..., ::-1])
    prepare(
        [case], tmp_path / "cache", Task.brats(channels=("FLAIR", "T1"), roi=(64, 64, 64))
    )  # the cache does not depend on the window size
    assert len(names_read) == 4


def test_a_case_whose_file_name_is_not_utf8_is_cached(tmp_path, names_read):
    case = write_case(tmp_path / os.fsdecode(b"caf\xe9"))
    messages = []
    for _ in range(2):
        prepare([case], tmp_path / "cache", warn=messages.append)
    assert names_read == ["a"] and messages == []


def test_case_names_that_are_not_file_names_have_separate_entries(tmp_path):
    case = write_case(tmp_path / "data")
    names = ("../up", "a/b", "a_b", "ä" * 200)
    cases = [Case(name, case.images, case.channels, case.label) for name in names]
    prepared = prepare(cases, tmp_path / "cache")
    assert len({p.path for p in prepared}) == 4 and {p.path.parent for p in prepared} == {tmp_path / "cache"}


def test_several_processes_prepare_the_same_cases_at_the_same_time(tmp_path):
    for seed, name in enumerate("abcd"):
        write_case(tmp_path / "data", name, seed, shape=(30, 30, 30))
    program = textwrap.dedent("""
        import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])
        from helpers.training_cases import BRATS, Case, prepare
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
    assert len(list((tmp_path / "cache").iterdir())) == 16
