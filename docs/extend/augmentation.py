"""Another augmentation: the host adds quarter turns to the usual transforms of a sample, and the device adds noise to a batch."""

from dataclasses import replace

import jax

from swinunetr_jax.data.augment.transforms import RandomRotate90, brats_recipe
from swinunetr_jax.training.recipes.phantom import RECIPE as PHANTOM


def transforms(task):
    """Returns the transforms of a sample on the host: those of the paper, and then quarter turns in the axial plane."""
    return [*brats_recipe(task.roi), RandomRotate90(probability=0.5, axes=(0, 1))]


def add_noise(images, labels, keys):
    """Adds Gaussian noise to a batch on the device. The standard deviation of each sample is random, between 0 and 0.1."""

    def add_to_sample(image, key):
        strength_key, noise_key = jax.random.split(key)
        return image + 0.1 * jax.random.uniform(strength_key) * jax.random.normal(noise_key, image.shape, image.dtype)

    return jax.vmap(add_to_sample)(images, keys), labels


RECIPE = replace(PHANTOM, roi=(64, 64, 32), transforms=transforms, augment=add_noise)
