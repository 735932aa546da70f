"""The cache of training cases: entries are written once and completely, and are used until their sources or settings change."""

import json
import os
import pickle
import subprocess
import sys
import textwrap

import nibabel as nib
import numpy as np
import pytest

from swinunetr_jax import files
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.prepare import cache, cache_entry
from swinunetr_jax.data.prepare.cache import prepare_training_cases
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


def test_the_stored_arrays_and_facts(tmp_path):
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


def test_a_windowed_image_is_stored_whole(tmp_path):
    case = write_case(tmp_path)
    task = Task.brats(channels=("FLAIR", "T1"), intensity="window", window=(100.0, 500.0))
    (prepared,) = prepare([case], tmp_path / "cache", task)
    assert prepared.image.shape == (*SHAPE, 2) and prepared.above == 100
    assert prepared.box == ((0, 9), (0, 8), (0, 7))
    assert (np.array(prepared.foreground) >= [[2, 2], [1, 1], [2, 2]]).all()


def test_float16(tmp_path):
    case = write_case(tmp_path)
    (half,), (whole,) = prepare([case], tmp_path / "cache", dtype="float16"), prepare([case], tmp_path / "cache")
    assert half.image.dtype == np.float16 and whole.image.dtype == np.float32 and half.image_path != whole.image_path
    np.testing.assert_array_equal(half.image, whole.image.astype(np.float16))
    for factor in (1e4, 1e-12):
        image = nib.load(case.images[1])
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * np.float32(factor), LPS), case.images[1])
        with pytest.raises(InputError, match=r"do not fit float16.*store this cache in"):
            prepare([case], tmp_path / "cache", dtype="float16")
        assert np.isfinite(prepare([case], tmp_path / "cache")[0].image).all()
        case = write_case(tmp_path)


def test_finished_cases_are_skipped(tmp_path, made, monkeypatch):
    cases = [write_case(tmp_path / "data", name, seed) for seed, name in enumerate("abc")]
    first = prepare(cases[:2], tmp_path / "cache")
    assert sorted(made) == ["a", "b"]
    hashed = []
    digest_of_file = files.digest_of_file
    monkeypatch.setattr(files, "digest_of_file", lambda path: hashed.append(path) or digest_of_file(path))
    again = prepare(cases[1::-1], tmp_path / "cache")
    assert [p.name for p in again] == ["b", "a"] and again[1].path == first[0].path and sorted(made) == ["a", "b"]
    assert sorted(hashed) == sorted(path for p in first for path in (p.image_path, p.label_path))  # and no source


def test_a_touched_file_is_hashed_and_a_changed_file_is_read(tmp_path, made):
    case = write_case(tmp_path / "data")
    (first,) = prepare([case], tmp_path / "cache")
    os.utime(case.images[0], ns=(1, 1))
    (same,) = prepare([case], tmp_path / "cache")
    assert made == ["a"] and same.image_path == first.image_path
    assert json.loads(same.path.read_text())["sources"][0]["modified_ns"] == 1
    write_case(tmp_path / "data", seed=1)
    (changed,) = prepare([case], tmp_path / "cache")
    assert made == ["a", "a"] and changed.image_path != first.image_path and changed.path == first.path
    assert first.image.any() and first.label.any()  # this process may still use them


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


@pytest.mark.fault("2.4")
@pytest.mark.parametrize(
    "damage", ["image", "label", "truncated", "flipped", "label flipped", "json", "empty", "foreign", "nested"]
)
def test_missing_or_damaged_files_are_reported_and_prepared_again(tmp_path, made, damage):
    case = write_case(tmp_path / "data")
    (first,) = prepare([case], tmp_path / "cache")
    content, entry = first.image_path.read_bytes(), first.path.read_bytes()
    if damage == "truncated":
        first.image_path.write_bytes(content[:-1])
    elif damage in ("flipped", "label flipped"):
        flip_a_bit(first.image_path if damage == "flipped" else first.label_path, -20)
    elif damage in ("empty", "foreign", "nested"):
        first.path.write_text({"empty": "", "foreign": '{"key": 1}', "nested": "[" * 100_000}[damage])
    else:
        {"image": first.image_path, "label": first.label_path, "json": first.path}[damage].unlink()
    said = []
    (again,) = prepare([case], tmp_path / "cache", warn=said.append)
    assert made == ["a", "a"] and again.image_path.read_bytes() == content and again.path.read_bytes() == entry
    if damage == "json":
        assert said == []
    else:
        assert (
            len(said) == 1
            and said[0].startswith("a: ")
            and said[0].endswith("the case is prepared again.")
            and "\n" not in said[0]
        )
    prepare([case], tmp_path / "cache", warn=said.append)
    assert made == ["a", "a"] and len(said) == (damage != "json")


def flip_a_bit(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


WRONG_NUMBERS = {
    "a mean that no image has": {"mean": [1e300, 1.0]},
    "another mean": {"mean": [1.0, 1.0]},
    "means of too few channels": {"mean": [1.0]},
    "a deviation of zero": {"deviation": [0.0, 1.0]},
    "a negative deviation": {"deviation": [-1.0, 1.0]},
    "a box that ends before it starts": {"box": [[7, 2], [1, 6], [2, 5]]},
    "a box outside the scan": {"box": [[2, 70], [1, 6], [2, 5]]},
    "a box of another size than the arrays": {"box": [[2, 6], [1, 6], [2, 5]]},
    "a shape of no voxels": {"shape": [9, 8, 0]},
    "a shape beyond all numbers": {"shape": [9, 8, 10**30]},
    "a foreground outside the box": {"foreground": [[0, 50], [0, 5], [0, 3]]},
    "a label that the task does not have": {"labels": [0, 200]},
    "an affine of three rows": {"affine": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]},
    "an affine without a direction": {"affine": [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]},
    "text for a mean": {"mean": "much"},
    "nothing for a box": {"box": None},
    "an array elsewhere": {"image": {"file": "../image.npy", "sha256": ""}},
    "the label map for the image": {"image": "label"},
    "numbers for notes": {"notes": [1]},
}


@pytest.mark.fault("2.4")
def test_wrong_numbers_in_an_entry_are_never_used(tmp_path, made):
    """This holds also if the entry's digest matches the wrong numbers. A plausible mean is detected only by the digest."""
    case = write_case(tmp_path / "data")
    (first,) = prepare([case], tmp_path / "cache")
    whole = json.loads(first.path.read_text())
    said = []
    for count, (what, fields) in enumerate(WRONG_NUMBERS.items(), 1):
        fields = {key: whole["label"] if value == "label" else value for key, value in fields.items()}
        entry = whole | fields
        if what != "another mean":
            entry["digest"] = files.digest_of_json({key: value for key, value in entry.items() if key != "digest"})
        first.path.write_text(json.dumps(entry))
        (again,) = prepare([case], tmp_path / "cache", warn=said.append)
        assert len(made) == 1 + count and len(said) == count, what
        assert json.loads(first.path.read_text()) == whole and (again.statistics[0] == first.statistics[0]).all(), what


@pytest.fixture
def trainings(monkeypatch):
    """A function that starts another training, as in a separate process, and one that ends all of them."""
    begun = []

    def begin():
        begun.append({})
        monkeypatch.setattr(cache_entry, "_users", begun[-1])

    def end():
        for handle in [handle for users in begun for handle in users.values()]:
            os.close(handle)
        begun.clear()

    yield begin, end
    end()


@pytest.mark.fault("2.2")
@pytest.mark.parametrize("where", ["two", "one"])
def test_trainings_that_share_a_cache_never_delete_each_others_arrays(tmp_path, trainings, where):
    """The cases have equal names, in another data set or in the same one after its files changed."""
    begin, end = trainings
    begin()
    (first,) = prepare([write_case(tmp_path / "one")], tmp_path / "cache")
    for _ in range(2):
        begin()
        (second,) = prepare([write_case(tmp_path / where, seed=1)], tmp_path / "cache")
    image = np.array(first.image)
    assert second.image_path != first.image_path and (second.path == first.path) == (where == "one")
    assert second.image.any() and first.label.any() and len(os.listdir(tmp_path / "cache")) == (6 if where == "two" else 5)
    end()
    begin()  # one that is alone removes the arrays that no entry names
    (third,) = prepare([write_case(tmp_path / where, seed=1)], tmp_path / "cache")
    assert len(os.listdir(tmp_path / "cache")) == (6 if where == "two" else 3) and (third.image == second.image).all()
    assert where == "one" or (np.array(first.image) == image).all()


@pytest.mark.fault("2.4")
def test_a_cache_of_an_older_version_is_prepared_again_with_one_sentence(tmp_path, made):
    cases = [write_case(tmp_path / "data", name, seed) for seed, name in enumerate("ab")]
    folder = tmp_path / "cache"
    folder.mkdir()
    for name in "ab":
        arrays = {f"{name}-{'0' * 16}-{kind}.npy": 3 for kind in ("image", "label")}
        for array in arrays:
            (folder / array).write_bytes(b"old")
        entry = {"name": name, "key": "0" * 64, "settings": {"version": 1}, "files": arrays, "sources": []}
        (folder / f"{name}-{'1' * 12}.json").write_text(json.dumps(entry))
    kept = {"notes.json": "{}", "mine-0123456789abcdef.json": '{"settings": {"version": 1}}', "scan-image.npy": "mine"}
    for name, text in kept.items():
        (folder / name).write_text(text)
    said = []
    prepare(cases, folder, warn=said.append)
    assert len(said) == 1 and "an older version of swinunetr_jax (2) cannot be used" in said[0] and sorted(made) == ["a", "b"]
    assert len(os.listdir(folder)) == 6 + len(kept) and kept.keys() <= set(os.listdir(folder))


@pytest.mark.fault("2.6")
def test_temporary_files_of_a_killed_preparation_are_removed_by_the_next_one(tmp_path, monkeypatch):
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: process.pid)
        ended = files._temporary_name("a-image.npy", "")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ended).write_bytes(b"half")
    prepare([write_case(tmp_path / "data")], tmp_path / "cache")
    assert not (tmp_path / "cache" / ended).exists() and len(os.listdir(tmp_path / "cache")) == 3


@pytest.mark.fault("3.5")
@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "loop"], ids=ascii)
def test_impossible_names_of_sources_and_folders_are_refused(tmp_path, name):
    case = write_case(tmp_path / "data")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="cannot be created"):
        prepare([case], tmp_path / name)
    with pytest.raises(InputError, match=r"a: .*cannot be read"):
        prepare([Case("a", (tmp_path / name,), None, case.label)], tmp_path / "cache")


def test_a_file_name_that_is_not_utf8(tmp_path, made):
    case = write_case(tmp_path / os.fsdecode(b"caf\xe9"))
    said = []
    for _ in range(2):
        prepare([case], tmp_path / "cache", warn=said.append)
    assert made == ["a"] and said == []


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
    broken = Case("broken", missing.images, problem="it is broken.")
    no_label = Case("nolabel", no_label.images, no_label.channels)
    with pytest.raises(InputError) as caught:
        prepare([good[0], nan, constant, no_label, foreign, missing, broken, good[1]], tmp_path / "cache")
    head, *lines = str(caught.value).splitlines()
    assert head == "6 of 8 cases cannot be used for training:"
    for line, (name, word) in zip(
        lines,
        [
            ("nan", "NaN or Inf"),
            ("constant", "channel T1 is constant"),
            ("nolabel", "has no label map"),
            ("foreign", "label 3 is not one of the task's (0, 1, 2, 4)"),
            ("missing", "cannot be read"),
            ("broken", "it is broken."),
        ],
        strict=True,
    ):
        assert line.startswith(f"{name}: ") and word in line, line
    assert [p.name for p in prepare(good, tmp_path / "cache")] == ["good", "fine"]
    assert not list((tmp_path / "cache").glob(".*"))


def test_invalid_arguments(tmp_path):
    case = write_case(tmp_path)
    with pytest.raises(InputError, match="must be one of float32, float16, got 'int8'"):
        prepare([case], tmp_path, dtype="int8")
    with pytest.raises(InputError, match="several cases are called a;"):
        prepare([case, case], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be created"):
        prepare([case], tmp_path / "file")


def test_a_full_disk_is_reported_with_the_folder(tmp_path, monkeypatch):
    case = write_case(tmp_path / "data")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np.lib.format, "write_array", full)
    with pytest.raises(InputError, match=r"cache: cannot be written \(No space left on device\)"):
        prepare([case], tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_case_names_that_are_not_file_names(tmp_path):
    case = write_case(tmp_path / "data")
    names = ("../up", "a/b", "a_b", "ä" * 200)
    cases = [Case(name, case.images, case.channels, case.label) for name in names]
    prepared = prepare(cases, tmp_path / "cache")
    assert len({p.path for p in prepared}) == 4 and {p.path.parent for p in prepared} == {tmp_path / "cache"}


def test_several_processes_at_once(tmp_path):
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
