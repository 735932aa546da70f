"""Post-processing of label maps: operations, and the file in which a training run stores those that it has chosen."""

from swinunetr_jax.postprocess.operations import Step, apply, fallback, keep_largest_component, replace_small
from swinunetr_jax.postprocess.stored import POSTPROCESS, Postprocess, check_task, read_postprocess, write_postprocess

__all__ = [
    "POSTPROCESS",
    "Postprocess",
    "Step",
    "apply",
    "check_task",
    "fallback",
    "keep_largest_component",
    "read_postprocess",
    "replace_small",
    "write_postprocess",
]
