"""A network's variables as a flat dict: dotted path -> numpy array. The common form of all weight files."""

import hashlib
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.model.custom import CustomConfig, NetworkFactory
from swinunetr_jax.model.unetr import SwinUNETR

Params = dict[str, np.ndarray]
Weights = dict[str, jax.Array]  # the same on a device
Path = tuple[str | int, ...]
NetworkConfig = SwinUNETRConfig | CustomConfig


def make_network(config: NetworkConfig, rngs: nnx.Rngs) -> nnx.Module:
    """The network of a configuration with random weights."""
    return config.make(rngs) if isinstance(config, CustomConfig) else SwinUNETR(config, rngs=rngs)


def read_config(values: Mapping[str, Any], factory: NetworkFactory | None = None) -> NetworkConfig:
    """The configuration that `to_dict` gave, of a Swin UNETR or, with its factory, of another network.

    Raises:
        InputError: the values describe no network, or one of another factory.
    """
    if "network" in values:
        return CustomConfig.from_dict(dict(values), factory)
    return SwinUNETRConfig.from_dict(values)


def shapes(config: NetworkConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and type of every variable of a network, without making it."""
    return {dotted(path): variable for path, variable in _described(config, jax.config.jax_enable_x64)[1]}


def flatten(model: nnx.Module) -> Params:
    """The variables of a network, copied to the host."""
    return {dotted(path): np.asarray(variable[...]) for path, variable in nnx.to_flat_state(nnx.state(model))}


def build(config: NetworkConfig, params: Mapping[str, np.ndarray]) -> Any:
    """A network with these variables, whose names and shapes must be those of `shapes(config)`."""
    graph, variables, _ = _described(config, jax.config.jax_enable_x64)
    return nnx.merge(graph, nnx.from_flat_state([(path, jnp.asarray(params[dotted(path)], v.dtype)) for path, v in variables]))


def check(params: Mapping[str, np.ndarray], config: NetworkConfig) -> None:
    """Raises InputError unless these are the network's variables, all of them finite: what is written must be readable again."""
    wrong = mismatches({name: np.shape(array) for name, array in params.items()}, config)
    if wrong:
        raise InputError("the weights are not those of the configuration, nothing was written:", *(f"  {line}" for line in wrong))
    bad = not_finite(params)
    if bad:
        raise InputError(f"the weights hold NaN or infinite values, nothing was written: {', '.join(bad)}.")


def mismatches(got: Mapping[str, tuple[int, ...]], config: NetworkConfig) -> list[str]:
    """A line for each name that is not in both or has another shape in the network."""
    want = {name: leaf.shape for name, leaf in shapes(config).items()}
    names = [name for name in sorted(want.keys() | got.keys()) if want.get(name) != got.get(name)]
    return [f"{name}: got {got.get(name, 'nothing')}, expected {want.get(name, 'nothing')}" for name in names]


def count_bytes(config: NetworkConfig) -> int:
    """Memory that a network's variables take."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes(config).values())


def count_parameters(variables: Mapping[str, np.ndarray | jax.ShapeDtypeStruct]) -> int:
    """How many trained numbers a network has, running statistics left out."""
    return sum(math.prod(variable.shape) for name, variable in variables.items() if not is_statistic(name))


def not_finite(params: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the arrays that hold a NaN or an infinity."""
    return [name for name, array in params.items() if not np.all(np.isfinite(array))]


def is_statistic(name: str) -> bool:
    """Whether a variable is a batch norm's running statistic, which no gradient changes."""
    return name.endswith((".mean", ".var", ".count"))


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's type, shape and bytes."""
    array = np.asarray(array)
    head = f"{array.dtype.name} {array.shape} ".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()  # row by row, however the array lies in memory


def digest_all(digests: Mapping[str, str]) -> str:
    """One digest of all weights, from those of the leaves."""
    return hashlib.sha256("".join(f"{name} {digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()


@lru_cache(maxsize=32)  # tracing the constructor takes up to a second
def _described(
    config: NetworkConfig, x64: bool
) -> tuple[nnx.GraphDef, tuple[tuple[Path, jax.ShapeDtypeStruct], ...], frozenset[str]]:
    """What a network is made of; its variables' places, shapes and types; the names of those that no gradient changes."""
    graph, state = nnx.split(nnx.eval_shape(lambda: make_network(config, nnx.Rngs(0))))
    variables = nnx.to_flat_state(state)
    random = [dotted(path) for path, variable in variables if isinstance(variable, nnx.RngState)]
    if random:
        raise InputError(
            f"the network keeps random state ({', '.join(random[:4])}), which is not saved: let its dropout take the `key` of the call, as "
            "in `nnx.Dropout(rate)(x, rngs=nnx.Rngs(key))`."
        )
    fixed = frozenset(dotted(path) for path, variable in variables if not isinstance(variable, nnx.Param))
    return graph, tuple((path, jax.ShapeDtypeStruct(v.shape, v.dtype)) for path, v in variables), fixed


def statistics(config: NetworkConfig) -> frozenset[str]:
    """Names of the variables that no gradient changes, such as a batch norm's running statistics."""
    return _described(config, jax.config.jax_enable_x64)[2]


def read_statistics(model: nnx.Module) -> dict[str, jax.Array]:
    """The values of the variables that no gradient changes, by name."""
    variables = nnx.to_flat_state(nnx.state(model))
    return {dotted(path): variable[...] for path, variable in variables if not isinstance(variable, nnx.Param)}


def dotted(path: Path) -> str:
    """The name of a variable, from its place in a module."""
    return ".".join(map(str, path))
