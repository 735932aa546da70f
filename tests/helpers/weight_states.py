"""Small networks as state dicts with MONAI's names, and the checks that tests of weights share."""

import numpy as np
import pytest

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.load import open_checkpoint
from swinunetr_jax.weights.monai import entries, to_monai
from swinunetr_jax.weights.params import shapes

CONFIG_3D = SwinUNETRConfig(
    in_channels=2, out_channels=3, feature_size=12, depths=(1, 1, 1, 1), window_size=3, downsample="legacy"
)
CONFIG_2D = CONFIG_3D.replace(spatial_dims=2, window_size=3, in_channels=1, out_channels=2)

# Fields of configurations. Together they vary everything that is inferred from tensors.
CONFIGS = {
    "default": {},
    "v2": {"use_v2": True, "norm_name": "batch", "in_channels": 3},
    "window": {"window_size": (7, 7, 5), "depths": (2, 4, 2, 2)},
    "narrow": {"mlp_ratio": 2.0, "num_heads": (2, 2, 4, 4), "depths": (1, 2, 1, 3), "window_size": (5, 7, 7), "qkv_bias": False},
    "2d": {"spatial_dims": 2, "window_size": (7, 5), "num_heads": (2, 4, 6, 8)},
    "batch": {"spatial_dims": 2, "norm_name": "batch"},
    "group": {"spatial_dims": 2, "norm_name": ("group", {"num_groups": 4})},
    "no_bias": {"spatial_dims": 2, "qkv_bias": False, "patch_norm": True, "out_channels": 1},
    "v2_group": {"spatial_dims": 2, "use_v2": True, "norm_name": ("group", {"num_groups": 3}), "window_size": 4},
    "odd_ratio": {"spatial_dims": 2, "mlp_ratio": 2.6, "feature_size": 24, "in_channels": 24},
}


def config_for(name: str) -> SwinUNETRConfig:
    """Returns the configuration with the fields of `CONFIGS[name]`."""
    return SwinUNETRConfig(**{"in_channels": 4, "out_channels": 3, "feature_size": 12, "downsample": "legacy", **CONFIGS[name]})


def random_params(config: SwinUNETRConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns random values for the variables of a network."""
    rng = np.random.default_rng(seed)
    draw = {
        "f": lambda leaf: rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype),
        "V": lambda leaf: rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype),  # bfloat16
        "i": lambda leaf: rng.integers(1 << 20, size=leaf.shape).astype(leaf.dtype),
    }
    return {name: draw[np.dtype(leaf.dtype).kind](leaf) for name, leaf in shapes(config).items()}


def prefixed(state, prefix):
    """Returns a state dict with a prefix before every name."""
    return {prefix + name: tensor for name, tensor in state.items()}


def assert_same_tensors(checkpoint, state, except_for=()):
    """Asserts that a checkpoint has every tensor of a state dict with the same bytes, except for names that start with `except_for`."""
    tensors = to_monai(checkpoint.params, checkpoint.config)
    assert list(tensors) == [entry.name for entry in entries(checkpoint.config)]
    for name, tensor in tensors.items():
        if not name.startswith(tuple(except_for)):
            assert tensor.dtype == state[name].dtype and tensor.shape == state[name].shape, name
            assert tensor.tobytes() == state[name].tobytes(), name


def open_refused(*args, **options) -> str:
    """Returns the message of the InputError that `open_checkpoint` raises with these arguments."""
    with pytest.raises(InputError) as caught:
        open_checkpoint(*args, **options)
    message = str(caught.value)
    assert str(args[0]) in message
    assert len(message.split("\n")[0]) < 500 + len(str(args[0]))
    return message
