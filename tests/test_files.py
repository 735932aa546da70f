"""`files`: complete or absent files, JSON of the expected types, exclusive locks, and the removal of stale temporary files."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

import pytest
from helpers.refusals import refused

from swinunetr_jax import cli, files
from swinunetr_jax.errors import InputError
from swinunetr_jax.files.atomic import temporary_name


class Entry(TypedDict):
    name: str
    scores: dict[str, float]


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == '{\n "a": 1\n}\n' and os.listdir(tmp_path) == ["a.json"]


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path):
    with pytest.raises(OSError) as caught:
        files.write_text(tmp_path / "none" / "a.txt", "a")
    assert caught.value.filename == str(tmp_path / "none" / "a.txt")


def test_numbers_that_are_not_finite_become_null_in_json(tmp_path):
    value = {"a": math.nan, "b": [math.inf, 1.5, (-math.inf, 2)], "c": {"d": math.nan}}
    files.write_json(tmp_path / "a.json", value)
    written = (tmp_path / "a.json").read_text()
    assert json.loads(written) == {"a": None, "b": [None, 1.5, [None, 2]], "c": {"d": None}}
    assert files.digest_of_json(value) == files.digest_of_json(json.loads(written))


@pytest.mark.parametrize("name", ["loop", "loop/below", "null\0character", "long" * 100])
def test_the_real_path_of_an_impossible_path_is_the_path_itself(tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "loop")
    assert str(files.real_path(tmp_path / name)).startswith(str(tmp_path))


def test_the_real_path_of_a_link_is_its_target(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert files.real_path(tmp_path / "link") == files.real_path(tmp_path) / "file"


DAMAGED = (
    "",
    "{",
    "[]",
    "null",
    '{"name": "a"}',
    '{"name": 1, "scores": {}}',
    '{"name": "a", "scores": {"b": "c"}}',
    "[" * 100_000,
    '{"name": "a", "scores": {"b": NaN}}',
    '{"name": "a", "scores": {"b": 1e999}}',
    '{"name": "\\ud800", "scores": 3}',
)


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_json_file_is_refused_in_one_sentence(tmp_path, text):
    path = tmp_path / "entry.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"entry\.json .*: delete it\."):
        files.read_json(path, Entry, "delete it")


def test_json_of_the_right_types_is_read(tmp_path):
    files.write_json(tmp_path / "a.json", {"name": "a", "scores": {"b": 0.5}})
    assert files.read_json(tmp_path / "a.json", Entry, "delete it") == {"name": "a", "scores": {"b": 0.5}}
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "b.json", Entry, "delete it")


def test_temporary_files_of_ended_processes_are_removed_and_others_are_kept(tmp_path):
    code = "import sys; from swinunetr_jax.files.atomic import temporary_name; print(temporary_name(sys.argv[1], '.nii.gz'))"
    stale_name = subprocess.run(
        [sys.executable, "-c", code, "case.nii.gz"], capture_output=True, text=True, check=True
    ).stdout.strip()
    mine = temporary_name("case.nii.gz", ".nii.gz")
    for name in (stale_name, mine, ".other.tmp", "case.nii.gz"):
        (tmp_path / name).write_text("")
    files.remove_stale_temporaries(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([mine, ".other.tmp", "case.nii.gz"])


def test_names_of_the_maximal_length_can_be_written(tmp_path):
    for name in ("é" * 127, "a" * 255):
        files.write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"
    assert not files.exists(tmp_path / ("a" * 300)) and not files.exists(tmp_path / "a\0b") and files.exists(tmp_path)


def test_a_lock_excludes_other_processes(tmp_path):
    code = """if True:
        import sys, time
        from swinunetr_jax import files
        for _ in range(20):
            with files.locked(sys.argv[1]):
                path = sys.argv[1] + "/n"
                number = int(open(path).read())
                time.sleep(0.001)
                open(path, "w").write(str(number + 1))
    """
    (tmp_path / "n").write_text("0")
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert (tmp_path / "n").read_text() == "60"
    assert os.listdir(tmp_path) == ["n"]


IMPOSSIBLE_NAMES = ("a" * 300, "a/" * 3000, "a\0b", "loop", "file/below", "\ud800")


@pytest.mark.fault("3.5")
@pytest.mark.parametrize("name", IMPOSSIBLE_NAMES, ids=lambda name: ascii(name[:9]))
def test_a_file_with_an_impossible_name_does_not_exist(tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("")
    path = tmp_path / name
    assert not files.exists(path) and not files.is_file(path) and not files.is_folder(path)
    with pytest.raises(InputError, match=r"cannot be created \("):
        files.make_folder(path)
    if name != "loop":  # writing replaces a link
        with pytest.raises(OSError):
            files.write_text(path, "text")


@pytest.mark.fault("3.5")
def test_a_path_without_permission_is_refused_with_one_sentence(tmp_path, monkeypatch):
    def denied(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    assert files.is_file(__file__) and files.is_folder(tmp_path) and not files.is_file(tmp_path)
    monkeypatch.setattr(os, "stat", denied)
    for check in (files.exists, files.is_file, files.is_folder):
        with pytest.raises(InputError, match=r"a: cannot be accessed \(Permission denied\)"):
            check(tmp_path / "a")


@pytest.mark.fault("3.3")
def test_json_with_a_file_name_that_is_not_utf8_is_read(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    files.write_json(tmp_path / "a.json", {"name": name, "scores": {name: 1.0}})
    assert files.read_json(tmp_path / "a.json", Entry, "delete it") == {"name": name, "scores": {name: 1.0}}
    for scores in ("NaN", "1e999", "-Infinity", "[]", "{" * 100_000):
        (tmp_path / "b.json").write_text(f'{{"name": "\\udce9", "scores": {{"a": {scores}}}}}')
        with pytest.raises(InputError, match=r"b\.json .*: delete it\."):
            files.read_json(tmp_path / "b.json", Entry, "delete it")


@pytest.mark.fault("3.3")
def test_a_pipe_or_a_folder_in_the_place_of_a_json_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    for name in ("pipe.json", "folder.json"):
        with pytest.raises(InputError, match="is not a file: delete it"):
            files.read_json(tmp_path / name, Entry, "delete it")


@pytest.mark.fault("5.16")
@pytest.mark.parametrize(
    "address", ["gs://bucket/run", "s3://bucket", "S3://bucket", "https://host/scan.nii.gz", "gs:", "hf+x://a"]
)
def test_an_address_of_a_remote_store_is_not_a_path(address):
    with refused(address.rstrip("/"), "remote store"):
        files.local_path(address)


def test_a_path_of_this_machine_is_unchanged():
    for path in ("/a/b", "a:b/c", "C:/scans", "runs/gs:/x", ".", "~/x", "2024-01-01T10:00/x"):
        assert files.local_path(path) == Path(path)
    with refused("file:///a", "leave out file://"):
        files.local_path("file:///a")


@pytest.mark.fault("3.5")
@pytest.mark.parametrize("name", IMPOSSIBLE_NAMES, ids=lambda name: ascii(name[:9]))
def test_impossible_paths_of_every_option_are_refused(tmp_path, name):
    from swinunetr_jax.commands.evaluate import Evaluate
    from swinunetr_jax.commands.validate import Validate
    from swinunetr_jax.data.discovery.formats import find_cases

    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").write_text("")
    (tmp_path / "a.nii.gz").write_text("")
    path, sound = tmp_path / name, tmp_path / "a.nii.gz"
    for run in (
        lambda: find_cases(path),
        lambda: find_cases(path / "a.json"),
        lambda: Evaluate(path, sound).run(),
        lambda: Evaluate(sound, path).run(),
        lambda: Evaluate(path / "a.nii.gz", sound).run(),
        lambda: Validate(sound, json=path / "report.json").run(),
    ):
        with pytest.raises(InputError):
            run()


@pytest.mark.fault("5.16")
@pytest.mark.parametrize(
    "command",
    [
        "predict -i gs://b/scans -o out -m model",
        "predict -i scans -o s3://b/out -m model",
        "predict -i scans -o out -m a https://b/model",
        "evaluate out gs://b/x",
        "info az://b/model",
        "convert https://b/a.pt b",
        "convert a.pt az://b/model",
        "validate s3://b/x",
    ],
)
def test_every_command_refuses_an_address_of_a_remote_store(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as done:
        cli.main(command.split())
    error = capsys.readouterr().err
    assert done.value.code == 2 and "is an address of a remote store" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
