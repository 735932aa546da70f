"""Runs of the trainer on a small phantom: their results, how they stop and continue, what they refuse, and how their networks are used."""

import csv
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from helpers.runner import bytes_of
from helpers.small_network import forget, put_in_place

from swinunetr_jax import InputError, Task, cli, open_checkpoint
from swinunetr_jax.data.augment.transforms import RandomFlip
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.inference.prepare import normalized
from swinunetr_jax.losses import Loss
from swinunetr_jax.training import (
    Augment,
    Init,
    Network,
    Optim,
    Phantom,
    Recipe,
    Validation,
    checkpoints,
    command,
    description,
    loop,
    step,
)
from swinunetr_jax.training.data import Cases, batches, collect_cases, grid_notes
from swinunetr_jax.training.folds import train_folds
from swinunetr_jax.training.lock import locked
from swinunetr_jax.training.log import Log, best_validation, read_rows
from swinunetr_jax.training.loop import Stopped, train
from swinunetr_jax.training.objective import Supervised
from swinunetr_jax.training.validation import Scores, can_crop, full_grid
from swinunetr_jax.weights.arrays import write_arrays
from swinunetr_jax.weights.params import flatten

STEPS = 4
CACHE = {"jax_compilation_cache_dir": None, "jax_enable_compilation_cache": True}


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Replaces Swin UNETR by a small network, except in the tests of `whole_run`, and draws no pictures."""
    if "whole_run" not in request.fixturenames:
        put_in_place(monkeypatch)
    monkeypatch.setattr(loop, "_draw", lambda *_: None)  # only the finished runs have pictures
    yield
    monkeypatch.undo()
    forget()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("phantom")


def recipe(data: Path, out: Path, **changes) -> Recipe:
    fields = {
        "kind": "phantom",
        "data": data,
        "cache": data.with_name(data.name + "-cache"),
        "out": out,
        "steps": STEPS,
        "folds": 2,
        "roi": (32, 32, 64),
        "channels": ("FLAIR", "T1ce", "T1", "T2"),
        "orientation": "LPS",
        "phantom": Phantom(cases=4, size=(48, 48, 32)),
        "network": Network(feature_size=12, depths=(1, 1, 1, 1)),
        "optim": Optim(lr=1e-3, ema=0.9),
        "validation": Validation(every=2, overlap=0.0),
    }
    return Recipe(**fields | changes)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """The folder of a finished run of the small network, with pictures."""
    with pytest.MonkeyPatch.context() as patch:
        put_in_place(patch)
        out = tmp_path_factory.mktemp("runs") / "finished"
        train(recipe(data, out))
    forget()
    return out


@pytest.fixture(scope="module")
def whole_run(data, tmp_path_factory) -> Path:
    """The folder of a finished run of Swin UNETR, with pictures."""
    forget()
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(recipe(data, out))
    return out


def validations_of(run: Path) -> list[dict]:
    return [row for row in read_rows(run) if row["kind"] == "validation"]


def stop_after(monkeypatch, number: int, which: signal.Signals = signal.SIGTERM) -> None:
    """Sends the signal while the numbers of step `number` are logged, when the next step has been dispatched."""
    original = Log.step

    def log_step(self, at, values):
        original(self, at, values)
        if at == number:
            signal.raise_signal(which)

    monkeypatch.setattr(Log, "step", log_step)


def test_a_run_writes_its_log_pictures_report_and_networks(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"run.json", "log.jsonl", "progress.png", "validation.png", "report.html", "best", "last", "checkpoints"} <= names
    rows = read_rows(finished)
    assert [row["step"] for row in rows if row["kind"] == "step"] == [1, 2, 3, 4]
    validations = [row for row in rows if row["kind"] == "validation"]
    assert [row["step"] for row in validations] == [2, 4] and set(validations[0]["dice"]) == {"TC", "WT", "ET"}
    for name in ("progress.png", "validation.png", "best.png", "worst.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")
    report = (finished / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 3 and 'src="http' not in report
    assert all(case in report for case in validations[0]["cases"])
    about = json.loads((finished / "run.json").read_text())
    assert sorted(about["cases"]["train"] + about["cases"]["validation"]) == [f"BraTS2021_{n:05d}" for n in range(4)]
    assert (finished / "last").resolve().name == "00000004"


def test_a_run_opens_as_its_best_network_and_last_as_its_newest(finished):
    best, last = open_checkpoint(finished), open_checkpoint(finished / "last")
    assert best.task == last.task and best.task.roi == (32, 32, 64) and best.task.channels[0] == "FLAIR"
    state = checkpoints.read_arrays(finished / "last" / checkpoints.STATE)
    name = "out.kernel"
    assert not np.array_equal(state[f"params.{name}"], last.params[name])  # the average is the network
    assert flatten(best.model()).keys() == best.params.keys()


class Error(Supervised):
    """The objective of a run whose validation measures 1 - Dice."""

    metric = "error"
    higher_is_better = False

    def validate(self, *arguments, **options):
        scores = super().validate(*arguments, **options)
        errors = [replace(case, dice={name: 1 - dice for name, dice in case.dice.items()}) for case in scores.cases]
        return replace(scores, cases=tuple(errors))


def test_the_best_validation_has_the_lowest_score_if_lower_is_better(data, tmp_path):
    def objective(task, config, rngs):
        return Error(Loss(), task)

    run = tmp_path / "run"
    train(recipe(data, run, objective=objective, validation=Validation(every=1, overlap=0.0)))
    validations = validations_of(run)
    scores = [row["score"] for row in validations]
    best = best_validation(validations)
    assert best["score"] == min(scores) != max(scores) and best["metric"] == "error"
    assert f"Best validation error <b>{min(scores):.4f}</b> at step {best['step']}" in (run / "report.html").read_text()
    for row in validations:  # as in the log of an earlier version
        row.pop("best", None)
    assert best_validation(validations)["score"] == max(scores)


def test_predict_and_evaluate_need_no_options(finished, data, tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["predict", "-i", str(data / "BraTS2021_00000"), "-o", str(tmp_path), "-m", str(finished)])
    assert done.value.code == 0
    with pytest.raises(SystemExit) as done:
        reference = data / "BraTS2021_00000" / "BraTS2021_00000_seg.nii.gz"
        cli.main(["evaluate", str(tmp_path / "BraTS2021_00000.nii.gz"), str(reference)])
    assert done.value.code == 0
    assert "TC" in capsys.readouterr().out


@pytest.mark.long
def test_swin_unetr_is_trained_and_a_stopped_run_continues_to_the_same_bytes(whole_run, data, tmp_path, monkeypatch):
    assert {"progress.png", "validation.png", "report.html", "best", "last"} <= {path.name for path in whole_run.iterdir()}
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="SIGTERM"):
        stop_after(patch, 1)
        train(recipe(data, tmp_path / "run"))
    train(recipe(data, tmp_path / "run"), resume=True)
    assert bytes_of(tmp_path / "run") == bytes_of(whole_run)


@pytest.mark.parametrize(("signalled", "saved"), [(1, 2), (2, 2), (3, 4)], ids=["in a step", "before validation", "at the end"])
def test_a_stopped_run_continues_to_the_same_bytes(signalled, saved, finished, data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="SIGTERM"):
        stop_after(patch, signalled)
        train(recipe(data, tmp_path / "run"))
    assert (tmp_path / "run" / "last").resolve().name == f"{saved:08d}"
    train(recipe(data, tmp_path / "run"), resume=True)
    assert bytes_of(tmp_path / "run") == bytes_of(finished)
    theirs, ours = read_rows(finished), read_rows(tmp_path / "run")
    assert [(row["kind"], row["step"], row.get("loss"), row.get("score")) for row in ours] == [
        (row["kind"], row["step"], row.get("loss"), row.get("score")) for row in theirs
    ]


def test_a_validation_that_a_signal_interrupts_is_repeated(finished, data, tmp_path, monkeypatch):
    original, run = Segmenter.run, tmp_path / "run"

    def interrupted(self, array, *, progress, **options):
        signal.raise_signal(signal.SIGINT)
        return original(self, array, progress=progress, **options)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match="SIGINT"):
        patch.setattr(Segmenter, "run", interrupted)
        train(recipe(data, run))
    assert (run / "last").resolve().name == "00000002" and not (run / "best").exists()
    train(recipe(data, run), resume=True)
    assert bytes_of(run) == bytes_of(finished)
    assert [row["score"] for row in validations_of(run)] == [row["score"] for row in validations_of(finished)]


def test_a_state_that_cannot_be_written_is_an_error_and_the_run_resumes_from_the_one_before(
    finished, data, tmp_path, monkeypatch
):
    run, calls = tmp_path / "run", []

    def full(folder, arrays):
        calls.append(folder)
        if len(calls) == 2:
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device")  # the text of Orbax
        write_arrays(folder, arrays)

    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"00000004 cannot be written .*No space left"):
        patch.setattr(checkpoints, "write_arrays", full)
        train(recipe(data, run))
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["00000002"]
    train(recipe(data, run), resume=True)
    assert bytes_of(run) == bytes_of(finished)


def test_a_run_may_start_from_any_checkpoint_and_resume_without_it(finished, data, tmp_path, monkeypatch):
    source, run = tmp_path / "start", tmp_path / "run"
    shutil.copytree(finished / "best", source)
    started = recipe(data, run, init=Init(checkpoint=source))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_after(patch, 1)
        train(started)
    first = read_rows(run)[0]["loss"]
    assert first < read_rows(finished)[0]["loss"]  # because its weights were trained before
    shutil.rmtree(source)
    resumed = description.read_recipe(run)
    assert resumed.init.checkpoint == source
    with pytest.raises(InputError, match=r"lr.*0\.001.*choose another --out"):
        train(replace(started, optim=Optim(lr=1e-4, ema=0.9), init=resumed.init), resume=True)
    train(resumed, resume=True)
    assert (run / "last").resolve().name == "00000004"
    with pytest.raises(InputError, match="takes FLAIR, T1ce, T1, T2, the data come as T1"):
        other = recipe(data, tmp_path / "other", channels=("T1", "T1ce", "T2", "FLAIR"), init=Init(checkpoint=finished))
        train(other)
    with pytest.raises(InputError, match="which holds one network: leave out `key`"):
        train(recipe(data, tmp_path / "other", init=Init(checkpoint=finished / "best", key="model_ema")))


def test_patience_ends_a_run_that_does_not_improve(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Scores, "mean", property(lambda self: 0.5))
    assert train(recipe(data, tmp_path / "run", validation=Validation(every=1, overlap=0.0, patience=1))) == 0.5
    assert [row["step"] for row in validations_of(tmp_path / "run")] == [1, 2]
    assert "no better score in 1 validations: stopped after step 2 of 4" in capsys.readouterr().out


def test_a_score_of_nan_is_never_the_best(data, tmp_path, monkeypatch, capsys):
    scores = iter([float("nan"), 0.5, float("nan"), 0.4])
    monkeypatch.setattr(Scores, "mean", property(lambda self: next(scores)))
    assert train(recipe(data, tmp_path / "run", validation=Validation(every=1, overlap=0.0))) == 0.5
    said = capsys.readouterr().out
    assert "Dice nan" in said and "best none so far" in said and "best 0.5000 at step 2" in said
    assert read_rows(tmp_path / "run")[-1]["step"] == 4


def test_a_damaged_state_is_renamed_and_the_run_resumes_from_the_one_before(finished, data, tmp_path, capsys):
    run = tmp_path / "run"
    train(recipe(data, run))
    victim = next(path for path in (run / "last" / checkpoints.STATE).rglob("*") if path.is_file() and path.stat().st_size > 999)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    train(recipe(data, run), resume=True)
    said = capsys.readouterr().out
    assert "damaged" in said and "damaged-00000004" in said and "continuing after step 2" in said
    assert bytes_of(run) == bytes_of(finished)


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_cases(data, tmp_path, monkeypatch):
    original, steps = step.Training.compile, []

    def with_a_broken_second_step(self, layout):
        run = original(self, layout)

        def one(state, *batch):
            steps.append(len(steps) + 1)
            broken = replace(state, params={name: value * np.nan for name, value in state.params.items()})
            return run(broken if steps[-1] == 2 else state, *batch)

        return one

    monkeypatch.setattr(step.Training, "compile", with_a_broken_second_step)
    with pytest.raises(InputError, match=r"step 2: the loss is .*BraTS2021_0000\d.*--optim.clip"):
        train(recipe(data, tmp_path / "run", validation=Validation(every=4), save_every=1))
    saved = checkpoints.read_checkpoint(tmp_path / "run" / "last")  # it refuses weights that are not finite
    assert all(np.isfinite(value).all() for value in saved.params.values())


def test_all_folds_give_a_table_and_an_ensemble(data, tmp_path, capsys):
    out = tmp_path / "cv"
    train_folds(recipe(data, out, fold="all", validation=Validation(every=STEPS, overlap=0.0)))
    with open(out / "out_of_fold.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [*(f"BraTS2021_{n:05d}" for n in range(4)), "mean"]
    assert {row["fold"] for row in rows[:-1]} == {"fold0", "fold1"}
    np.testing.assert_allclose(float(rows[-1]["TC"]), np.mean([float(row["TC"]) for row in rows[:-1]]), atol=1e-6)
    with pytest.raises(SystemExit) as done:
        cli.main(["predict", "-i", str(data / "BraTS2021_00000"), "-o", str(tmp_path / "p"), "-m", str(out)])
    assert done.value.code == 0
    assert len(json.loads((tmp_path / "p" / "predict.json").read_text())["settings"]["weights"]) == 2


# ---- data of other kinds


def dataset(root: Path, values: tuple[int, ...], modality: str | None = None, **lists) -> Path:
    """Writes a list of six tiny cases whose labels are `values`; with a modality, a dataset.json of the Decathlon that names the labels."""
    rng = np.random.default_rng(0)
    for number in range(6):
        for kind, array in (
            ("image", rng.normal(0, 300, (20, 40, 24)).astype(np.float32)),
            ("label", rng.choice(values, (20, 40, 24)).astype(np.uint8)),
        ):
            nib.save(nib.Nifti1Image(array, np.diag([2.0, 1, 1, 1])), root / f"{kind}{number}.nii.gz")
    entries = [{"image": f"image{n}.nii.gz", "label": f"label{n}.nii.gz"} for n in range(6)]
    described = {} if modality is None else {"modality": {"0": modality}, "labels": {str(v): f"organ {v}" for v in values}}
    path = root / "dataset.json"
    path.write_text(json.dumps(described | ({"training": entries} if not lists else {k: entries[v] for k, v in lists.items()})))
    return path


def test_labels_without_names_are_read_from_the_label_maps(tmp_path):
    cases = collect_cases(Recipe(kind="labels", data=dataset(tmp_path, (0, 1, 3)), folds=3), tmp_path / "run")
    assert [(output.name, output.value) for output in cases.task.outputs] == [("background", 0), ("label 1", 1), ("label 3", 3)]
    assert cases.task.roi == (32, 64, 32) and cases.in_channels == 1
    assert len(cases.train) == 4 and len(cases.validation) == 2


def test_ct_has_the_same_window_in_training_and_validation(tmp_path):
    asked = Recipe(kind="labels", data=dataset(tmp_path, (0, 2), "CT"), folds=3, batch=2, augment=Augment(flips=()))
    cases = collect_cases(asked, tmp_path / "run")
    assert (cases.task.intensity, cases.task.window) == ("window", (-175.0, 250.0))
    assert [output.name for output in cases.task.outputs] == ["background", "organ 2"]
    batch = next(batches(asked, cases))
    image, reference = full_grid(cases.validation[0])
    shown = normalized(image, cases.task)
    assert shown.min() == 0 and shown.max() == 1 and reference.shape == (20, 40, 24)
    assert batch["image"].min() >= -0.1 and batch["image"].max() <= 1.2  # at most a tenth brighter or darker
    assert 0.3 < batch["image"][batch["image"] > 0.01].mean() < 0.7
    assert not can_crop(cases.task)


def test_the_validation_list_of_the_data_set_is_used(tmp_path):
    listed = dataset(tmp_path, (0, 1), training=slice(0, 4), validation=slice(4, 6))
    cases = collect_cases(Recipe(kind="labels", data=listed, fold=None), tmp_path / "run")
    assert cases.names == {"train": [f"image{n}" for n in range(4)], "validation": ["image4", "image5"]}


def test_a_wrong_base_folder_is_one_sentence_for_all_cases(tmp_path):
    listed = dataset(tmp_path, (0, 1))
    for image in tmp_path.glob("image*.nii.gz"):
        image.unlink()
    with pytest.raises(InputError) as refused:
        collect_cases(Recipe(kind="labels", data=listed), tmp_path / "run")
    said = str(refused.value)
    assert said.count("does not exist") == 1 and "6 cases" in said and "image0" in said and "--base" in said


def two_kidneys(tmp_path: Path) -> Path:
    listed = dataset(tmp_path, (0, 1, 2), "MRI")
    values = json.loads(listed.read_text()) | {"labels": {"0": "background", "1": "kidney_left", "2": "kidney_right"}}
    listed.write_text(json.dumps(values))
    return listed


def drawn_axes(asked: Recipe, cases: Cases, monkeypatch) -> tuple[int, ...]:
    """Returns the axes along which samples of these cases are mirrored."""
    taken = []
    monkeypatch.setattr("swinunetr_jax.training.data.TrainingData", lambda _, transforms, **__: taken.extend(transforms))
    batches(asked, cases)
    return next(transform.axes for transform in taken if isinstance(transform, RandomFlip))


@pytest.mark.fault("1.0")
def test_samples_are_not_mirrored_along_an_axis_whose_sides_labels_name(tmp_path, capsys, monkeypatch):
    asked = Recipe(kind="labels", data=two_kidneys(tmp_path), folds=3, batch=2)
    cases = collect_cases(asked, tmp_path / "run")
    assert cases.flips == (1, 2)
    said = capsys.readouterr().out
    assert "samples are not mirrored along axis 0 (left-right: kidney_left, kidney_right)" in said and "--augment.flips" in said
    turned = collect_cases(replace(asked, orientation="SAL"), tmp_path / "run")
    assert turned.flips == (0, 1)
    chosen = collect_cases(replace(asked, augment=Augment(flips=(0,))), tmp_path / "run")
    assert chosen.flips == (0,)
    warned = capsys.readouterr().err
    assert "mirrored along axis 0 (left-right: kidney_left, kidney_right), as --augment.flips asks" in warned
    for mirrored in (cases, chosen):
        assert drawn_axes(asked, mirrored, monkeypatch) == mirrored.flips


@pytest.mark.fault("5.17")
def test_mixed_orientations_and_voxel_sizes_are_reported():
    ras, lps, thick = np.eye(4), np.diag([-1.0, -1, 1, 1]), np.diag([1.0, 1, 5, 1])
    task = Task.classes(2)
    assert grid_notes(task, [ras, ras]) == []
    (turned,) = grid_notes(task, [ras, ras, lps])
    assert "2 orientations, RAS (2), LPS (1)" in turned and "--orientation RAS" in turned and turned.endswith(".")
    (sized,) = grid_notes(task, [ras, thick, thick])
    assert "superior-inferior 1 to 5 mm" in sized and "left-right" not in sized and "--spacing 1 1 5" in sized
    sagittal = np.array([[0, 0, -1.0, 0], [2, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]])  # the same voxels in another order
    assert len(grid_notes(task, [sagittal, np.diag([1.0, 2, 3, 1])])) == 1
    assert grid_notes(Task.classes(2, spacing=(1.0, 1.0, 1.0), orientation="RAS"), [ras, ras]) == []


@pytest.mark.fault("3.7")
@pytest.mark.parametrize("home", ["none", "not writable", "a folder"])
def test_compiled_programs_are_stored_if_there_is_a_home_directory(home, tmp_path, monkeypatch, capsys):
    """A container may have no HOME and no such user, or a home directory that does not exist."""

    def nobody():
        raise RuntimeError("Could not determine home directory.")

    (tmp_path / "file").write_text("")
    places = {"none": nobody, "not writable": lambda: tmp_path / "file", "a folder": lambda: tmp_path}
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", places[home])
    updates = {}
    monkeypatch.setattr(command.jax, "config", SimpleNamespace(update=updates.__setitem__, **CACHE))
    command._keep_programs()
    said = capsys.readouterr().out
    if home == "a folder":
        assert updates == {"jax_compilation_cache_dir": str(tmp_path / ".cache" / "swinunetr_jax")} and not said
    else:
        assert not updates and "compiled programs are not kept for the next run" in said and said.count("\n") == 1


# ---- what is refused


def test_a_folder_with_a_run_is_not_overwritten(data, tmp_path):
    (tmp_path / "checkpoints" / "00000002").mkdir(parents=True)
    with pytest.raises(InputError, match=r"already holds a run: continue it with `--resume"):
        train(recipe(data, tmp_path))


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    with locked(tmp_path), pytest.raises(InputError, match="in use by another"), locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "there is no recipe nothing: take one of brats21, btcv, msd, phantom"),
        (["--resume", "nowhere"], "nowhere holds no run"),
        (["phantom", "--batch", "3", "--optim.accumulate", "2"], "must divide `batch` 3"),
        (["phantom", "--roi", "30", "32", "32"], "multiple of 32"),
        (["msd", "--data", "nowhere"], "nowhere: does not exist"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_keep_programs", lambda: None)
    with pytest.raises(SystemExit) as done:
        command.main(arguments)
    error = capsys.readouterr().err
    assert done.value.code == 2 and error.startswith("error: ") and said in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["phantom", "brats21", "msd", "btcv"])
def test_every_recipe_is_valid_and_the_same_after_json(name):
    shipped, resume, _ = command.parse([name, "--data", "somewhere", "--optim.lr", "8e-4", "--seed", "3"])
    assert not resume and shipped.optim.lr == 8e-4 and shipped.seed == 3
    assert Recipe.from_dict(json.loads(json.dumps(shipped.to_dict()))) == shipped
    config = shipped.network.config(4, 3)
    if shipped.roi:
        config.check_spatial(shipped.roi)
    assert "train" in __import__(f"swinunetr_jax.training.recipes.{name}", fromlist=["RECIPE"]).__doc__


def test_a_recipe_is_read_from_the_folder_of_its_run(tmp_path):
    made = recipe(tmp_path / "data", tmp_path / "elsewhere")
    (tmp_path / description.DESCRIPTION).write_text(json.dumps({"recipe": made.to_dict()}))
    assert description.read_recipe(tmp_path) == replace(made, out=tmp_path)
