"""The trainer. A Python file anywhere can extend it; see `Recipe`.

    from swinunetr_jax.training import Recipe, Network, Optim
    RECIPE = Recipe(kind="labels", network=Network(feature_size=24), loss=my_loss)

    swinunetr train my_experiment.py --data DATA --out RUN

The package has one name in a clone, in a wheel and in an editable install: `swinunetr_jax.training`. Its files are in the folder `train` of
the repository, to which `swinunetr_jax/training` is a link, so that `python -m train` works there. Imports of the old name `train` return
the same modules, with a warning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swinunetr_jax.augment import (
        Augmentation,
        Brightness,
        Contrast,
        Gamma,
        GaussianBlur,
        GaussianNoise,
        LowResolution,
        Mirror,
        Rotation,
        Scaling,
        nnunet_augmentation,
    )
    from swinunetr_jax.training.config import Augment, Devices, Init, Network, Optim, Phantom, Pretrain, Validation
    from swinunetr_jax.training.loop import train
    from swinunetr_jax.training.objective import Batch, Objective, Supervised, training_pass
    from swinunetr_jax.training.recipe import Recipe, load_recipe

_TRANSFORMS = (
    "Brightness",
    "Contrast",
    "Gamma",
    "GaussianBlur",
    "GaussianNoise",
    "LowResolution",
    "Mirror",
    "Rotation",
    "Scaling",
)
_HOME = {
    **dict.fromkeys(("Augmentation", "nnunet_augmentation", *_TRANSFORMS), "swinunetr_jax.augment"),
    **dict.fromkeys(("Augment", "Devices", "Init", "Network", "Optim", "Phantom", "Pretrain", "Validation"), "config"),
    **dict.fromkeys(("Batch", "Objective", "Supervised", "training_pass"), "objective"),
    **dict.fromkeys(("Recipe", "load_recipe"), "recipe"),
    "train": "loop",
}
__all__ = [
    "Augment",
    "Augmentation",
    "Batch",
    "Brightness",
    "Contrast",
    "Devices",
    "Gamma",
    "GaussianBlur",
    "GaussianNoise",
    "Init",
    "LowResolution",
    "Mirror",
    "Network",
    "Objective",
    "Optim",
    "Phantom",
    "Pretrain",
    "Recipe",
    "Rotation",
    "Scaling",
    "Supervised",
    "Validation",
    "load_recipe",
    "nnunet_augmentation",
    "train",
    "training_pass",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOME[name]
    return getattr(import_module(home if "." in home else f"swinunetr_jax.training.{home}"), name)


if __name__ == "train":
    import_module("swinunetr_jax.training.old_name").redirect_imports()
