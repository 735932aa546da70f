"""MONAI's weights: every layout found in the wild, both directions, the configuration read off the tensors, and what is refused."""

import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.model.windows import relative_index
from swinunetr_jax.task import Task
from swinunetr_jax.weights.find_network import Source, find_network
from swinunetr_jax.weights.infer import infer_config
from swinunetr_jax.weights.load import load_checkpoint, open_checkpoint, save_params
from swinunetr_jax.weights.monai import entries, from_tensors, to_monai
from swinunetr_jax.weights.params import shapes
from swinunetr_jax.weights.safetensors_file import read_safetensors_metadata, write_safetensors
from swinunetr_jax.weights.torch_file import read_torch_file, write_torch_file

SMALL = SwinUNETRConfig(in_channels=2, out_channels=3, feature_size=12, depths=(1, 1, 1, 1), window_size=3, downsample="legacy")
FLAT = SMALL.replace(spatial_dims=2, window_size=3, in_channels=1, out_channels=2)  # 2-D, the smallest there is

CONFIGS = {
    "default": {},
    "v2": {"use_v2": True, "norm_name": "batch", "in_channels": 3},
    "window": {"window_size": (7, 7, 5), "depths": (2, 4, 2, 2)},
    "narrow": {"mlp_ratio": 2.0, "num_heads": (2, 2, 4, 4), "depths": (1, 2, 1, 3), "window_size": (5, 7, 7), "qkv_bias": False},
    "flat": {"spatial_dims": 2, "window_size": (7, 5), "num_heads": (2, 4, 6, 8)},
    "batch": {"spatial_dims": 2, "norm_name": "batch"},
    "group": {"spatial_dims": 2, "norm_name": ("group", {"num_groups": 4})},
    "no_bias": {"spatial_dims": 2, "qkv_bias": False, "patch_norm": True, "out_channels": 1},
    "v2_group": {"spatial_dims": 2, "use_v2": True, "norm_name": ("group", {"num_groups": 3}), "window_size": 4},
    "odd_ratio": {"spatial_dims": 2, "mlp_ratio": 2.6, "feature_size": 24, "in_channels": 24},
}


def config_of(name: str) -> SwinUNETRConfig:
    return SwinUNETRConfig(**{"in_channels": 4, "out_channels": 3, "feature_size": 12, "downsample": "legacy", **CONFIGS[name]})


def random_params(config: SwinUNETRConfig, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    draw = {
        "f": lambda shape: rng.standard_normal(shape, np.float32),
        "i": lambda shape: np.asarray(rng.integers(1000), np.int32),
    }
    return {name: draw[np.dtype(leaf.dtype).kind](leaf.shape) for name, leaf in shapes(config).items()}


@pytest.fixture(scope="module")
def small() -> dict[str, np.ndarray]:
    """The state dict of a 3-D network."""
    return to_monai(random_params(SMALL), SMALL)


@pytest.fixture(scope="module")
def flat() -> dict[str, np.ndarray]:
    """The state dict of a 2-D network."""
    return to_monai(random_params(FLAT), FLAT)


@pytest.fixture
def saved(tmp_path):
    """Writes a state with our own writer, so that these tests need no PyTorch."""

    def save(state, name="file.pt"):
        write_torch_file(tmp_path / name, state)
        return tmp_path / name

    return save


def same(checkpoint, state, left_out=()):
    """Every tensor of the state dict, byte for byte."""
    back = to_monai(checkpoint.params, checkpoint.config)
    assert list(back) == [entry.name for entry in entries(checkpoint.config)]
    for name, tensor in back.items():
        if not name.startswith(tuple(left_out)):
            assert tensor.dtype == state[name].dtype and tensor.shape == state[name].shape, name
            assert tensor.tobytes() == state[name].tobytes(), name


def refused(*args, **options) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(*args, **options)
    message = str(caught.value)
    assert str(args[0]) in message
    assert len(message.split("\n")[0]) < 500 + len(str(args[0]))
    return message


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def encoder(state, prefix=""):
    """The encoder as self-supervised training saved it: other names for the MLP, no or another prefix."""
    renamed = {re.sub(r"\.mlp\.linear", ".mlp.fc", n.removeprefix("swinViT.")): t for n, t in state.items() if "swinViT." in n}
    return prefixed(renamed, prefix)


def heads(prefix=""):
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
    """`ssl_pretrained_weights.pth`: the encoder under `encoder.` with one `0.` too many, an output layer that makes images."""
    tensors = {}
    for name, tensor in state.items():
        name = re.sub(r"^swinViT\.(layers\d)\.0\.", r"encoder.\1.0.0.", name)
        tensors[re.sub(r"^swinViT\.", "encoder.", name)] = tensor
    extra = {"encoder.mask_token": np.zeros((1, 12)), "encoder.norm.weight": np.ones(192), "encoder.norm.bias": np.ones(192)}
    return tensors | {name: tensor.astype(np.float32) for name, tensor in extra.items()}


# ---- layouts of whole networks


@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict", "model", "net", "network"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_containers(saved, flat, container, prefix):
    state = prefixed(flat, prefix)
    path = saved({"epoch": 3, "best_acc": 0.5, container: state} if container else state)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == FLAT.replace(downsample="merging")
    assert checkpoint.task is None and checkpoint.report.ignored == [] and checkpoint.report.initialized == []
    same(checkpoint, flat)


@pytest.mark.parametrize("prefix", ["net.", "model.", "backbone.", "_model.", "module.model.", "_orig_mod.module."])
def test_common_prefixes(saved, small, prefix):
    same(open_checkpoint(saved({"state_dict": prefixed(small, prefix)}), downsample="legacy"), small)


def test_nested_containers(saved, flat):
    same(open_checkpoint(saved({"model": {"state_dict": flat}, "optimizer": {"state": {}}})), flat)


def test_trainer_dict_of_torch(tmp_path):
    torch, nets = pytest.importorskip("torch"), pytest.importorskip("monai.networks.nets")
    net = torch.nn.DataParallel(nets.SwinUNETR(in_channels=4, out_channels=3, feature_size=12, depths=(1, 1, 1, 1)))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    content = {
        "epoch": 299,
        "best_acc": np.float64(0.91),  # refused by torch's own restricted reader
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
    same(checkpoint, {name: tensor.numpy() for name, tensor in net.module.state_dict().items()})


# ---- layouts of self-supervised training


@pytest.mark.parametrize("prefix", ["module.", "", "module.swinViT.", "swinViT.", "module.swin_vit.", "swin_vit."])
def test_encoder_file(saved, small, prefix):
    path = saved({"epoch": 1, "state_dict": encoder(small, prefix) | heads(prefix.split("swin")[0])})
    checkpoint = open_checkpoint(path, encoder_only=True, out_channels=5, downsample="legacy")
    assert checkpoint.config == SMALL.replace(out_channels=5)
    same(checkpoint, small, left_out=("encoder", "decoder", "out"))
    assert {name for name in checkpoint.params if name.startswith("swin.")} == set(checkpoint.report.read)
    assert {name for name in checkpoint.params if not name.startswith("swin.")} == set(checkpoint.report.initialized)
    assert sorted(checkpoint.report.ignored) == sorted(heads())
    assert "ignored in the file: contrastive_head (1), conv (3), rotation_head (2)" in str(checkpoint.report)


def test_encoder_file_asks_for_what_it_needs(saved, small):
    path = saved({"state_dict": encoder(small, "module.")})
    for options in ({}, {"encoder_only": True}):
        message = refused(path, downsample="legacy", **options)
        assert "a Swin encoder alone" in message
        assert all(word in message for word in ("`encoder_only`", "--encoder-only", "`out_channels`", "--out-channels"))
        assert "\n" not in message
    message = refused(path, downsample="legacy", out_channels=3)
    first, *lines = message.split("\n")
    assert "`encoder_only`" in first and "adapt" not in first
    assert len(lines) == sum(not name.startswith("swinViT.") for name in small)
    assert "  encoder1.layer.conv1.conv.weight: missing in the file, (12, 2, 3, 3, 3) in the network" in lines


def test_encoder_of_a_whole_network(saved, small):
    checkpoint = open_checkpoint(saved(small), encoder_only=True, out_channels=7, norm_name="batch", downsample="legacy", seed=3)
    assert checkpoint.config.out_channels == 7 and checkpoint.config.norm_name == "batch"
    same(checkpoint, small, left_out=("encoder", "decoder", "out"))
    assert len(checkpoint.report.ignored) == sum(not name.startswith("swinViT.") for name in small)
    assert "decoder1 (4)" in str(checkpoint.report)


def test_encoder_with_a_gap(saved, small):
    state = {n: t for n, t in encoder(small).items() if not n.endswith(("layers2.0.downsample.norm.bias", "mlp.fc2.bias"))}
    message = refused(saved(state), encoder_only=True, out_channels=2, downsample="legacy")
    assert message.count("\n") == 5 and "  swinViT.layers2.0.downsample.norm.bias: missing in the file, (192,)" in message


def test_reconstruction_file(saved, small):
    path = saved({"model": reconstruction(small), "epoch": 9}, "ssl_pretrained_weights.pth")
    message = refused(path, downsample="legacy")
    assert "has no output layer" in message and "`adapt_channels`" in message and "`out_channels`" in message
    message = refused(path, downsample="legacy", out_channels=14)
    assert message.count("\n") == 2 and "`adapt_channels`" in message.split("\n")[0] and "encoder_only" not in message

    checkpoint = open_checkpoint(path, downsample="legacy", out_channels=14, adapt_channels=True)
    same(checkpoint, small, left_out=("out",))
    assert sorted(checkpoint.report.initialized) == ["out.bias", "out.kernel"]
    assert "out is initialised randomly: 14 outputs wanted, the file has none" in str(checkpoint.report)
    left = {"encoder.mask_token", "encoder.norm.bias", "encoder.norm.weight", "out.conv.conv.weight", "out.conv.conv.bias"}
    assert set(checkpoint.report.ignored) == left

    checkpoint = open_checkpoint(path, downsample="legacy", out_channels=14, encoder_only=True)
    same(checkpoint, small, left_out=("encoder", "decoder", "out"))


def test_a_name_that_nobody_knows_is_refused(saved, flat):
    state = flat | {"swinViT.layers5.0.blocks.0.norm1.weight": np.ones(3, np.float32), "ema_decay": np.float32([1])}
    message = refused(saved(state))
    assert "one name differs:\n" in message and "ema_decay" not in message
    assert "\n  swinViT.layers5.0.blocks.0.norm1.weight: (3,) in the file, not in the network" in message


def test_a_tensor_under_two_names(saved, flat):
    state = flat | {"patch_embed.proj.bias": np.ones(12, np.float32)}
    assert "holds 'swinViT.patch_embed.proj.bias' twice" in refused(saved(state))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"layer1.0.conv1.weight": np.ones((2, 2)), "fc.weight": np.ones(2)}, "none of its 2 names fits"),
        ({"state_dict": {}}, "holds no state dict"),
        ({"epoch": 3}, "holds no state dict"),
        ({"state_dict": {"epoch": 3, "lr": 0.1}}, "holds no state dict"),
        (heads(), "none of its 6 names fits"),
        ({"weight": np.ones(2)}, "none of its 1 names fits"),
        ({"encoder1.layer.conv1.conv.weight": np.ones(2)}, "swinViT.patch_embed.proj.weight is missing"),
        ({"swinViT.patch_embed.proj.weight": np.ones(2), "out.conv.conv.bias": np.ones(2)}, "expected 4 or 5 axes"),
        ({"head.\x1b[2J\n.weight": np.ones(2)}, r"got head.\x1b[2J\n.weight;"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"encoder_only": True, "adapt_channels": True, "out_channels": 2}])
def test_what_matches_nothing_fails(saved, content, message, options):
    text = refused(saved(content), downsample="legacy", **options)
    assert message in text and "\n" not in text and "\x1b" not in text and text.endswith((".", "file"))


def test_names_of_other_types_are_no_state_dict():
    with pytest.raises(InputError, match="holds no state dict"):
        find_network({0: np.ones(2), 1.5: np.ones(2)}, "numbers.pt")


# ---- safetensors


def test_safetensors_without_our_metadata(tmp_path, small):
    write_safetensors(tmp_path / "a.safetensors", prefixed(small, "model."), {"format": "pt"})
    assert "give `downsample`" in refused(tmp_path / "a.safetensors")
    same(open_checkpoint(tmp_path / "a.safetensors", downsample="legacy"), small)


@pytest.mark.parametrize("task", [None, Task.classes(3, ("background", "a", "b"), channels=("CT", "PET"))])
def test_safetensors_with_our_metadata(tmp_path, small, task):
    path, params = tmp_path / "a.safetensors", random_params(SMALL)
    save_params(path, SMALL, params, task=task, to="safetensors")
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == SMALL and checkpoint.task == task
    same(checkpoint, small)
    message = refused(path, downsample="merging")
    assert message == f"{path} was made with `downsample` 'legacy', and 'merging' was given: leave it out."


def test_safetensors_damaged(tmp_path):
    path = tmp_path / "a.safetensors"
    save_params(path, FLAT, random_params(FLAT), to="safetensors")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    head = 8 + int.from_bytes(whole[:8], "little")
    first, last = open_checkpoint(path).digest, len(whole)
    places = [*range(8), *rng.integers(8, head, 30), *rng.integers(head, last, 30), last - 1]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.integers(8)]) + whole[place + 1 :])
        try:
            assert open_checkpoint(path).digest == first
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
    path.write_bytes(whole[:-4] + b"\0\0\0\0")
    assert "is damaged, these differ from their digests or are missing: swinViT" in refused(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "nothing", json.dumps({"config": {}}), '{"digest": 1}', "[" * 100_000])
def test_safetensors_with_foreign_metadata_under_our_key(tmp_path, flat, text):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, flat, {"swinunetr_jax": text})
    assert re.search("is damaged|has unexpected content", refused(path))


# ---- both directions


@pytest.mark.parametrize("name", CONFIGS)
def test_monai_round_trip(tmp_path, name):
    torch, nets = pytest.importorskip("torch"), pytest.importorskip("monai.networks.nets")
    config = config_of(name)
    net = nets.SwinUNETR(**{"in_channels": 4, "out_channels": 3, "feature_size": 12, **CONFIGS[name]})
    for buffer in net.buffers():  # statistics that are not those of a start
        if buffer.dtype.is_floating_point:
            buffer.uniform_(0.5, 2)
        elif buffer.ndim == 0:
            buffer.fill_(1234567)
    state = {key: tensor.numpy() for key, tensor in net.state_dict().items()}
    torch.save({"state_dict": net.state_dict()}, tmp_path / "theirs.pt")
    given = {"downsample": "legacy"} | ({"num_groups": config.num_groups} if config.num_groups else {})
    checkpoint = open_checkpoint(tmp_path / "theirs.pt", **given)
    assert checkpoint.config == config
    same(checkpoint, state)

    save_params(tmp_path / "ours.pt", config, checkpoint.params, to="monai")
    back = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert {key: tensor.dtype for key, tensor in back.items()} == {key: t.dtype for key, t in net.state_dict().items()}
    state = {key: array.copy() for key, array in state.items()}
    for tensor in net.state_dict().values():
        tensor.zero_()
    net.load_state_dict(back, strict=True)
    assert all(tensor.numpy().tobytes() == state[key].tobytes() for key, tensor in net.state_dict().items())


def test_forward_after_a_load(tmp_path):
    torch, nets = pytest.importorskip("torch"), pytest.importorskip("monai.networks.nets")
    torch.manual_seed(0)
    net = nets.SwinUNETR(in_channels=2, out_channels=3, feature_size=12, depths=(1, 1, 1, 1), window_size=(4, 4, 2)).eval()
    torch.save(net.state_dict(), tmp_path / "a.pt")
    x = np.random.default_rng(0).standard_normal((1, 64, 32, 32, 2), np.float32)
    with torch.no_grad():
        want = np.moveaxis(net(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).numpy(), 1, -1)
    got = np.asarray(jax.jit(load_checkpoint(tmp_path / "a.pt", downsample="merging"))(x))
    assert np.abs(got - want).max() < 1e-4


def test_layouts_by_hand():
    """Shapes and a few numbers of each kind of tensor, so that a wrong pair of transposes cannot cancel."""
    state = to_monai(random_params(SMALL), SMALL)
    params, faults = from_tensors(Source("", state), entries(SMALL), SMALL, shapes(SMALL))
    assert not faults
    conv, ours = state["encoder2.layer.conv1.conv.weight"], params["encoder2.conv1.kernel"]
    assert conv[5, 7, 0, 1, 2] == ours[0, 1, 2, 7, 5] and ours.flags["C_CONTIGUOUS"]
    up, ours = state["decoder5.transp_conv.conv.weight"], params["decoder5.up.kernel"]  # [in, out, d, h, w]
    assert up.shape == (192, 96, 2, 2, 2) and up[150, 7, 0, 1, 1] == ours[0, 1, 1, 150, 7]
    linear, ours = state["swinViT.layers1.0.blocks.0.attn.qkv.weight"], params["swin.stages.0.blocks.0.attn.qkv.kernel"]
    assert linear.shape == (36, 12) and linear[30, 2] == ours[2, 30]
    table = state["swinViT.layers1.0.blocks.0.attn.relative_position_bias_table"]
    assert table.shape == (125, 3)
    index = state["swinViT.layers1.0.blocks.0.attn.relative_position_index"]
    assert index.dtype == np.int64 and index[0, 0] == 62 and index[0, 26] == 0 and index[26, 0] == 124
    assert len(state) == 159 - 4 * 14  # one block less in each stage


# ---- the configuration, read off the tensors


@pytest.mark.parametrize("name", CONFIGS)
def test_infers_configuration(name):
    config = config_of(name)
    state = Stub(config)
    given = {"downsample": "legacy"} | ({"num_groups": config.num_groups} if config.num_groups else {})
    assert infer_config(state, "a.pt", **given) == config
    if config.spatial_dims == 2:
        del given["downsample"]
        assert infer_config(state, "a.pt", **given) == config.replace(downsample="merging")


class Stub(dict):
    """A state dict whose weights have the right shape and take no memory; index tables are real."""

    def __init__(self, config: SwinUNETRConfig):
        want = shapes(config)
        for entry in entries(config):
            if entry.path is None:
                self[entry.name] = relative_index(config.window_size)
            else:
                self[entry.name] = np.broadcast_to(np.float32(0), entry.order.torch_shape(want[entry.path].shape))


@pytest.mark.parametrize("ratio", [4.0, 2.0, 1.0, 0.5, 2.6, 1.1, 3.99, 7 / 3, 2 / 3, 0.3, 1.2345])
@pytest.mark.parametrize("width", [12, 24, 48, 60])
def test_infers_mlp_ratio(ratio, width):
    """The widths of all four stages come from one ratio, truncated; the first alone would not do: 12 * 2.6 = 31.2, 96 * 31 / 12 = 248."""
    widths = [(width * 2**stage, int(width * 2**stage * ratio)) for stage in range(4)]
    found = inferred_ratio(widths)
    assert [int(w * found) for w, _ in widths] == [hidden for _, hidden in widths]
    if len(repr(ratio)) < 5:
        assert found == ratio


def inferred_ratio(widths):
    tensors = Stub(FLAT)
    for stage, (width, hidden) in enumerate(widths):
        tensors[f"swinViT.layers{stage + 1}.0.blocks.0.mlp.linear1.weight"] = np.broadcast_to(np.float32(0), (hidden, width))
    tensors["swinViT.patch_embed.proj.weight"] = np.broadcast_to(np.float32(0), (widths[0][0], 1, 2, 2))
    return infer_config(tensors, "a.pt").mlp_ratio


def test_mlp_widths_of_no_ratio(saved, flat):
    state = dict(flat)
    state["swinViT.layers3.0.blocks.0.mlp.linear1.weight"] = np.ones((100, 48), np.float32)
    message = refused(saved(state))
    assert "swinViT.layers3.0.blocks.0.mlp.linear1.weight: (100, 48) in the file" in message


@pytest.mark.parametrize(
    "window", [(7, 7, 7), (7, 5, 7), (5, 7, 7), (7, 7, 5), (4, 4, 4), (2, 3, 4), (1, 3, 2), (1, 1, 1), (8, 2, 8)]
)
def test_infers_window(window):
    config = SMALL.replace(window_size=window)
    state = Stub(config)
    if window.count(1) in (0, 3):
        assert infer_config(state, "a.pt", downsample="legacy").window_size == window
    else:  # a window of one token along an axis: its tables are those of another order of axes
        with pytest.raises(InputError, match=r"do not tell the attention window, .*\(1, 3, 2\).*give `window_size`"):
            infer_config(state, "a.pt", downsample="legacy")
    assert infer_config(state, "a.pt", downsample="legacy", window_size=window) == config


def test_window_without_the_buffer(saved, small):
    state = {name: tensor for name, tensor in small.items() if not name.endswith("relative_position_index")}
    checkpoint = open_checkpoint(saved(state), downsample="legacy")
    assert checkpoint.config == SMALL
    same(checkpoint, small)

    config = SMALL.replace(window_size=(3, 3, 2))
    state = {name: tensor for name, tensor in Stub(config).items() if not name.endswith("relative_position_index")}
    with pytest.raises(InputError, match=r"\(2, 3, 3\) or \(3, 2, 3\) or \(3, 3, 2\).*would fit.*give `window_size`"):
        infer_config(state, "a.pt", downsample="legacy")
    assert infer_config(state, "a.pt", downsample="legacy", window_size=(3, 3, 2)) == config


def test_index_table_of_another_window(saved, small):
    state = dict(small)
    name = "swinViT.layers2.0.blocks.0.attn.relative_position_index"
    state[name] = state[name].T.copy()
    message = refused(saved(state), downsample="legacy")
    assert f"one name differs:\n  {name}: (27, 27) in the file is not the index table of window (3, 3, 3)" in message
    message = refused(saved(small), downsample="legacy", window_size=(3, 2, 3))
    assert message.count("\n") == 8 and "bias_table: (125, 3) in the file, (75, 3) in the network" in message


def test_window_of_a_hostile_size_is_not_built(saved, small):
    message = refused(saved(small), downsample="legacy", window_size=10_000)
    assert "(125, 3) in the file, (7998800059999, 3) in the network" in message


def test_asks_for_downsample(saved, small):
    message = refused(saved(small))
    assert "does not say in which order its patch merging takes neighbours" in message and "give `downsample`" in message
    assert all(f"'{mode}'" in message for mode in ("legacy", "merging", "mergingv2")) and "\n" not in message
    for mode in ("legacy", "merging", "mergingv2"):
        assert open_checkpoint(saved(small), downsample=mode).config == SMALL.replace(downsample=mode)


def test_asks_for_groups(saved):
    config = FLAT.replace(norm_name=("group", {"num_groups": 4}))
    path = saved(to_monai(random_params(config), config))
    message = refused(path)
    assert "has a group norm" in message and "give `num_groups` (--num-groups)" in message
    assert open_checkpoint(path, num_groups=4).config == config.replace(downsample="merging")
    assert open_checkpoint(path, norm_name=("group", {"num_groups": 6})).config.num_groups == 6
    message = refused(path, num_groups=5)
    assert message == f"{path}: `num_groups` must divide `feature_size` 12, got 5."


def test_norm_that_the_file_has_not(saved, flat):
    message = refused(saved(flat), num_groups=4)
    assert "decoder1.conv_block.norm1.weight: missing in the file, (12,) in the network" in message and "ask for" not in message


@pytest.mark.parametrize("bad", ["downsmaple", "batch_size"])
def test_unknown_fields_are_told_first(tmp_path, bad):
    with pytest.raises(InputError, match=f"unknown option or configuration field {bad}: known fields are attn_drop_rate, "):
        open_checkpoint(tmp_path / "not there", **{bad: 1})


def test_numbers_out_of_range_name_the_file(saved, flat):
    state = flat | {"swinViT.patch_embed.proj.weight": np.ones((13, 1, 2, 2), np.float32)}
    message = refused(saved(state))
    assert message.endswith(": `feature_size` must be a multiple of 12, got 13; published models use 12, 24 and 48.")


def test_tensors_of_a_wrong_rank_or_of_no_number(saved, flat):
    for name in (
        "swinViT.layers1.0.blocks.0.attn.relative_position_bias_table",
        "swinViT.layers4.0.blocks.0.mlp.linear1.weight",
        "out.conv.conv.bias",
    ):
        for wrong in (np.float32(1), np.ones((1 << 40, 0), np.float32)):
            assert f"{name} has the shape {wrong.shape}, expected" in refused(saved(flat | {name: np.asarray(wrong)}))


def test_blocks_with_a_gap(saved, flat):
    state = {name.replace("layers2.0.blocks.0.", "layers2.0.blocks.1."): tensor for name, tensor in flat.items()}
    assert "expected blocks 0, 1, … without a gap in stage 2, got 1." in refused(saved(state))


# ---- what does not match


def test_every_difference_is_listed(saved, small):
    state = {name: tensor for name, tensor in small.items() if not name.startswith("decoder3.conv_block.conv")}
    state["decoder2.conv_block.conv9.weight"] = np.ones((2, 3), np.float32)
    state["encoder2.layer.conv1.conv.weight"] = np.ones((12, 12, 3, 3, 1), np.float32)
    state["encoder3.layer.conv1.conv.weight"] = np.ones((24, 24), np.float32)
    message = refused(saved(state), downsample="legacy")
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


def test_a_wider_network_than_the_file(saved, flat):
    message = refused(saved(flat), feature_size=24)
    assert "\n  out.conv.conv.weight: (2, 12, 1, 1) in the file, (2, 24, 1, 1) in the network" in message
    assert "adapt" not in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(saved, flat, value):
    state = {name: tensor.copy() for name, tensor in flat.items()}
    state["decoder1.conv_block.conv1.conv.weight"][3, 2, 1, 0] = value
    state["swinViT.layers2.0.downsample.norm.bias"][-1] = value
    path = saved(state)
    for options in ({}, {"adapt_channels": True, "out_channels": 9}):
        message = refused(path, **options)
        assert message == (
            f"{path} holds NaN, or numbers that are infinite in float32, expected finite weights in "
            "swinViT.layers2.0.downsample.norm.bias, decoder1.conv_block.conv1.conv.weight: take an earlier checkpoint."
        )
    assert "in swinViT.layers2.0.downsample.norm.bias: take" in refused(path, encoder_only=True)


def test_numbers_too_large_for_a_smaller_type(saved, flat):
    state = flat | {"out.conv.conv.bias": np.float32([7e4, 1])}
    assert open_checkpoint(saved(state)).params["out.bias"][0] == 7e4
    assert "infinite in float16, expected finite weights in out.conv.conv.bias: " in refused(saved(state), param_dtype="float16")


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_float_types_become_the_parameters_type(saved, flat, dtype):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    state = {name: tensor.astype(dtype) if tensor.dtype == np.float32 else tensor for name, tensor in flat.items()}
    params = open_checkpoint(saved(state)).params
    assert all(array.dtype == np.float32 for array in params.values())
    assert np.array_equal(params["out.bias"], state["out.conv.conv.bias"].astype(np.float32))


def test_whole_numbers_are_no_weights(saved, flat):
    state = flat | {
        "out.conv.conv.bias": np.ones(2, np.int8),
        "decoder1.conv_block.conv1.conv.weight": np.ones((12, 24, 3, 3), bool),
    }
    message = refused(saved(state))
    assert "\n  out.conv.conv.bias: numbers of type int8 in the file, real ones in the network" in message
    assert "\n  decoder1.conv_block.conv1.conv.weight: numbers of type bool in the file, real" in message


# ---- other channels


def test_channels_are_adapted_on_request_only(saved, small):
    path = saved(small)
    message = refused(path, downsample="legacy", in_channels=4, out_channels=5)
    head, *lines = message.split("\n")
    assert "5 names differ (for another number of input or output channels, ask for `adapt_channels`" in head
    assert "  swinViT.patch_embed.proj.weight: (12, 2, 2, 2, 2) in the file, (12, 4, 2, 2, 2) in the network" in lines

    checkpoint = open_checkpoint(path, downsample="legacy", in_channels=4, out_channels=5, adapt_channels=True)
    assert checkpoint.config == SMALL.replace(in_channels=4, out_channels=5)
    inputs = {"swin.patch_embed.proj.kernel", "encoder1.conv1.kernel", "encoder1.conv3.kernel"}
    assert set(checkpoint.report.adapted) == inputs
    assert all(how == "averaged over 2 input channels for 4" for how in checkpoint.report.adapted.values())
    assert sorted(checkpoint.report.initialized) == ["out.bias", "out.kernel"]
    text = str(checkpoint.report)
    assert "out is initialised randomly: 5 outputs wanted, the file has 3" in text
    assert "adapted swin.patch_embed.proj.kernel: averaged over 2 input channels for 4" in text
    same(checkpoint, small, left_out=("out", "encoder1.layer.conv1", "encoder1.layer.conv3", "swinViT.patch_embed.proj.weight"))

    # four equal channels give what two gave
    old, new = small["encoder1.layer.conv1.conv.weight"], checkpoint.params["encoder1.conv1.kernel"]
    assert new.shape == (3, 3, 3, 4, 12) and np.array_equal(new[..., 0, :], new[..., 3, :])
    assert np.allclose(new.sum(axis=-2)[0, 1, 2], old.sum(axis=1)[:, 0, 1, 2], atol=1e-5)


def test_one_side_alone_is_adapted(saved, flat):
    checkpoint = open_checkpoint(saved(flat), out_channels=4, adapt_channels=True)
    assert not checkpoint.report.adapted and sorted(checkpoint.report.initialized) == ["out.bias", "out.kernel"]
    same(checkpoint, flat, left_out=("out",))
    checkpoint = open_checkpoint(saved(flat), in_channels=3, adapt_channels=True)
    assert not checkpoint.report.initialized
    same(checkpoint, flat, left_out=("encoder1.layer.conv1", "encoder1.layer.conv3", "swinViT.patch_embed.proj.weight"))
    same(open_checkpoint(saved(flat), adapt_channels=True), flat)


def test_adapting_hides_no_other_fault(saved, flat):
    def lines(changes, without=()):
        state = {name: tensor for name, tensor in (flat | changes).items() if name not in without}
        head, *lines = refused(saved(state), out_channels=4, in_channels=3, adapt_channels=True).split("\n")
        assert "ask for" not in head
        return lines

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
    assert len(lines({}, without=[out])) == 2  # half an output layer is a damaged file


def test_adapting_a_stored_configuration(tmp_path):
    path = tmp_path / "a.safetensors"
    save_params(path, FLAT, random_params(FLAT), task=Task.classes(2), to="safetensors")
    message = refused(path, out_channels=3)
    assert message.endswith(
        "was made with `out_channels` 2, and 3 was given: leave it out or ask for `adapt_channels` (--adapt-channels)."
    )
    checkpoint = open_checkpoint(path, out_channels=3, adapt_channels=True)
    assert checkpoint.config == FLAT.replace(out_channels=3) and checkpoint.task is None
    checkpoint = open_checkpoint(path, out_channels=3, norm_name="batch", encoder_only=True)
    assert checkpoint.config == FLAT.replace(out_channels=3, norm_name="batch") and checkpoint.task is None


# ---- fields given for a file that has a configuration


def test_runtime_fields_are_free_and_others_are_not(tmp_path):
    path, params = tmp_path / "a.safetensors", random_params(FLAT)
    save_params(path, FLAT, params, task=Task.classes(2), to="safetensors")
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
    assert checkpoint.config == FLAT.replace(**free) and checkpoint.task == Task.classes(2)
    assert all(array.dtype.name == "bfloat16" for array in checkpoint.params.values())
    assert open_checkpoint(path, **FLAT.to_dict()).config == FLAT
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
        given = {name: value} | ({"window_size": 3} if name == "spatial_dims" else {})
        message = refused(path, **given)
        assert message.startswith(f"{path} was made with `{name}` {FLAT.to_dict()[name]!r}, and ") and "leave it out" in message


# ---- writing


def test_what_cannot_be_read_again_is_not_written(tmp_path):
    params = random_params(FLAT)
    for to in ("orbax", "monai", "safetensors"):
        with pytest.raises(InputError, match=r"NaN or infinite values, nothing was written: out\.bias"):
            save_params(tmp_path / "a", FLAT, params | {"out.bias": np.float32([1, np.nan])}, to=to)
        with pytest.raises(InputError, match=r"nothing was written:\n  out.bias: got \(3,\), expected \(2,\)"):
            save_params(tmp_path / "a", FLAT, params | {"out.bias": np.ones(3, np.float32)}, to=to)
        with pytest.raises(InputError, match=r"\n  out.scale: got \(2,\), expected nothing"):
            save_params(tmp_path / "a", FLAT, params | {"out.scale": np.ones(2, np.float32)}, to=to)
        with pytest.raises(InputError, match="the task names 3 outputs, but the network has 2"):
            save_params(tmp_path / "a", FLAT, params, task=Task.classes(3), to=to)
    with pytest.raises(InputError, match="`to` must be one of orbax, monai, safetensors, got 'pickle'"):
        save_params(tmp_path / "a", FLAT, params, to="pickle")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["monai", "safetensors"])
def test_files_are_replaced_on_request_only(tmp_path, to):
    path, params = tmp_path / "a", random_params(FLAT)
    save_params(path, FLAT, params, to=to)
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists already, expected a free name: choose another or ask for it with `overwrite`"):
        save_params(path, FLAT, random_params(FLAT, 1), to=to)
    assert path.read_bytes() == before
    save_params(path, FLAT, random_params(FLAT, 1), to=to, overwrite=True)
    assert np.array_equal(open_checkpoint(path).params["out.bias"], random_params(FLAT, 1)["out.bias"])
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_one_digest_for_the_same_weights(tmp_path):
    params = random_params(FLAT)
    digests = set()
    for to in ("orbax", "monai", "safetensors"):
        save_params(tmp_path / to, FLAT, params, to=to)
        digests.add(open_checkpoint(tmp_path / to).digest)
    assert len(digests) == 1
    assert set(read_torch_file(tmp_path / "monai")) == {entry.name for entry in entries(FLAT)}
    assert json.loads(read_safetensors_metadata(tmp_path / "safetensors")["swinunetr_jax"])["config"] == FLAT.to_dict()
