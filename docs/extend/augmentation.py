"""Another augmentation: noise on the device, and on the host quarter turns in the axial plane after the usual changes."""

import jax

from swinunetr_jax.data.augment.transforms import RandomRotate90, brats_recipe
from swinunetr_jax.training import Network, Optim, Phantom, Recipe, Validation


def transforms(task):
    """What happens to a sample on the host: the paper's crop, normalisation and changes, then quarter turns of square crops."""
    return [*brats_recipe(task.roi), RandomRotate90(probability=0.5, axes=(0, 1))]


def add_noise(images, labels, keys):
    """What happens to a batch on the device: Gaussian noise with a deviation between 0 and 0.1, drawn by each sample's key."""

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
