"""Adapters of low rank (LoRA: Hu et al. 2021, arXiv 2106.09685): a linear layer's kernel W becomes W + A B, and only A and B are trained.

A has the shape [c_in, rank] and B [rank, c_out]. B is 0 at first, so that an adapted network initially returns what the original network
returns. For fine-tuning with few scans, or for many tasks that share one network.
"""

import fnmatch
import math
from typing import Any, TypeVar

import jax
from flax import nnx
from jax import Array
from jax import numpy as jnp
from jax.typing import DTypeLike

from swinunetr_jax.errors import InputError
from swinunetr_jax.fields import is_int
from swinunetr_jax.model.layers import Linear, sample_for
from swinunetr_jax.runtime.promotion import wide_dtype

ATTENTION = ("*.qkv", "*.proj")  # the projections of window attention, and of the mixers of Hyena stages

Network = TypeVar("Network", bound=nnx.Module)


def add_lora(model: Network, rank: int, *, layers: tuple[str, ...] = ATTENTION, rngs: nnx.Rngs) -> Network:
    """Returns a copy of a network with an adapter (`flax.nnx.LoRA`) for each of some linear layers.

    The new parameters have the type `nnx.LoRAParam`, so `nnx.Optimizer(model, optimizer, wrt=nnx.LoRAParam)` with gradients for
    `nnx.DiffState(0, nnx.LoRAParam)` trains only them.

    Args:
        model: the network, which is not changed.
        rank: the rank of the products A B.
        layers: patterns of the names of linear layers (see `swinunetr_jax.parameters`), such as "*.linear?" for those of the MLPs.
        rngs: the random number generator of the matrices A.

    Raises:
        InputError: the rank is not positive, the network has adapters already, or a pattern matches no linear layer.
    """
    if not is_int(rank) or rank < 1:
        raise InputError(f"`rank` must be a positive integer, got {rank!r}.")
    if has_lora(model):
        raise InputError("the network has adapters already: call `merge_lora` first, or train those that it has.")
    model = nnx.clone(model)
    linear = {_dotted(path): (path, module) for path, module in nnx.iter_modules(model) if isinstance(module, Linear)}
    for pattern in layers:
        if not fnmatch.filter(linear, pattern):
            raise InputError(
                f"the pattern {pattern!r} matches no linear layer; this network has {', '.join(sorted(_ends(linear)))}."
            )
    for name, (path, layer) in linear.items():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in layers):
            kernel = layer.kernel[...]
            adapter = nnx.LoRA(
                kernel.shape[0],
                int(rank),
                kernel.shape[1],
                base_module=layer,
                dtype=jnp.dtype(layer.dtype),
                param_dtype=kernel.dtype,
                a_initializer=_he_uniform,
                rngs=rngs,
            )
            _replace(model, path, adapter)
    return model


def merge_lora(model: Network) -> Network:
    """Returns a copy of a network in which each adapter was added to the kernel of its layer, so that it is an ordinary network again.

    Raises:
        InputError: the network has no adapters, or one that `add_lora` did not add.
    """
    if not has_lora(model):
        raise InputError("the network has no adapters to merge: `add_lora` adds them.")
    model = nnx.clone(model)
    adapters = [(path, module) for path, module in nnx.iter_modules(model) if isinstance(module, nnx.LoRA)]
    for path, module in adapters:
        layer = module.base_module
        if not isinstance(layer, Linear):
            raise InputError(
                f"the adapter {_dotted(path)} was not added by `add_lora`, so it cannot be merged: merge it yourself."
            )
        kernel = layer.kernel[...]
        wide = wide_dtype(kernel.dtype)
        a, b = module.lora_a[...].astype(wide), module.lora_b[...].astype(wide)
        layer.kernel[...] = (kernel.astype(wide) + jnp.matmul(a, b, precision="highest")).astype(kernel.dtype)
        _replace(model, path, layer)
    return model


def has_lora(model: nnx.Module) -> bool:
    """Returns whether a network has adapters."""
    return any(isinstance(module, nnx.LoRA) for _, module in nnx.iter_modules(model))


def _he_uniform(key: Array, shape: tuple[int, ...], dtype: DTypeLike = "float32", out_sharding: Any = None) -> Array:
    """Returns a matrix A, uniform in ±sqrt(6 / c_in) as in flax, but sampled on the host, which needs no compilation."""
    bound = math.sqrt(6 / shape[0])
    return sample_for(key, lambda r: r.uniform(-bound, bound, shape), jax.random.uniform, shape, -bound, bound).astype(dtype)


def _replace(model: nnx.Module, path: tuple[Any, ...], module: nnx.Module) -> None:
    """Replaces the module at a path of attributes and indices."""
    *parents, name = path
    parent: Any = model
    for part in parents:
        parent = parent[part] if isinstance(part, int) else getattr(parent, part)
    setattr(parent, name, module)


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _ends(names: dict[str, Any]) -> set[str]:
    """Returns the last parts of names, as patterns."""
    return {f"*.{name.rpartition('.')[2]}" for name in names}
