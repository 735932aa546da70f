"""A first run on synthetic data, heads with a tumour as in BraTS, which is small enough for two CPU cores.

    python -m train

The command makes the heads, prepares them, trains a small Swin UNETR on TC, WT and ET, and writes curves, pictures, a report and a network
for `swinunetr predict`. It needs no data.
"""

from swinunetr_jax.losses import Loss
from swinunetr_jax.training import Augment, Network, Optim, Phantom, Recipe, Validation

RECIPE = Recipe(
    kind="phantom",
    steps=240,
    roi=(32, 64, 32),
    channels=("FLAIR", "T1ce", "T1", "T2"),
    orientation="LPS",
    phantom=Phantom(cases=20, size=(96, 96, 64)),
    network=Network(feature_size=12),
    loss=Loss(kind="dice_ce"),
    optim=Optim(lr=4e-3, warmup=20),
    validation=Validation(every=80, overlap=0.25),
    augment=Augment(flips=(0, 1, 2)),
)
