"""How far two arrays are apart."""

import numpy as np


def error(got, expected):
    """Relative, in the norm, in float64."""
    got, expected = (np.asarray(a, np.float64) for a in (got, expected))
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)
