"""`swinunetr evaluate --scorer brats2026`: the program of the challenge, its recorded tables, and how its conventions differ from ours."""

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import challenge_cases as recorded
from helpers.evaluation_data import run, scores

from swinunetr_jax import InputError, Task
from swinunetr_jax.data.nifti import read_labels
from swinunetr_jax.evaluation.challenge import PREFIX, REGIONS, VERSION, Challenge
from swinunetr_jax.evaluation.challenge_metrics import convention


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Returns the folder of all files, the scores of all recorded cases, and the printed text."""
    folder = tmp_path_factory.mktemp("challenge")
    predictions, references = recorded.write(folder)
    environment = recorded.stand_in(folder / "env")
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("swinunetr_jax.console.say", lambda text, *_: printed.append(str(text)))
        options = ("--task", "brats", "--lesion-wise", "--scorer", "brats2026", "--scorer-environment", environment)
        assert run(predictions, references, *options, "--out", folder / "out") == 0
    return folder, scores(folder / "out"), "\n".join(printed)


def values(evaluated, case: str, metric: str) -> dict[str, float]:
    """Returns output → value, with NaN for null."""
    return {output: math.nan if row[metric] is None else row[metric] for output, row in evaluated[1]["cases"][case].items()}


def test_the_program_receives_each_case_in_the_label_values_of_the_program(evaluated):
    folder, report, _ = evaluated
    for number, (name, (ref, pred, affine)) in enumerate(sorted(recorded.label_maps().items())):
        for side, labels in (("ref", ref), ("pred", pred)):
            received = nib.load(folder / f"env/seen/{side}/{number:05d}-000.nii.gz")
            np.testing.assert_array_equal(np.asarray(received.dataobj), np.where(labels == 4, 3, labels), f"{name} {side}")
            np.testing.assert_allclose(received.affine, affine)
    assert set(report["brats2026"]["cases"]) == set(recorded.label_maps())


def test_the_table_of_the_program_is_part_of_both_files_and_of_the_printed_tables(evaluated):
    folder, report, printed = evaluated
    assert report["brats2026"]["ranking"] == "gli" and report["brats2026"]["failed"] == {}
    assert set(report["brats2026"]["cases"]["phantom"]) == set(REGIONS["gli"])
    official = report["brats2026"]["cases"]["phantom"]["wt"]
    ours = report["cases"]["phantom"]["WT"]
    assert {f"{PREFIX}{metric}": value for metric, value in official.items()}.items() <= ours.items()
    assert report["conventions"][f"{PREFIX}global_hd95"].startswith("BraTS 2026: voxels, not mm")
    rows = {(row["case"], row["output"]): row for row in csv.DictReader((folder / "out/scores.csv").open())}
    assert float(rows["phantom", "WT"][f"{PREFIX}global_dsc"]) == pytest.approx(official["global_dsc"])
    assert "lesion Dice (2026)" in printed and "only in scores.json" in printed
    assert "[1/9] both_empty, by the program of BraTS 2026" in printed


def test_dice_is_the_same_except_for_empty_references_and_predictions(evaluated):
    for case in recorded.label_maps():
        ours, theirs = values(evaluated, case, "dice_nnunet"), values(evaluated, case, f"{PREFIX}global_dsc")
        assert ours == pytest.approx(theirs, abs=1e-12, nan_ok=True), case
    assert set(values(evaluated, "both_empty", "dice_brats").values()) == {1.0}


def test_hd95_is_in_voxels_over_both_directions_and_373_without_overlap(evaluated):
    tall = values(evaluated, "tall_voxels", "hd95_monai"), values(evaluated, "tall_voxels", f"{PREFIX}global_hd95")
    assert (tall[0]["ET"], tall[1]["ET"]) == (6.0, 3.0)  # mm, and voxels of 2 mm
    elsewhere = values(evaluated, "elsewhere", "hd95_monai"), values(evaluated, "elsewhere", f"{PREFIX}global_hd95")
    assert (elsewhere[0]["ET"], elsewhere[1]["ET"]) == (17.0, 373.0)
    empty = values(evaluated, "prediction_empty", "hd95_brats"), values(evaluated, "prediction_empty", f"{PREFIX}global_hd95")
    assert (empty[0]["ET"], empty[1]["ET"]) == (374.0, 373.0)
    missed = values(evaluated, "one_missed", "hd95_monai"), values(evaluated, "one_missed", f"{PREFIX}global_hd95")
    assert missed[1]["ET"] < missed[0]["ET"]  # the larger direction alone has the larger percentile
    for case in ("equal", "joined", "phantom"):
        ours, theirs = values(evaluated, case, "hd95_monai"), values(evaluated, case, f"{PREFIX}global_hd95")
        assert ours == pytest.approx(theirs), case


def test_lesions_are_neither_merged_by_dilation_nor_averaged_with_missed_ones(evaluated):
    joined = "joined"  # two lesions, two voxels apart, and one component that covers both
    assert values(evaluated, joined, "lesions")["ET"] == 1 and values(evaluated, joined, "lesion_dice")["ET"] == pytest.approx(
        12 / 13
    )
    counts = [values(evaluated, joined, f"{PREFIX}all_instance_{kind}")["ET"] for kind in ("tp", "fp", "fn")]
    assert counts == [1, 0, 1] and values(evaluated, joined, f"{PREFIX}lesionwise_dsc_mean")["ET"] == pytest.approx(0.6)
    missed = (
        values(evaluated, "one_missed", "lesion_dice")["ET"],
        values(evaluated, "one_missed", f"{PREFIX}lesionwise_dsc_mean")["ET"],
    )
    # Ours averages over a found, a missed and a false lesion, theirs over the found lesion only.
    assert missed == (pytest.approx(10 / 11 / 3), pytest.approx(10 / 11))
    small = (
        values(evaluated, "prediction_empty", "lesion_dice")["ET"],
        values(evaluated, "prediction_empty", f"{PREFIX}global_dsc")["ET"],
    )
    assert small == (1.0, 0.0)  # lesions up to 50 mm³ do not count in ours


def test_a_case_that_the_program_does_not_score_is_reported_with_its_reason(tmp_path, capsys):
    predictions, references = recorded.write(tmp_path)
    summary = json.loads((recorded.RECORDED / "summary.json").read_text())
    summary["metrics"][0] = {"subject_name": "00000-000.nii.gz", "error": "Size Mismatch\nand a table"}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    environment = recorded.stand_in(tmp_path / "env", summary=tmp_path / "summary.json")
    assert run(predictions, references, "--task", "brats", "--scorer", "brats2026", "--scorer-environment", environment) == 1
    assert "both_empty: NOT SCORED by the program of BraTS 2026: Size Mismatch" in capsys.readouterr().err
    assert scores(predictions)["brats2026"]["failed"] == {"both_empty": "Size Mismatch"}


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        ("ped", "the ranking ped of BraTS 2026 expects TC in the labels 1, 2, 3, but in this task TC has 1, 3"),
        ("gli", "ended with exit code 3"),
    ],
)
def test_contradicting_labels_and_a_failing_program_are_reported_in_one_sentence(tmp_path, capsys, ranking, message):
    predictions, references = recorded.write(tmp_path)
    environment = recorded.stand_in(tmp_path / "env", exit_code=3)
    options = ("--scorer", "brats2026", "--scorer-environment", environment, "--scorer-ranking", ranking)
    assert run(predictions, references, "--task", "brats", *options) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert ranking == "ped" or "the last line" in error
    assert not (predictions / "scores.json").exists()


def test_a_missing_program_names_the_commands_that_install_it(tmp_path, capsys):
    predictions, references = recorded.write(tmp_path)
    assert run(predictions, references, "--task", "brats", "--scorer", "brats2026", "--scorer-environment", tmp_path) == 2
    assert f"pip install brats-evaluation=={VERSION}" in capsys.readouterr().err
    assert run(predictions, references, "--task", "brats", "--scorer-ranking", "mets") == 2
    assert "--scorer brats2026" in capsys.readouterr().err


def test_other_labels_count_as_background_and_are_reported(tmp_path):
    _, references = recorded.write(tmp_path)
    ref = read_labels(references / "equal.nii.gz")
    pred = ref.array.copy()
    pred[0, 0, 0] = 9
    with Challenge("gli", recorded.stand_in(tmp_path / "env")) as challenge:
        notes = challenge.add("equal", pred, ref, Task.brats(), ignore=2)
        written = np.asarray(nib.load(challenge._root / "prediction/00000-000.nii.gz").dataobj)
    assert notes == ["label 9 of the prediction is unknown to the program of BraTS 2026 and counts as background in its scores"]
    assert set(np.unique(written)) == {0, 1, 3}  # 2 is ignored, and 4 is the enhancing tumour
    assert not challenge._root.exists()


def test_an_unexpected_table_names_the_expected_version(tmp_path):
    (tmp_path / "summary.json").write_text("[]")
    challenge = Challenge("gli", recorded.stand_in(tmp_path / "env", summary=tmp_path / "summary.json"))
    with challenge, pytest.raises(InputError, match=rf"version {re.escape(VERSION)}"):
        challenge.run()


def test_every_metric_of_both_kinds_of_table_has_a_meaning():
    columns = next(csv.reader((recorded.RECORDED / "table.csv").open()))
    metrics = {column.rpartition("_")[0] for column in columns[1:]} | {"small_instance_fp", "large_instance_f1"}
    for ranking in ("gli", "mets"):
        assert all(" " in convention(metric, ranking).removeprefix("BraTS 2026: ") for metric in metrics)
        assert not [m for m in metrics if convention(m, ranking) == f"BraTS 2026: {m.replace('_', ' ')}"]


@pytest.mark.long
def test_the_program_itself_gives_the_recorded_tables(tmp_path):
    environment = Path(os.environ.get("BRATS2026_ENVIRONMENT", tmp_path / "brats2026"))
    if not environment.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        installed = subprocess.run([environment / "bin/pip", "install", "-q", f"brats-evaluation=={VERSION}", "panoptica==2.1.7"])
        if installed.returncode:
            pytest.skip("brats-evaluation cannot be installed here")
    predictions, references = recorded.write(tmp_path)
    options = ("--task", "brats", "--scorer", "brats2026", "--scorer-environment")
    assert run(predictions, references, *options, environment, "--out", tmp_path / "real") == 0
    assert run(predictions, references, *options, recorded.stand_in(tmp_path / "env"), "--out", tmp_path / "recorded") == 0
    real, recorded_scores = scores(tmp_path / "real"), scores(tmp_path / "recorded")
    assert real["brats2026"]["program"].startswith(f"brats-evaluation {VERSION}, panoptica")
    assert real["brats2026"]["cases"] == recorded_scores["brats2026"]["cases"]
