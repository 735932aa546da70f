"""The base class of random transforms: a draw of parameters and their application."""

from typing import Generic, TypeVar

import numpy as np

from swinunetr_jax.data.prepare.example import Example

Parameters = TypeVar("Parameters")


class RandomTransform(Generic[Parameters]):
    """Draws parameters, then applies them. The two halves can be called separately, to compare with another implementation."""

    def draw(self, rng: np.random.Generator, example: Example) -> Parameters:
        raise NotImplementedError

    def apply(self, example: Example, parameters: Parameters) -> Example:
        raise NotImplementedError

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        return self.apply(example, self.draw(rng, example))
