"""Networks are found in files of any trainer, and one of several is chosen; other tensors are ignored and reported."""

import argparse
import datetime
import json
import pathlib
import shutil

import numpy as np
import pytest
from helpers.refusals import refused
from helpers.weight_states import CONFIG_2D, prefixed, random_params

from swinunetr_jax.weights import monai
from swinunetr_jax.weights.load import open_checkpoint, save_params
from swinunetr_jax.weights.monai import to_monai
from swinunetr_jax.weights.safetensors_file import write_safetensors
from swinunetr_jax.weights.torch_file import write_torch_file

pytest_plugins = ["helpers.fixtures"]

CONFIG = CONFIG_2D.replace(downsample="merging")


def params(seed: int) -> dict[str, np.ndarray]:
    return random_params(CONFIG, seed)


@pytest.fixture(scope="module")
def first_state() -> dict[str, np.ndarray]:
    """The state dict of a network."""
    return to_monai(params(1), CONFIG)


@pytest.fixture(scope="module")
def second_state() -> dict[str, np.ndarray]:
    """The state dict of another network."""
    return to_monai(params(2), CONFIG)


def is_network(path, state, **options):
    """Returns whether opening the file gives the network with this state dict."""
    checkpoint = open_checkpoint(path, **options)
    assert checkpoint.report.initialized == []
    return np.array_equal(checkpoint.params["out.bias"], state["out.conv.conv.bias"])


COUNTER = {"n_averaged": np.array(7)}
OTHER_NETWORK = {"conv.weight": np.ones((3, 3), np.float32), "head.bias": np.ones(3, np.float32)}


# One network


@pytest.mark.fault("1.11")
@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: {"network_weights": net, "init_args": {"configuration": "3d_fullres"}},
        lambda net: {"ema": net, "step": 3},
        lambda net: {"model_ema": prefixed(net, "module.")},
        lambda net: {"params": net},
        lambda net: {"weights": net},
        lambda net: {"checkpoint": {"state_dict": net}},
        lambda net: {"ema": {"decay": 0.999, "shadow": net}},
        lambda net: {"my_own_name": {"deeper": {"still": prefixed(net, "student.backbone.")}}},
        lambda net: {"model": OTHER_NETWORK, "net": net},
        lambda net: {"generator": net, "discriminator": OTHER_NETWORK},
        lambda net: {"teacher": OTHER_NETWORK, "student": net},
        lambda net: {"model": net, "optimizer": {"exp_avg": net}},
        lambda net: {"model": net, "pretrained": {n: t for n, t in net.items() if n.startswith("swinViT.")}},
        lambda net: {"model": net, "same": dict(net)},
    ],
)
def test_the_only_complete_network_is_found_under_any_name(state_file, first_state, wrap):
    assert is_network(state_file(wrap(first_state)), first_state)


@pytest.mark.fault("5.18")
@pytest.mark.parametrize(
    "content, ignored",
    [
        (lambda net: prefixed(net, "module.") | COUNTER, ["n_averaged"]),
        (lambda net: prefixed(net, "module.module.") | COUNTER, ["n_averaged"]),
        (lambda net: net | COUNTER, ["n_averaged"]),
        (lambda net: {"ema": prefixed(net, "module.") | COUNTER}, ["ema.n_averaged"]),
        (lambda net: prefixed(net, "model.") | {"loss.class_weights": np.ones(2, np.float32)}, ["loss.class_weights"]),
        (lambda net: net | {"criterion.weight": np.ones(2, np.float32)}, ["criterion.weight"]),
        (lambda net: prefixed(net, "net.") | prefixed(OTHER_NETWORK, "critic."), ["critic.conv.weight", "critic.head.bias"]),
        (lambda net: prefixed(net, "model.") | {"ema.swinViTpatch": np.ones((2, 2))}, ["ema.swinViTpatch"]),
        (
            lambda net: net | {"swinViT.total_ops": np.ones(1), "out.total_params": np.ones(1)},
            ["out.total_params", "swinViT.total_ops"],
        ),
        (lambda net: prefixed(net, "net.") | {"stray\x1b[2J\nname": np.ones(1)}, ["stray\x1b[2J\nname"]),
    ],
)
def test_unrelated_entries_are_ignored_and_reported(state_file, first_state, content, ignored, capsys):
    path = state_file(content(first_state))
    assert is_network(path, first_state)
    report = open_checkpoint(path).report
    assert sorted(report.ignored) == ignored
    assert "ignored in the file: " in str(report) and "\x1b" not in str(report)
    warned = capsys.readouterr().err
    assert ("total_" in ignored[0]) == ("which were ignored" not in warned) and "\x1b" not in warned


def test_an_additional_layer_is_refused(state_file, first_state):
    with pytest.raises(ValueError, match=r"attention_gate.weight: \(2, 2\) in the file, not in the network"):
        open_checkpoint(state_file(first_state | {"attention_gate.weight": np.ones((2, 2), np.float32)}))


# Several networks


@pytest.mark.fault("1.11")
@pytest.mark.parametrize(
    "content, first, second",
    [
        (lambda a, b: {"model": a, "model_ema": b}, "model", "model_ema"),
        (lambda a, b: {"net": b, "model": a}, "model", "net"),
        (lambda a, b: {"gan": prefixed(a, "generator.") | prefixed(b, "critic.")}, "gan.generator", "gan.critic"),
        (lambda a, b: prefixed(a, "student.") | prefixed(b, "teacher."), "student", "teacher"),
        (lambda a, b: a | {"ema": b | COUNTER}, ".", "ema"),
        (lambda a, b: a | prefixed(b, "ema."), ".", "ema"),
        (lambda a, b: {"model": a, "ema": {"module": prefixed(b, "module.")}}, "model", "ema"),
        (lambda a, b: {"models": {"0": a, "1": prefixed(b, "module.")}}, "models.0", "models.1"),
    ],
)  # fmt: skip
def test_several_networks_are_listed_and_one_is_chosen(state_file, first_state, second_state, content, first, second):
    path = state_file(content(first_state, second_state))
    with refused(path, "holds several networks", "--key", first, second):
        open_checkpoint(path)
    assert is_network(path, first_state, key=first) and is_network(path, second_state, key=second)
    with refused("has no network under 'nothing'", first, second):
        open_checkpoint(path, key="nothing")


@pytest.mark.fault("1.11")
def test_a_network_of_a_safetensors_file_is_chosen(tmp_path, first_state, second_state):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, prefixed(first_state, "model.") | prefixed(second_state, "ema."))
    with refused(path, "several networks", "model (", "ema ("):
        open_checkpoint(path)
    assert is_network(path, second_state, key="ema")


def test_an_encoder_counts_as_a_network_if_only_an_encoder_is_needed(state_file, first_state, second_state):
    encoder = {name: tensor for name, tensor in second_state.items() if name.startswith("swinViT.")}
    path = state_file({"model": first_state, "pretrained": encoder})
    with refused("several networks", "pretrained"):
        open_checkpoint(path, encoder_only=True, out_channels=2)
    checkpoint = open_checkpoint(path, encoder_only=True, out_channels=2, key="pretrained")
    assert np.array_equal(checkpoint.params["swin.patch_embed.proj.bias"], second_state["swinViT.patch_embed.proj.bias"])


def test_a_key_for_a_checkpoint_folder_is_refused(tmp_path):
    save_params(tmp_path / "ours", CONFIG, params(1))
    with refused(tmp_path / "ours", "--key", "leave out"):
        open_checkpoint(tmp_path / "ours", key="model")


# Other values in a file


@pytest.mark.fault("5.18")
@pytest.mark.parametrize("protocol", [2, 4])
def test_harmless_values_are_accepted(tmp_path, first_state, protocol):
    torch = pytest.importorskip("torch")
    from torch.optim.swa_utils import AveragedModel

    content = {
        "state_dict": {name: torch.from_numpy(tensor) for name, tensor in first_state.items()},
        "args": argparse.Namespace(data=pathlib.Path("/data"), device=torch.device("cuda:0"), tags={"a"}, steps=[1, 2]),
        "paths": [pathlib.PurePosixPath("a"), pathlib.PureWindowsPath("a")],
        "history": np.ones((3, 4)),
        "names": np.array(["liver", "spleen"]),
        "when": datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC),
        "took": datetime.timedelta(hours=3),
        "sets": ({1, 2}, frozenset({3}), slice(1, 2), 1 + 2j, range(3), bytearray(b"x" * 99), b"y" * 99),
        "rng": np.random.RandomState(0).get_state(),
        "keys": {None: 1, pathlib.PurePosixPath("a"): 2, b"bytes": 3},
        "versions": (torch.__version__, np.str_("text"), np.datetime64("2024-05-01")),
        "kind": float,
    }
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol)
    assert is_network(tmp_path / "a.pt", first_state)
    net = torch.nn.Linear(1, 1)
    torch.save({"net": AveragedModel(net).state_dict(), "best": content}, tmp_path / "b.pt", pickle_protocol=protocol)
    assert is_network(tmp_path / "b.pt", first_state)


# Folders and shards


@pytest.mark.fault("1.11")
def test_weights_are_found_in_the_folder_of_a_bundle(tmp_path, first_state, state_file):
    (tmp_path / "bundle" / "models").mkdir(parents=True)
    (tmp_path / "bundle" / "configs").mkdir()
    state_file({"model": first_state}, "bundle/models/model.pt")
    assert is_network(tmp_path / "bundle", first_state)
    state_file({"model": first_state}, "bundle/pytorch_model.bin")
    with refused("several weight files", "models/model.pt", "pytorch_model.bin"):
        open_checkpoint(tmp_path / "bundle")


@pytest.mark.fault("1.11")
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_are_read_through_their_index(tmp_path, first_state, ending):
    folder = tmp_path / "hub"
    folder.mkdir()
    write = write_safetensors if ending == "safetensors" else write_torch_file
    names = sorted(first_state)
    shards = {f"model-{i}.{ending}": {name: first_state[name] for name in names[i::2]} for i in range(2)}
    for shard, tensors in shards.items():
        write(folder / shard, tensors)
    index = folder / f"model.{ending}.index.json"
    shard_of = {name: shard for shard, tensors in shards.items() for name in tensors}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shard_of}))
    assert is_network(folder, first_state) and is_network(index, first_state)

    index.write_text(json.dumps({"weight_map": shard_of | {"lost.weight": f"model-0.{ending}"}}))
    with refused("model-0", "lacks lost.weight"):
        open_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": shard_of | {"out.conv.conv.bias": "../secret"}}))
    with refused(index, "../secret", "do not trust"):
        open_checkpoint(folder)
    for text in ("[]", "{", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'):
        index.write_text(text)
        with refused(index, "download or copy it again"):
            open_checkpoint(folder)


# Our own checkpoints


@pytest.mark.fault("1.12")
def test_our_own_checkpoint_is_read_without_the_table_of_names(tmp_path, monkeypatch):
    save_params(tmp_path / "ours", CONFIG, params(1))
    save_params(tmp_path / "ours.pt", CONFIG, params(1))
    table = [entry for entry in monai.entries(CONFIG) if entry.path != "encoder2.conv1.kernel"]
    monkeypatch.setattr("swinunetr_jax.weights.monai.entries", lambda config: table)
    monkeypatch.setattr("swinunetr_jax.weights.fit.entries", lambda config: table)
    read = open_checkpoint(tmp_path / "ours").params
    assert all(np.array_equal(read[name], array) for name, array in params(1).items())
    with refused("no counterpart for encoder2.conv1.kernel"):  # the parameter is not left out
        save_params(tmp_path / "lost.pt", CONFIG, params(1))
    with pytest.raises(ValueError, match="encoder2"):  # nor initialised randomly
        open_checkpoint(tmp_path / "ours.pt")


@pytest.mark.fault("1.12")
def test_our_own_checkpoint_is_adapted_only_on_request(tmp_path):
    save_params(tmp_path / "ours", CONFIG, params(1))
    with refused("was created with `out_channels` 2"):
        open_checkpoint(tmp_path / "ours", out_channels=3)
    changed = open_checkpoint(tmp_path / "ours", in_channels=2, out_channels=3, adapt_channels=True)
    assert sorted(changed.report.initialized) == ["out.bias", "out.kernel"] and len(changed.report.adapted) == 3
    old = params(1)["encoder1.conv1.kernel"]
    assert np.allclose(changed.params["encoder1.conv1.kernel"], np.repeat(old, 2, axis=-2) / 2)
    encoder = open_checkpoint(tmp_path / "ours", norm_name="batch", encoder_only=True)
    assert encoder.report.read == [name for name in encoder.params if name.startswith("swin.")]
    assert set(encoder.report.ignored) == {name for name in params(1) if not name.startswith("swin.")}


# The format of a file


@pytest.mark.fault("5.6")
@pytest.mark.parametrize("name", ["m.onnx", "m.h5", "m.ckpt", "m.pt.gz", "m.npz", "m.v1"])
def test_an_ending_of_another_format_is_refused(tmp_path, name):
    with refused(name, ".pt, .pth, .safetensors", "--to"):
        save_params(tmp_path / name, CONFIG, params(1))
    assert not list(tmp_path.iterdir())
    save_params(tmp_path / name, CONFIG, params(1), to="orbax")
    save_params(tmp_path / name, CONFIG, params(2), overwrite=True)  # an existing checkpoint can be replaced
    shutil.rmtree(tmp_path / name)


@pytest.mark.fault("5.6")
@pytest.mark.parametrize("name, kind", [("m", "folder"), ("m_1.5", "folder"), ("m.PTH", "file"), ("m.safetensors", "file")])
def test_the_ending_determines_the_format(tmp_path, name, kind):
    save_params(tmp_path / name, CONFIG, params(1))
    assert (tmp_path / name).is_dir() == (kind == "folder")
    assert open_checkpoint(tmp_path / name).config == CONFIG
