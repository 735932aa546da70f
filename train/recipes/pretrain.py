"""Pre-training on scans without labels: a network fills in masked blocks of scans.

    swinunetr train pretrain --data SCANS --roi 96 96 96 --out runs/pretrained
    swinunetr train msd --data LABELLED --init.checkpoint runs/pretrained --out runs/fine_tuned

Data: any folder that `swinunetr predict` reads; label maps are ignored. Each channel of a scan is a sample of its own unless --channels
names those of the network. Scans called CT are scaled from -1000 … 1000 HU to 0 … 1 (--window changes this), and all others get a z-score.
A fifth of the scans is held out, and the network with the smallest loss on them is the best. Give the crop and the network of the training
that will follow.
Hardware: in bfloat16 with 48 features each crop of 96³ takes 2.1 GB and the state 1.0 GB, by the compiler for a TPU v5e, so that a batch of
8 needs a device with 24 GB; --optim.accumulate takes less memory.
"""

from swinunetr_jax.training import Augmentation, Mirror, Network, Optim, Recipe, Rotation, Scaling

RECIPE = Recipe(
    kind="scans",
    epochs=1000,
    batch=8,
    network=Network(feature_size=48, dropout_path_rate=0.2),
    optim=Optim(lr=3e-4, weight_decay=0.05, betas=(0.9, 0.98), warmup=0.05, clip=1.0, ema=0.999),
    augment=Augmentation((Rotation(), Scaling(), Mirror(axes=(0, 1, 2)))),
)
