"""One training step: a pure function of state and batch, compiled once, its state donated."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from swinunetr_jax import Task
from swinunetr_jax.runtime.memory import release_compile_memory
from swinunetr_jax.runtime.strategies import ParallelStrategy
from swinunetr_jax.runtime.xla import compiler_options, pin_gradient_layout
from swinunetr_jax.training.config import Optim
from swinunetr_jax.training.objective import (
    Batch,
    FromFunction,
    LossFunction,
    Objective,
    ObjectiveFactory,
    Supervised,
    own_parameters,
    with_parameters,
)
from swinunetr_jax.training.optim import ema_decay, learning_rate, optimizer
from swinunetr_jax.weights.params import NetworkConfig, Weights, build, flatten, make_network, read_statistics, shapes, statistics

OWN = "objective."  # what the names of an objective's own parameters begin with
STATE_FIELDS = ["step", "params", "stats", "opt", "average", "average_stats", "own"]


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
        own: the objective's own parameters, {} where it has none; they are no part of the network.
    """

    step: Array
    params: Weights
    stats: Weights
    opt: Any
    average: Weights
    average_stats: Weights
    own: Weights = field(default_factory=dict)

    @property
    def network(self) -> Weights:
        """The network that is validated and kept: the average and its statistics where one is kept, else the weights and theirs."""
        return {**self.average, **self.average_stats} if self.average else {**self.params, **self.stats}


@dataclass(frozen=True)
class Training:
    """What a step needs beside state and batch; fixed for a run.

    Attributes:
        config: the network's configuration.
        task: what is learned.
        loss: the loss of the supervised objective.
        optim: options of the optimizer.
        steps: number of steps of the run.
        seed: seed of the initial weights and of all that is random in a step.
        objective: makes another objective than the supervised one; see `recipe.Recipe`.
        optimizer: makes another optimizer than AdamW; see `recipe.Recipe`.
    """

    config: NetworkConfig
    task: Task
    loss: LossFunction
    optim: Optim
    steps: int
    seed: int
    objective: ObjectiveFactory | None = None
    optimizer: Callable[[int], Any] | None = None

    def random_weights(self) -> dict[str, np.ndarray]:
        """Initial weights, drawn by the seed."""
        return flatten(make_network(self.config, nnx.Rngs(self.seed)))

    def like(self) -> State:
        """Shapes and types of the state."""
        return jax.eval_shape(self.init, shapes(self.config))

    def init(self, weights: Mapping[str, np.ndarray]) -> State:
        """The state before the first step, from these weights."""
        fixed = statistics(self.config)
        stats = {name: jnp.asarray(value) for name, value in weights.items() if name in fixed}
        params = {name: jnp.asarray(value) for name, value in weights.items() if name not in stats}
        own = {f"{OWN}{name}": jnp.asarray(value) for name, value in own_parameters(make_objective(self)).items()}
        opt = self.transformation()[0].init({**params, **own})
        # an own copy: the state is donated, and no buffer may be in it twice
        average, average_stats = ({}, {}) if self.optim.ema is None else jax.tree.map(jnp.copy, (params, stats))
        return State(jnp.zeros((), jnp.int32), params, stats, opt, average, average_stats, own)

    def transformation(self) -> tuple[optax.GradientTransformation, optax.Schedule | None]:
        """The optimizer, and its schedule of learning rates where that is known."""
        if self.optimizer is None:
            return optimizer(self.optim, self.steps), learning_rate(self.optim, self.steps)
        made = self.optimizer(self.steps)
        # an optax transformation is a named tuple itself
        return (made, None) if hasattr(made, "update") else made

    def compile(self, layout: ParallelStrategy | None = None) -> Callable[..., tuple[State, dict[str, Array]]]:
        """The step as a compiled function (state, batch) -> (state, metrics); see `objective.Batch`.

        With a layout, states, batches and metrics are stored on devices as it says, and the function is that of
        `ParallelStrategy.compile`, which also takes the processes' stop flags. Runs that differ only in their data, such as folds, share
        one program.
        """
        return _compiled(self, layout)

    def step(
        self,
        state: State,
        batch: Batch,
        *,
        average: Callable[[Any], Any] = lambda tree: tree,
        share: Array | None = None,
    ) -> tuple[State, dict[str, Array]]:
        """One optimizer step; `loss` and `grad_norm` are those before it, `lr` its learning rate where that is known.

        Args:
            state: what the step changes.
            batch: the samples.
            average, share: where each device runs the step on its own samples, the mean over devices and the number of this one.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        key = key if share is None else jax.random.fold_in(key, share)
        trained = {**state.params, **state.own}
        (loss, (stats, metrics)), gradients = average(self._gradients(trained, state.stats, batch, key))
        gradients = pin_gradient_layout(gradients)
        transformation, schedule = self.transformation()
        updates, opt = transformation.update(gradients, state.opt, trained)
        new = optax.apply_updates(trained, updates)
        params, own = {name: new[name] for name in state.params}, {name: new[name] for name in state.own}
        kept = state.average, state.average_stats
        if state.average:
            decay = ema_decay(self.optim.ema, state.step)
            kept = jax.tree.map(functools.partial(_moving_average, decay), kept, (params, stats))
        numbers = {**metrics, "loss": loss, "grad_norm": optax.tree.norm(gradients)}
        if schedule is not None:
            numbers["lr"] = jnp.asarray(schedule(state.step), jnp.float32)
        return State(state.step + 1, params, stats, opt, *kept, own), numbers

    def _gradients(self, trained: Weights, stats: Weights, batch: Batch, key: Array) -> Any:
        """((loss, (statistics, metrics)), gradients) of a batch, in as many parts as asked for, one after the other."""
        objective, own_names = make_objective(self), [name for name in trained if name.startswith(OWN)]

        def loss_of(trained: Weights, stats: Weights, batch: Batch, key: Array) -> tuple[Array, tuple[Weights, dict[str, Array]]]:
            model = build(self.config, {**trained, **stats})
            own = {name.removeprefix(OWN): trained[name] for name in own_names}
            current = with_parameters(objective, own) if own else objective
            loss, metrics = current(model, batch, key)
            return loss, (read_statistics(model), metrics)

        gradient = jax.value_and_grad(loss_of, has_aux=True)
        parts = self.optim.accumulate
        if parts == 1:
            return gradient(trained, stats, batch, key)

        def body(carry: Any, part: Any) -> Any:
            loss, stats, total = carry
            (one, (stats, metrics)), gradients = gradient(trained, stats, *part)
            return (loss + one / parts, stats, jax.tree.map(lambda t, g: t + g / parts, total, gradients)), metrics

        # every parts-th sample, so that what devices share stays evenly shared within a part
        split = {name: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1) for name, x in batch.items()}
        start = (jnp.zeros((), jnp.float32), stats, jax.tree.map(jnp.zeros_like, trained))
        (loss, stats, gradients), metrics = jax.lax.scan(body, start, (split, jax.random.split(key, parts)))
        return (loss, (stats, jax.tree.map(lambda values: values.mean(0), metrics))), gradients


@functools.lru_cache(maxsize=8)
def make_objective(training: Training) -> Objective:
    """The objective of a run, with the initial values of its own parameters."""
    if training.objective is None:
        return Supervised(training.loss, training.task)
    with jax.ensure_compile_time_eval():  # it may be asked for while a step is traced
        made = training.objective(training.task, training.config, nnx.Rngs(training.seed))
    return made if isinstance(made, Objective) else FromFunction(made)


def _moving_average(decay: Array, old: Array, new: Array) -> Array:
    """The average with a new value in it; an integer, which counts batches, is replaced."""
    return old + (1 - decay) * (new - old) if jnp.issubdtype(new.dtype, jnp.floating) else new


@functools.lru_cache(maxsize=8)
def _compiled(training: Training, layout: ParallelStrategy | None) -> Callable[..., tuple[State, dict[str, Array]]]:
    release_compile_memory()
    if layout is None:
        return jax.jit(training.step, donate_argnums=0, compiler_options=compiler_options())
    return layout.compile(training.step, compiler_options())
