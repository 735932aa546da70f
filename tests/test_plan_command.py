"""`swinunetr plan`, `train --plan` and the recipe `strong`: the file of a plan, and what is refused. No step is compiled."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers.plans import REST_BYTES, linear_bytes

from swinunetr_jax import InputError, cli
from swinunetr_jax.data.discovery.formats import find_cases
from swinunetr_jax.training import Recipe, command, nnunet_augmentation
from swinunetr_jax.training.description import read_recipe, write_description
from swinunetr_jax.training.plan import compile as compile_module
from swinunetr_jax.training.plan.measure import measure
from swinunetr_jax.training.plan.memory import StepBytes
from swinunetr_jax.training.plan.plan_file import check_plan, read_plan, write_plan
from swinunetr_jax.training.plan.search import NetworkSize, Step


@pytest.fixture
def data(tmp_path) -> Path:
    """Returns the folder of a Decathlon data set with four small scans."""
    return write_data(tmp_path / "data", 4)


def write_data(root: Path, cases: int, value: int = 1, second: int = 2) -> Path:
    rng = np.random.default_rng(0)
    training = []
    for number in range(cases):
        label = np.zeros((12, 10, 9), np.uint8)
        label[7:9, 3:6, 2:5] = second
        label[3:6, 3:6, 2:5] = value
        for folder, array in (("imagesTr", rng.normal(100, 9, label.shape).astype(np.float32)), ("labelsTr", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([1, 1, 2, 1])), root / folder / f"case{number}.nii.gz")
        training.append({"image": f"./imagesTr/case{number}.nii.gz", "label": f"./labelsTr/case{number}.nii.gz"})
    content = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a", "2": "b"}, "training": training}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def not_compiled(monkeypatch) -> list[Step]:
    """Replaces the compiler by the linear model, and returns the list of the steps that would be compiled."""
    steps: list[Step] = []

    def measured(self, step: Step) -> StepBytes:
        steps.append(step)
        return StepBytes(REST_BYTES, linear_bytes(step) - REST_BYTES)

    monkeypatch.setattr(compile_module.StepCompiler, "_measured", measured)
    monkeypatch.setattr(compile_module.files, "user_cache", lambda: None)
    return steps


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as exited:
        cli.main(list(map(str, arguments)))
    return exited.value.code or 0


def test_a_plan_is_written_and_trains_with_it(data, tmp_path, not_compiled, capsys):
    out = tmp_path / "plan.json"
    assert run("plan", data, "--memory", 4, "--device", "cpu", "--out", out) == 0
    plan = read_plan(out)
    assert plan.options.roi == (64, 32, 32) and plan.options.network == NetworkSize(12) and plan.options.spacing == (1, 1, 2)
    assert plan.need.step_bytes <= plan.need.limit_bytes and "runner-up" in capsys.readouterr().out
    for words in (["msd", "--plan", str(out)], [str(out.with_suffix(".py"))]):
        recipe, resume, _ = command.parse([*words, "--data", str(data), "--batch", "7"])
        assert not resume and recipe.batch == 7 and recipe.roi == plan.options.roi and recipe.plan == out
        assert recipe.options().network.feature_size == 12 and recipe.options().network.use_v2
        assert recipe.optim.lr == 1e-3
        assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))).plan == out
    check_plan(out, find_cases(data), ())


def test_the_recipe_strong_makes_its_plan_and_keeps_it(data, tmp_path, not_compiled, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(command, "train_one", lambda recipe, resume: trained.append(recipe))
    monkeypatch.setattr(command.processes, "leave", lambda code: trained.append(code))
    options = ["--network.feature-size", "24", "--batch", "2"]  # 2 is also the default
    words = ["strong", "--data", str(data), "--out", str(tmp_path / "run"), *options]
    command.main(words)
    recipe, code = trained
    plan = read_plan(tmp_path / "run" / "plan.json")
    assert code == 0 and recipe.plan == tmp_path / "run" / "plan.json" and "runner-up" in capsys.readouterr().out
    assert recipe.roi == plan.options.roi == (64, 32, 32) and recipe.batch == plan.options.batch
    assert recipe.network.feature_size == 24 and recipe.network.use_v2 and recipe.network.dropout_path_rate == 0.1
    assert recipe.augment == nnunet_augmentation() and recipe.file.path.name == "strong.py"
    reasons = {decision.name: decision.reason for decision in plan.decisions}
    assert recipe.batch == 2 and all(reasons[name].startswith("given by the user") for name in ("network.feature_size", "batch"))
    write_description(tmp_path / "run", {"recipe": recipe.to_dict()}, recipe.file)
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert Path(stored["recipe_file"]).name == "strong.py"
    for recipe_file in (stored["recipe_file"], "/another/installation/swinunetr_jax/training/recipes/strong.py"):
        (tmp_path / "run" / "run.json").write_text(json.dumps(stored | {"recipe_file": recipe_file}))
        assert read_recipe(tmp_path / "run").augment == recipe.augment
    (tmp_path / "run" / "run.json").write_text(json.dumps(stored | {"recipe_file": "/mine/strong.py"}))
    with pytest.raises(InputError, match=r"the recipe /mine/strong\.py, which does not exist any more"):
        read_recipe(tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(json.dumps(stored))
    compiled = len(not_compiled)
    command.main(words)
    assert trained[2].plan == recipe.plan and len(not_compiled) == compiled  # the run has started and keeps its plan


def test_a_plan_is_for_one_data_set(data, tmp_path, not_compiled):
    out = tmp_path / "plan.json"
    assert run("plan", data, "--device", "cpu", "--out", out) == 0
    moved = data.rename(tmp_path / "moved")
    check_plan(out, find_cases(moved), ())
    other = write_data(tmp_path / "other", 4, value=2)
    with pytest.raises(InputError, match=r"plan\.json was made for another data set than .*other"):
        check_plan(out, find_cases(other), ())


def test_files_that_have_not_changed_are_not_read_again(data, monkeypatch):
    first = measure(find_cases(data))
    monkeypatch.setattr("swinunetr_jax.training.plan.measure.read_case", None)
    assert measure(find_cases(data), known=first) is first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "v99"], "there is no device v99: give cpu, gpu or tpu"),
        (["--device", "gpu"], "this machine has no gpu that JAX can use"),
        (["--memory", "0.1"], "no training step fits into 0.092 GiB"),
        (["--memory", "-3"], "--memory is -3, expected the memory of a device in GiB, above 0"),
        (["--roi", "30", "64", "64"], "multiple of 32"),
        (["--batch", "0"], "--batch is 0, expected at least 1"),
        (["--network.feature-size", "13"], "multiple of 12"),
        (["--recipe", "phantom"], "the recipe phantom makes its own data"),
        (["--out", "nowhere/plan.json"], "cannot be written"),
    ],
)
def test_mistakes_are_reported_in_one_sentence(options, message, data, tmp_path, not_compiled, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    device = [] if "--device" in options else ["--device", "cpu"]
    assert run("plan", data, *device, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_data_set_of_one_case_is_refused(tmp_path, not_compiled, capsys):
    assert run("plan", write_data(tmp_path / "one", 1), "--device", "cpu", "--out", tmp_path / "plan.json") == 2
    assert "there is one labelled case, expected at least two" in capsys.readouterr().err


def test_a_label_that_occurs_in_no_case_is_refused(tmp_path, not_compiled, capsys):
    data = write_data(tmp_path / "data", 4, second=0)
    assert run("plan", data, "--device", "cpu", "--out", tmp_path / "plan.json") == 2
    error = capsys.readouterr().err
    assert "some labels occur in no case: b (2); correct the label maps" in error and error.count("\n") == 1
    assert not not_compiled


def test_a_damaged_plan_is_refused(data, tmp_path, not_compiled):
    out = tmp_path / "plan.json"
    assert run("plan", data, "--device", "cpu", "--out", out) == 0
    plan = read_plan(out)
    facts = replace(plan.fingerprint.cases[0], shape=(99, 10, 9))
    write_plan(out, replace(plan, fingerprint=replace(plan.fingerprint, cases=(facts, *plan.fingerprint.cases[1:]))))
    with pytest.raises(InputError, match="its fingerprint has another digest"):
        read_plan(out)
    for text in ("{", json.dumps({"version": 1}), json.dumps({**dataclasses.asdict(plan), "version": 2})):
        out.write_text(text)
        with pytest.raises(InputError, match=r"plan\.json .*make the plan again with `swinunetr plan`"):
            command.parse(["msd", "--data", str(data), "--plan", str(out)])


# ---- compiled
