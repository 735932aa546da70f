"""The variables of a network as a flat dict from dotted names to NumPy arrays, the common form of all weight files."""

import hashlib
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import PathParts

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.model.custom import CustomConfig, CustomNetwork
from swinunetr_jax.model.unetr import SwinUNETR
from swinunetr_jax.registry import find

Params = dict[str, np.ndarray]
Weights = dict[str, jax.Array]  # the same, on a device
NetworkConfig = SwinUNETRConfig | CustomConfig


def make_network(config: NetworkConfig, rngs: nnx.Rngs) -> nnx.Module:
    """Returns a network of this configuration with random weights."""
    return config.make(rngs) if isinstance(config, CustomConfig) else SwinUNETR(config, rngs=rngs)


def read_config(values: Mapping[str, Any], network: CustomNetwork | None = None) -> NetworkConfig:
    """Returns the configuration that a configuration's `to_dict` describes.

    Args:
        values: the result of `to_dict`.
        network: the network, if it is neither a Swin UNETR nor registered.

    Raises:
        InputError: the values do not describe a network, or describe one that is not registered, or another one than `network`.
    """
    if "network" not in values:
        return SwinUNETRConfig.from_dict(values)
    name = values["network"]
    if not isinstance(name, str):
        raise InputError("`network` must be the name of a network.")
    if network is not None and network.name != name:
        raise InputError(f"the network is {name}, but the recipe creates {network.name}: give the recipe of this run.")
    return (network or find(name)).read(values)


def config_of(model: nnx.Module, argument: str) -> NetworkConfig:
    """Returns the configuration that a network has as its attribute. Raises InputError, which names the argument, if it has none."""
    config = getattr(model, "config", None)
    if not isinstance(config, SwinUNETRConfig | CustomConfig):
        raise InputError(
            f"a {type(model).__name__} does not have its configuration as the attribute `config`: give `{argument}`."
        )
    return config


def shapes(config: NetworkConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shape and the type of every variable of a network by name, without creating the network."""
    return {dotted(path): variable for path, variable in _abstract_network(config, _x64())[1]}


def flatten(model: nnx.Module) -> Params:
    """Returns the variables of a network by name, copied to the host. Raises InputError if it has adapters of low rank."""
    if jax.tree.leaves(nnx.state(model, nnx.LoRAParam)):
        raise InputError(
            "the network has adapters of low rank, which weight files do not hold, so nothing was written: save the result of "
            "`swinunetr_jax.parameters.merge_lora(model)`."
        )
    return {dotted(path): np.asarray(variable[...]) for path, variable in nnx.to_flat_state(nnx.state(model))}


def build(config: NetworkConfig, params: Mapping[str, np.ndarray] | Mapping[str, jax.Array]) -> Any:
    """Returns a network with these variables. Their names and shapes must be those of `shapes(config)`."""
    graph, variables, _ = _abstract_network(config, _x64())
    return nnx.merge(graph, nnx.from_flat_state([(path, jnp.asarray(params[dotted(path)], v.dtype)) for path, v in variables]))


def check(params: Mapping[str, np.ndarray], config: NetworkConfig) -> None:
    """Raises InputError unless these are the network's variables and all are finite, so that what is written can be read again."""
    differences = mismatches({name: np.shape(array) for name, array in params.items()}, config)
    if differences:
        raise InputError(
            "the weights do not fit the configuration, so nothing was written:", *(f"  {line}" for line in differences)
        )
    non_finite = not_finite(params)
    if non_finite:
        raise InputError(f"the weights contain NaN or infinite values, so nothing was written: {', '.join(non_finite)}.")


def mismatches(actual: Mapping[str, tuple[int, ...]], config: NetworkConfig) -> list[str]:
    """Returns a line for each name that only the given shapes or only the network has, or whose shape differs."""
    expected = {name: leaf.shape for name, leaf in shapes(config).items()}
    names = [name for name in sorted(expected.keys() | actual.keys()) if expected.get(name) != actual.get(name)]
    return [f"{name}: got {actual.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}" for name in names]


def count_bytes(config: NetworkConfig) -> int:
    """Returns the size of a network's variables in bytes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in shapes(config).values())


def count_parameters(variables: Mapping[str, np.ndarray | jax.ShapeDtypeStruct]) -> int:
    """Returns the number of trainable parameters, which excludes running statistics."""
    return sum(math.prod(variable.shape) for name, variable in variables.items() if not is_statistic(name))


def not_finite(params: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the names of the arrays that contain NaN or infinity."""
    return [name for name, array in params.items() if not np.all(np.isfinite(array))]


def is_statistic(name: str) -> bool:
    """Returns whether a variable is a running statistic of a batch norm, which has no gradient."""
    return name.endswith((".mean", ".var", ".count"))


def digest(array: np.ndarray) -> str:
    """Returns the SHA-256 of an array's type, shape and bytes in hexadecimal."""
    array = np.asarray(array)
    type_and_shape = f"{array.dtype.name} {array.shape} ".encode()
    return hashlib.sha256(type_and_shape + array.tobytes()).hexdigest()  # tobytes is in row-major order for any strides


def digest_all(digests: Mapping[str, str]) -> str:
    """Returns one digest of all weights, from the digests of the arrays by name."""
    return hashlib.sha256("".join(f"{name} {digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()


def _x64() -> bool:
    """Returns whether the 64-bit types of JAX are enabled, which changes the types of a network's variables."""
    return jnp.result_type(float) == jnp.float64


@lru_cache(maxsize=32)  # because tracing the constructor takes up to a second
def _abstract_network(
    config: NetworkConfig, x64: bool
) -> tuple[nnx.GraphDef, tuple[tuple[PathParts, jax.ShapeDtypeStruct], ...], frozenset[str]]:
    """Returns the network's structure, the path, shape and type of each variable, and the names of the variables without gradient."""
    graph, state = nnx.split(nnx.eval_shape(lambda: make_network(config, nnx.Rngs(0))))
    variables = nnx.to_flat_state(state)
    random = [dotted(path) for path, variable in variables if isinstance(variable, nnx.RngState)]
    if random:
        raise InputError(
            f"the network has random state ({', '.join(random[:4])}), which is not saved: let its dropout use the `key` of the call, as in "
            "`nnx.Dropout(rate)(x, rngs=nnx.Rngs(key))`."
        )
    without_gradient = frozenset(dotted(path) for path, variable in variables if not isinstance(variable, nnx.Param))
    return graph, tuple((path, jax.ShapeDtypeStruct(v.shape, v.dtype)) for path, v in variables), without_gradient


def statistics(config: NetworkConfig) -> frozenset[str]:
    """Returns the names of the variables without gradient, such as the running statistics of a batch norm."""
    return _abstract_network(config, _x64())[2]


def read_statistics(model: nnx.Module) -> dict[str, jax.Array]:
    """Returns the variables without gradient by name."""
    variables = nnx.to_flat_state(nnx.state(model))
    return {dotted(path): variable[...] for path, variable in variables if not isinstance(variable, nnx.Param)}


def dotted(path: PathParts) -> str:
    """Returns the dotted name of a variable from its path in a module."""
    return ".".join(map(str, path))
