"""`swinunetr convert --write-encoder` writes the encoder as MONAI's `load_from` reads it, and this project reads the file, too."""

from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.weight_states import random_params

from swinunetr_jax import cli
from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.weights import fit
from swinunetr_jax.weights.encoder_file import encoder_notes, encoder_state
from swinunetr_jax.weights.load import open_checkpoint, save_params
from swinunetr_jax.weights.monai import to_monai
from swinunetr_jax.weights.torch_file import read_torch_file

CONFIG = SwinUNETRConfig(in_channels=1, out_channels=1, feature_size=12, depths=(1, 1, 1, 1), window_size=3)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A checkpoint folder of a small network with random weights."""
    path = tmp_path_factory.mktemp("network") / "checkpoint"
    params = {name: 0.1 * array for name, array in random_params(CONFIG).items()}
    save_params(path, CONFIG, params)
    return path


@pytest.fixture(scope="module")
def encoder_file(source) -> Path:
    """The encoder of `source`, written by the command."""
    path = source.with_name("swin_encoder.pt")
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", str(source), str(path), "--write-encoder"])
    assert not stop.value.code
    return path


def convert(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", *map(str, arguments)])
    return stop.value.code, *capsys.readouterr()


def test_load_from_of_monai_reads_the_encoder_and_computes_our_features(source, encoder_file):
    torch, nets = pytest.importorskip("torch"), pytest.importorskip("monai.networks.nets")
    weights = torch.load(encoder_file, weights_only=True)
    assert list(weights) == ["state_dict"]
    used = set()

    class Recorded(dict):
        def __getitem__(self, name):
            used.add(name)
            return super().__getitem__(name)

    net = nets.SwinUNETR(in_channels=1, out_channels=5, feature_size=12, depths=CONFIG.depths, window_size=3).eval()
    for tensor in net.swinViT.state_dict().values():
        tensor.fill_(1)
    net.load_from({"state_dict": Recorded(weights["state_dict"])})
    assert used == set(weights["state_dict"])  # it needs every tensor of the file and no other
    image = np.random.default_rng(0).standard_normal((1, 64, 32, 32, 1), np.float32)
    with torch.no_grad():
        hidden = net.swinViT(torch.from_numpy(np.moveaxis(image, -1, 1).copy()), normalize=False)

    model = open_checkpoint(source).model()
    features = jax.jit(lambda swin, x: swin(x)[0])(model.swin, image)
    assert len(hidden) == len(features) == 5
    for theirs, ours in zip(hidden, features):
        np.testing.assert_allclose(ours, np.moveaxis(theirs.numpy(), 1, -1), rtol=0, atol=1e-5)


def test_our_reader_takes_the_file_and_writes_equal_bytes(encoder_file, tmp_path, capsys, monkeypatch):
    # The rest of the network is initialised randomly, which compiles for seconds, and is not written.
    monkeypatch.setattr(fit, "SwinUNETR", lambda config, rngs: config)
    monkeypatch.setattr(fit.flat, "flatten", random_params)
    again = tmp_path / "again.pth"
    code, out, _ = convert(capsys, encoder_file, again, "--write-encoder", "--encoder-only", "--downsample", "merging")
    assert code == 0 and again.read_bytes() == encoder_file.read_bytes()
    assert f"{encoder_file} → {again} (the Swin encoder" in out


def test_the_order_of_patch_merging_is_stated(source, tmp_path, capsys):
    code, out, _ = convert(capsys, source, tmp_path / "enc.pt", "--write-encoder")
    assert code == 0 and out.count("\n") == 2
    assert "is `merging`, which MONAI from 1.5 on computes" in out and "up to 1.4 and the published code" in out
    assert "state it in its name, such as swin_encoder_merging_f12.pt." in out
    name = "swin_encoder_merging_f12.pt"
    for folder in (tmp_path, tmp_path / "new"):  # one that exists, and one that does not
        code, out, _ = convert(capsys, source, folder, "--write-encoder")
        assert code == 0 and (folder / name).read_bytes() == (tmp_path / "enc.pt").read_bytes()
        assert "in its name" not in out
    code, _, err = convert(capsys, source, tmp_path, "--write-encoder")
    assert code == 2 and f"{name} exists already" in err and "--overwrite" in err
    assert convert(capsys, source, tmp_path, "--write-encoder", "--overwrite", "--to", "monai")[0] == 0


def test_notes_name_the_tensors_that_load_from_does_not_read():
    assert encoder_notes(Path("enc_merging.pt"), CONFIG)[0].endswith("The file cannot state the order.")
    assert "such as" in encoder_notes(Path("enc_mergingv2.pt"), CONFIG)[0]
    legacy = CONFIG.replace(downsample="legacy", use_v2=True, patch_norm=True)
    order, unread = encoder_notes(Path("enc.pt"), legacy)
    assert "`legacy`, which the published code" in order
    assert "does not read layers1c, layers2c, layers3c, layers4c, patch_embed.norm" in unread
    assert encoder_notes(Path("enc.pt"), CONFIG.replace(spatial_dims=2, window_size=7)) == []


def test_the_names_are_those_of_monais_encoder():
    nets = pytest.importorskip("monai.networks.nets")
    fields = {"use_v2": True, "patch_norm": True, "spatial_dims": 2, "window_size": (7, 5)}
    config = CONFIG.replace(**fields)
    names = nets.SwinUNETR(in_channels=1, out_channels=1, feature_size=12, depths=(1, 1, 1, 1), **fields).swinViT.state_dict()
    state = encoder_state(random_params(config), config)
    assert {name.removeprefix("module.").replace(".mlp.fc", ".mlp.linear") for name in state} == set(names)
    assert len(state) == sum(name.startswith("swinViT.") for name in to_monai(random_params(config), config))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("enc.safetensors", [], "would be a file of the format safetensors: give a name that ends in .pt, or a folder."),
        ("enc", ["--to", "orbax"], "would be a file of the format orbax"),
        ("enc.pt", ["--out-channels", "3"], "leave one of them out"),
    ],
)
def test_contradictory_options_are_refused_before_anything_is_read(tmp_path, capsys, name, options, message):
    code, out, err = convert(capsys, tmp_path / "missing", tmp_path / name, "--write-encoder", *options)
    assert code == 2 and not out and err.count("\n") == 1 and message in err and not list(tmp_path.iterdir())


def test_a_network_that_load_from_cannot_read_is_refused():
    with pytest.raises(InputError, match=r"needs the bias of the layer `qkv`.*without --write-encoder"):
        encoder_state({}, CONFIG.replace(qkv_bias=False))


def test_the_file_has_one_entry_with_the_prefix_of_data_parallel(encoder_file):
    content = read_torch_file(encoder_file)
    assert list(content) == ["state_dict"]
    assert all(name.startswith("module.") and "linear" not in name for name in content["state_dict"])
    assert content["state_dict"]["module.layers1.0.blocks.0.attn.relative_position_index"].dtype == np.int64
