"""MONAI bundles: those of others are read as data, and those written here load in MONAI and give the same logits."""

import importlib
import json
import shutil
import sys
import zipfile

import numpy as np
import pytest
import yaml
from helpers.checkpoint_folder import CONFIG, TASK, assert_same_arrays
from helpers.prediction import run
from helpers.refusals import refused
from helpers.weight_states import CONFIG_3D, random_params

from swinunetr_jax import Task
from swinunetr_jax.output import Output
from swinunetr_jax.weights.bundle import read_bundle
from swinunetr_jax.weights.load import open_checkpoint, read_task, save_params

METADATA = {
    "monai_version": "1.4.0",
    "network_data_format": {
        "inputs": {"image": {"channel_def": {"0": "CT"}}},
        "outputs": {"pred": {"channel_def": {"0": "background", "1": "spleen"}}},
    },
}
INFERENCE = {
    "image_key": "image",
    "size": [96, 96, 96],
    "network_def": {"_target_": "SwinUNETR", "img_size": 96, "normalize": "$False", "drop_rate": "$0.1 + 0.1"},
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "@image_key", "reader": "ITKReader"},
            {"_target_": "monai.transforms.Orientationd", "keys": "@image_key", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "@image_key", "pixdim": [1.5, 1.5, 2.0]},
            {"_target_": "ScaleIntensityRanged", "a_min": -175, "a_max": 250, "b_min": 0.0, "b_max": 1.0, "clip": True},
            {"_target_": "CropForegroundd", "keys": "@image_key"},
        ],
    },
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": "@size"},
    "postprocessing": {"transforms": [{"_target_": "Activationsd", "softmax": True}]},
}


def write_configs(folder, metadata=METADATA, inference=INFERENCE):
    """Writes the configuration of a bundle, and returns its folder."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "configs/metadata.json").write_text(json.dumps(metadata))
    (folder / "configs/inference.json").write_text(json.dumps(inference))
    return folder


def test_the_configuration_of_a_bundle_is_read_as_data(tmp_path):
    bundle = read_bundle(write_configs(tmp_path))
    assert bundle.fields == {"downsample": "legacy", "normalize": False}
    assert bundle.task == Task.classes(
        2,
        ("background", "spleen"),
        channels=("CT",),
        orientation="RAS",
        spacing=(1.5, 1.5, 2.0),
        intensity="window",
        window=(-175, 250),
        roi=(96, 96, 96),
    )
    notes = "; ".join(bundle.notes)
    assert "`drop_rate` is the expression '$0.1 + 0.1', which is not executed" in notes
    assert "MONAI 1.4.0, whose patch merging has the order `legacy`" in notes and "CropForegroundd is not reproduced" in notes
    newer = read_bundle(write_configs(tmp_path, METADATA | {"monai_version": "1.5.0"}))
    assert "downsample" not in newer.fields  # the weights may be older than the version in the metadata
    definition = INFERENCE["network_def"]
    for stated, order in (("mergingv2", "mergingv2"), ("$__import__('os').system('false')", None)):
        other = INFERENCE | {"network_def": definition | {"downsample": stated}}
        assert read_bundle(write_configs(tmp_path, inference=other)).fields.get("downsample") == order
    nested = "$" + "[" * 300
    for hostile in (["@many"] * 200, json.loads("[" * 700 + "]" * 700), nested):  # references to themselves, and deep nesting
        other = INFERENCE | {"many": hostile, "network_def": definition | {"window_size": "@many"}}
        assert "window_size" not in read_bundle(write_configs(tmp_path, inference=other)).fields
    assert read_bundle(write_configs(tmp_path, METADATA | {"monai_version": "9" * 5000 + ".1"})).task == bundle.task
    with refused("is a MONAI bundle with the network monai.networks.nets.SegResNet, expected SwinUNETR"):
        read_bundle(write_configs(tmp_path, inference={"network_def": {"_target_": "monai.networks.nets.SegResNet"}}))
    (tmp_path / "configs/metadata.json").write_text("{")
    with refused("metadata.json is damaged", "--downsample"):
        read_bundle(tmp_path)
    assert read_bundle(tmp_path / "configs") is None


@pytest.mark.parametrize("name", ["inference.yaml", "train.yml"])
def test_a_configuration_in_yaml_is_read_as_plain_values(tmp_path, name):
    expected = read_bundle(write_configs(tmp_path))
    (tmp_path / "configs/inference.json").unlink()
    path = tmp_path / "configs" / name
    path.write_text(yaml.safe_dump(INFERENCE))
    assert read_bundle(tmp_path) == expected
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    for text, words in (
        (f"{laughs}network_def: {{_target_: *a39}}", "cannot be read as YAML (it has aliases (*name), which are not supported)"),
        ("network_def: !!python/object/apply:os.system [false]", "cannot be read as YAML"),
        ("network_def: [", "cannot be read as YAML"),
        ("network_def: !!bool abc", "cannot be read as YAML"),
        ("network_def: !!timestamp abc", "cannot be read as YAML"),
        ("- network_def", "must hold names with values"),
        ("1: 2", "must hold names with values"),
        ("[" * 5000, "cannot be read as YAML"),
        ("#" * (1 << 20) + "\n", "more than the configuration of a bundle can have"),
    ):
        path.write_text(text)
        with refused(name, words, "--downsample"):
            read_bundle(tmp_path)


def test_regions_of_brats_keep_their_order(tmp_path):
    names = {"0": "Whole tumor", "1": "Tumor core", "2": "Enhancing tumor"}
    inputs = {"0": "T1c", "1": "T1", "2": "T2", "3": "FLAIR"}
    data = {"inputs": {"image": {"channel_def": inputs}}, "outputs": {"pred": {"channel_def": names}}}
    transforms = {"transforms": [{"_target_": "NormalizeIntensityd", "nonzero": True, "channel_wise": True}]}
    regions = {"transforms": [{"_target_": "Activationsd", "sigmoid": True}]}
    inference = {"network_def": {"_target_": "SwinUNETR"}, "preprocessing": transforms, "postprocessing": regions}
    task = read_bundle(write_configs(tmp_path, {"network_data_format": data}, inference)).task
    assert task.outputs == (
        Output(name="WT", value=2, members=(1, 2, 4)),
        Output(name="TC", value=1, members=(1, 4)),
        Output(name="ET", value=4, members=(4,)),
    )
    assert (task.paint, task.channels, task.intensity) == ((0, 1, 2), ("T1c", "T1", "T2", "FLAIR"), "zscore")


def test_a_written_bundle_is_read_back_without_options(tmp_path, capsys):
    params = random_params(CONFIG)
    save_params(tmp_path / "net", CONFIG, params, task=TASK)
    assert run("pack", tmp_path / "net", tmp_path / "bundle", "--format", "monai-bundle", "--licence", "mit") == 0
    assert sorted(str(p.relative_to(tmp_path / "bundle")) for p in (tmp_path / "bundle").rglob("*") if p.is_file()) == [
        "LICENSE",
        "configs/inference.json",
        "configs/metadata.json",
        "docs/README.md",
        "models/model.pt",
    ]
    back = open_checkpoint(tmp_path / "bundle")
    assert (back.config, back.task, read_task(tmp_path / "bundle")) == (CONFIG, TASK, TASK)
    assert_same_arrays(back.params, params)
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:  # as a download of the folder
        for path in (tmp_path / "bundle").rglob("*"):
            archive.write(path, path.relative_to(tmp_path))
    assert (open_checkpoint(tmp_path / "bundle.zip").task, read_task(tmp_path / "bundle.zip")) == (TASK, TASK)
    assert run("pack", tmp_path / "net", tmp_path / "bundle", "--format", "monai-bundle") == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.long
def test_a_bundle_in_a_bucket_states_its_task(tmp_path, gcs_bucket, use_bucket):
    use_bucket(gcs_bucket)
    save_params(tmp_path / "net", CONFIG, random_params(CONFIG), task=TASK)
    assert run("pack", tmp_path / "net", tmp_path / "bundle", "--format", "monai-bundle") == 0
    files = [path for path in (tmp_path / "bundle").rglob("*") if path.is_file()]
    gcs_bucket.write_many({path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in files})
    opened = open_checkpoint(f"{gcs_bucket.url}/bundle")
    assert (opened.config, opened.task, read_task(f"{gcs_bucket.url}/bundle")) == (CONFIG, TASK, TASK)


@pytest.mark.long
@pytest.mark.parametrize("order", ["legacy", "merging", "mergingv2"])
def test_a_written_bundle_gives_the_same_logits_in_monai(tmp_path, monkeypatch, order):
    import torch
    from monai.bundle import ConfigParser

    config = CONFIG_3D.replace(downsample=order, use_v2=order == "mergingv2", in_channels=1)
    params = {name: 0.05 * array for name, array in random_params(config).items()}
    task = Task.classes(3, orientation="RAS", spacing=(1.0, 1.0, 2.0), roi=(64, 32, 32))
    save_params(tmp_path / "net", config, params, task=task)
    assert run("pack", tmp_path / "net", tmp_path / "bundle", "--format", "monai-bundle") == 0
    monkeypatch.syspath_prepend(str(tmp_path / "bundle"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    parser = ConfigParser()
    parser.read_config(str(tmp_path / "bundle/configs/inference.json"))
    parser.read_meta(str(tmp_path / "bundle/configs/metadata.json"))
    network = parser.get_parsed_content("network_def").eval()
    state = torch.load(tmp_path / "bundle/models/model.pt", weights_only=True)
    network.load_state_dict(state, strict=True)
    x = np.random.default_rng(0).standard_normal((1, 64, 64, 32, 1), np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(x).movedim(-1, 1)).movedim(1, -1).numpy()
    logits = np.asarray(open_checkpoint(tmp_path / "bundle").model()(x))
    assert np.abs(logits - expected).max() < 1e-4 and np.abs(expected).max() > 0.01
    assert parser.get_parsed_content("preprocessing").transforms[2].__class__.__name__ == "Orientationd"
    shutil.rmtree(tmp_path / "bundle")
