"""Random changes of a batch on the device: a program of its own between the transfer of the batch and the training step."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from swinunetr_jax.runtime.strategies import JitStrategy, ParallelStrategy
from swinunetr_jax.training.objective import Batch
from swinunetr_jax.training.recipe import Recipe


def device_augmentation(recipe: Recipe, layout: ParallelStrategy) -> Callable[[Batch], Batch]:
    """The recipe's augmentation of batches as a compiled function; without one a function that returns the batch as it is.

    A sample's key is made of the run's seed and the sample's number, so that it does not depend on devices, processes or on where a run
    was resumed. The batch stays divided among the devices as it is.
    """
    augment = recipe.device_augment
    if augment is None:
        return lambda batch: batch
    assert isinstance(layout, JitStrategy)  # `Recipe.check` refuses the other one
    shardings = {"image": layout.batch_sharding(5), "label": layout.batch_sharding(4), "sample": layout.batch_sharding(1)}

    @functools.partial(jax.jit, out_shardings=shardings)
    def run(batch: Batch) -> Batch:
        sample_key = jax.vmap(jax.random.fold_in, (None, 0))
        keys = sample_key(jax.random.fold_in(jax.random.key(recipe.seed), 1), batch["sample"].astype(jnp.uint32))
        image, label = augment(batch["image"], batch["label"], keys)
        return {**batch, "image": image, "label": label}

    return run
