"""Another optimizer: the first stages of the encoder are frozen, and biases and norms have no weight decay."""

import optax

from swinunetr_jax.training import Network, Phantom, Recipe, Validation

FROZEN = ("swin.patch_embed.", "swin.stages.0.")


def decayed(params):
    """Which parameters have weight decay: {dotted path: True or False}."""
    return {name: not name.endswith((".bias", ".scale")) for name in params}


def group_of(params):
    """Which optimizer each parameter has."""
    return {name: "frozen" if name.startswith(FROZEN) else "trained" for name in params}


def optimizer(steps):
    """The optax transformation of a run of that many steps, and its schedule, which is logged."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, 4e-3, warmup_steps=min(20, steps), decay_steps=max(steps, 21))
    adamw = optax.adamw(schedule, weight_decay=1e-2, mask=decayed)
    return optax.partition({"trained": adamw, "frozen": optax.set_to_zero()}, group_of), schedule


RECIPE = Recipe(
    kind="phantom",
    steps=240,
    roi=(32, 64, 32),
    orientation="LPS",
    phantom=Phantom(cases=20, size=(96, 96, 64)),
    network=Network(feature_size=12),
    optimizer=optimizer,
    validation=Validation(every=80, overlap=0.25),
)
