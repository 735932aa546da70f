"""MONAI's state dict is read and written without changes for networks of every kind."""

import jax
import numpy as np
import pytest
from helpers.weight_states import CONFIG_3D, CONFIGS, assert_same_tensors, config_for, random_params

from swinunetr_jax.weights.find_network import Source
from swinunetr_jax.weights.load import load_checkpoint, open_checkpoint, save_params
from swinunetr_jax.weights.monai import entries, from_tensors, to_monai
from swinunetr_jax.weights.params import shapes


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_of_monai_come_back_unchanged(tmp_path, name):
    torch, nets = pytest.importorskip("torch"), pytest.importorskip("monai.networks.nets")
    config = config_for(name)
    net = nets.SwinUNETR(**{"in_channels": 4, "out_channels": 3, "feature_size": 12, **CONFIGS[name]})
    for buffer in net.buffers():  # statistics that differ from their initial values
        if buffer.dtype.is_floating_point:
            buffer.uniform_(0.5, 2)
        elif buffer.ndim == 0:
            buffer.fill_(1234567)
    state = {key: tensor.numpy() for key, tensor in net.state_dict().items()}
    torch.save({"state_dict": net.state_dict()}, tmp_path / "monai.pt")
    fields = {"downsample": "legacy"} | ({"num_groups": config.num_groups} if config.num_groups else {})
    checkpoint = open_checkpoint(tmp_path / "monai.pt", **fields)
    assert checkpoint.config == config
    assert_same_tensors(checkpoint, state)

    save_params(tmp_path / "ours.pt", config, checkpoint.params, to="monai")
    written = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert {key: tensor.dtype for key, tensor in written.items()} == {key: t.dtype for key, t in net.state_dict().items()}
    state = {key: array.copy() for key, array in state.items()}
    for tensor in net.state_dict().values():
        tensor.zero_()
    net.load_state_dict(written, strict=True)
    assert all(tensor.numpy().tobytes() == state[key].tobytes() for key, tensor in net.state_dict().items())


def test_a_loaded_network_computes_monais_logits(tmp_path):
    torch, nets = pytest.importorskip("torch"), pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    net = nets.SwinUNETR(in_channels=2, out_channels=3, feature_size=12, depths=(1, 1, 1, 1), window_size=(4, 4, 2)).eval()
    torch.save(net.state_dict(), tmp_path / "a.pt")
    x = np.random.default_rng(0).standard_normal((1, 64, 32, 32, 2), np.float32)
    with torch.no_grad():
        expected = np.moveaxis(net(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).numpy(), 1, -1)
    got = np.asarray(jax.jit(load_checkpoint(tmp_path / "a.pt", downsample="merging"))(x))
    assert np.abs(got - expected).max() < 1e-4


def test_the_axes_of_each_kind_of_tensor():
    """Explicit shapes and numbers reveal two wrong transpositions that would cancel each other."""
    state = to_monai(random_params(CONFIG_3D), CONFIG_3D)
    params, faults = from_tensors(Source("", state), entries(CONFIG_3D), CONFIG_3D, shapes(CONFIG_3D))
    assert not faults
    conv, kernel = state["encoder2.layer.conv1.conv.weight"], params["encoder2.conv1.kernel"]
    assert conv[5, 7, 0, 1, 2] == kernel[0, 1, 2, 7, 5] and kernel.flags["C_CONTIGUOUS"]
    up, kernel = state["decoder5.transp_conv.conv.weight"], params["decoder5.up.kernel"]  # [in, out, d, h, w]
    assert up.shape == (192, 96, 2, 2, 2) and up[150, 7, 0, 1, 1] == kernel[0, 1, 1, 150, 7]
    linear, kernel = state["swinViT.layers1.0.blocks.0.attn.qkv.weight"], params["swin.stages.0.blocks.0.attn.qkv.kernel"]
    assert linear.shape == (36, 12) and linear[30, 2] == kernel[2, 30]
    table = state["swinViT.layers1.0.blocks.0.attn.relative_position_bias_table"]
    assert table.shape == (125, 3)
    index = state["swinViT.layers1.0.blocks.0.attn.relative_position_index"]
    assert index.dtype == np.int64 and index[0, 0] == 62 and index[0, 26] == 0 and index[26, 0] == 124
    assert len(state) == 159 - 4 * 14  # one block fewer in each stage than in the default network
