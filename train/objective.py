"""The objective of a run, `objective(model, batch, key) -> loss, metrics`: the part of the training step that computes the loss.

`Supervised` is the objective of segmentation, a loss of logits and label maps. Another objective is a function of the same arguments, or a
class derived from `Objective` if it has parameters of its own or another validation.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from flax import nnx
from jax import Array

from swinunetr_jax import InputError, SwinUNETR, Task
from swinunetr_jax.data.prepare.cache import PreparedCase
from swinunetr_jax.training import pages, plots
from swinunetr_jax.training.config import Validation
from swinunetr_jax.training.validation import Scores, validate
from swinunetr_jax.weights.params import NetworkConfig, dotted

Batch = dict[str, Array]
"""A batch on the device: `image` [b, x, y, z, c] float32, `label` [b, x, y, z] uint8, and `sample` [b] int32. A sample's number, counted
from the start of the run, can seed everything that is random in the sample, which then does not depend on the number of devices."""

LossFunction = Callable[[Array, Array, Task], Array]
"""(logits [b, x, y, z, outputs], label map [b, x, y, z], task) -> the loss, a number."""


class Objective(nnx.Module):
    """The objective of a run. A subclass defines `__call__`.

    `nnx.Param` variables of an objective are its own parameters, such as those of a projection head: they are trained, sharded, saved and
    resumed with the network, and are not part of the network's checkpoint.
    """

    metric: str = "Dice"
    """Name of the score that `validate` returns."""
    higher_is_better: bool = True
    """True if a larger score means a better network."""

    @abstractmethod
    def __call__(self, model: nnx.Module, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """Returns the loss of a batch, a number, and further numbers by name, which are logged.

        Args:
            model: the network with the weights of this step; `training_pass(model, image, key)` runs it.
            batch: see `Batch`.
            key: the random key of this step, for dropout and everything else that is random.
        """

    def trains(self, name: str) -> bool:
        """Returns whether the objective trains the network's weight with this dotted name, by default all of them.

        The optimizer does not change the other weights, not even by weight decay, and has no moments for them.
        """
        return True

    def validate(
        self,
        config: NetworkConfig,
        network: dict[str, Array],
        cases: Sequence[PreparedCase],
        task: Task,
        options: Validation,
        progress: Callable[[int, int], None],
        spatial_shards: int = 1,
    ) -> Scores:
        """Returns the scores of the network on the validation cases, by default their Dice; see `validation.validate`.

        A validation has to call `progress` regularly, so that a signal can interrupt it and the watchdog does not end the process.
        """
        return validate(config, network, cases, task, options, progress, spatial_shards=spatial_shards)

    def drawings(self, scores: Scores, better: bool, task: Task) -> dict[str, Callable[[Path], None]]:
        """Returns the functions that draw the pictures and pages of a validation, by the name of the file in the run's folder.

        Args:
            scores: the result of `validate`.
            better: whether the network is the best so far.
            task: the task.
        """
        compared, shown = {"validation.png": scores.first}, {}
        if better:
            low, high = ("worst", "best") if self.higher_is_better else ("best", "worst")
            compared |= {f"{low}.png": scores.lowest, f"{high}.png": scores.highest}
            shown = {f"{low}.html": scores.lowest[0], f"{high}.html": scores.highest[0]}
        pictures = {name: partial(plots.write_comparison, scores=cases, task=task) for name, cases in compared.items()}
        return pictures | {
            name: partial(pages.write_case_page, score=case, task=task, metric=self.metric) for name, case in shown.items()
        }


class Supervised(Objective):
    """A loss of the network's logits and the label maps.

    Args:
        loss: (logits, labels, task) -> a number, such as `swinunetr_jax.losses.Loss(kind="dice_ce")`.
        task: the meaning of the outputs.
    """

    def __init__(self, loss: LossFunction, task: Task):
        self.loss, self.task = loss, task

    def __call__(self, model: nnx.Module, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        return self.loss(training_pass(model, batch["image"], key), batch["label"], self.task), {}


class FromFunction(Objective):
    """An objective from a function: (model, batch, key) -> loss, or (loss, metrics)."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    def __call__(self, model: nnx.Module, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        result = self.function(model, batch, key)
        return result if isinstance(result, tuple) else (result, {})


class ObjectiveFactory(Protocol):
    """A function that returns the objective of a run when its task and its network are known."""

    def __call__(self, task: Task, config: NetworkConfig, rngs: nnx.Rngs) -> "Objective | Callable[..., Any]":
        """Returns the objective, or a function of the same arguments.

        Args:
            task: the task of the run.
            config: the network's configuration, such as a `SwinUNETRConfig`.
            rngs: random numbers for the initial values of the objective's own parameters, from the run's seed.
        """
        ...


def training_pass(model: nnx.Module, image: Array, key: Array | None) -> Array:
    """Returns the logits [b, x, y, z, outputs] of a forward pass in training mode over images [b, x, y, z, c].

    It also updates the running statistics of batch norms in the model, from which the training step reads them.
    """
    if not isinstance(model, SwinUNETR):
        return model(image, key=key, train=True)
    logits, intermediates = model.forward(image, key=key, train=True)
    model.update_batch_stats(intermediates)
    return logits


def own_parameters(objective: Objective) -> dict[str, Array]:
    """Returns an objective's own parameters by dotted path.

    Raises:
        InputError: the objective holds variables other than `nnx.Param`, which a training step could not change.
    """
    variables = nnx.to_flat_state(nnx.state(objective))
    other = [dotted(path) for path, variable in variables if not isinstance(variable, nnx.Param)]
    if other:
        raise InputError(
            f"the variables of an objective must be nnx.Param, and these are not: {', '.join(other)}; change the recipe."
        )
    return {dotted(path): variable[...] for path, variable in variables}


def with_parameters(objective: Objective, parameters: dict[str, Array]) -> Objective:
    """Returns the objective with other values of its own parameters."""
    structure, state = nnx.split(objective)
    return nnx.merge(structure, nnx.from_flat_state([(path, parameters[dotted(path)]) for path, _ in nnx.to_flat_state(state)]))
