"""A first run on data made on the spot: BraTS-like heads with a tumour, small enough for two CPU cores.

    python -m train

Makes the heads, prepares them, trains a small Swin UNETR on TC, WT and ET, and leaves curves, pictures, a report and a network that
`swinunetr predict` takes. Nothing but this command is needed.
"""

from train.config import Network, Optim, Phantom, Recipe

RECIPE = Recipe(
    kind="phantom",
    steps=120,
    batch=1,
    roi=(64, 64, 64),
    channels=("FLAIR", "T1ce", "T1", "T2"),
    orientation="LPS",
    phantom=Phantom(cases=20),
    network=Network(feature_size=12),
    optim=Optim(lr=2e-3, warmup=10),
)
