"""The configuration: the values that it accepts and refuses, and its messages."""

import json

import pytest

from swinunetr_jax import InputError, SwinUNETRConfig

BASE = {"in_channels": 4, "out_channels": 3}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"in_channels": 0}, "`in_channels`"),
        ({"out_channels": 1.5}, "`out_channels`"),
        ({"spatial_dims": 4}, "`spatial_dims`"),
        ({"feature_size": 20}, "`feature_size`"),
        ({"depths": (2, 2, 2)}, "`depths`"),
        ({"depths": (2, 2, 2, 0)}, "`depths`"),
        ({"num_heads": (3, 6, 12, 25)}, "stage 4 must divide the stage's width: 192"),
        ({"window_size": (7, 7)}, "`window_size`"),
        ({"window_size": 0}, "`window_size`"),
        ({"window_size": "7"}, "`window_size`"),
        ({"norm_name": "layer"}, "`norm_name`"),
        ({"norm_name": "group"}, "`num_groups`"),
        ({"norm_name": ("group", {"num_groups": 5})}, "`num_groups`"),
        ({"norm_name": ("group", {"num_groups": 4, "affine": False})}, "'affine'"),
        ({"norm_name": "batch", "num_groups": 4}, "`num_groups`"),
        ({"downsample": "max"}, "legacy, merging, mergingv2"),
        ({"drop_rate": 1.0}, "`drop_rate`"),
        ({"attn_drop_rate": -0.1}, "`attn_drop_rate`"),
        ({"dropout_path_rate": "a"}, "`dropout_path_rate`"),
        ({"mlp_ratio": 0}, "`mlp_ratio`"),
        ({"mlp_ratio": float("inf")}, "`mlp_ratio`"),
        ({"mlp_ratio": True}, "`mlp_ratio`"),
        ({"patch_size": 4}, "`patch_size` must be 2"),
        ({"dtype": "int8"}, "`dtype`"),
    ],
)
def test_bad_arguments_are_named(change, text):
    with pytest.raises(InputError) as caught:
        SwinUNETRConfig(**{**BASE, **change})
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_equal_by_value_and_printable():
    config = SwinUNETRConfig(**BASE, window_size=7, norm_name=("group", {"num_groups": 4}))
    again = SwinUNETRConfig(**BASE, window_size=(7, 7, 7), norm_name="group", num_groups=4)
    assert config == again
    assert hash(config) == hash(again)
    assert "feature_size=24" in repr(config)
    assert config != SwinUNETRConfig(**BASE)


@pytest.mark.parametrize("change", [{}, {"norm_name": "batch"}, {"norm_name": ("group", {"num_groups": 2})}, {"spatial_dims": 2}])
def test_a_configuration_is_the_same_after_writing_and_reading_json(change):
    config = SwinUNETRConfig(**{**BASE, **change})
    assert SwinUNETRConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_fields_are_refused():
    with pytest.raises(InputError, match="img_size"):
        SwinUNETRConfig.from_dict({**BASE, "img_size": 96})
    with pytest.raises(InputError, match="out_channels"):
        SwinUNETRConfig.from_dict({"in_channels": 1})


def test_replace():
    config = SwinUNETRConfig(**BASE, norm_name=("group", {"num_groups": 4}))
    assert config.replace(norm_name="instance").num_groups is None
    assert config.replace(dtype="bfloat16").dtype == "bfloat16"
    with pytest.raises(InputError, match="feature_size"):
        config.replace(feature_size=7)


def test_presets():
    assert (SwinUNETRConfig.brats21().in_channels, SwinUNETRConfig.brats21().out_channels) == (4, 3)
    assert (SwinUNETRConfig.btcv(feature_size=24).out_channels, SwinUNETRConfig.btcv(feature_size=24).feature_size) == (14, 24)


def test_sizes_that_the_network_does_not_take_are_refused():
    config = SwinUNETRConfig(**BASE)
    config.check_spatial((64, 96, 32))
    with pytest.raises(InputError, match=r"axes \[0, 2\] of \(60, 64, 100\).*\(64, 64, 128\)"):
        config.check_spatial((60, 64, 100))
    with pytest.raises(InputError, match=r"one voxel.*\(32, 32, 64\)"):
        config.check_spatial((32, 32, 32))
    config.replace(norm_name="batch").check_spatial((32, 32, 32))
    with pytest.raises(InputError, match="3 spatial axes"):
        config.check_spatial((64, 64))
