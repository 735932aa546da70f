"""Fixtures of tests of weights. A test module that needs them has `pytest_plugins = ["helpers.fixtures"]`.

Fixtures with the scope of the session are built once, even though several test modules need them.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import checkpoint_folder
from helpers.weight_states import CONFIG_2D, CONFIG_3D, random_params
from swinunetr_jax.weights.checkpoint import write_checkpoint
from swinunetr_jax.weights.monai import to_monai
from swinunetr_jax.weights.torch_file import write_torch_file


@pytest.fixture(scope="session")
def state_3d() -> dict[str, np.ndarray]:
    """The state dict of a small 3-D network with MONAI's names. Tests must not change its arrays."""
    return to_monai(random_params(CONFIG_3D), CONFIG_3D)


@pytest.fixture(scope="session")
def state_2d() -> dict[str, np.ndarray]:
    """The state dict of a small 2-D network with MONAI's names. Tests must not change its arrays."""
    return to_monai(random_params(CONFIG_2D), CONFIG_2D)


@pytest.fixture
def state_file(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes a state dict with our own writer, without PyTorch, and returns the path."""

    def write(state: dict[str, Any], name: str = "file.pt") -> Path:
        write_torch_file(tmp_path / name, state)
        return tmp_path / name

    return write


@pytest.fixture
def torch_file(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that saves a value with torch and returns the path."""
    torch = pytest.importorskip("torch")

    def save(value: Any, **options: Any) -> Path:
        torch.save(value, tmp_path / "saved.pt", **options)
        return tmp_path / "saved.pt"

    return save


@pytest.fixture(scope="session")
def written_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a 2-D network. Tests must not change it."""
    path = tmp_path_factory.mktemp("written") / "checkpoint"
    config = checkpoint_folder.CONFIG
    write_checkpoint(path, config, random_params(config), checkpoint_folder.TASK)
    return path


@pytest.fixture
def checkpoint(written_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of `written_checkpoint`, which a test can change."""
    return Path(shutil.copytree(written_checkpoint, tmp_path / "checkpoint"))
