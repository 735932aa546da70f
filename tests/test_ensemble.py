"""`-m RUN` opens the networks of all finished folds, and warns if the cross-validation is not finished."""

import json

import pytest
from helpers.refusals import refused

from swinunetr_jax import cli
from swinunetr_jax.weights import load
from swinunetr_jax.weights.checkpoint import DESCRIPTION
from swinunetr_jax.weights.run_folder import ensemble_paths, missing_folds


def run_with(folder, *folds, without_network=(), described=None, finished=False):
    """Creates a cross-validation whose `folds` have a network; `described` are the folds in its run.json, if it has one."""
    for name in (*folds, *without_network):
        (folder / name / "best").mkdir(parents=True)
    for name in folds:
        (folder / name / "best" / DESCRIPTION).write_text("{}")
    if described is not None:
        (folder / "run.json").write_text(json.dumps({"recipe": {}, "folds": described}))
    if finished:
        (folder / "out_of_fold.json").write_text("{}")
    return folder


@pytest.mark.fault("1.16")
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"folds": ("fold0", "fold2"), "described": [0, 1, 2, 3, 4]},
            "fold0, fold2 are used, and fold1, fold3, fold4 are missing.",
        ),
        ({"folds": ("fold0",), "described": [0, 1]}, "fold0 is used, and fold1 is missing."),
        ({"folds": ("fold0",), "without_network": ("fold1",)}, "fold0 is used, and fold1 is missing."),
        ({"folds": ("fold0", "fold1"), "described": [0, 1]}, "fold0, fold1 are used, and there is no out_of_fold.json yet"),
        ({"folds": ("fold0", "fold1")}, "fold0, fold1 are used, and there is no out_of_fold.json yet"),
        ({"folds": ("fold0", "fold2"), "described": [0, 1, 2], "finished": True}, "fold0, fold2 are used, and fold1 is missing."),
        ({"folds": ("fold3", "fold11"), "described": [3, 11], "finished": True}, None),
        ({"folds": ("fold0", "fold1"), "finished": True}, None),  # as an earlier version wrote it, without folds in run.json
    ],
)
def test_an_unfinished_cross_validation_says_which_folds_are_missing(tmp_path, monkeypatch, capsys, fields, sentence):
    fields = dict(fields)
    folds = fields.pop("folds")
    folder = run_with(tmp_path / "cv", *folds, **fields)
    assert ensemble_paths(folder) == tuple(folder / name for name in folds)
    warning = missing_folds(folder)
    assert (
        warning is None
        if sentence is None
        else f"{folder} is a cross-validation that is not finished: {sentence}"[:-1] in warning
    )

    def stop(*_, **__):
        raise load.InputError("the rest needs a network.")

    monkeypatch.setattr(load, "open_checkpoint", stop)
    with pytest.raises(SystemExit):
        cli.main(["predict", "-i", str(tmp_path), "-o", str(tmp_path / "out"), "-m", str(folder)])
    printed = capsys.readouterr().err
    assert ("not finished" in printed) == (sentence is not None) and (sentence is None or sentence[:-1] in printed)


def test_a_single_network_is_not_a_cross_validation(tmp_path):
    single = run_with(tmp_path, ".")
    assert ensemble_paths(single) == (single,) and missing_folds(single) is None
    assert ensemble_paths(tmp_path / "net.pt") == (tmp_path / "net.pt",) and missing_folds(tmp_path / "net.pt") is None


@pytest.mark.parametrize("text", ["{", "[]", '{"folds": 3}', '{"folds": ["a"]}', "[" * 100_000])
def test_a_damaged_description_is_refused_in_one_sentence(tmp_path, text):
    folder = run_with(tmp_path, "fold0")
    (folder / "run.json").write_text(text)
    with refused("run.json", "restore it, or name the folds one by one"):
        missing_folds(folder)
