"""Weight files of other trainers: containers, prefixes, self-supervised networks, and names that do not belong to a network."""

import re

import numpy as np
import pytest
from helpers.weight_states import CONFIG_2D, CONFIG_3D, assert_same_tensors, open_refused, prefixed

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.find_network import find_network
from swinunetr_jax.weights.load import open_checkpoint

pytest_plugins = ["helpers.fixtures"]


def encoder(state, prefix=""):
    """Returns the encoder with the names of self-supervised training: other names in the MLP, and a prefix instead of "swinViT."."""
    renamed = {re.sub(r"\.mlp\.linear", ".mlp.fc", n.removeprefix("swinViT.")): t for n, t in state.items() if "swinViT." in n}
    return prefixed(renamed, prefix)


def heads(prefix=""):
    """Returns tensors of the heads that self-supervised training adds to the encoder."""
    names = (
        "rotation_head.weight",
        "rotation_head.bias",
        "contrastive_head.weight",
        "conv.0.weight",
        "conv.4.bias",
        "conv.8.bias",
    )
    return {prefix + name: np.ones((3, 2), np.float32) for name in names}


def reconstruction(state):
    """Returns a network with the names of `ssl_pretrained_weights.pth`.

    The names of the encoder have the prefix "encoder." and an additional "0." in the names of its stages.
    """
    tensors = {}
    for name, tensor in state.items():
        name = re.sub(r"^swinViT\.(layers\d)\.0\.", r"encoder.\1.0.0.", name)
        tensors[re.sub(r"^swinViT\.", "encoder.", name)] = tensor
    extra = {"encoder.mask_token": np.zeros((1, 12)), "encoder.norm.weight": np.ones(192), "encoder.norm.bias": np.ones(192)}
    return tensors | {name: tensor.astype(np.float32) for name, tensor in extra.items()}


# Complete networks


@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict", "model", "net", "network"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_network_is_found_in_every_common_container(state_file, state_2d, container, prefix):
    state = prefixed(state_2d, prefix)
    path = state_file({"epoch": 3, "best_acc": 0.5, container: state} if container else state)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == CONFIG_2D.replace(downsample="merging")
    assert checkpoint.task is None and checkpoint.report.ignored == [] and checkpoint.report.initialized == []
    assert_same_tensors(checkpoint, state_2d)


@pytest.mark.parametrize("prefix", ["net.", "model.", "backbone.", "_model.", "module.model.", "_orig_mod.module."])
def test_common_prefixes_are_removed(state_file, state_3d, prefix):
    assert_same_tensors(open_checkpoint(state_file({"state_dict": prefixed(state_3d, prefix)}), downsample="legacy"), state_3d)


def test_a_network_is_found_in_nested_containers(state_file, state_2d):
    assert_same_tensors(open_checkpoint(state_file({"model": {"state_dict": state_2d}, "optimizer": {"state": {}}})), state_2d)


def test_a_checkpoint_of_a_torch_trainer_is_read(tmp_path):
    torch, nets = pytest.importorskip("torch"), pytest.importorskip("monai.networks.nets")
    net = torch.nn.DataParallel(nets.SwinUNETR(in_channels=4, out_channels=3, feature_size=12, depths=(1, 1, 1, 1)))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    content = {
        "epoch": 299,
        "best_acc": np.float64(0.91),  # torch refuses it with weights_only=True
        "state_dict": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10).state_dict(),
    }
    path = tmp_path / "fold1_f12_ep300_4gpu_dice0_9059.pth"
    torch.save(content, path)
    with pytest.raises(Exception, match="weights_only"):
        torch.load(path, weights_only=True)
    checkpoint = open_checkpoint(path, downsample="legacy")
    assert checkpoint.config == SwinUNETRConfig.brats21(feature_size=12, depths=(1, 1, 1, 1), downsample="legacy")
    assert_same_tensors(checkpoint, {name: tensor.numpy() for name, tensor in net.module.state_dict().items()})


# Networks of self-supervised training


@pytest.mark.parametrize("prefix", ["module.", "", "module.swinViT.", "swinViT.", "module.swin_vit.", "swin_vit."])
def test_the_encoder_of_self_supervised_training_is_read(state_file, state_3d, prefix):
    path = state_file({"epoch": 1, "state_dict": encoder(state_3d, prefix) | heads(prefix.split("swin")[0])})
    checkpoint = open_checkpoint(path, encoder_only=True, out_channels=5, downsample="legacy")
    assert checkpoint.config == CONFIG_3D.replace(out_channels=5)
    assert_same_tensors(checkpoint, state_3d, except_for=("encoder", "decoder", "out"))
    assert {name for name in checkpoint.params if name.startswith("swin.")} == set(checkpoint.report.read)
    assert {name for name in checkpoint.params if not name.startswith("swin.")} == set(checkpoint.report.initialized)
    assert sorted(checkpoint.report.ignored) == sorted(heads())
    assert "ignored in the file: contrastive_head (1), conv (3), rotation_head (2)" in str(checkpoint.report)


def test_an_encoder_is_refused_with_the_options_that_it_needs(state_file, state_3d):
    path = state_file({"state_dict": encoder(state_3d, "module.")})
    for options in ({}, {"encoder_only": True}):
        message = open_refused(path, downsample="legacy", **options)
        assert "only a Swin encoder" in message
        assert all(word in message for word in ("`encoder_only`", "--encoder-only", "`out_channels`", "--out-channels"))
        assert "\n" not in message
    message = open_refused(path, downsample="legacy", out_channels=3)
    first, *lines = message.split("\n")
    assert "`encoder_only`" in first and "adapt" not in first
    assert len(lines) == sum(not name.startswith("swinViT.") for name in state_3d)
    assert "  encoder1.layer.conv1.conv.weight: missing in the file, (12, 2, 3, 3, 3) in the network" in lines


def test_only_the_encoder_of_a_network_is_read(state_file, state_3d):
    checkpoint = open_checkpoint(
        state_file(state_3d), encoder_only=True, out_channels=7, norm_name="batch", downsample="legacy", seed=3
    )
    assert checkpoint.config.out_channels == 7 and checkpoint.config.norm_name == "batch"
    assert_same_tensors(checkpoint, state_3d, except_for=("encoder", "decoder", "out"))
    assert len(checkpoint.report.ignored) == sum(not name.startswith("swinViT.") for name in state_3d)
    assert "decoder1 (4)" in str(checkpoint.report)


def test_missing_tensors_of_an_encoder_are_listed(state_file, state_3d):
    state = {n: t for n, t in encoder(state_3d).items() if not n.endswith(("layers2.0.downsample.norm.bias", "mlp.fc2.bias"))}
    message = open_refused(state_file(state), encoder_only=True, out_channels=2, downsample="legacy")
    assert message.count("\n") == 5 and "  swinViT.layers2.0.downsample.norm.bias: missing in the file, (192,)" in message


def test_a_reconstruction_network_is_read_without_its_output_layer(state_file, state_3d):
    path = state_file({"model": reconstruction(state_3d), "epoch": 9}, "ssl_pretrained_weights.pth")
    message = open_refused(path, downsample="legacy")
    assert "has no output layer" in message and "`adapt_channels`" in message and "`out_channels`" in message
    message = open_refused(path, downsample="legacy", out_channels=14)
    assert message.count("\n") == 2 and "`adapt_channels`" in message.split("\n")[0] and "encoder_only" not in message

    checkpoint = open_checkpoint(path, downsample="legacy", out_channels=14, adapt_channels=True)
    assert_same_tensors(checkpoint, state_3d, except_for=("out",))
    assert sorted(checkpoint.report.initialized) == ["out.bias", "out.kernel"]
    assert "out is initialised randomly: 14 outputs instead of none in the file" in str(checkpoint.report)
    ignored = {"encoder.mask_token", "encoder.norm.bias", "encoder.norm.weight", "out.conv.conv.weight", "out.conv.conv.bias"}
    assert set(checkpoint.report.ignored) == ignored

    checkpoint = open_checkpoint(path, downsample="legacy", out_channels=14, encoder_only=True)
    assert_same_tensors(checkpoint, state_3d, except_for=("encoder", "decoder", "out"))


# Names that do not belong to a network


def test_an_unknown_name_within_the_network_is_refused(state_file, state_2d):
    state = state_2d | {"swinViT.layers5.0.blocks.0.norm1.weight": np.ones(3, np.float32), "ema_decay": np.float32([1])}
    message = open_refused(state_file(state))
    assert "one name differs:\n" in message and "ema_decay" not in message
    assert "\n  swinViT.layers5.0.blocks.0.norm1.weight: (3,) in the file, not in the network" in message


def test_two_names_of_one_tensor_are_refused(state_file, state_2d):
    state = state_2d | {"patch_embed.proj.bias": np.ones(12, np.float32)}
    assert "holds 'swinViT.patch_embed.proj.bias' twice" in open_refused(state_file(state))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"layer1.0.conv1.weight": np.ones((2, 2)), "fc.weight": np.ones(2)}, "no name in it is that of a parameter"),
        ({"state_dict": {}}, "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        ({"state_dict": {"epoch": 3, "lr": 0.1}}, "holds no state dict"),
        (heads(), "no name in it is that of a parameter"),
        ({"weight": np.ones(2)}, "no name in it is that of a parameter"),
        ({"encoder1.layer.conv1.conv.weight": np.ones(2)}, "swinViT.patch_embed.proj.weight is missing"),
        ({"swinViT.patch_embed.proj.weight": np.ones(2), "out.conv.conv.bias": np.ones(2)}, "expected 4 or 5 axes"),
        ({"head.\x1b[2J\n.weight": np.ones(2)}, r"got head.\x1b[2J\n.weight;"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"encoder_only": True, "adapt_channels": True, "out_channels": 2}])
def test_a_file_without_a_network_is_refused(state_file, content, message, options):
    text = open_refused(state_file(content), downsample="legacy", **options)
    assert message in text and "\n" not in text and "\x1b" not in text and text.endswith((".", "file"))


def test_keys_that_are_not_text_are_not_a_state_dict():
    with pytest.raises(InputError, match="holds no state dict"):
        find_network({0: np.ones(2), 1.5: np.ones(2)}, "numbers.pt")
