"""A data set with every kind of fault: one run finds all of them under their names, and finds none in sound data."""

import gzip
import json
import sys
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from swinunetr_jax import cli, console
from swinunetr_jax.commands import validate
from swinunetr_jax.data.check.check_case import check_case
from swinunetr_jax.data.check.check_dataset import check_dataset
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.formats import find_cases
from swinunetr_jax.errors import InputError
from swinunetr_jax.training import Recipe
from swinunetr_jax.training.data import gather

SHAPE = (7, 6, 5)
LPS = np.diag([-1.0, -1, 1, 1])
ENDS = ("flair", "t1", "t1ce", "t2")


def save(path, array, affine=LPS):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(array), affine, dtype=np.asarray(array).dtype), path)
    return path


def image(seed, shape=SHAPE):
    return np.random.default_rng(seed).integers(1, 900, shape).astype(np.float32)


def label(*values, dtype=np.uint8):
    array = np.zeros(SHAPE, dtype)
    array.flat[: len(values)] = values
    return array


def brats(root, number, *, affine=LPS, values=(1, 2, 2, 4)):
    """A sound case of 7 × 6 × 5 voxels of 1 mm³."""
    folder = root / f"BraTS2021_{number:05d}"
    for c, end in enumerate(ENDS):
        save(folder / f"{folder.name}_{end}.nii.gz", image(4 * number + c), affine)
    save(folder / f"{folder.name}_seg.nii.gz", label(*values), affine)
    return folder


def at(folder, end):
    return folder / f"{folder.name}_{end}.nii.gz"


def header_bomb(path):
    """700 million voxels from a few bytes, more than a file of its size could hold."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[42:48] = np.array([900, 900, 900], "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(data)))


def gzip_bomb(path):
    """A file that could hold the 17 GB that its header claims, so that only the limit on memory refuses it."""
    data = bytearray(gzip.decompress(path.read_bytes())[:352])
    data[42:48] = np.array([1625, 1625, 1625], "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(data) + bytes(17 << 20), 0))


def with_voxel(array, *values):
    array = array.astype(np.float32)
    array.flat[: len(values)] = values
    return array


def moved(by):
    affine = LPS.copy()
    affine[0, 3] = by
    return affine


# (a change of a case's folder, ending of the file that has the fault, kind, words of the message)
FAULTS = {
    "truncated": (lambda f: at(f, "t1").write_bytes(at(f, "t1").read_bytes()[:-60]), "t1", "unreadable", "truncated"),
    "renamed": (lambda f: at(f, "t1").write_bytes(gzip.decompress(at(f, "t1").read_bytes())), "t1", "unreadable", "not gzip"),
    "not nifti": (lambda f: at(f, "t2").write_bytes(gzip.compress(b"x" * 999)), "t2", "unreadable", "not NIfTI"),
    "empty": (lambda f: at(f, "t1").write_bytes(b""), "t1", "unreadable", "empty"),
    "html": (lambda f: at(f, "t2").write_bytes(b"<!DOCTYPE html><html>"), "t2", "unreadable", "web page"),
    "header bomb": (lambda f: header_bomb(at(f, "t1")), "t1", "unreadable", "claims"),
    "gzip bomb": (lambda f: gzip_bomb(at(f, "t1")), "t1", "unreadable", "limit"),
    "bad label file": (lambda f: at(f, "seg").write_bytes(b"\x1f\x8b" + bytes(99)), "seg", "unreadable", "damaged"),
    "nan": (lambda f: save(at(f, "t1"), with_voxel(image(0), 1, np.nan, np.inf)), "t1", "not-finite", "2 of 210 voxels"),
    "zero": (lambda f: save(at(f, "t1ce"), np.zeros(SHAPE, np.int16)), "t1ce", "constant", "all voxels are 0,"),
    "constant": (lambda f: save(at(f, "t2"), np.full(SHAPE, 3.5, np.float32)), "t2", "constant", "all voxels are 3.5,"),
    "missing channel": (lambda f: at(f, "t1ce").unlink(), None, "incomplete", "no T1ce image"),
    "4-d label": (lambda f: save(at(f, "seg"), np.ones((*SHAPE, 2), np.uint8)), "seg", "label-shape", "3-D"),
    "unknown label": (
        lambda f: save(at(f, "seg"), label(1, 7, 7)),
        "seg",
        "unknown-label",
        "7 (2 voxels) is not one of 0, 1, 2, 4",
    ),
    "negative label": (lambda f: save(at(f, "seg"), label(1, -1, dtype=np.int16)), "seg", "label-values", "such as -1"),
    "label between": (lambda f: save(at(f, "seg"), with_voxel(label(1), 0.5)), "seg", "label-values", "such as 0.5"),
    "nan label": (lambda f: save(at(f, "seg"), with_voxel(label(1), np.nan)), "seg", "not-finite", "1 of 210"),
    "other year": (lambda f: save(at(f, "seg"), label(1, 2, 3)), "seg", "et-label", "up to 2022 it is 4"),
    "shape": (lambda f: save(at(f, "t2"), image(0, (7, 6, 4))), "t2", "grid", "(7, 6, 5) and (7, 6, 4)"),
    "shifted label": (lambda f: save(at(f, "seg"), label(1), moved(3)), "seg", "grid", "3 mm apart"),
}
WARNINGS = {
    "empty mask": (lambda f: save(at(f, "seg"), label()), "seg", "empty-label", "only background"),
    "copied": (lambda f: at(f, "t1").write_bytes(at(f, "flair").read_bytes()), "t1", "duplicate", "channel FLAIR"),
    "no label": (lambda f: at(f, "seg").unlink(), None, "missing-label", "no label map"),
    "turned": (lambda f: [turn(at(f, end), np.diag([1.0, 1, 1, 1])) for end in (*ENDS, "seg")], None, "orientation", "RAS"),
    "coarse": (
        lambda f: [turn(at(f, end), np.diag([-1.0, -1, 2.5, 1])) for end in (*ENDS, "seg")],
        None,
        "spacing",
        "1 × 1 × 2.5",
    ),
}


def turn(path, affine):
    save(path, np.asarray(nib.load(path).dataobj), affine)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """A case for each fault, as many sound ones, one with two faults in one file and one in another, and a copy of a case."""
    root = tmp_path_factory.mktemp("faulty")
    expected = set()
    for number, (harm, end, kind, words) in enumerate([*FAULTS.values(), *WARNINGS.values()]):
        folder = brats(root, number)
        harm(folder)
        severity = "error" if number < len(FAULTS) else "warning"
        expected.add((folder.name, severity, kind, at(folder, end) if end else None, words))
    for number in range(100, 110):
        brats(root, number)
    folder = brats(root, 200)
    save(at(folder, "seg"), with_voxel(label(), np.nan, 0.25, -2, 9))
    at(folder, "t1").write_bytes(b"")
    many = [("seg", "not-finite", "1 of 210"), ("seg", "label-values", "0.25"), ("seg", "label-values", "-2")]
    many += [("seg", "unknown-label", "9"), ("t1", "unreadable", "empty")]
    expected |= {(folder.name, "error", kind, at(folder, end), words) for end, kind, words in many}
    twin = brats(root, 201)
    for end in ENDS:
        at(twin, end).write_bytes(at(root / "BraTS2021_00100", end).read_bytes())
    expected.add((twin.name, "warning", "duplicate", at(twin, "flair"), "BraTS2021_00100_flair.nii.gz of case BraTS2021_00100"))
    return root, expected


@pytest.mark.parametrize("workers", [1, 3])
def test_one_run_finds_every_fault_and_no_other(faulty, workers):
    root, expected = faulty
    seen = []
    report = check_dataset(find_cases(root), workers=workers, progress=lambda case: seen.append(case.case.name))
    assert seen == [case.name for case in report.dataset.cases] == [case.case.name for case in report.cases]
    left = list(expected)
    for finding in report.findings:
        fitting = [
            e for e in left
            if e[:3] == (finding.case, finding.severity, finding.kind) and e[4] in finding.message
            and (e[3] == finding.path or e[2] == "incomplete")
        ]  # fmt: skip
        assert fitting, finding
        assert finding.message.endswith(".") and "\n" not in finding.message and str(root) not in finding.message
        left.remove(fitting[0])
    assert left == []


def test_bombs_are_refused_before_memory_is_allocated(faulty):
    root, _ = faulty
    bombs = [n for n, name in enumerate(FAULTS) if name.endswith("bomb")]
    cases = [case for case in find_cases(root).cases if case.name in {f"BraTS2021_{n:05d}" for n in bombs}]
    tracemalloc.start()
    try:
        assert [[f.kind for f in check_case(case).findings] for case in cases] == [["unreadable"], ["unreadable"]]
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_a_sound_data_set_has_facts_and_no_findings(tmp_path):
    for number, values in enumerate([(1, 2, 2, 4), (2, 2)]):
        brats(tmp_path, number, values=values)
    report = check_dataset(find_cases(tmp_path))
    assert report.findings == ()
    first = report.cases[0]
    assert (first.shape, first.spacing, first.orientation) == (SHAPE, (1, 1, 1), "LPS")
    assert first.volumes_ml == pytest.approx({0: 0.206, 1: 0.001, 2: 0.002, 4: 0.001})
    flair = first.channels[0]
    assert (flair.name, flair.low, flair.high) == ("FLAIR", image(0).min(), image(0).max()) and flair.nonzero == 1
    summary = report.summary()
    assert summary["labels"]["2"] == {"cases": 2, "median": 0.002, "min": 0.002, "max": 0.002}
    assert summary["labels"]["4"]["cases"] == 1 and summary["with_label"] == 2
    assert summary["shape"] == {"median": [7, 6, 5], "min": [7, 6, 5], "max": [7, 6, 5]} and summary["orientations"] == {"LPS": 2}


def test_training_refuses_to_start_and_names_every_faulty_case(faulty, tmp_path):
    root, expected = faulty
    with pytest.raises(InputError) as refused:
        gather(Recipe(kind="brats", data=root), tmp_path)
    first, *lines = str(refused.value).splitlines()
    faulty_cases = sorted({case for case, severity, *_ in expected if severity == "error"})
    assert f"{len(faulty_cases)} of " in first and f"swinunetr validate {root}" in lines.pop()
    assert sorted(line.split(":")[0].strip() for line in lines) == faulty_cases


# One case


def one(tmp_path, array, values=(1, 2), **fields):
    fields = {"label": save(tmp_path / "b.nii.gz", label(*values))} | fields
    return Case("one", (save(tmp_path / "a.nii.gz", array),), **fields)


def kinds(case, **options):
    return [finding.kind for finding in check_case(case, **options).findings]


def test_known_labels(tmp_path):
    case = one(tmp_path, image(1), (0, 1, 5, 300 - 256))
    assert kinds(case) == []  # no name states the labels
    assert kinds(case, labels=(1, 5, 44)) == []
    assert kinds(case, labels=(1, 5)) == ["unknown-label"]
    save(case.label, label(1, 70000, dtype=np.int32))
    assert kinds(case, labels=(1, 5)) == ["unknown-label"]
    assert check_case(case).volumes_ml == pytest.approx({0: 0.208, 1: 0.001, 70000: 0.001})


def test_channels_in_one_file(tmp_path):
    array = np.stack([image(1), image(2), image(1)], -1)
    array[..., 1] = 0
    case = one(tmp_path, array, channels=("FLAIR", "T1", "T2"))
    report = check_case(case)
    assert [channel.name for channel in report.channels] == ["FLAIR", "T1", "T2"] and report.shape == SHAPE
    assert [(f.kind, f.message.split(":")[0]) for f in report.findings[:1]] == [("constant", "channel T1")]
    assert (
        report.findings[1].kind == "duplicate" and "channel T2 has the same voxels as channel FLAIR" in report.findings[1].message
    )
    assert kinds(one(tmp_path, array[..., 0], channels=("FLAIR", "T1"))) == ["channel-count"]
    assert kinds(one(tmp_path, array[..., 0]), channels=("FLAIR", "T1")) == ["channel-count"]
    assert kinds(one(tmp_path, array[..., 0]), channels=("FLAIR",)) == []
    assert kinds(one(tmp_path, array[..., 0], channels=("T2",)), channels=("FLAIR",)) == ["channel-count"]


def test_missing_labels(tmp_path):
    assert kinds(one(tmp_path, image(1), label=None)) == ["missing-label"]
    assert kinds(one(tmp_path, image(1), label=None, split="test")) == []
    assert kinds(one(tmp_path, image(1), label=tmp_path / "no.nii.gz", split="validation")) == ["missing-label"]


def test_all_voxels_nan(tmp_path):
    report = check_case(one(tmp_path, np.full(SHAPE, np.nan, np.float32)))
    assert [f.kind for f in report.findings] == ["not-finite"] and report.channels[0].low is None


def test_scaled_labels_are_sound(tmp_path):
    picture = nib.Nifti1Image(label(1, 2, 4).astype(np.int16) * 10, LPS)
    picture.header.set_slope_inter(0.1, 0)
    nib.save(picture, tmp_path / "b.nii.gz")
    path = tmp_path / "c.nii.gz"
    data = bytearray(gzip.decompress((tmp_path / "b.nii.gz").read_bytes()))
    data[112:116] = np.float32(0.1).tobytes()  # nibabel rescales on its way
    path.write_bytes(gzip.compress(bytes(data)))
    report = check_case(one(tmp_path, image(1), label=path), labels=(1, 2, 4))
    assert report.findings == ()


# Between cases


def decathlon(root, arrays, maps=None, **info):
    listed = []
    for number, array in enumerate(arrays):
        name = f"case_{number}.nii.gz"
        save(root / "imagesTr" / name, array)
        save(root / "labelsTr" / name, maps[number] if maps else label(1))
        listed.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    info = {"modality": {"0": "a"}, "labels": {"0": "background", "1": "organ"}, "training": listed} | info
    (root / "dataset.json").write_text(json.dumps(info))
    return find_cases(root)


def test_channel_counts_differ(tmp_path):
    arrays = [np.stack([image(n), image(n + 50)], -1) for n in range(3)] + [image(9)]
    (found,) = check_dataset(decathlon(tmp_path, arrays, modality=["MRI", "MRI"])).findings
    assert (found.case, found.kind, found.severity) == ("case_3", "channel-count", "error")
    assert found.message.startswith("it has 1 channel, in 3 of 4 cases 2;")


def test_labels_that_a_list_names(tmp_path):
    dataset = decathlon(tmp_path, [image(1), image(2)], [label(1), label(1, 2)])
    (found,) = check_dataset(dataset).findings
    assert (found.case, found.kind) == ("case_1", "unknown-label")
    assert check_dataset(dataset, labels=(1, 2)).findings == ()


@pytest.mark.fault("1.4")
def test_labels_3_and_4_that_the_data_set_names_are_no_warning(tmp_path):
    named = {"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4}
    dataset = decathlon(tmp_path, [image(1), image(2)], [label(1, 2, 3), label(1, 4)], labels=named)
    assert check_dataset(dataset).findings == ()


@pytest.mark.fault("1.4")
@pytest.mark.parametrize(("values", "kind"), [((1, 2, 3, 4), "unknown-label"), ((1, 2, 4), "et-label")])
def test_label_4_since_2023_may_be_the_resection_cavity(tmp_path, values, kind):
    folder = tmp_path / "BraTS-GLI-02062-100"
    for number, end in enumerate(("t2f", "t1c", "t1n", "t2w")):
        save(folder / f"{folder.name}-{end}.nii.gz", image(number))
    save(folder / f"{folder.name}-seg.nii.gz", label(*values))
    (found,) = check_dataset(find_cases(tmp_path)).findings
    assert found.kind == kind
    assert found.message.endswith("give --label-values 0 1 2 3 4 where 4 is the resection cavity, as in BraTS 2024.")
    assert check_dataset(find_cases(tmp_path), labels=range(5)).findings == ()


def test_labels_3_and_4_in_different_cases_are_one_warning(tmp_path):
    dataset = decathlon(tmp_path, [image(1), image(2), image(3)], [label(1, 2, 3), label(1, 4), label(2, 4)], labels=None)
    (found,) = check_dataset(dataset).findings
    assert (found.case, found.severity, found.kind) == (None, "warning", "et-label")
    assert found.message.startswith("1 cases have label 3 and 2 others label 4")


def test_no_majority_is_one_finding(tmp_path):
    for number in range(3):
        brats(tmp_path, number, affine=np.diag([-1.0, -1, 1 + number, 1]))
    (found,) = check_dataset(find_cases(tmp_path)).findings
    assert (found.case, found.kind) == (None, "spacing") and found.message.startswith("3 different spacings")


# The command


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["validate", *map(str, arguments)])
    return stopped.value.code


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


def test_the_command_lists_every_fault(faulty, tmp_path, capsys):
    root, expected = faulty
    assert run(root, "--json", tmp_path / "report.json") == 1
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    assert {case for case, *_ in expected if case not in printed} == set()
    assert "not sound: 25 errors in 21 of 37 cases, 6 warnings" in printed
    assert (
        "\n  BraTS2021_00004  unreadable     BraTS2021_00004/BraTS2021_00004_t2.nii.gz\n      the file is a web page" in printed
    )
    # there are more than twenty, so similar ones share a row
    assert "\n  2 cases          constant\n      BraTS2021_00009, BraTS2021_00010\n      such as BraTS2021_00009/" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert not report["sound"] and len(report["findings"]) == len(expected)
    assert {(f["case"], f["kind"]) for f in report["findings"]} == {(case, kind) for case, _, kind, *_ in expected}


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


def test_bad_usage_is_one_sentence(tmp_path, capsys):
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


# Real data


def test_real_data_are_sound(shared_data):
    report = check_dataset(find_cases(shared_data / "Task04_Hippocampus"))
    assert report.findings == () and len(report.cases) == 200
    assert report.summary()["shape"] == {"median": [35, 50, 36], "min": [31, 40, 24], "max": [43, 59, 47]}
    assert report.summary()["labels"]["2"]["cases"] == 200


@pytest.mark.parametrize("module", ["check_case", "check_dataset", "check_labels", "findings", "problems"])
def test_data_are_checked_without_jax(module):
    source = (Path(validate.__file__).parents[1] / "data/check" / f"{module}.py").read_text("utf-8")
    imports = [line.split()[1].split(".")[:2] for line in source.splitlines() if line.startswith(("import ", "from "))]
    own = {name[1] for name in imports if name[0] == "swinunetr_jax"}
    others = {name[0] for name in imports if name[0] != "swinunetr_jax"}
    assert own <= {"console", "data", "errors", "files", "version"} and others <= {*sys.stdlib_module_names, "numpy"}
