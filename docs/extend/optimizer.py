"""Another optimizer: the first stages of the encoder are frozen, and biases and norms have no weight decay."""

from dataclasses import replace

import optax

from swinunetr_jax.training.recipes.phantom import RECIPE as PHANTOM

FROZEN = ("swin.patch_embed.", "swin.stages.0.")


def decayed(params):
    """Returns which parameters have weight decay: {dotted path: True or False}."""
    return {name: not name.endswith((".bias", ".scale")) for name in params}


def group_of(params):
    """Returns the name of each parameter's optimizer: {dotted path: name}."""
    return {name: "frozen" if name.startswith(FROZEN) else "trained" for name in params}


def optimizer(steps):
    """Returns the optax transformation of a run with this number of steps, and its schedule, which is logged."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 4e-3, warmup_steps=min(20, steps), decay_steps=max(steps, 21))
    adamw = optax.adamw(schedule, weight_decay=1e-2, mask=decayed)
    return optax.partition({"trained": adamw, "frozen": optax.set_to_zero()}, group_of), schedule


RECIPE = replace(PHANTOM, optimizer=optimizer)
