"""The objectives of pre-training by the name of their task."""

from swinunetr_jax.training.config import Pretrain
from swinunetr_jax.training.objective import ObjectiveFactory
from swinunetr_jax.training.options import PretrainTask
from swinunetr_jax.training.pretrain.mim import MaskedImagesFactory
from swinunetr_jax.training.pretrain.swin3 import Swin3Factory

FEW_VIEWS = 16


def few_views_note(task: PretrainTask, batch: int) -> str | None:
    """Returns a sentence if a step of swin3 has few views, of which the contrast learns little."""
    if task != "swin3" or 2 * batch >= FEW_VIEWS:
        return None
    return (
        f"a step has {2 * batch} views, and contrast needs many: the paper's authors used 32 GPUs; --batch {FEW_VIEWS // 2} or more gives "
        f"{FEW_VIEWS}, and --pretrain.contrast all compares all of them."
    )


def pretraining_objective(task: PretrainTask, options: Pretrain, seed: int) -> ObjectiveFactory:
    """Returns the function that makes the objective of a pre-training task."""
    return MaskedImagesFactory(options, seed) if task == "mim" else Swin3Factory(options, seed)
