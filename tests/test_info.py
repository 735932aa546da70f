"""`swinunetr info` and `swinunetr convert` print what a file holds."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from swinunetr_jax import cli
from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.weights.load import save_params
from swinunetr_jax.weights.monai import to_monai
from swinunetr_jax.weights.params import count_parameters, shapes
from swinunetr_jax.weights.torch_file import write_torch_file

CONFIG = SwinUNETRConfig(in_channels=2, out_channels=3, feature_size=12, depths=(1, 1, 1, 1), window_size=3)


@pytest.fixture(scope="module")
def params() -> dict[str, np.ndarray]:
    return {name: np.full(leaf.shape, 0.5, leaf.dtype) for name, leaf in shapes(CONFIG).items()}


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    return caught.value.code, *capsys.readouterr()


@pytest.mark.fault("5.14")
@pytest.mark.parametrize("name", ["ours", "ours.safetensors", "theirs.pt"])
def test_info_shows_what_a_sound_file_holds_and_nothing_else(tmp_path, params, capsys, name):
    save_params(tmp_path / name, CONFIG, params)
    code, out, err = run(capsys, "info", tmp_path / name)
    assert code == 0 and not err
    assert f"Swin UNETR, {count_parameters(shapes(CONFIG)):,} parameters" in out
    assert not re.search("made|adapted|initiali[sz]ed", out)
    assert re.search(r"^part +read\n", out, re.M) and re.search(r"^swin.stages.0 +\d+\n", out, re.M)


@pytest.mark.fault("5.14")
def test_info_of_an_encoder_alone(tmp_path, params, capsys):
    encoder = {name: array for name, array in to_monai(params, CONFIG).items() if name.startswith("swinViT.")}
    write_torch_file(tmp_path / "encoder.pt", {"state_dict": encoder})
    code, out, _ = run(capsys, "info", tmp_path / "encoder.pt")
    count = sum(array.size for name, array in params.items() if name.startswith("swin."))
    assert code == 0 and f"part of a Swin UNETR, {count:,} parameters\n" in out
    assert not re.search("made|adapted|initiali[sz]ed|decoder", out)
    assert re.search("out_channels +not stated in the file", out) and re.search("downsample +not stated in the file", out)
    facts = json.loads(run(capsys, "info", tmp_path / "encoder.pt", "--json")[1])
    assert facts["parameters"] == count and facts["weights"] is None and facts["config"]["norm_name"] is None


@pytest.mark.fault("1.11")
def test_a_key_on_the_command_line(tmp_path, params, capsys):
    state = to_monai(params, CONFIG)
    other = {name: array * 2 if array.dtype == np.float32 else array for name, array in state.items()}
    write_torch_file(tmp_path / "a.pt", {"model": state, "model_ema": other | {"n_averaged": np.array(3)}})
    code, _, err = run(capsys, "info", tmp_path / "a.pt")
    assert code == 2 and "several networks" in err and "model_ema" in err and "--key" in err
    code, out, err = run(capsys, "info", tmp_path / "a.pt", "--key", "model_ema")
    assert code == 0 and "ignored in the file: " in out and "warning: " in err and "n_averaged" in err


@pytest.mark.fault("5.6")
def test_convert_refuses_a_name_of_another_format(tmp_path, params, capsys):
    save_params(tmp_path / "m.pt", CONFIG, params)
    code, out, err = run(capsys, "convert", tmp_path / "m.pt", tmp_path / "m.onnx", "--downsample", "legacy")
    assert code == 2 and not out and err.count("\n") == 1 and "ending .onnx" in err and ".safetensors" in err
    assert [path.name for path in Path(tmp_path).iterdir()] == ["m.pt"]
