"""Any data set of the Medical Segmentation Decathlon or of nnU-Net: labels, channels and crop are read from the data.

    swinunetr train msd --data Task04_Hippocampus --out runs/hippocampus

Softmax Dice with cross-entropy over the labels of dataset.json (overlapping regions where it names such), five folds by seed. CT is
taken from -175 to 250 HU unless --window says otherwise, and cropped around labels; give it one voxel size, such as --spacing 1.5 1.5 2.
Hardware: the default suits scans of one or two channels on a CPU or a small GPU; give --network.feature-size 48 on a large one.
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
