"""AdamW, its learning rate, and the decay of the average of the weights."""

import jax.numpy as jnp
import optax
from jax import Array

from swinunetr_jax.parameters.layer_rates import scale_by_layer
from swinunetr_jax.training.config import Optim


def learning_rate(optim: Optim, steps: int) -> optax.Schedule:
    """Returns the learning rate of step 0, 1, …: a linear warm-up, whose first step is above 0, and then the schedule down to 0."""
    warmup = round(optim.warmup * steps) if optim.warmup < 1 else int(optim.warmup)
    remaining = max(steps - warmup, 1)
    if optim.schedule == "constant":
        schedule = optax.constant_schedule(optim.lr)
    elif optim.schedule == "polynomial":
        schedule = optax.polynomial_schedule(optim.lr, 0.0, optim.power, remaining)
    else:
        schedule = optax.cosine_decay_schedule(optim.lr, remaining)
    if not warmup:
        return schedule
    rise = optax.linear_schedule(optim.lr / warmup, optim.lr, max(warmup - 1, 1))
    return optax.join_schedules([rise, schedule], [warmup])


def optimizer(optim: Optim, steps: int) -> optax.GradientTransformation:
    """Returns AdamW as in `torch.optim.AdamW`, with the layer-wise decay of the learning rate if it is set.

    The weight decay is decoupled, and applies to all parameters, including biases and norms.
    """
    clip = [] if optim.clip is None else [optax.clip_by_global_norm(optim.clip)]
    beta1, beta2 = optim.betas
    adamw = optax.adamw(learning_rate(optim, steps), beta1, beta2, eps=1e-8, weight_decay=optim.weight_decay)
    by_layer = [] if optim.layer_decay is None else [scale_by_layer(optim.layer_decay)]
    return optax.chain(*clip, adamw, *by_layer)


def ema_decay(decay: float, step: Array) -> Array:
    """Returns the decay of the average at a step. It is smaller in the first steps, so that the initial weights have little influence."""
    return jnp.minimum(decay, (1 + step) / (10 + step))
