"""Swin UNETR in JAX: the network, conversion of MONAI's weights, and segmentation of whole scans.

Names are imported when they are first used, so that worker processes, which only use `swinunetr_jax.data`, do not import JAX.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task
from swinunetr_jax.version import __version__

if TYPE_CHECKING:
    from swinunetr_jax.augment import Augmentation, nnunet_augmentation
    from swinunetr_jax.explanation import explain
    from swinunetr_jax.inference.segment import open_segmenter, segment
    from swinunetr_jax.inference.sliding_window import sliding_window_inference
    from swinunetr_jax.model.attention_maps import attention_maps
    from swinunetr_jax.model.swin import SwinTransformer
    from swinunetr_jax.model.unetr import SwinUNETR
    from swinunetr_jax.runtime.dispatch import reference_ops
    from swinunetr_jax.runtime.xla import jit
    from swinunetr_jax.saliency import grad_cam
    from swinunetr_jax.weights.load import load_checkpoint, open_checkpoint, save_checkpoint

__all__ = [
    "Augmentation",
    "InputError",
    "SwinTransformer",
    "SwinUNETR",
    "SwinUNETRConfig",
    "Task",
    "__version__",
    "attention_maps",
    "explain",
    "grad_cam",
    "jit",
    "load_checkpoint",
    "nnunet_augmentation",
    "open_checkpoint",
    "open_segmenter",
    "reference_ops",
    "save_checkpoint",
    "segment",
    "sliding_window_inference",
]

_MODULES = {
    "Augmentation": "swinunetr_jax.augment",
    "SwinTransformer": "swinunetr_jax.model.swin",
    "SwinUNETR": "swinunetr_jax.model.unetr",
    "attention_maps": "swinunetr_jax.model.attention_maps",
    "explain": "swinunetr_jax.explanation",
    "grad_cam": "swinunetr_jax.saliency",
    "jit": "swinunetr_jax.runtime.xla",
    "load_checkpoint": "swinunetr_jax.weights.load",
    "nnunet_augmentation": "swinunetr_jax.augment",
    "open_checkpoint": "swinunetr_jax.weights.load",
    "open_segmenter": "swinunetr_jax.inference.segment",
    "reference_ops": "swinunetr_jax.runtime.dispatch",
    "save_checkpoint": "swinunetr_jax.weights.load",
    "segment": "swinunetr_jax.inference.segment",
    "sliding_window_inference": "swinunetr_jax.inference.sliding_window",
}
_DEPRECATED = {  # old name: module, new name there, what to use instead
    "compiler_options": ("swinunetr_jax.runtime.xla", "compiler_options", "swinunetr_jax.jit(function)"),
    "traced_for": ("swinunetr_jax.runtime.dispatch", "for_device", "swinunetr_jax.jit(function, device=device)"),
}


def __getattr__(name: str) -> Any:
    if name in _DEPRECATED:
        module, new_name, replacement = _DEPRECATED[name]
        warnings.warn(
            f"swinunetr_jax.{name} is deprecated and will be removed in the next version: use {replacement}.",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module(module), new_name)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
