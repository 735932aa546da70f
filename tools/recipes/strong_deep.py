"""The recipe `strong` with deep supervision, and no other change."""

from dataclasses import replace

from swinunetr_jax.training.recipes.strong import RECIPE as STRONG

RECIPE = replace(STRONG, deep_supervision=True)
