"""Commands and the trainer take weights in buckets, and name their addresses."""

import json
import re
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
from flax import nnx
from helpers.bucket_runs import numbers
from helpers.bucket_weights import put
from helpers.checkpoint_folder import CONFIG
from helpers.prediction import write_case
from helpers.refusals import refused
from helpers.small_network import SmallNetwork
from helpers.training_runs import recipe
from helpers.weight_states import random_params

from swinunetr_jax import SwinUNETRConfig, Task, cli
from swinunetr_jax.data.phantom.dataset import write_phantom
from swinunetr_jax.postprocess import Postprocess, Step, write_postprocess
from swinunetr_jax.training import Init, loop
from swinunetr_jax.training.loop import train
from swinunetr_jax.training.options import Options
from swinunetr_jax.training.pretrain.fine_tuning import _ENCODER, _NOT_PRETRAINED, _WHOLE, _pretrained_weights
from swinunetr_jax.weights.checkpoint import describe
from swinunetr_jax.weights.load import save_params
from swinunetr_jax.weights.params import flatten

pytest_plugins = ["helpers.fixtures", "helpers.bucket_weights"]

PARAMS = random_params(CONFIG)


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return caught.value.code, *capsys.readouterr()


@pytest.mark.long
def test_convert_and_info_print_addresses(here, written_checkpoint, capsys, tmp_path):
    put(here, "model", written_checkpoint)
    code, out, err = run(capsys, "convert", f"{here.url}/model", f"{here.url}/model.pt")
    assert code == 0 and not err and f"{here.url}/model → {here.url}/model.pt (monai), weights " in out
    code, out, err = run(capsys, "convert", f"{here.url}/model", f"{here.url}/model.pt")
    assert code == 2 and err == (
        f"error: {here.url}/model.pt exists already, expected a new name: choose another one, or replace it with `overwrite` "
        "(--overwrite).\n"
    )
    code, out, _ = run(capsys, "info", f"{here.url}/model.pt", "--json", "--window-size", 3, 3)
    assert code == 0 and json.loads(out)["path"] == f"{here.url}/model.pt" and str(tmp_path) not in out
    code, out, _ = run(capsys, "convert", f"{here.url}/model", f"{here.url}/encoders", "--write-encoder")
    name = f"encoders/swin_encoder_{CONFIG.downsample}_f12.pt"
    assert code == 0 and f"{here.url}/model → {here.url}/{name} (the Swin encoder" in out and name in here.names()
    assert str(tmp_path) not in out
    code, _, err = run(capsys, "convert", f"{here.url}/model", f"{here.url}/model.onnx")
    assert code == 2 and f"{here.url}/model.onnx has the ending .onnx" in err


def test_fine_tuning_finds_out_that_a_run_in_a_bucket_was_pre_trained(here, written_checkpoint):
    description = describe(CONFIG, Task.images(("CT", "CT again")), PARAMS, params="params", files={})
    here.write("run/best/checkpoint.json", description.encode())
    assert _pretrained_weights(Path(f"{here.url}/run")) == _WHOLE
    for options, kind in ((Options(kind="scans", task="swin3"), _ENCODER), (Options(kind="scans", task="mim"), _WHOLE)):
        here.write("run/run.json", json.dumps({"recipe": options.to_dict()}).encode())
        assert _pretrained_weights(Path(f"{here.url}/run")) == _pretrained_weights(Path(f"{here.url}/run/best")) == kind
    put(here, "model", written_checkpoint)
    assert _pretrained_weights(Path(f"{here.url}/model")) == _NOT_PRETRAINED


@pytest.mark.long
def test_predict_with_a_cross_validation_in_a_bucket_is_the_same_as_with_a_local_one(
    here, small_network, capsys, tmp_path, monkeypatch
):
    config = SwinUNETRConfig(in_channels=4, out_channels=3, feature_size=12, depths=(1, 1, 1, 1))
    for fold in (0, 1):
        save_params(
            tmp_path / f"cv/fold{fold}/best", config, flatten(SmallNetwork(config, rngs=nnx.Rngs(fold))), task=Task.brats()
        )
    (tmp_path / "cv/run.json").write_text('{"recipe": {}, "folds": [0, 1, 2]}')
    step = Step(operation="largest_component")
    write_postprocess(tmp_path / "cv/postprocess.json", Postprocess(task=Task.brats(), steps=(step,)))
    put(here, "cv", tmp_path / "cv")
    case = write_case(tmp_path / "data")
    printed, records = [], []
    for model, out in ((tmp_path / "cv", "local"), (f"{here.url}/cv", "bucket")):
        arguments = ["-i", case, "-o", tmp_path / out, "-m", model, "--roi", 64, 32, 32]
        code, *texts = run(capsys, "predict", *arguments)
        assert code == 0, texts
        printed.append(re.sub(r"\d+\.\d s|\d+ s left", "", "".join(texts)).replace(str(model), "MODEL").replace(out, "OUT"))
        record = json.loads((tmp_path / out / "predict.json").read_text())
        records.append((record["settings"], [file.read_bytes() for file in sorted((tmp_path / out).glob("*.nii.gz"))]))
    assert printed[0] == printed[1] and "MODEL/fold0, MODEL/fold1" in printed[1] and "fold2 is missing" in printed[1]
    assert "MODEL/postprocess.json; --no-postprocess" in printed[1] and str(tmp_path / "scratch") not in printed[1]
    assert records[0] == records[1] and len(records[0][1]) == 1


@pytest.mark.long
def test_a_training_that_starts_from_a_checkpoint_in_a_bucket(here, small_network, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_draw", lambda *_: None)
    write_phantom(tmp_path / "data", cases=4, size=(48, 48, 32), seed=0)
    config = SwinUNETRConfig(in_channels=4, out_channels=3, feature_size=12, depths=(1, 1, 1, 1))
    save_params(tmp_path / "start", config, flatten(SmallNetwork(config, rngs=nnx.Rngs(0))), task=Task.brats())
    put(here, "start", tmp_path / "start")
    losses = []
    for checkpoint in (tmp_path / "start", Path(f"{here.url}/start")):
        out = tmp_path / f"run{len(losses)}"
        train(recipe(tmp_path / "data", out, steps=1, init=Init(checkpoint=checkpoint)).absolute())
        losses.append(numbers(out))
    assert losses[0] == losses[1]
    printed = capsys.readouterr().out
    assert f"the network is that of {here.url}/start, 12 features" in printed and str(tmp_path / "scratch") not in printed
    with refused(f"{here.url}/none does not exist: give an existing checkpoint with --init.checkpoint"):
        train(recipe(tmp_path / "data", tmp_path / "none", init=Init(checkpoint=Path(f"{here.url}/none"))).absolute())


@pytest.mark.long
def test_local_weights_need_no_package_for_buckets(written_checkpoint):
    program = (
        "import sys\nfrom swinunetr_jax import cli\n"
        f"try: cli.main(['info', {str(written_checkpoint)!r}])\nexcept SystemExit as stop: assert not stop.code\n"
        "print({name.partition('.')[0] for name in sys.modules} & {'fsspec', 'gcsfs', 's3fs', 'aiohttp', 'botocore'})"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "set()", result
    assert util.find_spec("gcsfs") is not None
