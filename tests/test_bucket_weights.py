"""Weights in buckets: they are read, verified and written like those of local paths, and only what is needed is copied."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.bucket_weights import connect, files_of, put
from helpers.checkpoint_folder import CONFIG, TASK, assert_same_arrays
from helpers.refusals import refused
from helpers.weight_states import random_params

from swinunetr_jax.buckets import BucketError, address, scratch
from swinunetr_jax.buckets.bucket import Bucket as Client
from swinunetr_jax.buckets.fetch import copy_object, optional_file
from swinunetr_jax.weights.load import load_checkpoint, open_checkpoint, read_task, save_params
from swinunetr_jax.weights.monai import to_monai
from swinunetr_jax.weights.params import flatten
from swinunetr_jax.weights.run_folder import cross_validation_of, ensemble_paths, missing_folds, network_of_run
from swinunetr_jax.weights.safetensors_file import write_safetensors

pytest_plugins = ["helpers.fixtures", "helpers.bucket_weights"]

PARAMS = random_params(CONFIG)


def copies(tmp_path: Path) -> set[str]:
    """Returns the names of the files that were copied into the scratch folder, relative to the bucket's folder."""
    shared = tmp_path / "scratch" / "shared"
    return {name.split("/", 3)[3] for name in files_of(shared) if not name.endswith(".copy")}


@pytest.fixture
def downloads(monkeypatch) -> list[str]:
    """Returns the list to which the names of downloaded objects are added."""
    names: list[str] = []
    original = Client.download_file

    def record(self, name, *rest):
        names.append(f"{self.address}/{name}".rstrip("/"))
        return original(self, name, *rest)

    monkeypatch.setattr(Client, "download_file", record)
    return names


def test_a_checkpoint_is_copied_once_and_again_only_where_it_has_changed(here, written_checkpoint, downloads, tmp_path):
    put(here, "model", written_checkpoint)
    url = f"{here.url}/model"
    opened = open_checkpoint(url)
    assert_same_arrays(opened.params, open_checkpoint(written_checkpoint).params)
    assert opened.task == TASK and read_task(Path(url)) == TASK
    assert sorted(downloads) == sorted(f"{here.url}/model/{name}" for name in files_of(written_checkpoint) if "/" in name)
    downloads.clear()
    open_checkpoint(url + "/")
    assert not downloads
    changed = next(name for name in files_of(written_checkpoint) if "/d/" in name)
    copy = next(path for path in (tmp_path / "scratch").rglob(Path(changed).name))
    copy.write_bytes(copy.read_bytes()[::-1])
    open_checkpoint(url)
    assert downloads == [f"{url}/{changed}"]


def test_damage_in_a_bucket_is_reported_in_one_sentence_that_names_the_address(here, written_checkpoint):
    put(here, "model", written_checkpoint)
    name = next(name for name in here.names() if "/d/" in name)
    here.flip(name)
    with refused(f"{here.url}/model is damaged", name.removeprefix("model/")):
        open_checkpoint(f"{here.url}/model")
    here.delete(name)
    with refused(f"{here.url}/model is damaged", name.removeprefix("model/")):
        open_checkpoint(f"{here.url}/model")
    here.flip("model/checkpoint.json")
    with refused(f"{here.url}/model is damaged"):
        read_task(f"{here.url}/model")


@pytest.mark.long
def test_a_best_network_that_is_replaced_while_it_is_read_is_read_again(here, written_checkpoint, monkeypatch, tmp_path):
    put(here, "model", written_checkpoint)
    other = {name: array + np.float32(1) if array.dtype == np.float32 else array for name, array in PARAMS.items()}
    save_params(tmp_path / "other", CONFIG, other)
    original = Client.download_file

    def replace(self, name, *rest):
        if self.address.endswith("/model"):
            monkeypatch.setattr(Client, "download_file", original)
            for old in [old for old in here.names() if "/params/" in old]:
                here.delete(old)
            put(here, "model", tmp_path / "other")
        return original(self, name, *rest)

    monkeypatch.setattr(Client, "download_file", replace)
    assert_same_arrays(open_checkpoint(f"{here.url}/model").params, other)


@pytest.mark.long
def test_files_of_other_formats(here, downloads, tmp_path):
    tensors = to_monai(PARAMS, CONFIG)
    names = sorted(tensors)
    index = {"weight_map": {name: "a.safetensors" if name < names[9] else "b.safetensors" for name in names}}
    for shard in ("a", "b"):
        write_safetensors(
            tmp_path / shard, {n: t for n, t in tensors.items() if index["weight_map"][n] == f"{shard}.safetensors"}
        )
        here.write(f"shards/{shard}.safetensors", (tmp_path / shard).read_bytes())
    here.write("shards/model.safetensors.index.json", json.dumps(index).encode())
    save_params(tmp_path / "ours.safetensors", CONFIG, PARAMS, task=TASK)
    here.write("ours.safetensors", (tmp_path / "ours.safetensors").read_bytes())
    save_params(tmp_path / "model.pt", CONFIG, PARAMS)
    here.write("bundle/models/model.pt", (tmp_path / "model.pt").read_bytes())
    here.write("bundle/configs/train.json", b"{}")
    fields = {"downsample": CONFIG.downsample, "window_size": CONFIG.window_size}
    for name in ("shards/model.safetensors.index.json", "shards", "bundle", "bundle/models/model.pt"):
        assert_same_arrays(open_checkpoint(f"{here.url}/{name}", **fields).params, PARAMS)
    assert_same_arrays(flatten(load_checkpoint(f"{here.url}/ours.safetensors")), PARAMS)
    assert read_task(f"{here.url}/ours.safetensors") == TASK
    shards = [f"{here.url}/shards/{name}" for name in ("model.safetensors.index.json", "a.safetensors", "b.safetensors")]
    bundle = [f"{here.url}/bundle/models/model.pt", f"{here.url}/bundle/configs/train.json"]
    assert downloads == [*shards, *bundle, f"{here.url}/ours.safetensors"]
    here.flip("bundle/models/model.pt", 5000)
    with refused(f"{here.url}/bundle/models/model.pt"):
        open_checkpoint(f"{here.url}/bundle", **fields)
    here.delete("shards/b.safetensors")
    with refused(f"{here.url}/shards/b.safetensors does not exist"):
        open_checkpoint(f"{here.url}/shards", **fields)


def test_the_network_of_a_run_is_its_best_or_its_newest_one_and_nothing_else_is_copied(
    here, written_checkpoint, capsys, tmp_path
):
    run = f"{here.url}/run"
    for step, claim in ((100, 1), (200, 1), (150, 2)):  # the second claim has continued from step 100
        put(here, f"run/checkpoints/{step:08d}-{claim:06d}", written_checkpoint)
        here.write(f"run/checkpoints/{step:08d}-{claim:06d}/state/d/moments", b"0" * 1000)
        here.write(f"run/checkpoints/{step:08d}-{claim:06d}/training.json", b"{}")
    here.write("run/run.json", b'{"recipe": {}, "steps": 300}')
    here.write("run/cache/array.npy", b"0" * 1000)
    newest = "run/checkpoints/00000150-000002"
    path, note = network_of_run(run)
    assert path == Path(f"{here.url}/{newest}") and f"{run} is a training run without any validation" in note
    assert "of step 150 of 300, is used" in note and f"--resume {run}`" in note
    open_checkpoint(run)
    assert capsys.readouterr().err == f"warning: {note}\n"
    assert copies(tmp_path) == {f"{newest}/{name}" for name in files_of(written_checkpoint)}
    assert network_of_run(f"{run}/last") == (Path(f"{here.url}/{newest}"), None)
    here.write(f"{newest}/damaged.json", b"{}")
    assert network_of_run(run)[0] == Path(f"{run}/checkpoints/00000200-000001")
    put(here, "run/best", written_checkpoint)
    assert network_of_run(run) == (Path(f"{run}/best"), None)
    state = f"{run}/checkpoints/00000100-000001"
    assert network_of_run(state) == (Path(state), None)
    here.write("empty/run.json", b'{"recipe": {}}')
    with refused(f"{here.url}/empty is a training run that has not saved a network yet"):
        open_checkpoint(f"{here.url}/empty")


def test_the_folds_of_a_cross_validation(here, written_checkpoint):
    cv = Path(f"{here.url}/cv")
    for fold in (0, 2, 10):
        here.write(f"cv/fold{fold}/best/checkpoint.json", b"{}")
    here.write("cv/run.json", b'{"recipe": {}, "folds": [0, 1, 2, 10]}')
    here.write("cv/postprocess.json", b"{}")
    assert ensemble_paths(cv) == (cv / "fold0", cv / "fold2", cv / "fold10")
    assert missing_folds(str(cv)) == (
        f"{here.url}/cv is a cross-validation that is not finished: fold0, fold2, fold10 are used, and fold1 is missing."
    )
    for path in ("cv", "cv/fold2", "cv/fold2/best"):
        assert cross_validation_of(f"{here.url}/{path}") == cv
    copy = optional_file(cv / "postprocess.json")
    assert copy is not None and copy.read_bytes() == b"{}" and optional_file(cv / "none.json") is None
    assert cross_validation_of(here.url) is None and ensemble_paths(here.url) == (Path(here.url),)


@pytest.mark.long
def test_a_checkpoint_is_written_with_its_description_last(here, monkeypatch, tmp_path):
    url, uploads = f"{here.url}/new", []
    original = Client.upload
    monkeypatch.setattr(Client, "upload", lambda self, names, *rest: uploads.append(list(names)) or original(self, names, *rest))
    save_params(url, CONFIG, PARAMS, task=TASK)
    assert uploads[-1] == ["checkpoint.json"] and len(uploads) == 2
    assert_same_arrays(open_checkpoint(url).params, PARAMS)
    with refused(f"{url} exists already, expected a new name", "--overwrite"):
        save_params(url, CONFIG, PARAMS)
    before = here.names()
    other = {name: array * 2 if array.dtype == np.float32 else array for name, array in PARAMS.items()}
    save_params(url, CONFIG, other, overwrite=True)
    assert_same_arrays(open_checkpoint(url).params, other)
    assert set(here.names()) & set(before) == {"new/checkpoint.json"}
    here.delete("new/checkpoint.json")  # as if the upload had been interrupted
    save_params(url, CONFIG, PARAMS)
    assert_same_arrays(open_checkpoint(url).params, PARAMS)
    here.write("other/notes.txt", b"")
    with refused(f"{here.url}/other exists already and is not a checkpoint"):
        save_params(f"{here.url}/other", CONFIG, PARAMS, overwrite=True)
    assert not list((tmp_path / "scratch").glob("own/*/upload-*"))


def test_faults_of_an_address_are_reported_in_one_sentence(here, monkeypatch):
    with refused(f"{here.url}/none does not exist", "no such object"):
        open_checkpoint(f"{here.url}/none")
    with refused("gs://nowhere/model cannot be listed, because there is no such bucket"):
        open_checkpoint("gs://nowhere/model")
    for other in ("https://host/model.pt", "ftp://owner/model", "az://container/model"):
        with refused(other, "is an address of a remote store", "gs://BUCKET/NAME or s3://BUCKET/NAME"):
            open_checkpoint(other)
        with refused(other, "is an address of a remote store"):
            save_params(other, CONFIG, PARAMS)
    here.write("notes/a.txt", b"")
    with refused(f"{here.url}/notes is not a checkpoint, because it has no checkpoint.json"):
        open_checkpoint(f"{here.url}/notes")
    monkeypatch.setattr(address, "find_spec", lambda name: None)
    with refused("gs://b/model needs the package gcsfs", "pip install 'swinunetr-jax[gcs]'"):
        open_checkpoint("gs://b/model")


@pytest.mark.parametrize(
    ("kind", "operation", "sentence"),
    [
        ("403", "list", "cannot be listed"),
        pytest.param("403", "read", "cannot be read", marks=pytest.mark.long),
        pytest.param("403", "write", "cannot be written", marks=pytest.mark.long),
    ],
)
def test_a_missing_permission(
    gcs_bucket, proxied, use_bucket, tmp_path, monkeypatch, written_checkpoint, kind, operation, sentence
):
    put(gcs_bucket, "model", written_checkpoint)
    proxy = proxied(gcs_bucket)
    connect(proxy.bucket, use_bucket, tmp_path, monkeypatch)
    proxy.fail(kind, operation, times=None)
    with pytest.raises(BucketError, match=f"{gcs_bucket.url}/.* {sentence}.*your access to the bucket"):
        if operation == "write":
            save_params(f"{gcs_bucket.url}/new.pt", CONFIG, PARAMS)
        else:
            open_checkpoint(f"{gcs_bucket.url}/model")


@pytest.mark.long
def test_an_answer_that_is_cut_is_asked_for_again(gcs_bucket, proxied, use_bucket, tmp_path, monkeypatch, written_checkpoint):
    put(gcs_bucket, "model", written_checkpoint)
    proxy = proxied(gcs_bucket)
    connect(proxy.bucket, use_bucket, tmp_path, monkeypatch)
    proxy.fail("cut", "read", r"/d/")
    assert_same_arrays(open_checkpoint(f"{gcs_bucket.url}/model").params, PARAMS)
    assert proxy.counts()["cut"] == 1


def test_an_object_that_was_replaced_since_it_was_listed_is_reported(here, tmp_path, monkeypatch):
    here.write("model.pt", b"first")
    client = Client(f"{here.url}/model.pt")
    listed = client.objects()[""]
    here.write("model.pt", b"second")
    with refused(f"{here.url}/model.pt was removed or replaced while it was read"):
        copy_object(client.address, listed)
    assert copy_object(client.address, client.objects()[""]).read_bytes() == b"second"
    here.write("model.pt", b"third")
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda folder: SimpleNamespace(free=5))
    with refused(f"{here.url}/model.pt needs 0.00 GB on this machine", "set SWINUNETR_SCRATCH to a folder with more space"):
        copy_object(client.address, client.objects()[""])


def test_a_full_disk_is_reported_at_once(here, monkeypatch):
    here.write("model.pt", b"content")
    client = Client(f"{here.url}/model.pt")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(client._system, "get_file", full)
    with refused("cannot be written (No space left on device): free space in ", "or set SWINUNETR_SCRATCH to another folder"):
        copy_object(client.address, client.objects()[""])


def test_the_marker_of_an_empty_folder_is_no_object(here, monkeypatch):
    entries = {f"{here.url[5:]}/model/": {"name": f"{here.url[5:]}/model/", "type": "file", "size": 0}}
    client = Client(f"{here.url}/model")
    monkeypatch.setattr(client._system, "find", lambda *_, **__: entries)
    assert client.objects() == {}


@pytest.mark.long
def test_checkpoints_and_files_in_s3(s3_bucket, use_bucket, tmp_path, monkeypatch, downloads):
    here = connect(s3_bucket, use_bucket, tmp_path, monkeypatch)
    for name in ("model", "model.pt", "model.safetensors"):
        url = f"{here.url}/{name}"
        save_params(url, CONFIG, PARAMS, task=TASK)
        for _ in range(2):
            assert_same_arrays(open_checkpoint(url, window_size=CONFIG.window_size).params, PARAMS)
        assert len([download for download in downloads if download.startswith(url)]) == len(
            [object_ for object_ in here.names() if object_.startswith(f"{name}/params")] or [name]
        )
        downloads.clear()
    assert read_task(f"{here.url}/model") == TASK


@pytest.mark.long
def test_two_processes_read_a_checkpoint_at_once(here, written_checkpoint, tmp_path):
    put(here, "model", written_checkpoint)
    program = f"from swinunetr_jax import open_checkpoint; print(open_checkpoint('{here.url}/model').digest)"
    environment = os.environ | here.environment
    started = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    digests = [process.communicate()[0].strip() for process in started]
    assert digests == [open_checkpoint(written_checkpoint).digest] * 2
