"""Training on prepared data has the same samples as on the scans, complete cases are kept, and damage is detected."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from helpers.prepared_data import organs, recipe_of
from helpers.runner import bytes_of
from helpers.small_network import forget, replace_swin_unetr

from swinunetr_jax import InputError, cli
from swinunetr_jax.commands.prepare import Prepare
from swinunetr_jax.data.discovery.formats import find_cases
from swinunetr_jax.data.phantom.dataset import write_phantom
from swinunetr_jax.training import Phantom, Recipe, loop
from swinunetr_jax.training.data import Cases, batches, collect_cases
from swinunetr_jax.training.prepare import prepare
from swinunetr_jax.training.validation import ScanGrid

SIZE = (32, 32, 32)


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    """A phantom of two cases."""
    folder = tmp_path_factory.mktemp("scans") / "data"
    write_phantom(folder, cases=2, size=SIZE)
    return folder


@pytest.fixture(scope="module")
def made(scans, tmp_path_factory) -> Path:
    """Returns the prepared phantom. Tests that change it make a copy."""
    place = tmp_path_factory.mktemp("prepared") / "place"
    prepare(recipe_of(scans), place)
    return place


@pytest.fixture
def place(made, tmp_path) -> Path:
    """Returns a copy of the prepared phantom."""
    return Path(shutil.copytree(made, tmp_path / "place"))


def first_batch(recipe: Recipe, cases: Cases) -> dict[str, np.ndarray]:
    pipeline = batches(recipe, cases)
    batch = next(pipeline)
    pipeline.close()
    return batch


def check_same(raw: Recipe, place: Path, run: Path) -> tuple[Cases, Cases]:
    """Checks that cases, task and samples from the place are those from the scans, and returns the cases of both."""
    prepared = replace(raw, data=place, base=None)
    theirs, ours = (collect_cases(recipe, run) for recipe in (raw, prepared))
    assert ours.names == theirs.names and ours.task == theirs.task and ours.in_channels == theirs.in_channels
    batch, expected = first_batch(prepared, ours), first_batch(raw, theirs)
    assert batch.keys() == expected.keys()
    for name, array in batch.items():
        np.testing.assert_array_equal(array, expected[name])
    return ours, theirs


def contents(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir()}


def test_prepared_data_have_the_samples_of_the_scans(scans, made, tmp_path):
    check_same(recipe_of(scans), made, tmp_path / "run")
    assert sorted(path.suffix for path in made.iterdir()) == [".json"] * 3 + [".npy"] * 6
    assert str(scans) not in (made / "prepared.json").read_text()


def test_resampled_data_are_scored_on_the_grids_of_the_scans_without_the_scans(tmp_path):
    recipe = recipe_of(organs(tmp_path / "scans"), kind="labels", channels=(), orientation="RAS", spacing=(2.0, 2.0, 2.0))
    prepare(recipe, tmp_path / "place")
    ours, theirs = check_same(recipe, tmp_path / "place", tmp_path / "run")
    shutil.rmtree(tmp_path / "scans")
    for case, raw in zip(ours.validation, theirs.validation, strict=True):
        grid = ScanGrid.of(case, ours.task)
        assert grid.shape == (20, 24, 22) and case.shape == raw.shape != grid.shape
        np.testing.assert_array_equal(grid.affine, np.diag([2.0, 1, 1.5, 1]))
        assert set(np.unique(grid.reference(case))) == {0, 1}


@pytest.mark.long
def test_folds_and_lists_of_the_data_set_are_kept(tmp_path):
    scans = organs(tmp_path / "scans", training=slice(0, 4), validation=slice(4, 6))
    splits = [
        {"train": ["image0", "image1"], "val": ["image2", "image3"]},
        {"train": ["image2", "image3"], "val": ["image0", "image1"]},
    ]
    (scans / "splits_final.json").write_text(json.dumps(splits))
    recipe = recipe_of(scans, kind="labels", channels=(), orientation=None)
    prepare(recipe, tmp_path / "place")
    by_fold, _ = check_same(replace(recipe, fold=1), tmp_path / "place", tmp_path / "run")
    assert by_fold.names == {"train": ["image2", "image3"], "validation": ["image0", "image1"]}
    by_list, _ = check_same(replace(recipe, fold=None), tmp_path / "place", tmp_path / "run")
    assert by_list.names == {"train": [f"image{n}" for n in range(4)], "validation": ["image4", "image5"]}
    (scans / "splits_final.json").unlink()
    prepare(recipe, tmp_path / "place")
    assert not (tmp_path / "place" / "splits_final.json").exists()


@pytest.mark.long
def test_each_channel_is_a_case_of_pre_training(scans, tmp_path):
    recipe = Recipe(kind="scans", data=scans, folds=2, batch=2, roi=(32, 32, 64))
    prepare(recipe, tmp_path / "place")
    ours, _ = check_same(recipe, tmp_path / "place", tmp_path / "run")
    assert len(ours.train) == len(ours.validation) == 4 and ours.train[0].name.startswith("BraTS2021_0000")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"orientation": "RAS"},
            "was prepared with --orientation LPS, and this training has --orientation RAS: give the options",
        ),
        ({"cache_dtype": "float16"}, "with --cache-dtype float32, and this training has --cache-dtype float16"),
        ({"spacing": (1.0, 1.0, 2.0)}, "with --spacing None, and this training has --spacing 1 1 2"),
        ({"channels": ("T1",)}, "with --channels FLAIR T1ce T1 T2, and this training has --channels T1:"),
        ({"kind": "labels"}, "was prepared for a recipe of the kind `brats`, and this one is of the kind `labels`"),
        ({"kind": "phantom"}, "holds other data, and this recipe makes its own data"),
    ],
)
def test_other_options_than_those_of_the_data_are_refused(changes, message, made, tmp_path):
    with pytest.raises(InputError) as refused:
        collect_cases(replace(recipe_of(made), **changes), tmp_path / "run")
    assert message in str(refused.value) and str(made) in str(refused.value)


@pytest.mark.long
def test_the_window_of_a_ct_may_be_stated(tmp_path):
    scans = organs(tmp_path / "scans")
    (scans / "dataset.json").write_text((scans / "dataset.json").read_text().replace("MRI", "CT"))
    recipe = recipe_of(scans, kind="labels", channels=(), orientation=None)
    prepare(recipe, tmp_path / "place")
    check_same(recipe, tmp_path / "place", tmp_path / "run")
    at_place = replace(recipe, data=tmp_path / "place")
    assert collect_cases(replace(at_place, window=(-175.0, 250.0)), tmp_path / "run").task.window == (-175.0, 250.0)
    with pytest.raises(InputError, match="with --window None, and this training has --window 0 100"):
        collect_cases(replace(at_place, window=(0.0, 100.0)), tmp_path / "run")


def test_complete_cases_are_not_prepared_again(scans, place, names_read, capsys):
    before = contents(place)
    prepare(recipe_of(scans), place)
    assert names_read == [] and contents(place) == before
    assert "2 prepared cases, 2 of which were there already" in capsys.readouterr().out
    next(place.glob("BraTS2021_00000-*.json")).unlink()
    image = next(place.glob("BraTS2021_00001-*-image.npy"))
    image.write_bytes(image.read_bytes()[:-1])
    (place / "prepared.json").unlink()
    prepare(recipe_of(scans), place)
    assert sorted(names_read) == ["BraTS2021_00000", "BraTS2021_00001"] and contents(place) == before


def test_two_commands_at_once_write_the_same_bytes(scans, made, tmp_path):
    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(prepare, recipe_of(scans), tmp_path / "place") for _ in range(2)]:
            done.result()
    assert contents(tmp_path / "place") == contents(made)


def test_changed_scans_are_prepared_again(scans, place, names_read, tmp_path):
    changed = Path(shutil.copytree(scans, tmp_path / "changed"))
    path = changed / "BraTS2021_00001" / "BraTS2021_00001_seg.nii.gz"
    labels = nib.load(path)
    array = np.asarray(labels.dataobj).copy()
    array[array == 1] = 2
    nib.save(nib.Nifti1Image(array, labels.affine), path)
    prepare(recipe_of(changed), place)
    assert names_read == ["BraTS2021_00001"]
    check_same(recipe_of(changed), place, tmp_path / "run")


def test_damage_is_found_at_the_start(made, place, tmp_path):
    image = next(place.glob("*-image.npy"))
    data = bytearray(image.read_bytes())
    data[-1] ^= 1
    image.write_bytes(data)
    with pytest.raises(InputError, match=r"-image\.npy is missing or damaged .* remove it and run `swinunetr prepare` again"):
        collect_cases(recipe_of(place), tmp_path / "run")
    for name, damage in {
        "prepared.json": "is damaged, because its content does not match its digest",
        "BraTS": "damaged",
    }.items():
        broken = Path(shutil.copytree(made, tmp_path / f"broken {name}"))
        path = next(broken.glob(f"{name}*.json" if name == "BraTS" else name))
        path.write_text(path.read_text().replace("FLAIR", "T1ce", 1))
        with pytest.raises(InputError, match=damage):
            collect_cases(recipe_of(broken), tmp_path / "run")


def test_faulty_cases_are_named_and_nothing_counts_as_complete(scans, tmp_path, capsys):
    faulty = Path(shutil.copytree(scans, tmp_path / "faulty"))
    for number in range(2):
        path = faulty / f"BraTS2021_0000{number}" / f"BraTS2021_0000{number}_t1.nii.gz"
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SystemExit) as done:
        cli.main(["prepare", str(faulty), str(tmp_path / "place"), "--recipe", "brats21"])
    error = capsys.readouterr().err
    assert done.value.code == 2 and "2 of 2 cases cannot be used for training" in error
    assert "BraTS2021_00000" in error and "BraTS2021_00001" in error
    assert f"All faults of the data set: swinunetr validate {faulty}" in error
    assert not list((tmp_path / "place").glob("*.json"))


def test_the_command_prints_how_to_train_with_the_data(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SWINUNETR_SCRATCH", str(tmp_path / "scratch"))
    options = ["--phantom.cases", "2", "--phantom.size", "32", "32", "32"]
    with pytest.raises(SystemExit) as done:
        cli.main(["prepare", "phantom", str(tmp_path / "place"), *options])
    assert done.value.code == 0
    assert f"train with it:  swinunetr train phantom --data {tmp_path / 'place'} {' '.join(options)}" in capsys.readouterr().out
    assert not list((tmp_path / "scratch").rglob("*.nii.gz"))
    phantom = recipe_of(tmp_path / "place", kind="phantom", phantom=Phantom(cases=2, size=SIZE))
    assert len(collect_cases(phantom, tmp_path / "run").train) == 1
    with pytest.raises(InputError, match=r"with --phantom\.cases 2, and this training has --phantom\.cases 3"):
        collect_cases(replace(phantom, phantom=Phantom(cases=3, size=SIZE)), tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "gs://bucket/scans", "place"], "gs://bucket/scans is an address of a remote store"),
        (["validate", "gs://bucket/scans"], "only training runs, weights and data of `swinunetr prepare` can be in a bucket"),
        (["prepare", "MADE", "place"], "holds prepared cases already, expected scans"),
        (["prepare", "SCANS", "MADE", "--recipe", "brats21"], "this command has --cache-dtype float16"),
        (["prepare", "SCANS", "imagesTr", "--recipe", "brats21"], "give a place with another name"),
        (["prepare", "SCANS", "place", "--phantom.cases", "2"], "--phantom.cases is for the synthetic heads"),
        (["plan", "MADE"], "holds prepared cases, which only `swinunetr train --data` reads"),
    ],
)
def test_mistakes_are_reported_in_one_sentence(arguments, message, scans, made, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = {"MADE": str(made), "SCANS": str(scans)}
    with pytest.raises(SystemExit) as done:
        cli.main([words.get(word, word) for word in arguments])
    error = capsys.readouterr().err
    assert done.value.code == 2 and message in error and error.count("\n") == 1


def test_a_plan_needs_scans_and_another_data_set_another_place(made, tmp_path):
    from swinunetr_jax.training.plan.automatic import plan_of_run

    with pytest.raises(InputError, match="a plan is made from the scans: `swinunetr plan DATA`"):
        plan_of_run(recipe_of(made, kind="brats", out=tmp_path / "run"), [])
    scans = organs(tmp_path / "scans")
    recipe = recipe_of(scans, kind="labels", channels=(), orientation=None)
    prepare(recipe, tmp_path / "place")
    for path in [*scans.glob("*.nii.gz")]:
        path.rename(path.with_name(path.name.replace("image", "other")))
    (scans / "dataset.json").write_text(
        (scans / "dataset.json").read_text().replace('"image', '"other').replace('"other"', '"image"')
    )
    assert find_cases(scans).cases[0].name == "other0"
    with pytest.raises(InputError, match=r"holds the cases of another data set \(image0, .*\): give another place"):
        prepare(recipe, tmp_path / "place")


@pytest.mark.long
def test_a_training_has_the_states_of_one_on_the_scans(scans, made, tmp_path, monkeypatch):
    replace_swin_unetr(monkeypatch)
    monkeypatch.setattr(loop, "_draw", lambda *_: None)
    for name, data in {"raw": scans, "prepared": made}.items():
        loop.train(replace(recipe_of(data), out=tmp_path / name))
    prepared, raw = bytes_of(tmp_path / "prepared"), bytes_of(tmp_path / "raw")
    monkeypatch.undo()
    forget()
    assert prepared == raw


def test_the_options_of_a_plan_are_used(tmp_path, monkeypatch):
    """They are those of --plan, or of a recipe's own plan, as in a training."""
    planned = SimpleNamespace(options=SimpleNamespace(spacing=(1.0, 1.0, 2.0), orientation="RAS", window=None))
    monkeypatch.setattr(
        "swinunetr_jax.training.plan.plan_file.read_plan", lambda path: planned if path.name == "plan.json" else None
    )
    file = tmp_path / "own.py"
    file.write_text(
        "from dataclasses import replace\nfrom pathlib import Path\nfrom swinunetr_jax.training.recipes.msd import RECIPE as BASE\n"
        "RECIPE = replace(BASE, plan=Path(__file__).with_name('plan.json'))\n"
    )
    for changes in ({"plan": Path("plan.json")}, {"recipe": str(file)}):
        command = Prepare(Path("scans"), Path("place"), **changes)
        recipe = command._recipe()[1]
        assert (recipe.spacing, recipe.orientation, recipe.data) == ((1.0, 1.0, 2.0), "RAS", Path("scans"))
        assert replace(command, spacing=(3.0, 3.0, 3.0))._recipe()[1].spacing == (3.0, 3.0, 3.0)
    shown = Prepare(Path("scans"), Path("place"), plan=Path("plan.json"), cache_dtype="float16")._training("msd")
    assert shown == "swinunetr train msd --data place --plan plan.json --cache-dtype float16"
