"""The objectives of pre-training by the name of their task."""

from swinunetr_jax.training.config import Pretrain
from swinunetr_jax.training.objective import ObjectiveFactory
from swinunetr_jax.training.options import PretrainTask
from swinunetr_jax.training.pretrain.mim import MaskedImagesFactory
from swinunetr_jax.training.pretrain.swin3 import Swin3Factory


def pretraining_objective(task: PretrainTask, options: Pretrain, seed: int) -> ObjectiveFactory:
    """Returns the function that makes the objective of a pre-training task."""
    return MaskedImagesFactory(options, seed) if task == "mim" else Swin3Factory(options, seed)
