"""The share of the samples that is centred on a class, so that rare classes are seen often."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ClassShare:
    """The share of the samples that is centred on a class.

    Source: `oversample_foreground_percent` of nnU-Net's `nnUNetDataLoader`.

    Attributes:
        share: the share of the samples, between 0 and 1.
        batch: the number of samples in a step, over all processes.
    """

    share: float
    batch: int

    @property
    def first(self) -> int:
        """The position in a batch from which on samples are centred on a class: for a third of a batch of two, the second position."""
        return round(self.batch * (1 - self.share))

    def chooses(self, number: int) -> bool:
        """Returns whether a sample is centred on a class, which depends only on its number, counted from the start of the run.

        The last positions of each batch are chosen. If that would choose none or all of them although the share is neither 0 nor 1, as in
        a batch of one, the share applies to the run instead: share · n of the first n samples, rounded down, are chosen.
        """
        if 0 < self.first < self.batch:
            return number % self.batch >= self.first
        return math.floor((number + 1) * self.share) > math.floor(number * self.share)
