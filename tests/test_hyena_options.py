"""HyenaND stages: the options of the configuration, and the converter."""

import json
import math
from typing import Any

import numpy as np
import pytest
from flax import nnx

from swinunetr_jax import InputError, SwinUNETR, SwinUNETRConfig, open_checkpoint, save_checkpoint
from swinunetr_jax.weights.infer import NotInferable, infer_config
from swinunetr_jax.weights.monai import to_monai
from swinunetr_jax.weights.params import shapes

BASE: dict[str, Any] = {"in_channels": 1, "out_channels": 2, "feature_size": 12, "depths": (1, 1, 1, 1)}
ALL = (True, True, True, True)


# ---- the configuration -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"use_hyena": 1}, "`use_hyena` must be True or False"),
        ({"hyena_stages": (True,) * 3}, "`hyena_stages` must be 4 booleans"),
        ({"hyena_stages": (2, 1, 0, 0)}, "`hyena_stages` must be 4 booleans"),
        ({"hyena_stages": "HHAB"}, "`hyena_stages` must be 4 booleans"),
        ({"hyena_kernel_size": 4}, "`hyena_kernel_size` must be odd"),
        ({"hyena_kernel_mlp_dim": 0}, "`hyena_kernel_mlp_dim`"),
        ({"hyena_kernel_layers": 2.5}, "`hyena_kernel_layers`"),
        ({"hyena_l_cache": 2}, "`hyena_l_cache` must be at least 3"),
        ({"hyena_short_conv_fft_chunks": -1}, "`hyena_short_conv_fft_chunks`"),
        ({"hyena_fft_padding": "reflect"}, "circular, zero"),
        ({"hyena_grid_type": "triple"}, "single, double"),
        ({"hyena_grid_type": "double"}, "`hyena_fft_padding` 'circular' needs"),
        ({"hyena_use_chunked_fft": True}, "`hyena_fft_padding` 'circular' needs"),
        ({"hyena_mask_max_attenuation": 1.0}, "less than 1"),
        ({"hyena_omega_0": 0}, "`hyena_omega_0`"),
        ({"hyena_omega_0": math.nan}, "`hyena_omega_0`"),
    ],
)
def test_bad_options_are_named(change, text):
    with pytest.raises(InputError) as caught:
        SwinUNETRConfig(**{**BASE, "use_hyena": True, **change})
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_options_have_one_form_and_are_absent_without_a_hyena_stage():
    plain, mixed = SwinUNETRConfig(**BASE), SwinUNETRConfig(**BASE, hyena_stages=[True, False, True, False])
    assert SwinUNETRConfig(**BASE, hyena_stages=(False,) * 4) == plain
    assert not [name for name in plain.to_dict() if "hyena" in name] and "hyena" not in repr(plain)
    assert (mixed.use_hyena, mixed.hyena_stages) == (True, (True, False, True, False))
    assert SwinUNETRConfig(**BASE, use_hyena=True).hyena_stages == ALL
    assert SwinUNETRConfig(**BASE, hyena_stages="HAha") == SwinUNETRConfig(**BASE, hyena_stages=(1, 0, 1, 0)) == mixed
    assert SwinUNETRConfig.from_dict(json.loads(json.dumps(mixed.to_dict()))) == mixed
    assert mixed.replace(hyena_omega_0=5).replace(use_hyena=False) == mixed.replace(hyena_stages="AAAA") == plain
    assert mixed.replace(use_hyena=True).hyena_stages == ALL
    assert SwinUNETRConfig(**BASE, use_hyena=True, num_heads=(5, 7, 9, 11)).use_hyena  # a Hyena stage has no heads


def test_an_option_of_hyena_stages_is_refused_without_such_a_stage():
    with pytest.raises(InputError, match="`hyena_kernel_size` is 5, but the network has no Hyena stage"):
        SwinUNETRConfig(**BASE, hyena_stages="AAAA", hyena_kernel_size=5)
    with pytest.raises(InputError, match="`hyena_l_cache` is 16, but"):
        SwinUNETRConfig(**BASE, use_hyena=True).replace(use_hyena=False, hyena_l_cache=16)


@pytest.mark.parametrize(("name", "count"), [("HHHH", 62_180_286), ("haha", 62_187_946), ("HHAA", 62_191_270)])
def test_published_variants_have_monais_number_of_parameters(name, count):
    config = SwinUNETRConfig.hyena_variant(name, in_channels=1, out_channels=14)
    assert sum(math.prod(leaf.shape) for leaf in shapes(config).values()) == count
    assert config.feature_size == 48


def test_another_variant_is_refused():
    with pytest.raises(InputError, match="HHHH, HAHA, HHAA, got 'AAAA'"):
        SwinUNETRConfig.hyena_variant("AAAA", in_channels=1, out_channels=14)


# ---- the converter ---------------------------------------------------------------------------------------------------------------


def test_files_are_the_same_bytes_after_a_round_trip_and_state_what_they_can(tmp_path):
    options = {
        "hyena_stages": (False, True, False, True),
        "hyena_kernel_size": 5,
        "hyena_kernel_mlp_dim": 8,
        "hyena_kernel_layers": 4,
    }
    plane = {"spatial_dims": 2, "qkv_bias": False, "window_size": 4}
    config = SwinUNETRConfig(**BASE, **plane, **options, hyena_fft_padding="zero", hyena_l_cache=9)
    save_checkpoint(tmp_path / "a.pt", SwinUNETR(config, rngs=nnx.Rngs(0)), to="monai")
    given = {"hyena_fft_padding": "zero", "hyena_l_cache": 9}
    checkpoint = open_checkpoint(tmp_path / "a.pt", **given)
    assert checkpoint.config == config
    for name, to in (("b.safetensors", "safetensors"), ("c", "orbax"), ("d.pt", "monai")):
        save_checkpoint(tmp_path / name, checkpoint.model(), to=to)
        checkpoint = open_checkpoint(tmp_path / name, **(given if to == "monai" else {}))
        assert checkpoint.config == config
    assert (tmp_path / "d.pt").read_bytes() == (tmp_path / "a.pt").read_bytes()
    with pytest.raises(InputError, match="`hyena_l_cache` 9, but 32 was given"):
        open_checkpoint(tmp_path / "c", hyena_l_cache=32)


def test_the_padding_is_asked_for():
    config = SwinUNETRConfig(**BASE, use_hyena=True, qkv_bias=False)
    tensors = to_monai({name: np.zeros(leaf.shape, np.float32) for name, leaf in shapes(config).items()}, config)
    with pytest.raises(NotInferable, match=r"`hyena_fft_padding`.*`hyena_grid_type`.*`hyena_l_cache`") as caught:
        infer_config(tensors, "file.pt", downsample="merging")
    assert caught.value.field == "hyena_fft_padding"
    inferred = infer_config(tensors, "file.pt", downsample="merging", hyena_fft_padding="circular")
    assert inferred == config.replace(qkv_bias=True)  # no stage has window attention, so the option has no effect
