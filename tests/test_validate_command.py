"""`swinunetr validate` as a user runs it."""

import json
import sys

import numpy as np
from helpers.sound_cases import at, brats, decathlon, image, run, save, with_voxel

from swinunetr_jax import console
from swinunetr_jax.data.check.check_dataset import DatasetReport


def test_the_command_on_sound_data(tmp_path, capsys):
    data = tmp_path / "data"
    for number in range(3):
        brats(data, number)
    at(data / "BraTS2021_00002", "seg").unlink()
    assert run(data, "--json", tmp_path / "report.json") == 0
    printed = capsys.readouterr().out
    for words in (
        "brats, 3 cases",
        "2 training, 1 test; 2 with",
        "FLAIR: ",
        "4: in 2 cases",
        "7 × 6 × 5 voxels in all",
        "LPS in all",
    ):
        assert words in printed, printed
    assert "warnings: 1" in printed and "BraTS2021_00002  missing label" in printed
    assert printed.splitlines()[-1].startswith("sound: no error in 3 cases, 1 warning (")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sound"] and report["layout"] == "brats" and report["channels"] == ["FLAIR", "T1ce", "T1", "T2"]
    assert report["swinunetr_jax"] and report["numpy"] == np.__version__ and report["summary"]["cases"] == 3
    case = report["cases"]["BraTS2021_00000"]
    assert case["shape"] == [7, 6, 5] and case["volumes_ml"] == {"0": 0.206, "1": 0.001, "2": 0.002, "4": 0.001}
    assert [c["file"] for c in case["channels"]] == [f"BraTS2021_00000_{end}.nii.gz" for end in ("flair", "t1ce", "t1", "t2")]
    assert [f["kind"] for f in report["findings"]] == ["missing-label"]


def test_the_report_is_json_even_if_a_number_is_not_finite(tmp_path, monkeypatch):
    brats(tmp_path / "data", 0)
    monkeypatch.setattr(DatasetReport, "to_dict", lambda report: {"low": np.nan, "spacing": [1.0, np.inf]})
    assert run(tmp_path / "data", "--json", tmp_path / "report.json") == 0
    assert (tmp_path / "report.json").read_text() == '{\n "low": null,\n "spacing": [\n  1.0,\n  null\n ]\n}\n'


def test_few_findings_are_listed_separately(tmp_path, capsys):
    folder = brats(tmp_path, 0)
    save(at(folder, "t1"), with_voxel(image(0), np.nan))
    at(folder, "t2").write_bytes(b"")
    assert run(tmp_path) == 1
    printed = capsys.readouterr().out
    assert "\n  BraTS2021_00000  not finite     BraTS2021_00000/BraTS2021_00000_t1.nii.gz\n      1 of 210 voxels" in printed
    assert "\n  BraTS2021_00000  unreadable     BraTS2021_00000/BraTS2021_00000_t2.nii.gz\n      the file is empty" in printed


def test_many_cases_with_the_same_fault_share_one_row(tmp_path, capsys):
    names = [f"case_{number}" for number in range(60)]
    decathlon(tmp_path, [with_voxel(image(number), np.nan) for number in range(60)])
    assert run(tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    row = lines.index("  60 cases  not finite")
    listed = " ".join(line.strip() for line in lines[row + 1 : row + 8])
    assert listed.startswith(", ".join(names[:40]) + " and 20 more (--json lists all) such as imagesTr/case_0.nii.gz: 1 of 210")
    assert max(map(len, lines)) <= 100 and len(lines) < 30


def test_channels_of_the_command_line(tmp_path, capsys):
    brats(tmp_path, 0)
    assert run(tmp_path, "--channels", "FLAIR", "T2", "--label-values", 1, 2, 4) == 0
    assert run(tmp_path, "--channels", "FLAIR", "ADC") == 1
    assert "has no ADC image" in capsys.readouterr().out


def test_bad_usage_is_reported_in_one_sentence(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    brats(tmp_path / "data", 0)
    commands = {
        "does not exist": (tmp_path / "no",),
        "no case was found": (tmp_path / "empty",),
        "`workers`": (tmp_path / "data", "--workers", 0),
        "cannot be written": (tmp_path / "data", "--json", tmp_path / "no" / "report.json"),
    }
    for words, arguments in commands.items():
        assert run(*arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1
        assert words in printed.err


def test_progress_and_interruption(tmp_path, capsys, monkeypatch):
    for number in range(4):
        brats(tmp_path, number)
    at(tmp_path / "BraTS2021_00000", "t1").write_bytes(b"")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert run(tmp_path, "--workers", 1) == 1
    assert [line.partition(" cases")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"checking: {done} of 4" for done in (1, 2, 3, 4)
    ]

    advance = console.Progress.__call__

    def press_ctrl_c(self, done, total, note):
        advance(self, done, total, note)
        assert note == "1 with errors"
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(console.Progress, "__call__", press_ctrl_c)
    for workers in (1, 2):
        assert run(tmp_path, "--workers", workers) == 130
        printed = capsys.readouterr()
        assert "the file is empty" in printed.out and "interrupted: 2 of 4 cases were checked" in printed.err
