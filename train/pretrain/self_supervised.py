"""The common part of the objectives of pre-training: a loss without labels, and its value on held-out scans under fixed random numbers."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from swinunetr_jax import Task
from swinunetr_jax.data.prepare.cache import PreparedCase
from swinunetr_jax.training import plots, processes
from swinunetr_jax.training.config import Validation
from swinunetr_jax.training.crop_size import crop_size
from swinunetr_jax.training.objective import Batch, Objective
from swinunetr_jax.training.pretrain.crops import held_out_batch
from swinunetr_jax.training.validation import FIRST, CaseScore, Interrupted, Scores
from swinunetr_jax.weights.params import NetworkConfig, Weights, build

Example = dict[str, np.ndarray]
"""Slices [x, y] of one crop by their caption, for a picture. NaN is drawn as a masked voxel."""


class SelfSupervised(Objective):
    """An objective of pre-training. A subclass defines `losses` and `metric`.

    `label` of a batch is not a segmentation: it is 1 for the voxels of a scan that show something, and 0 for its empty background and for
    padding.
    """

    higher_is_better: bool = False
    picture: str | None = None
    """The file in the run's folder for the examples, if the objective has any."""
    captions: tuple[str, ...] = ()
    """The captions of the slices of an example, in the order in which they are drawn."""
    validation_crops: int = 2
    """The number of crops of each held-out case in a batch."""
    validation_cases: int = 1
    """The number of held-out cases in a batch."""

    @abstractmethod
    def losses(self, model: nnx.Module, batch: Batch, key: Array | None) -> tuple[Array, dict[str, Array]]:
        """Returns the loss of a batch, a number, and further numbers by name.

        Everything random except for dropout is drawn from the seed of the run and `sample`, so that equal samples have equal losses.

        Args:
            model: the network.
            batch: see `objective.Batch`.
            key: the random key for dropout and stochastic depth, or None for an evaluation without them.
        """

    def numbers(self, loss: float, metrics: Mapping[str, float]) -> dict[str, float]:
        """Returns further scores of a validation, given the means of the loss and of the numbers of `losses`."""
        return dict(metrics)

    def example(self, model: nnx.Module, batch: Batch) -> dict[str, Array]:
        """Returns slices [x, y] of the first crop of a batch by their captions. An objective that sets `picture` defines it."""
        return {}

    def __call__(self, model: nnx.Module, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        return self.losses(model, batch, key)

    def validate(
        self,
        config: NetworkConfig,
        network: Weights,
        cases: Sequence[PreparedCase],
        task: Task,
        options: Validation,
        progress: Callable[[int, int], None],
        spatial_shards: int = 1,
    ) -> Scores:
        """Returns the loss on crops of the held-out cases, with the same crops and the same random numbers at each call."""

        def batch_of(index: int) -> Batch:
            chosen = [cases[(index + later) % len(cases)] for later in range(self.validation_cases)]
            arrays = held_out_batch(chosen, task, index, self.validation_crops)
            return {name: jnp.asarray(array) for name, array in arrays.items()}

        structure, own = nnx.split(self)
        process, count = jax.process_index(), jax.process_count()
        values: list[dict[str, float]] = [{} for _ in cases]
        examples: dict[str, Example] = {}
        interrupted = False
        try:
            for index in range(process, len(cases), count):
                batch = batch_of(index)
                loss, metrics = _losses(structure, config, own, network, batch)
                values[index] = {"loss": float(loss)} | {name: float(value) for name, value in metrics.items()}
                if self.picture and index < FIRST:
                    examples[cases[index].name] = _example(structure, config, own, network, batch)
                progress(index + 1, len(cases))
        except Interrupted:
            interrupted = True
        if processes.gather(np.array(interrupted)).any():
            raise Interrupted
        names = _names(structure, config, own, network, batch_of(0))
        table = np.array([[row.get(name, np.nan) for name in names] for row in values])
        table = np.array([rows[index % count] for index, rows in enumerate(processes.gather(table).swapaxes(0, 1))])
        if self.picture:  # the process that validated a case sends its slices to the others
            nothing = {caption: np.zeros(crop_size(task)[:2], np.float32) for caption in self.captions}
            examples = {
                case.name: {
                    caption: processes.from_process(examples.get(case.name, nothing)[caption], index % count)
                    for caption in self.captions
                }
                for index, case in enumerate(cases[:FIRST])
            }
        means = dict(zip(names, table.mean(axis=0).tolist()))
        scores = tuple(CaseScore(case, {self.metric: row[0]}) for case, row in zip(cases, table.tolist()))
        return Scores(scores, self.numbers(means.pop("loss"), means), examples)

    def drawings(self, scores: Scores, better: bool, task: Task) -> dict[str, Callable[[Path], None]]:
        """Returns the functions that draw the pictures of a validation, by the name of the file."""
        return {self.picture: partial(plots.write_examples, examples=scores.examples)} if self.picture and scores.examples else {}


def _objective(structure: nnx.GraphDef, own: nnx.State) -> SelfSupervised:
    objective = nnx.merge(structure, own)
    assert isinstance(objective, SelfSupervised)
    return objective


@partial(jax.jit, static_argnums=(0, 1))
def _losses(
    structure: nnx.GraphDef, config: NetworkConfig, own: nnx.State, network: Weights, batch: Batch
) -> tuple[Array, dict[str, Array]]:
    return _objective(structure, own).losses(build(config, network), batch, None)


@partial(jax.jit, static_argnums=(0, 1))
def _slices(structure: nnx.GraphDef, config: NetworkConfig, own: nnx.State, network: Weights, batch: Batch) -> dict[str, Array]:
    return _objective(structure, own).example(build(config, network), batch)


def _example(structure: nnx.GraphDef, config: NetworkConfig, own: nnx.State, network: Weights, batch: Batch) -> Example:
    slices = _slices(structure, config, own, network, batch)
    return {name: np.asarray(slices[name]) for name in _objective(structure, own).captions}


def _names(structure: nnx.GraphDef, config: NetworkConfig, own: nnx.State, network: Weights, batch: Batch) -> list[str]:
    """Returns the names of the numbers of a batch, the loss first, which a process without held-out cases needs, too."""
    _, metrics = jax.eval_shape(partial(_losses, structure, config), own, network, batch)
    return ["loss", *metrics]
