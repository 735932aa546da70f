"""The base class of random transforms, which draw parameters and then apply them."""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import numpy as np

from swinunetr_jax.data.prepare.example import Example

Parameters = TypeVar("Parameters")


class RandomTransform(ABC, Generic[Parameters]):
    """Draws parameters, then applies them. The two steps can be called separately, for a comparison with another implementation."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, example: Example) -> Parameters:
        """Returns random parameters for an example, which is not changed."""

    @abstractmethod
    def apply(self, example: Example, parameters: Parameters) -> Example:
        """Returns the example changed by these parameters."""

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return self.apply(example, self.draw(rng, example))
