"""One training step: a pure function of state and batch, compiled once, its state donated."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from swinunetr_jax import SwinUNETR, SwinUNETRConfig, Task
from swinunetr_jax.losses import Loss
from swinunetr_jax.runtime.memory import release_compile_memory
from swinunetr_jax.runtime.strategies import ParallelStrategy
from swinunetr_jax.runtime.xla import compiler_options, pin_gradient_layout
from swinunetr_jax.weights.params import build, flatten, is_statistic, shapes
from train.config import Optim
from train.optim import ema_decay, learning_rate, optimizer

Weights = dict[str, Array]


STATE_FIELDS = ["step", "params", "stats", "opt", "average", "average_stats"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=STATE_FIELDS, meta_fields=[])
@dataclass(frozen=True)
class State:
    """Everything that a step changes.

    Attributes:
        step: number of finished steps, int32 [].
        params: weights by dotted path.
        stats: running statistics of the batch norms that see these weights, {} without batch norms.
        opt: the optimizer's state.
        average: the moving average of the weights, or {} where none is kept.
        average_stats: the moving average of `stats`, by the same decay, or {}. The raw weights' statistics do not fit the average,
            whose activations have other means and variances. Averaged statistics are those of the average to first order in how far
            the weights move within the average's memory; timm and TensorFlow average them in the same way. Counts are not averaged.
    """

    step: Array
    params: Weights
    stats: Weights
    opt: Any
    average: Weights
    average_stats: Weights

    @property
    def network(self) -> Weights:
        """The network that is validated and kept: the average and its statistics where one is kept, else the weights and theirs."""
        return {**self.average, **self.average_stats} if self.average else {**self.params, **self.stats}


@dataclass(frozen=True)
class Training:
    """What a step needs beside state and batch; fixed for a run."""

    config: SwinUNETRConfig
    task: Task
    loss: Loss
    optim: Optim
    steps: int
    seed: int

    def random_weights(self) -> dict[str, np.ndarray]:
        """Weights to start from, drawn by the seed."""
        return flatten(SwinUNETR(self.config, rngs=nnx.Rngs(self.seed)))

    def like(self) -> State:
        """Shapes and types of the state."""
        return jax.eval_shape(self.init, shapes(self.config))

    def init(self, weights: Mapping[str, np.ndarray]) -> State:
        """The state before the first step, from these weights."""
        stats = {name: jnp.asarray(value) for name, value in weights.items() if is_statistic(name)}
        params = {name: jnp.asarray(value) for name, value in weights.items() if name not in stats}
        opt = optimizer(self.optim, self.steps).init(params)
        # an own copy: the state is donated, and no buffer may be in it twice
        average, average_stats = ({}, {}) if self.optim.ema is None else jax.tree.map(jnp.copy, (params, stats))
        return State(jnp.zeros((), jnp.int32), params, stats, opt, average, average_stats)

    def compile(self, layout: ParallelStrategy | None = None) -> Callable[..., tuple[State, dict[str, Array]]]:
        """The step as a compiled function (state, image [b, x, y, z, c], label [b, x, y, z]) -> (state, metrics).

        With a layout, states, batches and metrics are stored on devices as it says, and the function is that of
        `ParallelStrategy.compile`, which also takes the processes' stop flags. Runs that differ only in their data, such as folds, share
        one program.
        """
        return _compiled(self, layout)

    def step(
        self,
        state: State,
        image: Array,
        label: Array,
        *,
        average: Callable[[Any], Any] = lambda tree: tree,
        share: Array | None = None,
    ) -> tuple[State, dict[str, Array]]:
        """One optimizer step; `loss` and `grad_norm` are those before it, `lr` its learning rate.

        Args:
            average, share: where each device runs the step on its own samples, the mean over devices and the number of this one.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        key = key if share is None else jax.random.fold_in(key, share)
        (loss, stats), gradients = average(self._gradients(state.params, state.stats, image, label, key))
        gradients = pin_gradient_layout(gradients)
        updates, opt = optimizer(self.optim, self.steps).update(gradients, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        kept = state.average, state.average_stats
        if state.average:
            decay = ema_decay(self.optim.ema, state.step)
            kept = jax.tree.map(functools.partial(_moving_average, decay), kept, (params, stats))
        new = State(state.step + 1, params, stats, opt, *kept)
        rate = jnp.asarray(learning_rate(self.optim, self.steps)(state.step), jnp.float32)
        return new, {"loss": loss, "grad_norm": optax.tree.norm(gradients), "lr": rate}

    def _gradients(self, params: Weights, stats: Weights, image: Array, label: Array, key: Array) -> Any:
        """((loss, statistics), gradients) of a batch, in as many parts as asked for, one after the other."""

        def loss_of(params: Weights, stats: Weights, image: Array, label: Array, key: Array) -> tuple[Array, Weights]:
            logits, seen = build(self.config, {**params, **stats}).forward(image, key=key, train=True)
            prefix = "batch_stats."
            new = {name.removeprefix(prefix): value for name, value in seen.items() if name.startswith(prefix)}
            return self.loss(logits, label, self.task), {**stats, **new}

        gradient = jax.value_and_grad(loss_of, has_aux=True)
        parts = self.optim.accumulate
        if parts == 1:
            return gradient(params, stats, image, label, key)

        def body(carry: Any, part: Any) -> Any:
            loss, stats, total = carry
            (one, stats), gradients = gradient(params, stats, *part)
            return (loss + one / parts, stats, jax.tree.map(lambda t, g: t + g / parts, total, gradients)), None

        # every parts-th sample, so that what devices share stays evenly shared within a part
        split = [jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1) for x in (image, label)]
        start = (jnp.zeros((), jnp.float32), stats, jax.tree.map(jnp.zeros_like, params))
        (loss, stats, gradients), _ = jax.lax.scan(body, start, (*split, jax.random.split(key, parts)))
        return (loss, stats), gradients


def _moving_average(decay: Array, old: Array, new: Array) -> Array:
    """The average with a new value in it; an integer, which counts batches, is replaced."""
    return old + (1 - decay) * (new - old) if jnp.issubdtype(new.dtype, jnp.floating) else new


@functools.lru_cache(maxsize=8)
def _compiled(training: Training, layout: ParallelStrategy | None) -> Callable[..., tuple[State, dict[str, Array]]]:
    release_compile_memory()
    if layout is None:
        return jax.jit(training.step, donate_argnums=0, compiler_options=compiler_options())
    return layout.compile(training.step, compiler_options())
