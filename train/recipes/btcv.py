"""BTCV, 13 abdominal organs in CT: crops of 96³ around labels, and the Dice loss with cross-entropy.

    swinunetr train btcv --data BTCV/dataset_0.json --out runs/btcv --fold None

Data: a MONAI datalist with a validation list (--fold None), or a folder in the nnU-Net layout (--fold 0). Scans are resampled to RAS and
1.5 × 1.5 × 2 mm, and -175 … 250 HU are scaled to 0 to 1. A single model of the paper scores a Dice of 82.25 on the test set.
To start from the self-supervised encoder: --init.checkpoint model_swinvit.pt --init.encoder-only --init.downsample legacy.
Hardware: a GPU with 24 GB.
"""

from swinunetr_jax.losses import Loss
from swinunetr_jax.training import Network, Optim, Recipe

RECIPE = Recipe(
    kind="labels",
    epochs=5000,
    batch=4,
    roi=(96, 96, 96),
    orientation="RAS",
    spacing=(1.5, 1.5, 2.0),
    window=(-175.0, 250.0),
    workers=4,
    network=Network(feature_size=48),
    loss=Loss(kind="dice_ce"),
    optim=Optim(lr=1e-4, weight_decay=1e-5, warmup=50 / 5000),
)
