"""Pre-training of the encoder on scans without labels as in the paper: rotation, contrast and inpainting of two views of each crop.

    swinunetr train pretrain --task swin3 --data SCANS --out runs/pretrained
    swinunetr convert runs/pretrained swin_encoder.pt --write-encoder

Data: as for the recipe `pretrain`. The values of AdamW are those of the paper's code (Tang et al. 2022, https://arxiv.org/abs/2111.14791).
Contrast needs many views: give a large --batch and --pretrain.contrast all. The authors used 32 GPUs.
Hardware: that of the recipe `pretrain`. With --optim.accumulate the views are contrasted within each part of a batch.
"""

from dataclasses import replace

from swinunetr_jax.training import Augmentation, Network, Optim
from swinunetr_jax.training.recipes.pretrain import RECIPE as PRETRAIN

RECIPE = replace(
    PRETRAIN,
    task="swin3",
    roi=(96, 96, 96),
    network=Network(feature_size=48),
    optim=Optim(lr=4e-4, weight_decay=0.1, warmup=500),
    augment=Augmentation(()),  # the two views are the augmentation
)
