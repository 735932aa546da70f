"""Presets of published networks, the options that replace parts of them, and the table of `swinunetr weights`."""

import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from helpers.prediction import run
from helpers.refusals import refused
from helpers.weight_states import random_params

from swinunetr_jax import SwinUNETRConfig, Task
from swinunetr_jax.commands.options import TaskOptions, WeightOptions
from swinunetr_jax.packages.published import PUBLISHED
from swinunetr_jax.presets import PRESETS, find_preset
from swinunetr_jax.weights.load import Checkpoint, open_checkpoint, save_params
from swinunetr_jax.weights.load_report import LoadReport

BTCV = Checkpoint(SwinUNETRConfig.btcv(downsample="legacy"), None, {}, LoadReport())
BRATS = Checkpoint(SwinUNETRConfig.brats21(downsample="legacy"), None, {}, LoadReport())
PATH = Path("model.pt")


def test_presets_fit_the_published_networks():
    assert get_args(get_args(get_type_hints(WeightOptions)["preset"])[0]) == tuple(PRESETS)
    btcv, brats = PRESETS["btcv"].task, PRESETS["brats21"].task
    btcv.check(BTCV.config)
    brats.check(BRATS.config)
    assert (btcv.orientation, btcv.spacing, btcv.window, btcv.roi) == ("RAS", (1.5, 1.5, 2.0), (-175.0, 250.0), (96, 96, 96))
    assert [output.value for output in btcv.outputs] == list(range(14)) and btcv.outputs[6].name == "liver"
    assert brats.channels == ("FLAIR", "T1ce", "T1", "T2") and brats.intensity == "zscore" and brats.roi == (128, 128, 128)
    assert [output.name for output in brats.outputs] == ["TC", "WT", "ET"]
    assert {preset.downsample for preset in PRESETS.values()} == {"legacy"}
    with refused("there is no preset 'abdomen', expected one of brats21, btcv"):
        find_preset("abdomen")


def test_a_preset_gives_the_order_and_the_task_and_options_replace_parts(capsys):
    options, plain = WeightOptions(preset="btcv"), TaskOptions()
    assert options.fields() == {"downsample": "legacy"}
    assert plain.apply(BTCV, PATH, options.find_preset(plain)) == PRESETS["btcv"].task
    assert capsys.readouterr().out == ""
    options = WeightOptions(preset="btcv", downsample="merging", key="ema")
    other = TaskOptions(orientation="LPS", window=(-100, 300), spacing=(1.5, 1.5, 2))
    assert options.fields() == {"downsample": "merging", "key": "ema"}
    task = other.apply(BTCV, PATH, options.find_preset(other))
    assert task == replace(PRESETS["btcv"].task, orientation="LPS", window=(-100, 300))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "--downsample merging replaces legacy of the preset btcv",
        "--orientation LPS replaces RAS of the preset btcv",
        "--window -100 300 replaces -175 250 of the preset btcv",
    ]
    swapped = TaskOptions(channels=("T1", "T1ce", "FLAIR", "T2"))
    options = WeightOptions(preset="brats21")
    assert swapped.apply(BRATS, PATH, options.find_preset(swapped)).channels == swapped.channels
    assert "--channels T1 T1ce FLAIR T2 replaces FLAIR T1ce T1 T2 of the preset brats21" in capsys.readouterr().out
    with refused("--preset brats21 is for a network with 4 channels and 3 outputs, but model.pt has 1 and 14"):
        plain.apply(BTCV, PATH, PRESETS["brats21"])
    plain.apply(replace(BTCV, task=Task.classes(14)), PATH, PRESETS["btcv"])
    assert "model.pt: the preset btcv replaces the task that it states" in capsys.readouterr().out


@pytest.mark.long
def test_a_zipped_file_of_a_fold_needs_only_its_preset(tmp_path, capsys):
    """The published folds of BraTS 2021 are zip archives of a folder with the file model.pt."""
    config = SwinUNETRConfig.brats21(downsample="legacy", feature_size=12)
    save_params(tmp_path / "model.pt", config, random_params(config))
    with zipfile.ZipFile(tmp_path / "fold0_f48.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "model.pt", "fold0_f48/model.pt")
    assert run("convert", tmp_path / "fold0_f48.zip", tmp_path / "ours", "--preset", "brats21") == 0
    opened = open_checkpoint(tmp_path / "ours")
    assert (opened.config, opened.task) == (config, PRESETS["brats21"].task)
    with refused("does not state the order of neighbours in its patch merging"):
        open_checkpoint(tmp_path / "fold0_f48.zip")


def test_the_table_states_only_what_has_a_source(capsys):
    assert run("weights", "--json") == 0
    table = json.loads(capsys.readouterr().out)
    assert {item["name"] for item in table["weights"]} >= {"brats21-fold4", "btcv-tiny", "btcv-zoo", "ssl"}
    assert Task.from_dict(table["presets"]["btcv"]["task"]) == PRESETS["btcv"].task
    for item in PUBLISHED:
        assert re.fullmatch(
            r"https://(github\.com/Project-MONAI|developer\.download\.nvidia\.com)/\S+\.(pt|pth|zip)", item.address
        )
        assert re.match(r"https://github\.com/Project-MONAI/[\w-]+/blob/[0-9a-f]{40}/|MONAI 1\.6\.1", item.source)
        assert item.checksum is None or re.fullmatch("MD5 [0-9a-f]{32}", item.checksum)
        assert item.preset in (None, *PRESETS)
    assert run("weights") == 0
    text = capsys.readouterr().out
    assert text.count("licence     not stated by the source") == 10 and "MD5 50dd67a01b28a1d5487fd9ac27e682fb" in text
    assert "-m fold1_f48_ep300_4gpu_dice0_9059.zip --preset brats21" in text
