"""Swin UNETR in JAX: the network, MONAI's weights, whole scans in and label maps out."""

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.model.unetr import SwinUNETR
from swinunetr_jax.task import Task
from swinunetr_jax.version import __version__
from swinunetr_jax.weights.load import load_checkpoint, open_checkpoint, save_checkpoint

__all__ = [
    "InputError",
    "SwinUNETR",
    "SwinUNETRConfig",
    "Task",
    "__version__",
    "load_checkpoint",
    "open_checkpoint",
    "save_checkpoint",
]
