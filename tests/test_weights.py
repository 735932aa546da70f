"""Weights that do not fit a network, other numbers of channels, fields that are given for a file, and the writing of weights."""

import json

import ml_dtypes
import numpy as np
import pytest
from helpers.weight_states import CONFIG_2D, CONFIG_3D, assert_same_tensors, open_refused, random_params

from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task
from swinunetr_jax.weights.load import open_checkpoint, save_params
from swinunetr_jax.weights.monai import entries
from swinunetr_jax.weights.safetensors_file import read_safetensors_metadata
from swinunetr_jax.weights.torch_file import read_torch_file

pytest_plugins = ["helpers.fixtures"]

# Tensors that do not fit


def test_every_difference_is_listed(state_file, state_3d):
    state = {name: tensor for name, tensor in state_3d.items() if not name.startswith("decoder3.conv_block.conv")}
    state["decoder2.conv_block.conv9.weight"] = np.ones((2, 3), np.float32)
    state["encoder2.layer.conv1.conv.weight"] = np.ones((12, 12, 3, 3, 1), np.float32)
    state["encoder3.layer.conv1.conv.weight"] = np.ones((24, 24), np.float32)
    message = open_refused(state_file(state), downsample="legacy")
    head, *lines = message.split("\n")
    assert head.endswith("does not match the network, 6 names differ:")
    assert lines == [
        "  decoder2.conv_block.conv9.weight: (2, 3) in the file, not in the network",
        "  decoder3.conv_block.conv1.conv.weight: missing in the file, (24, 48, 3, 3, 3) in the network",
        "  decoder3.conv_block.conv2.conv.weight: missing in the file, (24, 24, 3, 3, 3) in the network",
        "  decoder3.conv_block.conv3.conv.weight: missing in the file, (24, 48, 1, 1, 1) in the network",
        "  encoder2.layer.conv1.conv.weight: (12, 12, 3, 3, 1) in the file, (12, 12, 3, 3, 3) in the network",
        "  encoder3.layer.conv1.conv.weight: (24, 24) in the file, (24, 24, 3, 3, 3) in the network",
    ]


def test_a_network_wider_than_the_file_is_refused(state_file, state_2d):
    message = open_refused(state_file(state_2d), feature_size=24)
    assert "\n  out.conv.conv.weight: (2, 12, 1, 1) in the file, (2, 24, 1, 1) in the network" in message
    assert "adapt" not in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(state_file, state_2d, value):
    state = {name: tensor.copy() for name, tensor in state_2d.items()}
    state["decoder1.conv_block.conv1.conv.weight"][3, 2, 1, 0] = value
    state["swinViT.layers2.0.downsample.norm.bias"][-1] = value
    path = state_file(state)
    for options in ({}, {"adapt_channels": True, "out_channels": 9}):
        message = open_refused(path, **options)
        assert message == (
            f"{path} contains NaN, or numbers that are infinite in float32, expected finite weights in "
            "swinViT.layers2.0.downsample.norm.bias, decoder1.conv_block.conv1.conv.weight: take an earlier checkpoint."
        )
    assert "in swinViT.layers2.0.downsample.norm.bias: take" in open_refused(path, encoder_only=True)


def test_numbers_that_overflow_in_a_smaller_type_are_refused(state_file, state_2d):
    state = state_2d | {"out.conv.conv.bias": np.float32([7e4, 1])}
    assert open_checkpoint(state_file(state)).params["out.bias"][0] == 7e4
    assert "infinite in float16, expected finite weights in out.conv.conv.bias: " in open_refused(
        state_file(state), param_dtype="float16"
    )


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_float_types_are_converted(state_file, state_2d, dtype):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    state = {name: tensor.astype(dtype) if tensor.dtype == np.float32 else tensor for name, tensor in state_2d.items()}
    params = open_checkpoint(state_file(state)).params
    assert all(array.dtype == np.float32 for array in params.values())
    assert np.array_equal(params["out.bias"], state["out.conv.conv.bias"].astype(np.float32))


def test_integers_are_refused_as_weights(state_file, state_2d):
    state = state_2d | {
        "out.conv.conv.bias": np.ones(2, np.int8),
        "decoder1.conv_block.conv1.conv.weight": np.ones((12, 24, 3, 3), bool),
    }
    message = open_refused(state_file(state))
    assert "\n  out.conv.conv.bias: numbers of type int8 in the file, floating-point numbers in the network" in message
    assert "\n  decoder1.conv_block.conv1.conv.weight: numbers of type bool in the file, floating-point numbers" in message


# Other numbers of channels


def test_channels_are_adapted_only_on_request(state_file, state_3d):
    path = state_file(state_3d)
    message = open_refused(path, downsample="legacy", in_channels=4, out_channels=5)
    head, *lines = message.split("\n")
    assert "5 names differ (for another number of input or output channels, use `adapt_channels`" in head
    assert "  swinViT.patch_embed.proj.weight: (12, 2, 2, 2, 2) in the file, (12, 4, 2, 2, 2) in the network" in lines

    checkpoint = open_checkpoint(path, downsample="legacy", in_channels=4, out_channels=5, adapt_channels=True)
    assert checkpoint.config == CONFIG_3D.replace(in_channels=4, out_channels=5)
    inputs = {"swin.patch_embed.proj.kernel", "encoder1.conv1.kernel", "encoder1.conv3.kernel"}
    assert set(checkpoint.report.adapted) == inputs
    assert all(how == "averaged over 2 input channels for 4" for how in checkpoint.report.adapted.values())
    assert sorted(checkpoint.report.initialized) == ["out.bias", "out.kernel"]
    text = str(checkpoint.report)
    assert "out is initialised randomly: 5 outputs instead of 3" in text
    assert "adapted swin.patch_embed.proj.kernel: averaged over 2 input channels for 4" in text
    assert_same_tensors(
        checkpoint,
        state_3d,
        except_for=("out", "encoder1.layer.conv1", "encoder1.layer.conv3", "swinViT.patch_embed.proj.weight"),
    )

    # Four channels with the same image have the same result as two.
    old, new = state_3d["encoder1.layer.conv1.conv.weight"], checkpoint.params["encoder1.conv1.kernel"]
    assert new.shape == (3, 3, 3, 4, 12) and np.array_equal(new[..., 0, :], new[..., 3, :])
    assert np.allclose(new.sum(axis=-2)[0, 1, 2], old.sum(axis=1)[:, 0, 1, 2], atol=1e-5)


def test_only_inputs_or_only_outputs_are_adapted(state_file, state_2d):
    checkpoint = open_checkpoint(state_file(state_2d), out_channels=4, adapt_channels=True)
    assert not checkpoint.report.adapted and sorted(checkpoint.report.initialized) == ["out.bias", "out.kernel"]
    assert_same_tensors(checkpoint, state_2d, except_for=("out",))
    checkpoint = open_checkpoint(state_file(state_2d), in_channels=3, adapt_channels=True)
    assert not checkpoint.report.initialized
    assert_same_tensors(
        checkpoint, state_2d, except_for=("encoder1.layer.conv1", "encoder1.layer.conv3", "swinViT.patch_embed.proj.weight")
    )
    assert_same_tensors(open_checkpoint(state_file(state_2d), adapt_channels=True), state_2d)


def test_other_faults_are_reported_when_channels_are_adapted(state_file, state_2d):
    def lines(changes, without=()):
        state = {name: tensor for name, tensor in (state_2d | changes).items() if name not in without}
        head, *differences = open_refused(state_file(state), out_channels=4, in_channels=3, adapt_channels=True).split("\n")
        assert "use `" not in head
        return differences

    name = "encoder1.layer.conv1.conv.weight"
    assert lines({name: np.ones((24, 1, 3, 3), np.float32)}) == [
        f"  {name}: (24, 1, 3, 3) in the file, (12, 3, 3, 3) in the network"
    ]
    assert lines({}, without=[name]) == [f"  {name}: missing in the file, (12, 3, 3, 3) in the network"]
    assert lines({name: np.ones((12, 1, 3, 3), np.int8)}) == [
        f"  {name}: (12, 1, 3, 3) in the file, (12, 3, 3, 3) in the network"
    ]
    out = "out.conv.conv.weight"
    assert f"  {out}: (2, 24, 1, 1) in the file, (4, 12, 1, 1) in the network" in lines({out: np.ones((2, 24, 1, 1), np.float32)})
    assert len(lines({}, without=[out])) == 2  # an output layer with only one of its two parameters is a fault


def test_a_stored_configuration_is_adapted_only_on_request(tmp_path):
    path = tmp_path / "a.safetensors"
    save_params(path, CONFIG_2D, random_params(CONFIG_2D), task=Task.classes(2), to="safetensors")
    message = open_refused(path, out_channels=3)
    assert message.endswith(
        "was created with `out_channels` 2, but 3 was given: leave it out or use `adapt_channels` (--adapt-channels)."
    )
    checkpoint = open_checkpoint(path, out_channels=3, adapt_channels=True)
    assert checkpoint.config == CONFIG_2D.replace(out_channels=3) and checkpoint.task is None
    checkpoint = open_checkpoint(path, out_channels=3, norm_name="batch", encoder_only=True)
    assert checkpoint.config == CONFIG_2D.replace(out_channels=3, norm_name="batch") and checkpoint.task is None


# Fields that are given for a file with a configuration


def test_runtime_fields_can_differ_from_the_file_and_others_cannot(tmp_path):
    path, params = tmp_path / "a.safetensors", random_params(CONFIG_2D)
    save_params(path, CONFIG_2D, params, task=Task.classes(2), to="safetensors")
    free = {
        "dtype": "bfloat16",
        "param_dtype": "bfloat16",
        "use_checkpoint": True,
        "use_flash_attention": True,
        "drop_rate": 0.1,
        "attn_drop_rate": 0.2,
        "dropout_path_rate": 0.3,
    }
    checkpoint = open_checkpoint(path, **free)
    assert checkpoint.config == CONFIG_2D.replace(**free) and checkpoint.task == Task.classes(2)
    assert all(array.dtype.name == "bfloat16" for array in checkpoint.params.values())
    assert open_checkpoint(path, **CONFIG_2D.to_dict()).config == CONFIG_2D
    fixed = {
        "in_channels": 3,
        "spatial_dims": 3,
        "feature_size": 24,
        "depths": (1, 1, 1, 2),
        "num_heads": (2, 2, 2, 2),
        "window_size": 5,
        "qkv_bias": False,
        "mlp_ratio": 2,
        "norm_name": "batch",
        "patch_norm": True,
        "normalize": False,
        "downsample": "mergingv2",
        "use_v2": True,
    }
    for name, value in fixed.items():
        fields = {name: value} | ({"window_size": 3} if name == "spatial_dims" else {})
        message = open_refused(path, **fields)
        assert message.startswith(f"{path} was created with `{name}` {CONFIG_2D.to_dict()[name]!r}, but ")
        assert "leave it out" in message


# Writing


def test_weights_that_could_not_be_read_again_are_not_written(tmp_path):
    params = random_params(CONFIG_2D)
    for to in ("orbax", "monai", "safetensors"):
        with pytest.raises(InputError, match=r"NaN or infinite values, so nothing was written: out\.bias"):
            save_params(tmp_path / "a", CONFIG_2D, params | {"out.bias": np.float32([1, np.nan])}, to=to)
        with pytest.raises(InputError, match=r"nothing was written:\n  out.bias: got \(3,\), expected \(2,\)"):
            save_params(tmp_path / "a", CONFIG_2D, params | {"out.bias": np.ones(3, np.float32)}, to=to)
        with pytest.raises(InputError, match=r"\n  out.scale: got \(2,\), expected nothing"):
            save_params(tmp_path / "a", CONFIG_2D, params | {"out.scale": np.ones(2, np.float32)}, to=to)
        with pytest.raises(InputError, match="the task names 3 outputs, but the network has 2"):
            save_params(tmp_path / "a", CONFIG_2D, params, task=Task.classes(3), to=to)
    with pytest.raises(InputError, match="`to` must be one of orbax, monai, safetensors, got 'pickle'"):
        save_params(tmp_path / "a", CONFIG_2D, params, to="pickle")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["monai", "safetensors"])
def test_a_file_is_replaced_only_on_request(tmp_path, to):
    path, params = tmp_path / "a", random_params(CONFIG_2D)
    save_params(path, CONFIG_2D, params, to=to)
    before = path.read_bytes()
    with pytest.raises(
        InputError, match="exists already, expected a new name: choose another one, or replace it with `overwrite`"
    ):
        save_params(path, CONFIG_2D, random_params(CONFIG_2D, 1), to=to)
    assert path.read_bytes() == before
    save_params(path, CONFIG_2D, random_params(CONFIG_2D, 1), to=to, overwrite=True)
    assert np.array_equal(open_checkpoint(path).params["out.bias"], random_params(CONFIG_2D, 1)["out.bias"])
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_the_digest_is_the_same_in_every_format(tmp_path):
    params = random_params(CONFIG_2D)
    digests = set()
    for to in ("orbax", "monai", "safetensors"):
        save_params(tmp_path / to, CONFIG_2D, params, to=to)
        digests.add(open_checkpoint(tmp_path / to).digest)
    assert len(digests) == 1
    assert set(read_torch_file(tmp_path / "monai")) == {entry.name for entry in entries(CONFIG_2D)}
    assert json.loads(read_safetensors_metadata(tmp_path / "safetensors")["swinunetr_jax"])["config"] == CONFIG_2D.to_dict()
