"""What a run minimises: `objective(model, batch, key) -> loss, metrics`, the one seam of the training step.

`Supervised` is the objective of segmentation, a loss of logits and label maps. Another one is a function of the same arguments, or a class
derived from `Objective` where more than the step differs: parameters of its own, or what a validation measures.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from flax import nnx
from jax import Array

from swinunetr_jax import InputError, SwinUNETR, Task
from swinunetr_jax.data.prepare.cache import PreparedCase
from swinunetr_jax.training.config import Validation
from swinunetr_jax.training.validation import Scores, validate
from swinunetr_jax.weights.params import NetworkConfig, dotted

Batch = dict[str, Array]
"""A batch on the device: `image` [b, x, y, z, c] float32, `label` [b, x, y, z] uint8, `sample` [b] int32, the samples' numbers since the
start of the run, by which anything random can be drawn for a sample whatever the number of devices."""

LossFunction = Callable[[Array, Array, Task], Array]
"""(logits [b, x, y, z, outputs], label map [b, x, y, z], task) -> the loss, a number."""


class Objective(nnx.Module):
    """The objective of a run. Derive from it, and define `__call__`.

    `nnx.Param` variables of an objective are its own parameters, such as a projection head: they are trained, sharded, saved and resumed
    beside the network, and are no part of its checkpoint.
    """

    metric: str = "Dice"
    """Name of what `validate` measures."""
    higher_is_better: bool = True
    """Whether a larger value of `metric` is a better network."""

    def __call__(self, model: nnx.Module, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """The loss of a batch, a number, and further numbers by name, which go into the log.

        Args:
            model: the network with the weights of this step; `training_pass(model, image, key)` runs it.
            batch: see `Batch`.
            key: drives dropout and all else that is random in this step.
        """
        raise NotImplementedError

    def validate(
        self,
        config: NetworkConfig,
        network: dict[str, Array],
        cases: Sequence[PreparedCase],
        task: Task,
        options: Validation,
        progress: Callable[[int, int], None],
        depth: int = 1,
    ) -> Scores:
        """The scores of the network on the validation cases, by default their Dice; see `validation.validate`."""
        return validate(config, network, cases, task, options, progress, depth=depth)


class Supervised(Objective):
    """A loss between the network's logits and the label maps.

    Args:
        loss: (logits, labels, task) -> a number, such as `swinunetr_jax.losses.Loss(kind="dice_ce")`.
        task: what the outputs stand for.
    """

    def __init__(self, loss: LossFunction, task: Task):
        self.loss, self.task = loss, task

    def __call__(self, model: nnx.Module, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        return self.loss(training_pass(model, batch["image"], key), batch["label"], self.task), {}


class FromFunction(Objective):
    """A function as an objective: (model, batch, key) -> loss, or (loss, metrics)."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, model: nnx.Module, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        result = self.function(model, batch, key)
        return result if isinstance(result, tuple) else (result, {})


class ObjectiveFactory(Protocol):
    """Makes the objective of a run, once its task and its network are known."""

    def __call__(self, task: Task, config: NetworkConfig, rngs: nnx.Rngs) -> "Objective | Callable[..., Any]":
        """
        Args:
            task: what is learned.
            config: the network's configuration, such as a `SwinUNETRConfig`.
            rngs: draws the initial values of the objective's own parameters, by the run's seed.
        """


def training_pass(model: nnx.Module, image: Array, key: Array | None) -> Array:
    """The logits [b, x, y, z, outputs] of a training pass over images [b, x, y, z, c].

    New running statistics of batch norms are written into the model, where the training step finds them.
    """
    if not isinstance(model, SwinUNETR):
        return model(image, key=key, train=True)
    logits, intermediates = model.forward(image, key=key, train=True)
    model.update_batch_stats(intermediates)
    return logits


def own_parameters(objective: Objective) -> dict[str, Array]:
    """An objective's own parameters by dotted path.

    Raises:
        InputError: it holds variables other than `nnx.Param`, which a training step could not change.
    """
    variables = nnx.to_flat_state(nnx.state(objective))
    other = [dotted(path) for path, variable in variables if not isinstance(variable, nnx.Param)]
    if other:
        raise InputError(
            f"the variables of an objective must be nnx.Param, and these are not: {', '.join(other)}; change the recipe."
        )
    return {dotted(path): variable[...] for path, variable in variables}


def with_parameters(objective: Objective, parameters: dict[str, Array]) -> Objective:
    """The objective with other values of its own parameters."""
    structure, state = nnx.split(objective)
    return nnx.merge(structure, nnx.from_flat_state([(path, parameters[dotted(path)]) for path, _ in nnx.to_flat_state(state)]))
