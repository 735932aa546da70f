"""The cache of training cases never uses a damaged or wrong entry, and faults of cases and folders are reported."""

import json
import os
import subprocess

import nibabel as nib
import numpy as np
import pytest
from helpers.training_cases import LPS, SHAPE, prepare, write_case

from swinunetr_jax import files
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.prepare import cache_entry
from swinunetr_jax.errors import InputError
from swinunetr_jax.files.atomic import temporary_name


@pytest.mark.fault("2.4")
@pytest.mark.parametrize(
    "damage", ["image", "label", "truncated", "flipped", "label flipped", "json", "empty", "foreign", "nested"]
)
def test_missing_or_damaged_files_are_reported_and_prepared_again(tmp_path, names_read, damage):
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
    messages = []
    (again,) = prepare([case], tmp_path / "cache", warn=messages.append)
    assert names_read == ["a", "a"] and again.image_path.read_bytes() == content and again.path.read_bytes() == entry
    if damage == "json":
        assert messages == []
    else:
        assert (
            len(messages) == 1
            and messages[0].startswith("a: ")
            and messages[0].endswith("the case is prepared again.")
            and "\n" not in messages[0]
        )
    prepare([case], tmp_path / "cache", warn=messages.append)
    assert names_read == ["a", "a"] and len(messages) == (damage != "json")


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
    "a shape of too many voxels": {"shape": [9, 8, 10**30]},
    "a foreground outside the box": {"foreground": [[0, 50], [0, 5], [0, 3]]},
    "a label that the task does not have": {"labels": [0, 200]},
    "an affine of three rows": {"affine": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]},
    "an affine without a direction": {"affine": [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]},
    "text for a mean": {"mean": "much"},
    "no box": {"box": None},
    "an array outside the cache folder": {"image": {"file": "../image.npy", "sha256": ""}},
    "the label map in place of the image": {"image": "label"},
    "too many voxels of a class": {"voxel_counts": [20_000, 0, 0]},
    "another number of voxels than stored": {"voxel_counts": [1, 0, 0]},
    "the label map in place of the voxels": {"voxels": "label"},
    "numbers in place of notes": {"notes": [1]},
}


@pytest.mark.fault("2.4")
def test_wrong_numbers_in_an_entry_are_never_used(tmp_path, names_read):
    """This holds also if the entry's digest matches the wrong numbers. A plausible mean is detected only by the digest."""
    case = write_case(tmp_path / "data")
    (first,) = prepare([case], tmp_path / "cache")
    correct = json.loads(first.path.read_text())
    messages = []
    for count, (description, fields) in enumerate(WRONG_NUMBERS.items(), 1):
        fields = {key: correct["label"] if value == "label" else value for key, value in fields.items()}
        entry = correct | fields
        if description != "another mean":
            entry["digest"] = files.digest_of_json({key: value for key, value in entry.items() if key != "digest"})
        first.path.write_text(json.dumps(entry))
        (again,) = prepare([case], tmp_path / "cache", warn=messages.append)
        assert len(names_read) == 1 + count and len(messages) == count, description
        assert json.loads(first.path.read_text()) == correct and (again.statistics[0] == first.statistics[0]).all(), description


@pytest.fixture
def trainings(monkeypatch):
    """Yields a function that starts another training, as in a separate process, and one that ends all trainings."""
    users_of_trainings = []

    def begin():
        users_of_trainings.append({})
        monkeypatch.setattr(cache_entry, "_users", users_of_trainings[-1])

    def end():
        for handle in [handle for users in users_of_trainings for handle in users.values()]:
            os.close(handle)
        users_of_trainings.clear()

    yield begin, end
    end()


@pytest.mark.fault("2.2")
@pytest.mark.parametrize("where", ["two", "one"])
def test_trainings_that_share_a_cache_never_delete_each_others_arrays(tmp_path, trainings, where):
    """Both cases have the same name. The second is in another data set, or in the same one after its files changed."""
    begin, end = trainings
    begin()
    (first,) = prepare([write_case(tmp_path / "one")], tmp_path / "cache")
    for _ in range(2):
        begin()
        (second,) = prepare([write_case(tmp_path / where, seed=1)], tmp_path / "cache")
    image = np.array(first.image)
    assert second.image_path != first.image_path and (second.path == first.path) == (where == "one")
    assert second.image.any() and first.label.any() and len(os.listdir(tmp_path / "cache")) == (8 if where == "two" else 7)
    end()
    begin()  # a training that runs alone removes the arrays that no entry names
    (third,) = prepare([write_case(tmp_path / where, seed=1)], tmp_path / "cache")
    assert len(os.listdir(tmp_path / "cache")) == (8 if where == "two" else 4) and (third.image == second.image).all()
    assert where == "one" or (np.array(first.image) == image).all()


@pytest.mark.fault("2.4")
def test_a_cache_of_an_older_version_is_prepared_again_with_one_sentence(tmp_path, names_read):
    cases = [write_case(tmp_path / "data", name, seed) for seed, name in enumerate("ab")]
    folder = tmp_path / "cache"
    folder.mkdir()
    for name in "ab":
        arrays = {f"{name}-{'0' * 16}-{kind}.npy": 3 for kind in ("image", "label")}
        for array in arrays:
            (folder / array).write_bytes(b"old")
        entry = {"name": name, "key": "0" * 64, "settings": {"version": 1}, "files": arrays, "sources": []}
        (folder / f"{name}-{'1' * 12}.json").write_text(json.dumps(entry))
    unrelated_files = {"notes.json": "{}", "mine-0123456789abcdef.json": '{"settings": {"version": 1}}', "scan-image.npy": "mine"}
    for name, text in unrelated_files.items():
        (folder / name).write_text(text)
    messages = []
    prepare(cases, folder, warn=messages.append)
    assert (
        len(messages) == 1
        and "an older version of swinunetr_jax (2) cannot be used" in messages[0]
        and sorted(names_read) == ["a", "b"]
    )
    assert len(os.listdir(folder)) == 8 + len(unrelated_files) and unrelated_files.keys() <= set(os.listdir(folder))


def test_cases_whose_files_are_in_another_place_are_prepared_again_and_reported_in_one_sentence(tmp_path, names_read):
    cases = [write_case(tmp_path / "data", name, seed) for seed, name in enumerate("ab")]
    prepare(cases, tmp_path / "cache")
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = [write_case(tmp_path / "moved", name, seed) for seed, name in enumerate("ab")]
    messages = []
    for _ in range(2):
        prepare(moved, tmp_path / "cache", warn=messages.append)
    assert sorted(names_read) == ["a", "a", "b", "b"]
    assert messages == [
        f"{tmp_path / 'cache'} holds a, b prepared from files at other paths; these cases were prepared again from the "
        "files given now."
    ]


def test_entries_of_a_newer_version_are_reported_in_one_sentence_and_not_used(tmp_path, names_read):
    case, messages = write_case(tmp_path / "data"), []
    (first,) = prepare([case], tmp_path / "cache")
    entry = json.loads(first.path.read_text())
    newer = entry | {"settings": entry["settings"] | {"version": cache_entry.VERSION + 1}}
    first.path.write_text(json.dumps(newer))
    first.path.rename(first.path.with_name(f"a-{'0' * 16}.json"))
    prepare([case], tmp_path / "cache", warn=messages.append)
    assert names_read == ["a", "a"] and len(messages) == 1 and "a newer version of swinunetr_jax (1) are not used" in messages[0]


@pytest.mark.fault("2.6")
def test_temporary_files_of_a_killed_preparation_are_removed_by_the_next_one(tmp_path, monkeypatch):
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: process.pid)
        stale_name = temporary_name("a-image.npy", "")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / stale_name).write_bytes(b"half")
    prepare([write_case(tmp_path / "data")], tmp_path / "cache")
    assert not (tmp_path / "cache" / stale_name).exists() and len(os.listdir(tmp_path / "cache")) == 4


@pytest.mark.fault("3.5")
@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "loop"], ids=ascii)
def test_impossible_names_of_sources_and_folders_are_refused(tmp_path, name):
    case = write_case(tmp_path / "data")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="cannot be created"):
        prepare([case], tmp_path / name)
    with pytest.raises(InputError, match=r"a: .*cannot be read"):
        prepare([Case("a", (tmp_path / name,), None, case.label)], tmp_path / "cache")


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
            ("foreign", "label 3 is not one of the task's labels (0, 1, 2, 4)"),
            ("missing", "cannot be read"),
            ("broken", "it is broken."),
        ],
        strict=True,
    ):
        assert line.startswith(f"{name}: ") and word in line, line
    assert [p.name for p in prepare(good, tmp_path / "cache")] == ["good", "fine"]
    assert not list((tmp_path / "cache").glob(".*"))


def test_invalid_arguments_are_refused(tmp_path):
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

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(InputError, match=r"cache: cannot be written \(No space left on device\)"):
        prepare([case], tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
