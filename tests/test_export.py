"""Exported networks compute the logits of the network, at several numbers of windows, and say what they are."""

import importlib.util
import os
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.prediction import run

from swinunetr_jax import InputError, SwinUNETR, SwinUNETRConfig, Task, save_checkpoint
from swinunetr_jax.export import export_onnx, export_stablehlo, load_exported

# Of an environment with jax2onnx and onnxruntime, see docs/export.md. Without it the tests of ONNX files are skipped.
ONNX_PYTHON = os.environ.get("SWINUNETR_ONNX_PYTHON")
TASK = Task.brats(roi=(64, 32, 32))
CONFIG = SwinUNETRConfig(in_channels=4, out_channels=3, feature_size=12, depths=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def model() -> SwinUNETR:
    return SwinUNETR(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    save_checkpoint(path := tmp_path_factory.mktemp("net") / "net", model, task=TASK)
    return path


def windows(count: int, roi: tuple[int, ...] = (64, 32, 32)) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, *roi, 4)).astype(np.float32)


def check_logits(got, model, x, tolerance):
    expected = np.asarray(jax.jit(model)(jnp.asarray(x)), np.float32)
    assert got.shape == expected.shape and got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stablehlo_program_has_the_logits_of_the_network_for_any_number_of_windows(dtype, checkpoint, model, tmp_path):
    path = tmp_path / "net.stablehlo"
    assert run("export", checkpoint, path, "--dtype", dtype) == 0
    exported = load_exported(path)
    assert exported.description["platforms"] == ["cpu", "cuda", "tpu"]
    assert exported.description["input"]["channels"] == ["FLAIR", "T1ce", "T1", "T2"]
    assert exported.description["output"]["names"] == ["TC", "WT", "ET"] and exported.description["computed_in"] == dtype
    for count in (1, 3):
        got = np.asarray(exported(windows(count)))
        if dtype == "float32":
            check_logits(got, model, windows(count), 1e-4)
        else:
            expected = np.asarray(jax.jit(model)(jnp.asarray(windows(count))))
            difference = np.linalg.norm(got - expected) / np.linalg.norm(expected)
            # One rounding to bfloat16 has a relative error of about 2⁻⁹ / √3 = 0.11 %. About 50 of them follow one another in the network,
            # and independent errors add up to √50 · 0.11 % = 0.8 %. The limit is 2.5 times that. Float32 would be below 0.1 %.
            assert got.dtype == np.float32 and 0.001 < difference < 0.02


def test_a_stablehlo_program_for_one_number_of_windows(model, tmp_path):
    path = tmp_path / "net.stablehlo"
    export_stablehlo(path, model, task=TASK, batch=1, platforms=("cpu",))
    exported = load_exported(path)
    check_logits(np.asarray(exported(windows(1))), model, windows(1), 1e-4)
    with pytest.raises(InputError, match=r"takes windows of the shape \(1, 64, 32, 32, 4\)"):
        exported(windows(2))
    with pytest.raises(InputError, match="exists already"):
        export_stablehlo(path, model, task=TASK, batch=1, platforms=("cpu",))
    (tmp_path / "cut.stablehlo").write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"damaged or of another kind, expected a \.stablehlo file"):
        load_exported(tmp_path / "cut.stablehlo")


def test_mistakes_are_one_sentence(checkpoint, model, tmp_path, capsys):
    for arguments, message in [
        (["net.pb"], "has the ending .pb, expected .stablehlo or .onnx"),
        (["net.onnx", "--dtype", "bfloat16"], "--dtype is for a .stablehlo file"),
        (["net.stablehlo", "--batch", "many"], "--batch must be a number above 0 or any, got 'many'"),
        (["net.stablehlo", "--roi", "60", "64", "64"], "must be 3 multiples of 32"),
        (["folder/net.stablehlo"], "is not a folder, expected the folder of the new file"),
    ]:
        assert run("export", checkpoint, tmp_path / arguments[0], *arguments[1:]) == 2
        assert message in capsys.readouterr().err
    hyena = SwinUNETRConfig.hyena_variant("HHAA", in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1))
    with pytest.raises(InputError, match="has Hyena stages"):
        export_onnx(tmp_path / "net.onnx", SwinUNETR(hyena, rngs=nnx.Rngs(0)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(importlib.util.find_spec("jax2onnx") is not None, reason="jax2onnx is installed")
def test_a_missing_converter_is_one_sentence(model, tmp_path):
    with pytest.raises(InputError, match="an ONNX file needs jax2onnx"):
        export_onnx(tmp_path / "net.onnx", model, task=TASK)


@pytest.mark.long
@pytest.mark.skipif(not ONNX_PYTHON, reason="SWINUNETR_ONNX_PYTHON names no interpreter with jax2onnx and onnxruntime")
@pytest.mark.parametrize("roi", [(64, 32, 32), (96, 96, 96)], ids=str)
def test_an_onnx_file_has_the_logits_of_the_network_at_two_numbers_of_windows(roi, checkpoint, model, tmp_path):
    """The large window has so many voxels that float32 loses digits if they are added one after the other."""
    program = """
import json, sys
import numpy, onnxruntime
from swinunetr_jax import cli
source, target, roi, *numbers = sys.argv[1:]
try:
    cli.main(["export", source, target, "--roi", *roi.split()])
except SystemExit as stop:
    assert not stop.code
session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
description = json.loads(session.get_modelmeta().custom_metadata_map["swinunetr_jax"])
assert description["output"]["names"] == ["TC", "WT", "ET"]
for path in numbers:
    numpy.save(path + ".out.npy", session.run(["logits"], {"windows": numpy.load(path)})[0])
"""
    inputs = []
    for count in (1, 2):
        np.save(tmp_path / f"{count}.npy", windows(count, roi))
        inputs.append(str(tmp_path / f"{count}.npy"))
    command = [str(ONNX_PYTHON), "-c", program, str(checkpoint), str(tmp_path / "net.onnx"), " ".join(map(str, roi)), *inputs]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
    for count in (1, 2):
        check_logits(np.load(tmp_path / f"{count}.npy.out.npy"), model, windows(count, roi), 1e-5)
