"""Swin UNETR in JAX: the network, MONAI's weights, whole scans in and label maps out.

Names are imported when they are first used: readers of `swinunetr_jax.data` in worker processes never start JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task
from swinunetr_jax.version import __version__

if TYPE_CHECKING:
    from swinunetr_jax.compiler import compiler_options
    from swinunetr_jax.inference.sliding_window import sliding_window_inference
    from swinunetr_jax.model.unetr import SwinUNETR
    from swinunetr_jax.platforms import traced_for
    from swinunetr_jax.weights.load import load_checkpoint, open_checkpoint, save_checkpoint

__all__ = [
    "InputError",
    "SwinUNETR",
    "SwinUNETRConfig",
    "Task",
    "__version__",
    "compiler_options",
    "load_checkpoint",
    "open_checkpoint",
    "save_checkpoint",
    "sliding_window_inference",
    "traced_for",
]

_HOME = {
    "SwinUNETR": "swinunetr_jax.model.unetr",
    "compiler_options": "swinunetr_jax.compiler",
    "load_checkpoint": "swinunetr_jax.weights.load",
    "open_checkpoint": "swinunetr_jax.weights.load",
    "save_checkpoint": "swinunetr_jax.weights.load",
    "sliding_window_inference": "swinunetr_jax.inference.sliding_window",
    "traced_for": "swinunetr_jax.platforms",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
