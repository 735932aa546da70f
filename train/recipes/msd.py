"""Any data set of the Medical Segmentation Decathlon or of nnU-Net: the labels, the channels and the crop come from the data.

    swinunetr train msd --data Task04_Hippocampus --out runs/hippocampus

The loss is the softmax Dice with cross-entropy over the labels of dataset.json, or its sigmoid version over the regions if dataset.json
defines regions. Five folds are drawn with --fold-seed. For CT, intensities of -175 to 250 HU are scaled to 0 to 1 (--window changes this
range), and crops are taken around labels; give all CT scans the same voxel size, for example with --spacing 1.5 1.5 2.
Hardware: the default suits scans of one or two channels on a CPU or a small GPU; on a large GPU give --network.feature-size 48.
"""

from swinunetr_jax.losses import Loss
from swinunetr_jax.training import Augment, Network, Optim, Recipe

RECIPE = Recipe(
    kind="labels",
    epochs=100,
    batch=2,
    network=Network(feature_size=24),
    loss=Loss(kind="dice_ce"),
    optim=Optim(lr=1e-3, weight_decay=1e-5, warmup=0.05),
    augment=Augment(normalize_after_crop=False, pad_foreground=False),
)
