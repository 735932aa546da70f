"""Several runs predict into one folder. No run loses a result of another run, even if it is killed or the disk is full."""

import os
import signal
from pathlib import Path

import pytest
from helpers.fake_predictor import FakePredictor, predict, predict_overlapping, predict_together, recorded, scan
from helpers.refusals import refused

from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.prediction_record import Record
from swinunetr_jax.data.nifti import read_volume
from swinunetr_jax.files.atomic import temporary_name
from swinunetr_jax.inference.batch import predict_cases


@pytest.mark.fault("2.2")
def test_runs_into_one_folder_keep_each_others_cases(tmp_path, capsys):
    names = [f"case{number}" for number in range(12)]
    for name in names:
        scan(tmp_path, name)
    codes, _ = predict_together(tmp_path, *((names[part::3], {}) for part in range(3)))
    assert codes == [0, 0, 0]
    assert sorted(recorded(tmp_path)["cases"]) == sorted(names)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("case*")}
    capsys.readouterr()
    assert predict(tmp_path, *names) == []
    assert capsys.readouterr().out.count("done already, skipped") == 12
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("case*")} == before
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.fault("2.2")
def test_two_runs_predict_the_same_case_at_the_same_time(tmp_path):
    """The later run keeps the result of the first one if the settings are equal, and otherwise reports that the name is in use."""
    options = {"probabilities": True}
    codes, output = predict_overlapping(tmp_path, dict(options), dict(options))
    assert codes == [0, 0] and "another run has finished it in the meantime" in output
    first = recorded(tmp_path)["cases"]["a"]

    _, output = predict_overlapping(tmp_path, {"settings": "two"}, {"settings": "three"})
    assert "another run with other settings wrote it in the meantime; choose another folder" in output
    entry = recorded(tmp_path)["cases"]["a"]
    assert entry["key"] != first["key"] and "error" not in entry
    assert entry["outputs"]["labels"]["bytes"] == (tmp_path / "out/a.nii.gz").stat().st_size
    # The probabilities of the first settings are still recorded, but not as a part of this result.
    assert entry["older"]["probabilities"]["path"] == "a_probabilities.nii.gz"


@pytest.mark.fault("2.2")
def test_a_case_that_fails_does_not_undo_what_another_run_finished(tmp_path):
    _, output = predict_overlapping(tmp_path, {}, {"fails": ("a",)})
    assert "FAILED" in output
    assert "error" not in recorded(tmp_path)["cases"]["a"]


@pytest.mark.fault("2.2")
def test_a_case_whose_result_would_replace_that_of_another_case_is_refused(tmp_path, capsys):
    assert predict(tmp_path, "a", "a_probabilities", probabilities=True, overwrite=True) == ["a_probabilities"]
    assert "is also a result of the case a; rename one" in capsys.readouterr().err
    assert read_volume(tmp_path / "out/a_probabilities.nii.gz").array.ndim == 4


def test_a_result_never_replaces_its_own_image(tmp_path, capsys):
    path = scan(tmp_path / "out", "a", "x").images[0].rename(tmp_path / "out/a.nii.gz")
    before = path.read_bytes()
    case = Case("a", (scan(tmp_path, "b").images[0], path))
    assert predict_cases(FakePredictor(), [case], tmp_path / "out", identity={}, overwrite=True) == ["a"]
    assert "would replace an image that it is computed from" in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.fault("2.6")
def test_files_of_a_killed_run_are_removed_by_the_next_one(tmp_path):
    scan(tmp_path, "a")
    codes, _ = predict_together(tmp_path, (("a",), {"probabilities": True, "killed": True}))
    assert codes == [-signal.SIGKILL]
    assert list((tmp_path / "out").glob(".*a_probabilities*"))  # otherwise this test would be meaningless
    other = temporary_of_another(tmp_path / "out")
    assert predict(tmp_path, "b") == []
    assert [path.name for path in (tmp_path / "out").glob(".*")] == [other]


def temporary_of_another(folder):
    """Writes a temporary file of a process that is still running, and returns its name."""
    name = temporary_name("x.nii.gz", "").replace(f"-{os.getpid()}-", f"-{os.getppid()}-")
    (folder / name).write_text("")
    return name


@pytest.mark.parametrize("fails", ["a.nii.gz", "a_probabilities.nii.gz", "a.png", "predict.json"])
def test_a_full_disk_leaves_no_incomplete_case(tmp_path, monkeypatch, capsys, fails):
    replace, options = os.replace, {"probabilities": True, "preview": fails == "a.png"}

    def replace_until_full(source, target):
        if Path(target).name == fails and (fails != "predict.json" or Path(target).exists()):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", replace_until_full)
    if fails == "predict.json":
        with refused("predict.json", "No space left"):
            predict(tmp_path, "a", **options)
    else:
        assert predict(tmp_path, "a", **options) == ["a"]
        assert f"{fails} cannot be written (No space left on device)" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["predict.json"]
    monkeypatch.undo()
    assert predict(tmp_path, "a", **options) == []
    assert len(list((tmp_path / "out").iterdir())) == 3 + options["preview"]


def test_files_that_are_not_in_the_record_are_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    record = Record(tmp_path / "out", {}, {})
    (tmp_path / "out/a.nii.gz").write_text("precious")
    case = scan(tmp_path, "a")
    with refused("no run recorded here wrote it", "--overwrite"):
        record.check_free(case, {"labels": tmp_path / "out/a.nii.gz"}, overwrite=False)
    record.check_free(case, {"labels": tmp_path / "out/a.nii.gz"}, overwrite=True)
    (tmp_path / "file").write_text("")
    with refused("cannot be written"):
        Record(tmp_path / "file/out", {}, {})
