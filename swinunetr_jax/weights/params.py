"""A network's variables as a flat dict: dotted path -> numpy array. The common form of all weight files."""

import hashlib
import math
from collections.abc import Mapping
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.model.unetr import SwinUNETR

Params = dict[str, np.ndarray]
Path = tuple[str | int, ...]


def shapes(config: SwinUNETRConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and type of every variable of a network, without making it."""
    return {_name(path): variable for path, variable in _described(config, jax.config.jax_enable_x64)[1]}


def flatten(model: SwinUNETR) -> Params:
    """The variables of a network, copied to the host."""
    return {_name(path): np.asarray(variable[...]) for path, variable in nnx.to_flat_state(nnx.state(model))}


def build(config: SwinUNETRConfig, params: Mapping[str, np.ndarray]) -> SwinUNETR:
    """A network with these variables, whose names and shapes must be those of `shapes(config)`."""
    graph, variables = _described(config, jax.config.jax_enable_x64)
    return nnx.merge(graph, nnx.from_flat_state([(path, jnp.asarray(params[_name(path)], v.dtype)) for path, v in variables]))


def check(params: Mapping[str, np.ndarray], config: SwinUNETRConfig) -> None:
    """Raises InputError unless these are the network's variables, all of them finite: what is written must be readable again."""
    wrong = mismatches({name: np.shape(array) for name, array in params.items()}, config)
    if wrong:
        raise InputError("the weights are not those of the configuration, nothing was written:", *(f"  {line}" for line in wrong))
    bad = not_finite(params)
    if bad:
        raise InputError(f"the weights hold NaN or infinite values, nothing was written: {', '.join(bad)}.")


def mismatches(got: Mapping[str, tuple[int, ...]], config: SwinUNETRConfig) -> list[str]:
    """A line for each name that is not in both or has another shape in the network."""
    want = {name: leaf.shape for name, leaf in shapes(config).items()}
    names = [name for name in sorted(want.keys() | got.keys()) if want.get(name) != got.get(name)]
    return [f"{name}: got {got.get(name, 'nothing')}, expected {want.get(name, 'nothing')}" for name in names]


def count_bytes(config: SwinUNETRConfig) -> int:
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
def _described(config: SwinUNETRConfig, x64: bool) -> tuple[nnx.GraphDef, tuple[tuple[Path, jax.ShapeDtypeStruct], ...]]:
    """What a network is made of, and its variables' places, shapes and types."""
    graph, state = nnx.split(nnx.eval_shape(lambda: SwinUNETR(config, rngs=nnx.Rngs(0))))
    return graph, tuple((path, jax.ShapeDtypeStruct(v.shape, v.dtype)) for path, v in nnx.to_flat_state(state))


def _name(path: Path) -> str:
    return ".".join(map(str, path))
