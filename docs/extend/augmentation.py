"""Another augmentation: the host adds quarter turns to the usual changes of a sample, and the device adds noise to a batch."""

import jax

from swinunetr_jax.data.augment.transforms import RandomRotate90, brats_recipe
from swinunetr_jax.training import Network, Optim, Phantom, Recipe, Validation


def transforms(task):
    """Returns the transforms of a sample on the host: those of the paper, and then quarter turns in the axial plane."""
    return [*brats_recipe(task.roi), RandomRotate90(probability=0.5, axes=(0, 1))]


def add_noise(images, labels, keys):
    """Adds Gaussian noise to a batch on the device. Each sample's key draws its standard deviation, between 0 and 0.1."""

    def one(image, key):
        strength, noise = jax.random.split(key)
        return image + 0.1 * jax.random.uniform(strength) * jax.random.normal(noise, image.shape, image.dtype)

    return jax.vmap(one)(images, keys), labels


RECIPE = Recipe(
    kind="phantom",
    steps=240,
    roi=(64, 64, 32),
    orientation="LPS",
    phantom=Phantom(cases=20, size=(96, 96, 64)),
    network=Network(feature_size=12),
    transforms=transforms,
    augment=add_noise,
    optim=Optim(lr=4e-3, warmup=20),
    validation=Validation(every=80, overlap=0.25),
)
