"""The recipe `strong` with nnU-Net's optimizer: SGD with Nesterov momentum 0.99 and a learning rate that falls from 1e-2."""

from dataclasses import replace

import optax

from swinunetr_jax.training.recipes.strong import RECIPE as STRONG


def optimizer(steps):
    """Returns the optax transformation of a run with this number of steps, and its schedule. The weight decay is added to the gradient."""
    schedule = optax.polynomial_schedule(1e-2, 0.0, 0.9, steps)
    sgd = optax.sgd(schedule, momentum=0.99, nesterov=True)
    return optax.chain(optax.clip_by_global_norm(12.0), optax.add_decayed_weights(3e-5), sgd), schedule


RECIPE = replace(STRONG, optimizer=optimizer)
