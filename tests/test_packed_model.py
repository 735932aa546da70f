"""`swinunetr pack` writes one archive that every reader of weights takes, and hostile or changed archives are refused in one sentence."""

import hashlib
import json
import stat
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from flax import nnx
from helpers.checkpoint_folder import CONFIG, TASK, assert_same_arrays
from helpers.prediction import run
from helpers.refusals import refused
from helpers.weight_states import random_params

from swinunetr_jax import Task, files
from swinunetr_jax.data.scan_range import ScanRange
from swinunetr_jax.inference.open_networks import open_networks
from swinunetr_jax.model.custom import CustomNetwork
from swinunetr_jax.packages.model_card import read_card
from swinunetr_jax.packages.pack import collect
from swinunetr_jax.postprocess import POSTPROCESS, Postprocess, Step, write_postprocess
from swinunetr_jax.weights.load import Checkpoint, open_checkpoint, read_task, save_params
from swinunetr_jax.weights.load_report import LoadReport
from swinunetr_jax.weights.params import digest
from swinunetr_jax.weights.run_folder import ensemble_paths, missing_folds
from swinunetr_jax.weights.zip_folder import MANIFEST

STEP = Step(operation="largest_component")
RANGES = [ScanRange(("LPS",), ((1.0, top),) * 3, ((9.0, 99.0),) * 3, *(((0.0, top),),) * 3) for top in (2.0, 3.0)]


@pytest.fixture(scope="module")
def weights():
    """The parameters of two folds."""
    return [random_params(CONFIG, seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def cross_validation(tmp_path_factory, weights):
    """The folder of a finished cross-validation of two folds, with scores and post-processing."""
    folder = tmp_path_factory.mktemp("cv") / "secret-place"
    for number, params in enumerate(weights):
        (folder / f"fold{number}").mkdir(parents=True)
        save_params(folder / f"fold{number}" / "best", CONFIG, params, task=replace(TASK, scans=RANGES[number]))
    files.write_json(folder / "run.json", {"recipe": {"data": "/home/somebody/data"}, "folds": [0, 1]})
    table = {"mean": {"class 1": 0.875}, "cases": {"patient-007": {"class 1": 0.875, "fold": "fold0"}}}
    files.write_json(folder / "out_of_fold.json", table)
    write_postprocess(folder / POSTPROCESS, Postprocess(task=TASK, steps=(STEP,), cases=1))
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory, cross_validation):
    """The packed model of all folds."""
    path = tmp_path_factory.mktemp("packed") / "model.zip"
    assert run("pack", cross_validation, path, "--licence", "cc-by-4.0") == 0
    return path


def changed(source: Path, target: Path, change) -> Path:
    """Writes a copy of an archive whose members, a dict of name → bytes, a function has changed. Returns its path."""
    with zipfile.ZipFile(source) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


def test_a_packed_cross_validation_has_all_folds_and_says_what_is_not_stated(packed, weights, cross_validation, capsys, tmp_path):
    with zipfile.ZipFile(packed) as archive:
        names = archive.namelist()
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        card, scores = archive.read("MODEL_CARD.md").decode(), json.loads(archive.read("scores.json"))
        texts = b"".join(archive.read(name) for name in names if not name.endswith("safetensors"))
    assert names == [
        MANIFEST,
        "MODEL_CARD.md",
        "config.json",
        "postprocess.json",
        "scores.json",
        "task.json",
        "fold0/model.safetensors",
        "fold1/model.safetensors",
    ]
    assert "license: cc-by-4.0" in card and card.count("Not stated by whoever packed this model.") == 3
    assert scores["mean"] == {"class 1": 0.875} and scores["cases"] == 1
    for private in (b"patient-007", b"somebody", b"secret-place"):
        assert private not in texts
    paths = ensemble_paths(packed)
    assert [str(path.relative_to(packed)) for path in paths] == ["fold0", "fold1"] and missing_folds(packed) is None
    networks = open_networks([packed], lambda checkpoint, path: checkpoint.task)
    for checkpoint, params in zip(networks.checkpoints, weights):
        assert checkpoint.config == CONFIG
        assert_same_arrays(checkpoint.params, params)
    assert networks.task == TASK == read_task(paths[0]) and networks.postprocess == (STEP,)
    assert [read_task(path).scans for path in paths] == RANGES and networks.task.scans == RANGES[1]
    capsys.readouterr()
    assert run("pack", cross_validation, tmp_path / "again.zip", "--licence", "cc-by-4.0") == 0
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()
    assert "nobody has stated its data, intended use, limits" in capsys.readouterr().out
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "folder")
    assert ensemble_paths(tmp_path / "folder") == (tmp_path / "folder/fold0", tmp_path / "folder/fold1")
    assert_same_arrays(open_checkpoint(tmp_path / "folder/fold1").params, weights[1])


def test_commands_take_a_packed_model(packed, tmp_path, capsys, weights):
    with refused("model.zip holds 2 networks", "such as", "fold0"):
        open_checkpoint(packed)
    assert run("pack", packed / "fold1", tmp_path / "one.zip", "--card", Path(__file__)) == 0
    assert_same_arrays(open_checkpoint(tmp_path / "one.zip").params, weights[1])
    assert run("info", tmp_path / "one.zip") == 0
    assert "--card" not in capsys.readouterr().out.rpartition("SHA-256")[2]
    assert run("pack", packed / "fold0", tmp_path / "again.zip", "--data", "BraTS") == 0
    with zipfile.ZipFile(tmp_path / "again.zip") as archive:
        card = archive.read("MODEL_CARD.md").decode()
    assert "license: cc-by-4.0" in card and "## Licence\n\ncc-by-4.0\n" in card and "## Data\n\nBraTS\n" in card
    assert card.count("Not stated by whoever packed this model.") == 2 and card.count("## Facts") == 1
    assert run("pack", tmp_path / "one.zip", tmp_path / "three.zip") == 0
    with zipfile.ZipFile(tmp_path / "three.zip") as archive:
        card = archive.read("MODEL_CARD.md").decode()
    assert card.startswith(text := Path(__file__).read_text().rstrip()) and card.removeprefix(text).count("## Facts") == 1
    assert run("pack", tmp_path / "one.zip", tmp_path / "four.zip", "--data", "BraTS") == 2
    assert "is a whole one, which --data would be part of" in capsys.readouterr().err
    assert run("convert", tmp_path / "one.zip", tmp_path / "net.safetensors") == 0
    assert digest(open_checkpoint(tmp_path / "net.safetensors").params["out.bias"]) == digest(weights[1]["out.bias"])
    assert run("pack", tmp_path / "one.zip", tmp_path / "one.zip") == 2
    assert "exists already" in capsys.readouterr().err
    assert run("pack", tmp_path / "one.zip", tmp_path / "one.tar") == 2
    assert run("pack", tmp_path / "one.zip", tmp_path / "two.zip", "--card", Path(__file__), "--limits", "none") == 2


@pytest.mark.parametrize(
    "text",
    [
        "# T\n\nA preface.\n\n## Data\n\nd\n\n## Licence\n\nmit\n\n## Intended use\n\nu\n\n## Limits\n\nl",
        "# T\n\n## Facts\n\n- 300 scans\n\n## Limits\n\nnot for children",
        "no heading",
    ],
)
def test_a_card_of_ones_own_is_kept_word_by_word(text):
    assert read_card(f"{text}\n\n## Facts\n\n| | |").text.rstrip() == text


def test_a_changed_member_is_refused(packed, tmp_path):
    card = changed(packed, tmp_path / "card.zip", lambda members: members.update({"MODEL_CARD.md": b"for every hospital"}))
    with refused("card.zip/MODEL_CARD.md does not match the digest in manifest.json", "do not use it"):
        open_checkpoint(card / "fold0")
    added = changed(packed, tmp_path / "added.zip", lambda members: members.update({"run.py": b"print(1)"}))
    with refused("has the additional member run.py"):
        ensemble_paths(added)
    removed = changed(packed, tmp_path / "removed.zip", lambda members: members.pop("scores.json"))
    with refused("lacks scores.json"):
        ensemble_paths(removed)

    def restate(content, **values):
        values = json.loads(content[MANIFEST]) | values
        del values["digest"]
        content[MANIFEST] = json.dumps(values | {"digest": files.digest_of_json(values)}).encode()

    def lie(members):
        digest = hashlib.sha256(members["fold1/model.safetensors"]).hexdigest()
        members["MODEL_CARD.md"] = members["MODEL_CARD.md"].replace(digest.encode(), b"0" * 64)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in members.items() if name != MANIFEST}
        restate(members, members=digests)

    with refused("lie.zip/MODEL_CARD.md does not state the digest that fold1/model.safetensors has"):
        ensemble_paths(changed(packed, tmp_path / "lie.zip", lie))

    with refused("manifest.json has format 2", "a newer swinunetr_jax"):
        ensemble_paths(changed(packed, tmp_path / "newer.zip", lambda members: restate(members, format=2)))
    truncated = tmp_path / "truncated.zip"
    truncated.write_bytes(packed.read_bytes()[:-300])
    with refused("truncated.zip is a damaged zip archive"):
        ensemble_paths(truncated)


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["../../outside"], "'../../outside', which lies outside of the archive's folder"),
        (["/etc/passwd"], "lies outside of"),
        (["a/../b"], "lies outside of"),
        (["a\\..\\b"], "lies outside of"),
        (["C:/windows"], "lies outside of"),
        (["twice", "twice"], "'twice', which appears twice"),
        ([link("model.safetensors")], "is a link or a device and not a file"),
    ],
)
def test_a_hostile_archive_is_refused(tmp_path, members, message):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of the name that appears twice
        for member in members:
            archive.writestr(member, b"text")
    with refused("bad.zip", message, "do not use it"):
        open_checkpoint(tmp_path / "bad.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.zip"]


def test_an_archive_of_zeros_is_refused_before_it_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.safetensors", bytes(70 << 20))
    data = bytearray((tmp_path / "bomb.zip").read_bytes())
    with refused("bomb.zip would unpack to 73.4 MB in 1 files"):
        open_checkpoint(tmp_path / "bomb.zip")
    # an archive that claims a smaller size than it unpacks to
    for start in (data.find(b"PK\x03\x04") + 22, data.find(b"PK\x01\x02") + 24):
        data[start : start + 4] = (1000).to_bytes(4, "little")
    (tmp_path / "liar.zip").write_bytes(data)
    with refused("liar.zip/model.safetensors cannot be read"):
        open_checkpoint(tmp_path / "liar.zip")


def test_networks_that_cannot_segment_or_need_code_are_refused(tmp_path):
    def collected(config, task):
        return collect([tmp_path], [Checkpoint(config, task, {}, LoadReport())], [task])

    with refused("cannot segment: train it with labels"):
        collected(CONFIG, Task.images(("CT", "MR")))
    own = CustomNetwork("my_net", lambda in_channels, out_channels, *, rngs: nnx.Linear(1, 1, rngs=rngs)).config(1, 2)
    with refused("holds the network my_net, and a package holds no network but this project's Swin UNETR"):
        collected(own, TASK)
    assert list(collected(CONFIG, TASK).checkpoints) == [""]


@pytest.mark.long
def test_a_packed_model_in_a_bucket(packed, weights, gcs_bucket, use_bucket):
    use_bucket(gcs_bucket)
    assert run("pack", packed / "fold0", f"{gcs_bucket.url}/one.zip") == 0
    gcs_bucket.write("all.zip", packed.read_bytes())
    assert_same_arrays(open_checkpoint(f"{gcs_bucket.url}/one.zip").params, weights[0])
    assert_same_arrays(open_checkpoint(f"{gcs_bucket.url}/all.zip/fold1").params, weights[1])
    assert len(ensemble_paths(f"{gcs_bucket.url}/all.zip")) == 2
    networks = open_networks([Path(f"{gcs_bucket.url}/all.zip")], lambda checkpoint, path: checkpoint.task)
    assert networks.postprocess == (STEP,)
