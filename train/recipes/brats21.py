"""BraTS 2021 as in the paper: crops of 128³ and the Dice loss of TC, WT and ET.

    swinunetr train brats21 --data BraTS2021_Training_Data --out runs/brats21 --network.dtype bfloat16

Data: the BraTS folders of any year with four modalities, or the paper's list with its folds (--data BraTS2021/brats21_folds.json).
Optimizer: AdamW with learning rate 1e-4, weight decay 1e-5 and a cosine schedule of 300 epochs, of which 50 are the warm-up. For its table
the paper used 8e-4 and 800 epochs (--optim.lr 8e-4 --epochs 800). The released weights of its five folds score a Dice of 88.5 to 90.6,
89.7 on average.
Hardware: a GPU or TPU with 16 GB, in bfloat16 and with --network.use-checkpoint.
"""

from swinunetr_jax.training import Augment, Network, Optim, Recipe, Validation

RECIPE = Recipe(
    kind="brats",
    epochs=300,
    roi=(128, 128, 128),
    channels=("FLAIR", "T1ce", "T1", "T2"),
    orientation="LPS",
    cache_dtype="float16",
    workers=4,
    network=Network(feature_size=48),
    optim=Optim(lr=1e-4, weight_decay=1e-5, warmup=50 / 300),
    validation=Validation(overlap=0.5),
    augment=Augment(flips=(0, 1, 2)),
)
