"""The options of a run: old names of options and of fields in run.json, paths in groups, and which options may change."""

import json
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.refusals import refused
from helpers.training_runs import recipe

from swinunetr_jax import arguments, cli
from swinunetr_jax.commands.predict import Predict
from swinunetr_jax.training import Augment, Devices, Init, Recipe, bucket_store, command, description, resume, store
from swinunetr_jax.training.checkpoints import Progress
from swinunetr_jax.training.options import Options
from swinunetr_jax.training.saver import Saver
from swinunetr_jax.training.sources import SOURCES, source_of
from tools import pod_plan

OLD_NAME = "the old name will be removed in the next version"


@pytest.fixture
def run(tmp_path) -> Path:
    """Returns a folder with the run.json of a run that an earlier version started with two devices per volume."""
    values = Recipe(kind="phantom", steps=3).to_dict()
    values["devices"] = {"depth": 2, "pmap": False}
    (tmp_path / "run.json").write_text(json.dumps({"recipe": values}))
    return tmp_path


@pytest.mark.parametrize("words", [["--devices.depth", "2"], ["--devices.depth=2"]])
def test_the_old_name_of_spatial_shards_works_with_a_warning(words, capsys):
    recipe, _, _ = command.parse(["phantom", *words])
    assert recipe.devices == Devices(spatial_shards=2)
    assert capsys.readouterr().err == f"warning: --devices.depth is now --devices.spatial-shards; {OLD_NAME}.\n"
    assert command.parse(["phantom", "--devices.spatial-shards", "2"])[0].devices.spatial_shards == 2
    assert not capsys.readouterr().err


def test_a_stored_run_with_the_old_name_loads_and_is_resumed_with_either_name(run, capsys):
    assert description.read_recipe(run).devices == Devices(spatial_shards=2)
    for name, warned in (("--depth", True), ("--spatial-shards", False)):
        recipe, resumes, _ = command.parse(["--resume", str(run), name, "4"])
        assert resumes and recipe.devices.spatial_shards == 4
        assert (OLD_NAME in capsys.readouterr().err) == warned
        changes = resume.changed_options(run, description.read_description(run, description.Head), recipe, free=resume.FREE)
        assert changes == {"devices.spatial_shards": [2, 4]}
    with refused("--devices.spatial-shards cannot change when a run is resumed", "--spatial-shards"):
        command.parse(["--resume", str(run), "--devices.depth", "4"])


@pytest.mark.parametrize(("name", "warned"), [("--depth", True), ("--spatial-shards", False)])
def test_predict_takes_the_old_name_of_spatial_shards(name, warned, monkeypatch, capsys):
    shards = []
    monkeypatch.setattr(Predict, "run", lambda self: shards.append(self.spatial_shards) or 0)
    with pytest.raises(SystemExit) as exited:
        cli.main(["predict", "-i", "scan", "-o", "out", "-m", "run", name, "4"])
    assert exited.value.code == 0 and shards == [4] and (OLD_NAME in capsys.readouterr().err) == warned


def test_the_plan_for_a_pod_takes_the_old_name_of_spatial_shards(capsys):
    assert pod_plan.parse(["--depth", "8"]) == pod_plan.parse(["--spatial-shards", "8"]) == pod_plan.Options(spatial_shards=8)
    assert capsys.readouterr().err.count(OLD_NAME) == 1


def test_a_lone_surrogate_in_stored_options_is_refused(run):
    values = json.loads((run / "run.json").read_text())["recipe"]
    values["kind"] = "\ud800"
    with refused("the options of the run have unexpected values"):
        Options.from_dict(values)


def test_only_whole_names_are_renamed():
    assert arguments.rename_options(["--depths", "-d", "depth", "--depth-2"], {"--depth": "--spatial-shards"}) == [
        "--depths", "-d", "depth", "--depth-2",
    ]  # fmt: skip


def test_all_paths_become_absolute_also_in_groups_and_in_recipes_with_functions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("data", "base", "out", "splits", "cache")
    recipe = Recipe(kind="labels", **{name: Path(name) for name in names}, init=Init(checkpoint=Path("start")), loss=max)
    absolute = recipe.absolute()
    assert [getattr(absolute, name) for name in names] == [tmp_path / name for name in names]
    assert absolute.init.checkpoint == tmp_path / "start" and absolute.loss is max and absolute.augment == Augment()
    assert replace(absolute, **{name: Path(name) for name in names}, init=recipe.init) == recipe
    with refused("is an address of a remote store"):
        replace(recipe, init=Init(checkpoint=Path("az://b/x"))).check()


def test_the_functions_of_a_recipe_are_the_fields_that_are_not_options():
    plain = Recipe(kind="labels")
    assert plain.functions() == {} and plain.options() == Options(kind="labels")
    custom = replace(plain, augment=max, transforms=min)
    assert custom.functions() == {"augment": max, "transforms": min} and custom.options() == Options(kind="labels")
    with refused("--augment.pad-foreground has no effect here, since the recipe gives a function for `augment`"):
        custom.with_options(Options(kind="labels", augment=Augment(pad_foreground=False)))
    with refused("--augment.flips has no effect here, since the recipe gives a function for `augment`"):
        custom.check_effect(["steps", "augment.flips"])  # also if the value is the default
    custom.check_effect(["steps", "loss.kind"])
    assert plain.replaced_options() == {} and replace(plain, loss=max).replaced_options() == {"loss": ("loss.",)}


def test_the_options_that_may_change_are_those_of_resume():
    names = {f.name for f in fields(Options)} | {f"devices.{f.name}" for f in fields(Devices)}
    assert set(resume.FREE) <= names and {"devices.spatial_shards", "devices.pmap", "cache", "out"} <= set(resume.FREE)
    assert not set(resume.FREE) & set(resume.LENGTH)


def test_each_kind_has_a_source():
    assert {kind for kind, source in SOURCES.items() if source.is_synthetic} == {"phantom"}
    with refused("`kind` must be one of phantom, brats, labels, scans, got 'other'"):
        source_of(Options(kind="other"))
    with refused("the options of --init state how a checkpoint is used, but none was given"):
        Recipe(kind="phantom", init=Init(key="model_ema")).check()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"save_minutes": 0.0}, "`save_minutes` must be above 0, got 0.0"),
        ({"profile": (3, 0)}, "`profile` must have a step of at least 0 and a number of steps above 0, got (3, 0)"),
        ({"watchdog_minutes": -1.0}, "`watchdog_minutes` must be at least 0, got -1.0"),
    ],
)
def test_times_and_traces_that_no_run_can_have_are_refused(fields, message, tmp_path):
    with refused(message):
        recipe(tmp_path, tmp_path, **fields).check()


def test_the_time_between_saved_states_is_that_of_the_option_or_of_the_place_of_the_run(tmp_path, monkeypatch):
    """The run is in step 3, and its last state was saved 10 minutes ago."""

    def due(**fields):
        run = SimpleNamespace(recipe=recipe(tmp_path, tmp_path, **fields), store=store.Store(tmp_path), progress=Progress(3))
        return Saver(run, 2, time.monotonic() - 600).due()

    assert not due() and due(save_minutes=9.9) and not due(save_minutes=10.1) and due(save_every=3)
    monkeypatch.setattr(store.Store, "save_minutes", bucket_store.BucketStore.save_minutes)
    assert due() and not due(save_minutes=20.0)


def test_a_resumed_run_may_change_when_it_saves_what_it_traces_and_when_it_ends():
    assert {"save_minutes", "save_every", "profile", "watchdog_minutes"} <= set(resume.FREE)
