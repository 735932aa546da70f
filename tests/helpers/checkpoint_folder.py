"""The configuration of a small checkpoint folder, and the checks that its tests share."""

from pathlib import Path

import pytest

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task
from swinunetr_jax.weights.load import open_checkpoint
from swinunetr_jax.weights.params import digest

CONFIG = SwinUNETRConfig(
    in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1), spatial_dims=2, window_size=3, norm_name="batch"
)
TASK = Task.classes(2, channels=("CT",), intensity="window", window=(-175.0, 250.0), roi=(96, 64))


def assert_same_arrays(got, expected):
    """Asserts that both dicts have the same names and arrays."""
    assert {name: digest(array) for name, array in got.items()} == {name: digest(array) for name, array in expected.items()}


def refusal(path: Path, **options) -> str:
    """Returns the message with which a folder is refused, after checking that it is one sentence on one line with the path."""
    with pytest.raises(InputError) as caught:
        open_checkpoint(path, **options)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 700 and message.endswith(".")
    return message


def file_names(path: Path) -> list[str]:
    """Returns the paths of all files and folders in a folder, relative to it."""
    return sorted(str(file.relative_to(path)) for file in path.rglob("*"))
