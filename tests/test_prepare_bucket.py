"""Prepared data sets and caches in a bucket, which every machine copies. A scratch folder stands for a machine."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.buckets import Bucket
from helpers.prepared_data import recipe_of
from helpers.refusals import refused
from helpers.runner import OPTIONS, losses
from helpers.training_runs import recipe

from swinunetr_jax import InputError
from swinunetr_jax.buckets import scratch, scratch_folder
from swinunetr_jax.data.phantom.dataset import write_phantom
from swinunetr_jax.training import Phantom
from swinunetr_jax.training.data import Cases, collect_cases
from swinunetr_jax.training.prepare import prepare
from swinunetr_jax.training.sources import source_of

pytestmark = pytest.mark.long
SIZE = (32, 32, 32)


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scans") / "data"
    write_phantom(folder, cases=2, size=SIZE)
    return folder


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Callable[[str], Path]:
    """Returns a function that makes this process use the scratch folder of a machine, and returns the folder of its copies."""

    def use(name: str) -> Path:
        monkeypatch.setenv(scratch.VARIABLE, str(tmp_path / name))
        return tmp_path / name / "shared"

    return use


def arrays(cases: Cases) -> list[np.ndarray]:
    return [array for case in (*cases.train, *cases.validation) for array in (np.array(case.image), np.array(case.label))]


def test_a_data_set_in_a_bucket_is_copied_and_damaged_copies_are_replaced(scans, bucket: Bucket, use_bucket, machine, tmp_path):
    use_bucket(bucket)
    copies = machine("a")
    prepare(recipe_of(scans), Path(bucket.url))
    prepare(recipe_of(scans), tmp_path / "place")
    local = {path.name: path.read_bytes() for path in (tmp_path / "place").iterdir()}
    assert bucket.objects() == local
    assert not [path for path in copies.rglob("*") if path.is_file()]  # uploaded files were removed
    recipe, run = recipe_of(bucket.url), tmp_path / "run"
    expected = arrays(collect_cases(recipe_of(tmp_path / "place"), run))
    machine("b")
    np.testing.assert_equal(arrays(collect_cases(recipe, run)), expected)
    copied = {path.name: path for path in (tmp_path / "b").rglob("BraTS*") if path.is_file()}
    assert copied.keys() == {name for name in local if name.startswith("BraTS")}
    image = next(path for name, path in copied.items() if name.endswith("-image.npy"))
    voxels = next(path for name, path in copied.items() if name.endswith("-voxels.npy"))
    entry = next(path for name, path in copied.items() if name.endswith(".json"))
    image.write_bytes(image.read_bytes()[:-1] + b"?")
    voxels.unlink()
    entry.write_text("{}")
    kept = next(path for name, path in copied.items() if name.endswith("-label.npy"))
    before = kept.stat().st_mtime_ns
    np.testing.assert_equal(arrays(collect_cases(recipe, run)), expected)
    assert {name: path.read_bytes() for name, path in copied.items()} == {name: local[name] for name in copied}
    assert kept.stat().st_mtime_ns == before
    bucket.flip(image.name)
    image.unlink()
    with pytest.raises(InputError, match=f"{bucket.url}/.*-image.npy is missing or damaged .* run `swinunetr prepare` again"):
        collect_cases(recipe, run)


def test_what_is_complete_in_the_bucket_is_not_prepared_again(scans, bucket: Bucket, use_bucket, machine, names_read, capsys):
    use_bucket(bucket)
    machine("a")
    prepare(recipe_of(scans), Path(bucket.url))
    before = bucket.objects()
    bucket.delete(next(name for name in before if name.endswith("-label.npy")))
    bucket.delete("prepared.json")
    names_read.clear()
    prepare(recipe_of(scans), Path(bucket.url))
    assert len(names_read) == 1 and bucket.objects() == before
    assert "2 prepared cases, 1 of which was there already" in capsys.readouterr().out
    with pytest.raises(InputError, match=f"{bucket.url}/nothing holds no prepared data, because it has no prepared.json"):
        collect_cases(recipe_of(f"{bucket.url}/nothing"), Path("run"))


def test_a_copy_needs_space(scans, bucket: Bucket, use_bucket, machine, monkeypatch, tmp_path):
    use_bucket(bucket)
    machine("a")
    prepare(recipe_of(scans), Path(bucket.url))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(
        InputError, match=f"{bucket.url} needs .* on this machine, .* set SWINUNETR_SCRATCH to a folder with more"
    ):
        collect_cases(recipe_of(bucket.url), tmp_path / "run")


def test_a_cache_in_a_bucket_is_shared_by_machines(scans, bucket: Bucket, use_bucket, machine, names_read, tmp_path):
    use_bucket(bucket)
    machine("a")
    recipe = recipe_of(scans, cache=Path(f"{bucket.url}/cache"))
    cases = collect_cases(recipe, tmp_path / "run")
    expected, stored = arrays(cases), bucket.objects()
    assert len(names_read) == 2 and len(stored) == 8
    machine("b")
    moved = Path(shutil.copytree(scans, tmp_path / "moved"))  # the scans of another machine are in another folder
    again = collect_cases(replace(recipe, data=moved), tmp_path / "run")
    np.testing.assert_equal(arrays(again), expected)
    assert len(names_read) == 2 and again.train[0].path.is_relative_to(tmp_path / "b")
    image = next(name for name in stored if name.endswith("-image.npy"))
    bucket.flip(image)  # a damaged object is found by its digest, prepared again and replaced
    machine("c")
    np.testing.assert_equal(arrays(collect_cases(recipe, tmp_path / "run")), expected)
    assert len(names_read) == 3 and bucket.objects()[image] == stored[image]


def test_a_run_in_a_bucket_makes_the_phantom_on_each_machine(bucket: Bucket, use_bucket, machine, tmp_path):
    use_bucket(bucket)
    phantom = replace(recipe_of("data", kind="phantom", phantom=Phantom(cases=2, size=SIZE)), data=None)
    shared = machine("a")
    cases = collect_cases(phantom, scratch_folder(f"{bucket.url}/run", shared=False))
    data = shared / bucket.url.replace("://", "/") / "run" / "data"
    assert sorted(path.name for path in data.iterdir()) == ["BraTS2021_00000", "BraTS2021_00001", "phantom.json"]
    assert {name.split("/")[1] for name in bucket.names()} == {"cache"} and len(bucket.names()) == 8
    shared = machine("b")
    again = collect_cases(phantom, scratch_folder(f"{bucket.url}/run", shared=False))
    np.testing.assert_equal(arrays(again), arrays(cases))
    assert (
        not source_of(replace(phantom, data=Path(f"{bucket.url}/run/data"), out=Path(f"{bucket.url}/run")))
        .dataset(phantom, tmp_path)
        .root.is_relative_to(tmp_path / "a")
    )


def test_processes_of_a_machine_copy_each_object_once(runner, gcs_bucket: Bucket, proxied, use_bucket, machine):
    use_bucket(gcs_bucket)
    machine("a")
    scans = runner.folder / "scans"
    write_phantom(scans, cases=4, size=(48, 48, 32))
    options = [*OPTIONS, "--steps", "2", "--validation.every", "2"]
    prepare(
        replace(recipe_of(scans), kind="phantom", phantom=Phantom(cases=4, size=(48, 48, 32))), Path(f"{gcs_bucket.url}/data")
    )
    alone, run = runner.folder / "alone", runner.folder / "shared"
    runner.finish(runner.start(*options, "--data", str(scans), "--out", str(alone), count=1), 0)
    proxy = proxied(gcs_bucket)
    environment = proxy.bucket.environment | {scratch.VARIABLE: str(runner.folder / "scratch")}
    runner.finish(runner.start(*options, "--data", f"{gcs_bucket.url}/data", "--out", str(run), environment=environment), 0)
    reads = [name for request in proxy.requests("read", "-image.npy") for name in request.names]
    assert len(reads) == len(set(reads)) == 4
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-5)


@pytest.mark.parametrize("held", ["-image.npy", "-[0-9a-f]{16}.json", "prepared.json"])
def test_a_killed_command_is_continued(held, gcs_bucket: Bucket, proxied, use_bucket, machine, tmp_path):
    use_bucket(gcs_bucket)
    machine("expected")
    command = [sys.executable, "-m", "swinunetr_jax.cli", "prepare", "phantom"]
    options = ["--phantom.cases", "3", "--phantom.size", "32", "32", "32"]
    proxy = proxied(gcs_bucket)
    proxy.fail("hold", "write", held, nth=1 if held == "prepared.json" else 2)
    environment = os.environ | proxy.bucket.environment | {scratch.VARIABLE: str(tmp_path / "scratch")}
    killed = subprocess.Popen([*command, f"{gcs_bucket.url}/data", *options], env=environment)
    proxy.wait_for_held()
    killed.kill()
    killed.wait()
    proxy.release(carry_out=False)
    assert "data/prepared.json" not in gcs_bucket.names()
    with pytest.raises(InputError, match="holds no prepared data, because it has no prepared"):
        collect_cases(recipe_of(f"{gcs_bucket.url}/data"), tmp_path / "run")
    subprocess.run([*command, f"{gcs_bucket.url}/data", *options], env=environment, check=True)
    subprocess.run([*command, str(tmp_path / "place"), *options], env=environment, check=True)
    local = {f"data/{path.name}": path.read_bytes() for path in (tmp_path / "place").iterdir()}
    assert gcs_bucket.objects() == local
    assert not [path for path in (tmp_path / "scratch").rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.long
def test_an_address_without_prepared_data_is_refused_and_not_replaced_by_a_phantom(gcs_bucket, use_bucket, tmp_path):
    use_bucket(gcs_bucket)
    wrong = Path(f"{gcs_bucket.url}/nothing")
    with refused(f"{gcs_bucket.url}/nothing", "holds no prepared data, because it has no prepared.json"):
        source_of(recipe(wrong, tmp_path)).dataset(recipe(wrong, tmp_path), tmp_path)
    with refused(gcs_bucket.url, "which is also --data: give the run an address of its own"):
        recipe(Path(gcs_bucket.url), Path(gcs_bucket.url)).check()
    assert gcs_bucket.names() == []
