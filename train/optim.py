"""AdamW with its learning rate, and everything that happens to a gradient on the way."""

import jax.numpy as jnp
import optax
from jax import Array

from swinunetr_jax.training.config import Optim


def learning_rate(optim: Optim, steps: int) -> optax.Schedule:
    """Learning rate of step 0, 1, …: a linear warm-up that does not waste its first step at 0, then the schedule down to 0."""
    warmup = round(optim.warmup * steps) if optim.warmup < 1 else int(optim.warmup)
    rest = max(steps - warmup, 1)
    if optim.schedule == "constant":
        after = optax.constant_schedule(optim.lr)
    elif optim.schedule == "polynomial":
        after = optax.polynomial_schedule(optim.lr, 0.0, optim.power, rest)
    else:
        after = optax.cosine_decay_schedule(optim.lr, rest)
    if not warmup:
        return after
    rise = optax.linear_schedule(optim.lr / warmup, optim.lr, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def optimizer(optim: Optim, steps: int) -> optax.GradientTransformation:
    """As `torch.optim.AdamW`: the decay is not adapted and reaches every parameter, biases and norms too."""
    clip = [] if optim.clip is None else [optax.clip_by_global_norm(optim.clip)]
    beta1, beta2 = optim.betas
    adamw = optax.adamw(learning_rate(optim, steps), beta1, beta2, eps=1e-8, weight_decay=optim.weight_decay)
    return optax.chain(*clip, adamw)


def ema_decay(decay: float, step: Array) -> Array:
    """The average's decay at a step: short at first, so that the random start is forgotten."""
    return jnp.minimum(decay, (1 + step) / (10 + step))
