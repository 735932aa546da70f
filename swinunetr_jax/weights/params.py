"""A network's variables as a flat dict: dotted path -> numpy array. The common form of all weight files."""

import hashlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.model.unetr import SwinUNETR

Params = dict[str, np.ndarray]


def shapes(config: SwinUNETRConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and type of every variable of a network, without making it."""
    return {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in _variables(_abstract(config)).items()}


def flatten(model: SwinUNETR) -> Params:
    """The variables of a network, copied to the host."""
    return {name: np.asarray(variable[...]) for name, variable in _variables(model).items()}


def build(config: SwinUNETRConfig, params: Mapping[str, np.ndarray]) -> SwinUNETR:
    """A network with these variables, whose names and shapes must be those of `shapes(config)`."""
    model = _abstract(config)
    for name, variable in _variables(model).items():
        variable.set_value(jnp.asarray(params[name], variable.dtype))
    return model


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's type, shape and bytes."""
    array = np.ascontiguousarray(array)
    head = f"{array.dtype.name} {array.shape} ".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()


def digest_all(digests: Mapping[str, str]) -> str:
    """One digest of all weights, from those of the leaves."""
    return hashlib.sha256("".join(f"{name} {digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()


def _abstract(config: SwinUNETRConfig) -> SwinUNETR:
    return nnx.eval_shape(lambda: SwinUNETR(config, rngs=nnx.Rngs(0)))


def _variables(model: SwinUNETR) -> dict[str, nnx.Variable]:
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(model))}
