"""The difference of two arrays."""

import numpy as np


def error(got, expected):
    """Returns the norm of the difference over the norm of the expected array, in float64."""
    got, expected = (np.asarray(a, np.float64) for a in (got, expected))
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)
