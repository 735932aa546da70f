"""Differences between recipes on the same cases, with bootstrap intervals."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000

Scores = Mapping[str, Mapping[str, float]]
"""The Dice of each output of each case."""


@dataclass(frozen=True)
class Difference:
    """The mean difference of Dice between two recipes, and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.mean:+.2f} [{100 * self.low:+.2f}, {100 * self.high:+.2f}]"


def score_array(draws: list[Scores], output: str | None) -> np.ndarray:
    """Returns the scores as [draw, case] of one output, or of the mean over all outputs if `output` is None. A score may be NaN.

    Raises:
        ValueError: the draws have different cases.
    """
    cases = sorted(draws[0])
    if any(sorted(draw) != cases for draw in draws):
        raise ValueError("the draws were scored on different cases")
    return np.array([[np.mean(list(d[c].values())) if output is None else d[c][output] for c in cases] for d in draws])


def paired_difference(new: np.ndarray, old: np.ndarray, seed: int = 0) -> Difference:
    """Returns the mean of `new - old`, both [draw, case], with a percentile bootstrap interval.

    Draws and cases are resampled independently of each other, because all draws are scored on the same cases. The interval of a single
    draw includes the variation between cases only. Cases whose score is NaN in any draw of either recipe are left out.
    """
    values = new - old
    values = values[:, np.isfinite(values).all(axis=0)]
    draws, cases = values.shape
    if cases == 0:
        return Difference(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    # The mean of a resample is the product of the values and of the shares of each draw and each case in it.
    draw_counts, case_counts = resample_counts(rng, draws) / draws, resample_counts(rng, cases) / cases
    means = np.einsum("rd,dc,rc->r", draw_counts, values, case_counts, optimize=True)
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(float(values.mean()), float(low), float(high))


def resample_counts(rng: np.random.Generator, number: int) -> np.ndarray:
    """Returns how often each of `number` items is in each resample of this size, [resamples, items]."""
    chosen = rng.integers(0, number, (RESAMPLES, number)) + number * np.arange(RESAMPLES)[:, None]
    return np.bincount(chosen.ravel(), minlength=RESAMPLES * number).reshape(RESAMPLES, number)
