"""Any data set, planned for its scans and for the device's memory, with residual convolutions and nnU-Net's augmentation on the device.

    swinunetr train strong --data Task04_Hippocampus --out runs/strong

A plan is made first, RUN/plan.json: voxel size, intensities, crop, batch and network (see `swinunetr plan`). Options that are given replace
its decisions, and --plan FILE uses another plan. A third of the samples is centred on a class. The loss is Dice with cross-entropy, and
the weights are averaged. The learning rate and the weight decay are those of the recipe `msd`. During the run a pseudo-Dice of patches is
computed; at the end all scans are validated with mirrored windows, and the network of the last step is the result.
Hardware: any, since the plan is made for it; on a CPU the network has 12 features.
"""

from swinunetr_jax.losses import Loss
from swinunetr_jax.training import Network, Optim, Recipe, Validation, nnunet_augmentation

RECIPE = Recipe(
    kind="labels",
    planned=True,
    epochs=300,
    batch=2,
    class_share=0.33,
    network=Network(use_v2=True, dropout_path_rate=0.1),
    loss=Loss(kind="dice_ce"),
    optim=Optim(lr=1e-3, weight_decay=1e-5, warmup=0.05, clip=1.0, ema=0.999),
    augment=nnunet_augmentation(),
    validation=Validation(mirror=True, pseudo=50),
)
