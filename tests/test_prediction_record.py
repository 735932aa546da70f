"""The content of predict.json and the printed messages, also for a record that a user edited."""

import json
import os

import numpy as np
import pytest
from helpers.fake_predictor import FakePredictor, predict, recorded, scan

from swinunetr_jax import Task, cli
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.prediction_record import read_record
from swinunetr_jax.data.nifti import read_labels
from swinunetr_jax.inference import batch
from swinunetr_jax.inference.batch import predict_cases
from swinunetr_jax.output import Output

ET_2024 = Task.from_labels({"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4})
REGIONS_2024 = Task.from_labels({"background": 0, "TC": [1, 3], "WT": [1, 2, 3], "ET": [3], "RC": [4]}, (1, 2, 3, 4))


@pytest.mark.fault("1.4")
@pytest.mark.parametrize("task", [ET_2024, REGIONS_2024], ids=["classes", "regions"])
@pytest.mark.parametrize("image", ["t1ce", "-t1c"])
def test_a_task_with_labels_3_and_4_is_written_unchanged(tmp_path, task, image):
    assert predict(tmp_path, "BraTS-GLI-02062-100", fake=FakePredictor(task), image=image) == []
    labels = read_labels(tmp_path / "out/BraTS-GLI-02062-100.nii.gz").array
    assert np.unique(labels).tolist() == [0, 1, 2, 3, 4]
    volumes = recorded(tmp_path)["cases"]["BraTS-GLI-02062-100"]["volumes_ml"]
    assert volumes["ET"] == pytest.approx((labels == 3).sum() / 1000)
    assert volumes["RC"] == pytest.approx((labels == 4).sum() / 1000)
    if task is REGIONS_2024:
        assert volumes["TC"] == pytest.approx(np.isin(labels, (1, 3)).sum() / 1000)
        assert volumes["WT"] == pytest.approx(np.isin(labels, (1, 2, 3)).sum() / 1000)


def test_another_label_of_the_enhancing_tumour_is_printed_and_recorded(tmp_path, capsys):
    cases = [scan(tmp_path, "BraTS-GLI-1", "x")]
    path = cases[0].images[0].rename(tmp_path / "BraTS-GLI-1-t1c.nii.gz")
    for number, stated in enumerate((None, 4)):  # the file's name implies 3, but a label that is given takes precedence
        out = tmp_path / f"out{number}"
        assert predict_cases(FakePredictor(), [Case("a", (path,))], out, identity={}, et_label=stated) == []
        label = stated or 3
        assert label in read_labels(out / "a.nii.gz").array
        assert json.loads((out / "predict.json").read_text())["cases"]["a"]["et_label"] == label
        assert ("written as label 3" in capsys.readouterr().out) == (label == 3)


def edits(content):
    """Yields (name, text of the edited file, words of the refusal, or None if the result is right nevertheless)."""

    def changed(*path, to=None, drop=False):
        edited = json.loads(json.dumps(content))
        inner = edited
        for key in path[:-1]:
            inner = inner[key]
        if drop:
            del inner[path[-1]]
        else:
            inner[path[-1]] = to
        return json.dumps(edited)

    case, labels = ("cases", "a"), ("cases", "a", "outputs", "labels")
    for text in ("", "{", "[]", "null", "3", '"x"', "\xff", "[" * 200_000, '{"cases":' * 100_000, "NaN"):
        yield f"text {text[:5]}", text, "predict.json"
    for path in (("cases",), ("settings",), (*labels, "path"), (*labels, "bytes"), (*case, "inputs", 0, "path")):
        yield f"no {path}", changed(*path, drop=True), "predict.json"
    for path in (
        ("cases",),
        ("settings",),
        case,
        (*case, "inputs"),
        (*case, "outputs"),
        labels,
        (*labels, "path"),
        (*case, "key"),
        (*case, "error"),
    ):
        yield f"number {path}", changed(*path, to=7), "predict.json"
    for path in (
        case,
        (*case, "inputs"),
        (*case, "outputs"),
        (*labels, "bytes"),
        (*case, "inputs", 0, "modified_ns"),
        (*case, "seconds"),
    ):
        yield f"text {path}", changed(*path, to="x"), "predict.json"
    for name in ("../b.txt", "/etc/passwd", "..", "", ".", "sub/x", "a\0"):
        yield f"path {name!r}", changed(*labels, "path", to=name), "predict.json"
        yield f"older {name!r}", changed(*case, "older", to={"preview": {"path": name, "bytes": 1}}), "predict.json"
    yield "deep", changed(*case, "notes", to=[]).replace('"notes": []', '"notes": ' + "[" * 5000 + "]" * 5000), "predict.json"
    yield "infinite", json.dumps(content).replace('"windows": 8', '"windows": 1e999'), "predict.json"
    yield "huge", json.dumps(content).replace('"windows": 8', '"windows": 1' + "0" * 5000), "predict.json"
    for edit, text in (
        ("an unknown key", changed(*case, "colour", to=[{"x": None}])),
        ("no key", changed(*case, "key", drop=True)),
        ("no inputs", changed(*case, "inputs", drop=True)),
        ("no input", changed(*case, "inputs", to=[])),
        ("other sizes", changed(*labels, "bytes", to=10**30)),
        ("other times", changed(*case, "inputs", 0, "modified_ns", to=-(10**18))),
        ("an error", changed(*case, "error", to="x")),
        ("nothing written", changed(*labels, "bytes", to=None)),
        ("another kind", changed(*case, "outputs", "colour", to={"path": "b.txt", "bytes": 4})),
    ):
        yield edit, text, None
    yield "no outputs", changed(*case, "outputs", drop=True), "--overwrite"
    yield "another file", changed(*labels, "path", to="b.txt"), "--overwrite"
    yield "a long name", changed(*labels, "path", to="x" * 5000), "--overwrite"


@pytest.mark.fault("3.3")
def test_an_edited_record_gives_one_sentence_or_the_right_result(tmp_path, capsys):
    assert predict(tmp_path, "a") == []
    path, expected = tmp_path / "out/predict.json", (tmp_path / "out/a.nii.gz").read_bytes()
    (tmp_path / "b.txt").write_text("mine")
    (tmp_path / "out/b.txt").write_text("mine")
    content, count = recorded(tmp_path), 0
    for edit, text, words in edits(content):
        path.write_bytes(text.encode("latin-1"))
        capsys.readouterr()
        try:
            failed = predict(tmp_path, "a")
        except batch.InputError as error:
            assert words == "predict.json", (edit, error)
            assert str(path) in str(error) and "move it away, and predict again with --overwrite" in str(error), edit
            assert len(str(error)) < 600 and "\n" not in str(error), edit
            assert path.read_bytes() == text.encode("latin-1"), edit  # the record is unchanged
        else:
            assert failed == ([] if words is None else ["a"]), edit
            assert words is None or words in capsys.readouterr().err, edit
        assert (tmp_path / "out/a.nii.gz").read_bytes() == expected, edit
        assert (tmp_path / "b.txt").read_text() == (tmp_path / "out/b.txt").read_text() == "mine", edit
        count += 1
    assert count > 50
    path.unlink()
    assert predict(tmp_path, "a", overwrite=True) == []


@pytest.mark.fault("3.3")
def test_evaluate_reads_an_edited_record_or_refuses_it_with_one_sentence(tmp_path, capsys):
    assert predict(tmp_path, "a") == []
    content = recorded(tmp_path)
    deep = "[" * 900 + "]" * 900
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs/a.nii.gz").write_bytes((tmp_path / "out/a.nii.gz").read_bytes())
    texts = [text for _, text, words in edits(content) if words == "predict.json"]
    for task in (
        {"kind": "x"},
        {"outputs": 3},
        "x",
        [1],
        {**Task.brats().to_dict(), "roi": "x"},
        {"kind": None, "outputs": [{}]},
    ):
        texts.append(json.dumps({**content, "settings": {"task": task}}))
    texts.append(
        json.dumps({**content, "settings": {"task": {**Task.brats().to_dict(), "kind": 0}}}).replace(
            '"kind": 0', f'"kind": {deep}'
        )
    )
    for text in texts:
        (tmp_path / "out/predict.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(SystemExit) as stopped:
            cli.main(["evaluate", str(tmp_path / "out"), str(tmp_path / "refs"), "--out", str(tmp_path / "scores")])
        printed = capsys.readouterr().err
        assert stopped.value.code == 2 and "Traceback" not in printed, text[:100]
        assert printed.startswith("error: ") and "predict.json" in printed and printed.count("\n") == 1, printed[:300]
        assert "move it away and give --task" in printed, printed[-300:]


@pytest.mark.fault("3.3")
def test_names_that_are_not_utf8_or_are_too_long(tmp_path, capsys):
    not_utf8 = os.fsdecode(b"caf\xe9")
    assert predict(tmp_path, not_utf8) == []
    assert predict(tmp_path, not_utf8) == []
    assert "done already" in capsys.readouterr().out
    assert list(read_record(tmp_path / "out/predict.json")["cases"]) == [not_utf8]
    case = Case("x" * 300, scan(tmp_path, "b").images)
    assert predict_cases(FakePredictor(), [case, scan(tmp_path, "c")], tmp_path / "out", identity={}) == [case.name]
    assert "File name too long" in capsys.readouterr().err
    assert (tmp_path / "out/c.nii.gz").exists()


@pytest.mark.fault("5.12")
def test_the_progress_shows_the_remaining_time(tmp_path, capsys):
    predict(tmp_path, "a", "b", "c", fake=FakePredictor())
    lines = capsys.readouterr().out.splitlines()
    assert any("[1/3] a: 4 of 8 windows, 0 s left" in line for line in lines), lines
    results = [line for line in lines if "→" in line]
    assert [line.split("; ")[-1] for line in results[:2]] == ["2 cases remaining, about 0 s", "1 case remaining, about 0 s"]
    assert "remaining" not in results[2]


def test_names_are_printed_as_text(tmp_path, capsys):
    task = Task(kind="regions", outputs=(Output(name="\x1b[31mred", value=1, members=(1,)),), paint=(0,))
    assert predict(tmp_path, "a\x1b[2J", "b\nc", fake=FakePredictor(task, fails=("b\nc",))) == ["b\nc"]
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "[2/2] b\\nc: FAILED: b\\nc: cannot be segmented." in printed.err


def test_a_scan_that_changes_while_it_is_segmented_has_no_result(tmp_path, capsys):
    class Changed(FakePredictor):
        def segment_prepared(self, prepared, **options):
            os.utime(prepared.scan.path, (1, 1))
            return super().segment_prepared(prepared, **options)

    assert predict(tmp_path, "a", fake=Changed()) == ["a"]
    assert "a_flair.nii.gz: was changed while it was being processed; repeat the command." in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["predict.json"]
    assert predict(tmp_path, "a") == []
