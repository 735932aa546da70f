"""predict.json and its files with several runs in one folder, edits by hand and killed runs. The network is a simple function."""

import contextlib
import json
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from refusals import refused

from swinunetr_jax import Task, cli, files
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.prediction_record import Record, read_record
from swinunetr_jax.data.nifti import read_labels, read_volume
from swinunetr_jax.inference import batch
from swinunetr_jax.inference.batch import predict_cases
from swinunetr_jax.inference.predict import Segmentation
from swinunetr_jax.task import Output

SHAPE = (6, 5, 4)
SECONDS = 200  # for processes on a busy machine
PROCESSES = multiprocessing.get_context("forkserver")
BRATS = Task.brats()
ET_2024 = Task.from_labels({"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4})
REGIONS_2024 = Task.from_labels({"background": 0, "TC": [1, 3], "WT": [1, 2, 3], "ET": [3], "RC": [4]}, (1, 2, 3, 4))


@dataclass
class Fake:
    """Creates the file `began`, and segments every case with the values of its task in turn once the file `until` exists."""

    task: Task = BRATS
    began: Path | None = None
    until: Path | None = None
    fails: tuple[str, ...] = ()
    windows: int = 8

    def segment(self, case, *, probabilities=False, et_label=None, progress=None):
        if self.began:
            self.began.touch()
        deadline = time.monotonic() + SECONDS
        while self.until and not self.until.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        if case.name in self.fails:
            raise batch.InputError(f"{case.name}: cannot be segmented.")
        scan = read_volume(case.images[0])
        task = self.task if et_label is None else self.task.with_et_label(et_label)
        values = np.array(sorted({0, *(output.value for output in task.outputs)}), np.uint8)
        labels = values[np.arange(scan.array.size).reshape(scan.array.shape) % len(values)]
        for done in range(1, self.windows + 1):
            progress(done, self.windows)
        likely = np.full((*scan.array.shape, len(task.outputs)), 0.5, np.float32) if probabilities else None
        return Segmentation(labels, likely, scan, self.windows, ())


def scan(folder, name, image="flair"):
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}_{image}.nii.gz"
    if not path.exists():
        nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=SHAPE).astype(np.float32), np.eye(4)), path)
    return Case(name, (path,))


def predict(folder, *names, fake=None, settings="one", image="flair", **options):
    fake = fake or Fake()
    cases = [scan(folder, name, image) for name in names]
    identity = {"weights": settings, "task": fake.task.to_dict()}
    return predict_cases(fake, cases, folder / "out", identity=identity, **options)


def recorded(folder):
    return json.loads((folder / "out/predict.json").read_text())


def together(folder, *options):
    """Predicts with each of these options in a separate process at the same time; returns the exit codes and the output."""
    PROCESSES.set_forkserver_preload([batch.__name__, "pytest"])  # imported once, by a process without threads
    logs = [folder / f"log{number}" for number in range(len(options))]
    started = [PROCESSES.Process(target=logged, args=(log, folder, *one)) for log, one in zip(logs, options)]
    for process in started:
        process.start()
    for process in started:
        process.join(SECONDS)
    return [process.exitcode for process in started], "".join(log.read_text() for log in logs)


def logged(log, folder, names, more):
    with open(log, "w") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        batch.jax = SimpleNamespace(devices=list)  # because starting JAX takes longer than everything else
        if more.pop("killed", False):
            os.replace = lambda _, target: os.kill(os.getpid(), signal.SIGKILL) if "a_prob" in Path(target).name else None
        ended = more.pop("ended", None)
        predict(folder, *names, **more)
        if ended:
            ended.touch()


def overlapping(folder, first, second):
    """Two runs on the case `a`, of which the first finishes while the second one is running."""
    began, ended = folder / "began", folder / "ended"
    began.unlink(missing_ok=True)
    ended.unlink(missing_ok=True)
    fakes = Fake(until=began), Fake(began=began, until=ended, fails=second.pop("fails", ()))
    runs = [(("a",), {"fake": fakes[0], "ended": ended, **first}), (("a",), {"fake": fakes[1], **second})]
    scan(folder, "a")
    return together(folder, *runs)


# Labels


@pytest.mark.fault("1.4")
@pytest.mark.parametrize("task", [ET_2024, REGIONS_2024], ids=["classes", "regions"])
@pytest.mark.parametrize("image", ["t1ce", "-t1c"])
def test_a_task_with_labels_3_and_4_is_written_unchanged(tmp_path, task, image):
    assert predict(tmp_path, "BraTS-GLI-02062-100", fake=Fake(task), image=image) == []
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
    for number, stated in enumerate((None, 4)):  # by the file's name 3; but a dataset.json goes before names
        out = tmp_path / f"out{number}"
        assert predict_cases(Fake(), [Case("a", (path,))], out, identity={}, et_label=stated) == []
        label = stated or 3
        assert label in read_labels(out / "a.nii.gz").array
        assert json.loads((out / "predict.json").read_text())["cases"]["a"]["et_label"] == label
        assert ("written as label 3" in capsys.readouterr().out) == (label == 3)


# Several runs


@pytest.mark.fault("2.2")
def test_runs_into_one_folder_keep_each_others_cases(tmp_path, capsys):
    names = [f"case{number}" for number in range(12)]
    for name in names:
        scan(tmp_path, name)
    codes, _ = together(tmp_path, *((names[part::3], {}) for part in range(3)))
    assert codes == [0, 0, 0]
    assert sorted(recorded(tmp_path)["cases"]) == sorted(names)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("case*")}
    capsys.readouterr()
    assert predict(tmp_path, *names) == []
    assert capsys.readouterr().out.count("done already, skipped") == 12
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("case*")} == before
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.fault("2.2")
def test_one_case_by_two_runs_at_the_same_time(tmp_path):
    """The later run keeps the result of the first one if the settings are equal, and otherwise reports that the name is in use."""
    both = {"probabilities": True}
    codes, said = overlapping(tmp_path, dict(both), dict(both))
    assert codes == [0, 0] and "another run has finished it in the meantime" in said
    first = recorded(tmp_path)["cases"]["a"]

    _, said = overlapping(tmp_path, {"settings": "two"}, {"settings": "three"})
    assert "another run with other settings wrote it in the meantime; choose another folder" in said
    entry = recorded(tmp_path)["cases"]["a"]
    assert entry["key"] != first["key"] and "error" not in entry
    assert entry["outputs"]["labels"]["bytes"] == (tmp_path / "out/a.nii.gz").stat().st_size
    assert (
        entry["older"]["probabilities"]["path"] == "a_probabilities.nii.gz"
    )  # of the first settings: known, and not this result's


@pytest.mark.fault("2.2")
def test_a_case_that_fails_does_not_undo_what_another_run_finished(tmp_path):
    _, said = overlapping(tmp_path, {}, {"fails": ("a",)})
    assert "FAILED" in said
    assert "error" not in recorded(tmp_path)["cases"]["a"]


@pytest.mark.fault("2.2")
def test_two_cases_with_one_file_for_their_results(tmp_path, capsys):
    assert predict(tmp_path, "a", "a_probabilities", probabilities=True, overwrite=True) == ["a_probabilities"]
    assert "is also a result of the case a; rename one" in capsys.readouterr().err
    assert read_volume(tmp_path / "out/a_probabilities.nii.gz").array.ndim == 4


def test_a_result_never_replaces_its_own_image(tmp_path, capsys):
    path = scan(tmp_path / "out", "a", "x").images[0].rename(tmp_path / "out/a.nii.gz")
    before = path.read_bytes()
    case = Case("a", (scan(tmp_path, "b").images[0], path))
    assert predict_cases(Fake(), [case], tmp_path / "out", identity={}, overwrite=True) == ["a"]
    assert "would replace an image that it is computed from" in capsys.readouterr().err
    assert path.read_bytes() == before


# Killed runs, full disks


@pytest.mark.fault("2.6")
def test_files_of_a_killed_run_are_removed_by_the_next_one(tmp_path):
    scan(tmp_path, "a")
    codes, _ = together(tmp_path, (("a",), {"probabilities": True, "killed": True}))
    assert codes == [-signal.SIGKILL]
    assert list((tmp_path / "out").glob(".*a_probabilities*"))  # otherwise this test would be meaningless
    other = temporary_of_another(tmp_path / "out")
    assert predict(tmp_path, "b") == []
    assert [path.name for path in (tmp_path / "out").glob(".*")] == [other]


def temporary_of_another(folder):
    """A temporary file of a process that still runs."""
    name = files._temporary_name("x.nii.gz", "").replace(f"-{os.getpid()}-", f"-{os.getppid()}-")
    (folder / name).write_text("")
    return name


@pytest.mark.parametrize("fails", ["a.nii.gz", "a_probabilities.nii.gz", "a.png", "predict.json"])
def test_a_full_disk_leaves_no_incomplete_case(tmp_path, monkeypatch, capsys, fails):
    replace, options = os.replace, {"probabilities": True, "preview": fails == "a.png"}

    def full(source, target):
        if Path(target).name == fails and (fails != "predict.json" or Path(target).exists()):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", full)
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


# Edits by hand


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

    a, labels = ("cases", "a"), ("cases", "a", "outputs", "labels")
    for text in ("", "{", "[]", "null", "3", '"x"', "\xff", "[" * 200_000, '{"cases":' * 100_000, "NaN"):
        yield f"text {text[:5]}", text, "predict.json"
    for path in (("cases",), ("settings",), (*labels, "path"), (*labels, "bytes"), (*a, "inputs", 0, "path")):
        yield f"no {path}", changed(*path, drop=True), "predict.json"
    for path in (
        ("cases",),
        ("settings",),
        a,
        (*a, "inputs"),
        (*a, "outputs"),
        labels,
        (*labels, "path"),
        (*a, "key"),
        (*a, "error"),
    ):
        yield f"number {path}", changed(*path, to=7), "predict.json"
    for path in (a, (*a, "inputs"), (*a, "outputs"), (*labels, "bytes"), (*a, "inputs", 0, "modified_ns"), (*a, "seconds")):
        yield f"text {path}", changed(*path, to="x"), "predict.json"
    for name in ("../b.txt", "/etc/passwd", "..", "", ".", "sub/x", "a\0"):
        yield f"path {name!r}", changed(*labels, "path", to=name), "predict.json"
        yield f"older {name!r}", changed(*a, "older", to={"preview": {"path": name, "bytes": 1}}), "predict.json"
    yield "deep", changed(*a, "notes", to=[]).replace('"notes": []', '"notes": ' + "[" * 5000 + "]" * 5000), "predict.json"
    yield "infinite", json.dumps(content).replace('"windows": 8', '"windows": 1e999'), "predict.json"
    yield "huge", json.dumps(content).replace('"windows": 8', '"windows": 1' + "0" * 5000), "predict.json"
    for what, text in (
        ("an unknown key", changed(*a, "colour", to=[{"x": None}])),
        ("no key", changed(*a, "key", drop=True)),
        ("no inputs", changed(*a, "inputs", drop=True)),
        ("no input", changed(*a, "inputs", to=[])),
        ("other sizes", changed(*labels, "bytes", to=10**30)),
        ("other times", changed(*a, "inputs", 0, "modified_ns", to=-(10**18))),
        ("an error", changed(*a, "error", to="x")),
        ("nothing written", changed(*labels, "bytes", to=None)),
        ("another kind", changed(*a, "outputs", "colour", to={"path": "b.txt", "bytes": 4})),
    ):
        yield what, text, None
    yield "no outputs", changed(*a, "outputs", drop=True), "--overwrite"
    yield "another file", changed(*labels, "path", to="b.txt"), "--overwrite"
    yield "a long name", changed(*labels, "path", to="x" * 5000), "--overwrite"


@pytest.mark.fault("3.3")
def test_an_edited_record_gives_one_sentence_or_the_right_result(tmp_path, capsys):
    assert predict(tmp_path, "a") == []
    path, right = tmp_path / "out/predict.json", (tmp_path / "out/a.nii.gz").read_bytes()
    (tmp_path / "b.txt").write_text("mine")
    (tmp_path / "out/b.txt").write_text("mine")
    content, count = recorded(tmp_path), 0
    for what, text, words in edits(content):
        path.write_bytes(text.encode("latin-1"))
        capsys.readouterr()
        try:
            failed = predict(tmp_path, "a")
        except batch.InputError as error:
            assert words == "predict.json", (what, error)
            assert str(path) in str(error) and "move it away, and predict again with --overwrite" in str(error), what
            assert len(str(error)) < 600 and "\n" not in str(error), what
            assert path.read_bytes() == text.encode("latin-1"), what  # nothing was lost
        else:
            assert failed == ([] if words is None else ["a"]), what
            assert words is None or words in capsys.readouterr().err, what
        assert (tmp_path / "out/a.nii.gz").read_bytes() == right, what
        assert (tmp_path / "b.txt").read_text() == (tmp_path / "out/b.txt").read_text() == "mine", what
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
    odd = os.fsdecode(b"caf\xe9")
    assert predict(tmp_path, odd) == []
    assert predict(tmp_path, odd) == []
    assert "done already" in capsys.readouterr().out
    assert list(read_record(tmp_path / "out/predict.json")["cases"]) == [odd]
    case = Case("x" * 300, scan(tmp_path, "b").images)
    assert predict_cases(Fake(), [case, scan(tmp_path, "c")], tmp_path / "out", identity={}) == [case.name]
    assert "File name too long" in capsys.readouterr().err
    assert (tmp_path / "out/c.nii.gz").exists()


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


# What is printed


@pytest.mark.fault("5.12")
def test_the_progress_shows_the_remaining_time(tmp_path, capsys):
    predict(tmp_path, "a", "b", "c", fake=Fake())
    lines = capsys.readouterr().out.splitlines()
    assert any("[1/3] a: 4 of 8 windows, 0 s left" in line for line in lines), lines
    results = [line for line in lines if "→" in line]
    assert [line.split("; ")[-1] for line in results[:2]] == ["2 cases to do, 0 s left", "1 case to do, 0 s left"]
    assert "left" not in results[2]


def test_names_are_printed_as_text(tmp_path, capsys):
    task = Task(kind="regions", outputs=(Output(name="\x1b[31mred", value=1, members=(1,)),), paint=(0,))
    assert predict(tmp_path, "a\x1b[2J", "b\nc", fake=Fake(task, fails=("b\nc",))) == ["b\nc"]
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "[2/2] b\\nc: FAILED: b\\nc: cannot be segmented." in printed.err
