"""Scores of segmentations, computed on the CPU without JAX."""

from swinunetr_jax.metrics.lesions import Lesion, LesionScores, lesion_scores
from swinunetr_jax.metrics.scores import dice, hd95, masks, score_case, surface_dice, volume_ml

__all__ = ["Lesion", "LesionScores", "dice", "hd95", "lesion_scores", "masks", "score_case", "surface_dice", "volume_ml"]
