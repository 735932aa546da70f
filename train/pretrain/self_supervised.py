"""What the objectives of pre-training have in common: a loss without labels, and its value on held-out scans under fixed random numbers."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import flax.nnx as nnx
from jax import Array

from swinunetr_jax import Task
from swinunetr_jax.data.prepare.cache import PreparedCase
from swinunetr_jax.training.config import Validation
from swinunetr_jax.training.objective import Batch, Objective
from swinunetr_jax.training.validation import Scores
from swinunetr_jax.weights.params import NetworkConfig


class SelfSupervised(Objective):
    """An objective of pre-training. A subclass defines `losses`, `metric` and `seed`.

    `label` of a batch is no segmentation: it is 1 for the voxels of a scan that show something, and 0 for its empty background and for
    padding.
    """

    higher_is_better: bool = False

    @abstractmethod
    def losses(self, model: nnx.Module, batch: Batch, key: Array | None) -> tuple[Array, dict[str, Array]]:
        """Returns the loss of a batch, a number, and further numbers by name.

        Everything random that is not dropout is drawn from the seed of the run and `sample`, so that equal samples give equal losses.

        Args:
            model: the network.
            batch: see `objective.Batch`.
            key: the random key for dropout and stochastic depth, or None for evaluation without them.
        """

    def __call__(self, model: nnx.Module, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        return self.losses(model, batch, key)
