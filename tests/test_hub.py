"""Models on the Hugging Face hub: addresses hf://, a cache without a connection, a hub on loopback, and its errors in one sentence."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.checkpoint_folder import CONFIG, TASK, assert_same_arrays
from helpers.hub_server import COMMIT, hub_server
from helpers.prediction import run
from helpers.refusals import refused
from helpers.weight_states import random_params

from swinunetr_jax.buckets.address import HubAddress, hub_address
from swinunetr_jax.weights.hub import choose
from swinunetr_jax.weights.load import open_checkpoint, read_task, save_params
from swinunetr_jax.weights.run_folder import ensemble_paths

pytest.importorskip("huggingface_hub")
from huggingface_hub import constants

MODEL = HubAddress("org/name", None, "")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Returns a function that sets the address of the hub, whose cache is an empty folder, and whether there is a connection."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def use(endpoint="http://127.0.0.1:9", *, offline=False):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        return tmp_path / "hub"

    return use


def in_cache(cache: Path) -> Path:
    """Returns the folder for the files of org/name at its branch main in the cache of the hub."""
    (cache / "models--org--name/refs").mkdir(parents=True)
    (cache / "models--org--name/refs/main").write_text(COMMIT)
    folder = cache / "models--org--name/snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A packed model, and its parameters."""
    folder, params = tmp_path_factory.mktemp("model"), random_params(CONFIG)
    save_params(folder / "net", CONFIG, params, task=TASK)
    assert run("pack", folder / "net", folder / "model.zip") == 0
    return folder / "model.zip", params


def test_addresses():
    assert hub_address(Path("hf://org/name@v1.0/folds/model.zip")) == HubAddress("org/name", "v1.0", "folds/model.zip")
    assert str(hub_address("hf://org/name/")) == "hf://org/name"
    for wrong in ("hf://org", "hf:org/name", "hf://", "hf://org/name/../other", "hf://org/name@/x"):
        with refused("does not name a model on the Hugging Face hub"):
            hub_address(wrong)


@pytest.mark.parametrize(
    ("names", "inner", "wanted", "opened"),
    [
        (["README.md", "model.zip"], "", ["model.zip"], "model.zip"),
        (["a.zip", "b.zip"], "b.zip", ["b.zip"], "b.zip"),
        (["b.zip"], "b.zip/fold1", ["b.zip"], "b.zip/fold1"),
        (["config.json", "model.safetensors", "task.json"], "", ["model.safetensors", "config.json", "task.json"], ""),
        (["x/configs/metadata.json", "x/models/model.pt", "y.pt"], "x", ["x/models/model.pt", "x/configs/metadata.json"], "x"),
        (
            ["best/checkpoint.json", "best/params/a", "log.jsonl", "run.json"],
            "",
            ["best/checkpoint.json", "best/params/a", "run.json"],
            "",
        ),
        (["fold0/model.safetensors", "fold0/notes", "manifest.json"], "", ["fold0/model.safetensors", "manifest.json"], ""),
        (["checkpoint.json", "params/a", "x.png"], "", ["checkpoint.json", "params/a"], ""),
        (["m.index.json", "a.bin", "b.bin", "sub/c"], "", ["m.index.json", "a.bin", "b.bin"], ""),
    ],
)
def test_only_the_files_of_the_network_are_downloaded(names, inner, wanted, opened):
    assert choose(names, HubAddress("org/name", None, inner)) == (wanted, opened)


def test_a_repository_without_one_model_is_refused():
    with refused("hf://org/name holds several files with weights a.pt, b.pt", "name it"):
        choose(["b.pt", "a.pt"], MODEL)
    with refused("holds no weights, but README.md"):
        choose(["README.md"], MODEL)
    with refused("hf://org/name/c.pt does not exist, because org/name holds a.pt"):
        choose(["a.pt"], HubAddress("org/name", None, "c.pt"))


def test_a_cache_without_a_connection_is_used(hub, model, capsys):
    archive, params = model
    cache = hub(offline=True)
    with refused("hf://org/name cannot be downloaded from http://127.0.0.1:9", "has no copy"):
        open_checkpoint("hf://org/name")
    folder = in_cache(cache)
    (folder / "model.zip").write_bytes(archive.read_bytes())
    assert_same_arrays(open_checkpoint("hf://org/name").params, params)
    assert read_task("hf://org/name@main/model.zip") == TASK
    assert "hf://org/name: the copy in the cache of the hub is used" in capsys.readouterr().out
    hub()  # connected, but nobody answers at this port
    assert ensemble_paths("hf://org/name") == (folder / "model.zip",)
    (folder / "model.zip").unlink()
    with zipfile.ZipFile(archive) as members:
        members.extractall(folder)
    assert run("info", "hf://org/name") == 0
    assert "hf://org/name: Swin UNETR" in capsys.readouterr().out
    (folder / "model.safetensors").write_bytes(b"damaged")
    with refused("hf://org/name/model.safetensors is not a known weight file"):
        open_checkpoint("hf://org/name")


def test_a_hub_on_loopback(hub, model):
    archive, params = model
    with hub_server("org/name", {"README.md": b"text", "model.zip": archive.read_bytes()}) as (endpoint, downloads):
        hub(endpoint)
        assert_same_arrays(open_checkpoint("hf://org/name").params, params)
        open_checkpoint(f"hf://org/name@{COMMIT}/model.zip")
        assert downloads == ["model.zip"]
        with refused("hf://org/other does not exist on the hub, or is private", "hf auth login"):
            open_checkpoint("hf://org/other")
        with refused("hf://org/name@v9 does not exist, because org/name has no revision v9"):
            open_checkpoint("hf://org/name@v9")
        with refused("is not a name that a model on the hub can have"):
            open_checkpoint("hf://org/..name")
    with hub_server("org/gated", {"model.zip": b"PK"}, failure=(403, "GatedRepo")) as (endpoint, _):
        hub(endpoint)
        with refused("hf://org/gated is gated: accept its conditions on http://127.0.0.1"):
            open_checkpoint("hf://org/gated")


def test_only_options_for_weights_take_the_hub(tmp_path, capsys):
    assert run("convert", tmp_path / "net.pt", "hf://org/name") == 2
    assert run("predict", "-i", "hf://org/scans", "-o", tmp_path / "out", "-m", "net.pt") == 2
    errors = capsys.readouterr().err
    assert errors.count("is an address of a remote store (hf:)") == 2
    program = "import sys; sys.modules['huggingface_hub'] = None; from swinunetr_jax.buckets.address import hub_address"
    done = subprocess.run([sys.executable, "-c", f"{program}; hub_address('hf://o/n')"], capture_output=True, text=True)
    assert "swinunetr-jax[hub]" in done.stderr
