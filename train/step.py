"""The training step: a pure function of state and batch, which is compiled once and whose state is donated."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from swinunetr_jax import Task
from swinunetr_jax.model.hyena import limit_masks
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

OWN = "objective."  # prefix of the names of an objective's own parameters
STATE_FIELDS = ["step", "params", "stats", "opt", "average", "average_stats", "own"]


@functools.partial(jax.tree_util.register_dataclass, data_fields=STATE_FIELDS, meta_fields=[])
@dataclass(frozen=True)
class State:
    """The training state: everything that a step changes.

    Attributes:
        step: number of finished steps, int32 [].
        params: weights by dotted path.
        stats: running statistics of the batch norms of a network with these weights, or {} without batch norms.
        opt: the optimizer's state.
        average: the exponential moving average of the weights, or {} if there is none.
        average_stats: the moving average of `stats` with the same decay, or {}. The statistics of the raw weights do not fit the averaged
            weights, whose activations have other means and variances. Averaged statistics fit them, to first order in the distance that
            the weights move within the time constant of the average; timm and TensorFlow average them in the same way. Counts are not
            averaged.
        own: the objective's own parameters, which are not part of the network, or {} if it has none.
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
        """The network that is validated and saved: the average with its statistics if there is one, otherwise the weights with theirs."""
        return {**self.average, **self.average_stats} if self.average else {**self.params, **self.stats}


@dataclass(frozen=True)
class Training:
    """Everything that a step needs in addition to state and batch. It is fixed for a run.

    Attributes:
        config: the network's configuration.
        task: the task.
        loss: the loss of the supervised objective.
        optim: options of the optimizer.
        steps: number of steps of the run.
        seed: the seed of the initial weights and of everything that is random in a step.
        objective: a function that returns the objective, by default the supervised one; see `recipe.Recipe`.
        optimizer: a function that returns the optimizer, by default AdamW; see `recipe.Recipe`.
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
        """Returns random initial weights, which depend on the seed."""
        return flatten(make_network(self.config, nnx.Rngs(self.seed)))

    def like(self) -> State:
        """Returns the shapes and types of the state."""
        return jax.eval_shape(self.init, shapes(self.config))

    def init(self, weights: Mapping[str, np.ndarray]) -> State:
        """Returns the state before the first step, with these weights."""
        stat_names = statistics(self.config)
        stats = {name: jnp.asarray(value) for name, value in weights.items() if name in stat_names}
        params = {name: jnp.asarray(value) for name, value in weights.items() if name not in stats}
        own = {f"{OWN}{name}": jnp.asarray(value) for name, value in own_parameters(make_objective(self)).items()}
        opt = self.transformation()[0].init({**params, **own})
        # The average is a copy, since the state is donated and must not contain a buffer twice.
        average, average_stats = ({}, {}) if self.optim.ema is None else jax.tree.map(jnp.copy, (params, stats))
        return State(jnp.zeros((), jnp.int32), params, stats, opt, average, average_stats, own)

    def transformation(self) -> tuple[optax.GradientTransformation, optax.Schedule | None]:
        """Returns the optimizer, and its schedule of learning rates or None if it is unknown."""
        if self.optimizer is None:
            chosen, schedule = optimizer(self.optim, self.steps), learning_rate(self.optim, self.steps)
        else:
            result = self.optimizer(self.steps)
            # Not `isinstance(result, tuple)`, because an optax transformation is a named tuple.
            chosen, schedule = (result, None) if hasattr(result, "update") else result
        frozen = self.frozen_weights()
        if not frozen:
            return chosen, schedule

        def labels(weights: Weights) -> dict[str, str]:
            return {name: "frozen" if name in frozen else "trained" for name in weights}

        return optax.partition({"trained": chosen, "frozen": optax.set_to_zero()}, labels), schedule

    def frozen_weights(self) -> frozenset[str]:
        """Returns the names of the network's weights that the objective does not train."""
        objective, weights = make_objective(self), shapes(self.config).keys() - statistics(self.config)
        return frozenset(name for name in weights if not objective.trains(name))

    def compile(self, strategy: ParallelStrategy | None = None) -> Callable[..., tuple[State, dict[str, Array]]]:
        """Returns the step as a compiled function (state, batch) -> (state, metrics); see `objective.Batch`.

        If a strategy is given, the function stores states, batches and metrics on devices as the strategy does, and also takes the
        processes' stop flags; see `ParallelStrategy.compile`. Runs that differ only in their data, such as folds, share one program.
        """
        return _compiled(self, strategy)

    def step(
        self,
        state: State,
        batch: Batch,
        *,
        average: Callable[[Any], Any] = lambda tree: tree,
        share: Array | None = None,
    ) -> tuple[State, dict[str, Array]]:
        """Returns the state after one optimizer step, and its metrics.

        The metrics are those of the objective, `loss` and `grad_norm` before the step, and its learning rate `lr` if it is known.

        Args:
            state: the state before the step.
            batch: the samples.
            average: the mean over devices, if each device runs the step on its own samples.
            share: the number of this device, if each device runs the step on its own samples.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        key = key if share is None else jax.random.fold_in(key, share)
        trained = {**state.params, **state.own}
        (loss, (stats, metrics)), gradients = average(self._gradients(trained, state.stats, batch, key))
        gradients = pin_gradient_layout(gradients)
        transformation, schedule = self.transformation()
        updates, opt = transformation.update(gradients, state.opt, trained)
        updated = optax.apply_updates(trained, updates)
        params, own = limit_masks(_weights_of(updated, state.params), self.config), _weights_of(updated, state.own)
        average_weights, average_stats = state.average, state.average_stats
        if self.optim.ema is not None:
            decay = ema_decay(self.optim.ema, state.step)
            averages = functools.partial(_moving_average, decay)
            average_weights, average_stats = jax.tree.map(averages, (average_weights, average_stats), (params, stats))
        numbers = {**metrics, "loss": loss, "grad_norm": optax.tree.norm(gradients)}
        if schedule is not None:
            numbers["lr"] = jnp.asarray(schedule(state.step), jnp.float32)
        return State(state.step + 1, params, stats, opt, average_weights, average_stats, own), numbers

    def _gradients(self, trained: Weights, stats: Weights, batch: Batch, key: Array) -> Any:
        """Returns ((loss, (statistics, metrics)), gradients) of a batch, which is computed in `accumulate` parts, one after another."""
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
            (part_loss, (stats, metrics)), gradients = gradient(trained, stats, *part)
            return (loss + part_loss / parts, stats, jax.tree.map(lambda t, g: t + g / parts, total, gradients)), metrics

        # A part takes every parts-th sample, so that the devices share each part evenly.
        split = {name: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1) for name, x in batch.items()}
        start = (jnp.zeros((), jnp.float32), stats, jax.tree.map(jnp.zeros_like, trained))
        (loss, stats, gradients), metrics = jax.lax.scan(body, start, (split, jax.random.split(key, parts)))
        return (loss, (stats, jax.tree.map(lambda values: values.mean(0), metrics))), gradients


@functools.lru_cache(maxsize=8)
def make_objective(training: Training) -> Objective:
    """Returns the objective of a run, with the initial values of its own parameters."""
    if training.objective is None:
        return Supervised(training.loss, training.task)
    with jax.ensure_compile_time_eval():  # this may be called while a step is traced
        result = training.objective(training.task, training.config, nnx.Rngs(training.seed))
    return result if isinstance(result, Objective) else FromFunction(result)


def objective_of(training: Training, own: Weights) -> Objective:
    """Returns the objective of a run with the values of its own parameters in a state."""
    objective = make_objective(training)
    return with_parameters(objective, {name.removeprefix(OWN): value for name, value in own.items()}) if own else objective


def _weights_of(tree: Any, names: Iterable[str]) -> Weights:
    """Returns the weights with these names from a dict, which optax declares as a tree of any kind."""
    return {name: tree[name] for name in names}


def _moving_average(decay: Array, old: Array, new: Array) -> Array:
    """Returns the average after a new value; an integer is not averaged but replaced, because it counts batches."""
    return old + (1 - decay) * (new - old) if jnp.issubdtype(new.dtype, jnp.floating) else new


@functools.lru_cache(maxsize=8)
def _compiled(training: Training, strategy: ParallelStrategy | None) -> Callable[..., tuple[State, dict[str, Array]]]:
    release_compile_memory()
    if strategy is None:
        return jax.jit(training.step, donate_argnums=0, compiler_options=compiler_options())
    return strategy.compile(training.step, compiler_options())
