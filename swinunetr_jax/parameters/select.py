"""Selects and labels parameters by patterns of their names (see `swinunetr_jax.parameters`)."""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

import jax
from flax import nnx
from flax.typing import PathParts
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from swinunetr_jax.errors import InputError

Tree = TypeVar("Tree")
SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Selection:
    """Some parameters of a network. It is a filter of `flax.nnx`, for `nnx.Optimizer(wrt=…)`, `nnx.DiffState` and `nnx.state`.

    Attributes:
        names: the names of the parameters.
    """

    names: frozenset[str]

    def __call__(self, path: PathParts, _value: object) -> bool:
        return ".".join(map(str, path)) in self.names


def parameter_names(model: nnx.Module) -> tuple[str, ...]:
    """Returns the names of the parameters of a network, without running statistics."""
    return tuple(".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param)))


def select(model: nnx.Module, *patterns: str) -> Selection:
    """Returns the parameters whose names match any of the patterns. `nnx.All(nnx.Param, nnx.Not(selection))` are all other ones.

    Args:
        model: the network.
        patterns: patterns such as "swin.*", "decoder[12].*" or "*.bias".

    Raises:
        InputError: a pattern matches no parameter, or no pattern is given.
    """
    if not patterns:
        raise InputError('`select` needs at least one pattern of parameter names, such as "swin.*", or "*" for all parameters.')
    names = parameter_names(model)
    matched = {pattern: fnmatch.filter(names, pattern) for pattern in patterns}
    _check_all_match(matched, names)
    return Selection(frozenset(name for matches in matched.values() for name in matches))


def label_parameters(labels: Mapping[str, str], default: str | None = None) -> Callable[[Tree], Tree]:
    """Returns a function that labels the parameters of an optimizer, for `optax.multi_transform` and `optax.partition`.

    Args:
        labels: pattern -> label. The first pattern that matches the name of a parameter decides.
        default: the label of parameters that no pattern matches.

    Returns:
        A function that returns a tree of labels of the structure of its argument: the parameters as an `nnx.State`, as `nnx.Optimizer` has
        them, or as a dict by name, as an optimizer of the trainer has them.

    Raises:
        InputError: (by the function) a pattern matches no parameter, or a parameter matches no pattern and there is no default.
    """

    def label(parameters: Tree) -> Tree:
        names = [name_of(path) for path, _ in jax.tree_util.tree_flatten_with_path(parameters)[0]]
        _check_all_match({pattern: fnmatch.filter(names, pattern) for pattern in labels}, names)
        return jax.tree_util.tree_map_with_path(lambda path, _: label_of(name_of(path)), parameters)

    def label_of(name: str) -> str:
        found = next((text for pattern, text in labels.items() if fnmatch.fnmatchcase(name, pattern)), default)
        if found is None:
            raise InputError(f"no pattern matches the parameter {name}: add one, or give a default label.")
        return found

    return label


def name_of(path: Sequence[Any]) -> str:
    """Returns the name of a parameter from the keys on the way to its array in a tree of parameters."""
    if path and isinstance(path[-1], GetAttrKey) and path[-1].name == "value":
        path = path[:-1]  # the array in a variable of flax
    return ".".join(_text(key) for key in path)


def _text(key: Any) -> str:  # JAX declares no common type of keys
    if isinstance(key, (DictKey, FlattenedIndexKey)):
        return str(key.key)
    if isinstance(key, SequenceKey):
        return str(key.idx)
    return str(key.name if isinstance(key, GetAttrKey) else key)


def _check_all_match(matched: Mapping[str, Sequence[str]], names: Sequence[str]) -> None:
    """Raises InputError if a pattern has no match, because a part of the network would be silently trained or silently frozen."""
    for pattern, matches in matched.items():
        if not matches:
            similar = get_close_matches(pattern, names, SHOWN, cutoff=0.3) or list(names[:SHOWN])
            raise InputError(
                f"the pattern {pattern!r} matches no parameter: names are dotted, such as {', '.join(similar)}, and `*` stands for any "
                "characters."
            )
