"""The recipe `strong` with a smaller learning rate, 3e-4, weight decay 0.05, betas 0.9 and 0.98, and more stochastic depth."""

from dataclasses import replace

from swinunetr_jax.training import Network
from swinunetr_jax.training.recipes.strong import RECIPE as STRONG

RECIPE = replace(
    STRONG,
    network=Network(use_v2=True, dropout_path_rate=0.2),
    optim=replace(STRONG.optim, lr=3e-4, weight_decay=0.05, betas=(0.9, 0.98)),
)
