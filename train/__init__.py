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
    from swinunetr_jax.augment import Augmentation, nnunet_augmentation
    from swinunetr_jax.training.config import Augment, Devices, Init, Network, Optim, Phantom, Validation
    from swinunetr_jax.training.loop import train
    from swinunetr_jax.training.objective import Batch, Objective, Supervised, training_pass
    from swinunetr_jax.training.recipe import Recipe, load_recipe

_HOME = {
    **dict.fromkeys(("Augment", "Devices", "Init", "Network", "Optim", "Phantom", "Validation"), "config"),
    **dict.fromkeys(("Batch", "Objective", "Supervised", "training_pass"), "objective"),
    **dict.fromkeys(("Recipe", "load_recipe"), "recipe"),
    "train": "loop",
}
__all__ = [
    "Augment",
    "Batch",
    "Devices",
    "Init",
    "Network",
    "Objective",
    "Optim",
    "Phantom",
    "Recipe",
    "Supervised",
    "Validation",
    "load_recipe",
    "train",
    "training_pass",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"swinunetr_jax.training.{_HOME[name]}"), name)


if __name__ == "train":
    import_module("swinunetr_jax.training.old_name").redirect_imports()
