"""A data set with every kind of fault: one run reports each of them with its kind, and nothing else."""

import gzip
import json
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from helpers.sound_cases import ENDS, LPS, SHAPE, at, brats, image, label, run, save, with_voxel

from swinunetr_jax.data.check.check_case import check_case
from swinunetr_jax.data.check.check_dataset import check_dataset
from swinunetr_jax.data.discovery.formats import find_cases
from swinunetr_jax.errors import InputError
from swinunetr_jax.training import Recipe
from swinunetr_jax.training.data import collect_cases


def header_bomb(path):
    """Makes the header claim 729 million voxels, more than a file of a few bytes can hold."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[42:48] = np.array([900, 900, 900], "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(data)))


def gzip_bomb(path):
    """Writes a file that could hold the 17 GB that its header claims, so that only the limit on memory refuses it."""
    data = bytearray(gzip.decompress(path.read_bytes())[:352])
    data[42:48] = np.array([1625, 1625, 1625], "<i2").tobytes()
    path.write_bytes(gzip.compress(bytes(data) + bytes(17 << 20), 0))


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
    "turned": (lambda f: [set_affine(at(f, end), np.diag([1.0, 1, 1, 1])) for end in (*ENDS, "seg")], None, "orientation", "RAS"),
    "coarse": (
        lambda f: [set_affine(at(f, end), np.diag([-1.0, -1, 2.5, 1])) for end in (*ENDS, "seg")],
        None,
        "spacing",
        "1 × 1 × 2.5",
    ),
}


def set_affine(path, affine):
    save(path, np.asarray(nib.load(path).dataobj), affine)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Returns a folder that has a case for each fault, ten sound cases, one case with four faults in one file and one in another,
    and a copy of a case, and the expected findings.
    """
    root = tmp_path_factory.mktemp("faulty")
    expected = set()
    for number, (damage, end, kind, words) in enumerate([*FAULTS.values(), *WARNINGS.values()]):
        folder = brats(root, number)
        damage(folder)
        severity = "error" if number < len(FAULTS) else "warning"
        expected.add((folder.name, severity, kind, at(folder, end) if end else None, words))
    for number in range(100, 110):
        brats(root, number)
    folder = brats(root, 200)
    save(at(folder, "seg"), with_voxel(label(), np.nan, 0.25, -2, 9))
    at(folder, "t1").write_bytes(b"")
    expected_of_case = [("seg", "not-finite", "1 of 210"), ("seg", "label-values", "0.25"), ("seg", "label-values", "-2")]
    expected_of_case += [("seg", "unknown-label", "9"), ("t1", "unreadable", "empty")]
    expected |= {(folder.name, "error", kind, at(folder, end), words) for end, kind, words in expected_of_case}
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
    missing = list(expected)
    for finding in report.findings:
        matching = [
            e for e in missing
            if e[:3] == (finding.case, finding.severity, finding.kind) and e[4] in finding.message
            and (e[3] == finding.path or e[2] == "incomplete")
        ]  # fmt: skip
        assert matching, finding
        assert finding.message.endswith(".") and "\n" not in finding.message and str(root) not in finding.message
        missing.remove(matching[0])
    assert missing == []


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


def test_training_refuses_to_start_and_names_every_faulty_case(faulty, tmp_path):
    root, expected = faulty
    with pytest.raises(InputError) as refused:
        collect_cases(Recipe(kind="brats", data=root), tmp_path)
    first, *lines = str(refused.value).splitlines()
    faulty_cases = sorted({case for case, severity, *_ in expected if severity == "error"})
    assert f"{len(faulty_cases)} of " in first and f"swinunetr validate {root}" in lines.pop()
    assert sorted(line.split(":")[0].strip() for line in lines) == faulty_cases


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
    # There are more than twenty findings, so similar findings share a row.
    assert "\n  2 cases          constant\n      BraTS2021_00009, BraTS2021_00010\n      such as BraTS2021_00009/" in printed
    report = json.loads((tmp_path / "report.json").read_text())
    assert not report["sound"] and len(report["findings"]) == len(expected)
    assert {(f["case"], f["kind"]) for f in report["findings"]} == {(case, kind) for case, _, kind, *_ in expected}
