"""Checks of the fields of immutable dataclasses, such as configurations and tasks, which accept values of Python and of numpy."""

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np

from swinunetr_jax.errors import InputError


def is_int(value: Any) -> bool:
    """Returns whether the value is an integer of Python or numpy, but not a bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Returns whether the value is a real number of Python or numpy, but not a bool."""
    return isinstance(value, Real) and not isinstance(value, bool)


def set_tuple(owner: Any, name: str, want: str, fits: Callable[[Any], bool]) -> None:
    """Converts a field that holds any sequence to a tuple, so that dataclasses can be compared by value.

    Args:
        owner: the instance of the dataclass.
        name: the name of the field.
        want: a description of the values, for the error message.
        fits: returns whether a value is valid.

    Raises:
        InputError: the field is not a sequence of valid values.
    """
    values = getattr(owner, name)
    if (
        not isinstance(values, (tuple, list, np.ndarray))
        or (isinstance(values, np.ndarray) and values.ndim != 1)
        or not all(map(fits, values))
    ):
        raise InputError(f"`{name}` must be a sequence of {want}, got {values!r}.")
    object.__setattr__(owner, name, tuple(map(_python_number, values)))  # the dataclass is frozen


def _python_number(value: Any) -> Any:
    """Returns a number of numpy as one of Python, which JSON can hold."""
    return value.item() if isinstance(value, np.generic) else value
