"""The members of a measure of uncertainty: each network, for windows mirrored in each way, with each draw of dropout."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.passes import Network
from swinunetr_jax.inference.programs import CompiledNetwork, uses_key
from swinunetr_jax.weights.params import NetworkConfig


def members(networks: Sequence[CompiledNetwork], flips: Sequence[tuple[int, ...]], *, draws: int, seed: int) -> list[Network]:
    """Returns the members, which have different random keys.

    Args:
        networks: the networks.
        flips: the axes of windows [n, x, y, z, c] along which a member mirrors its windows, for each way of mirroring.
        draws: the number of draws of dropout, 0 for none.
        seed: the seed of the draws.
    """
    combinations = itertools.product(networks, flips, range(max(draws, 1)))
    return [
        _member(network, axes, jax.random.fold_in(jax.random.key(seed), number) if draws else None)
        for number, (network, axes, _) in enumerate(combinations)
    ]


def _member(network: CompiledNetwork, axes: tuple[int, ...], key: jax.Array | None) -> Network:
    """Returns a network for windows mirrored along some axes, whose calls have different random keys if a key is given."""
    calls = itertools.count()

    def apply(patches: jax.Array) -> jax.Array:
        mirrored = jnp.flip(patches, axes)
        logits = network(mirrored) if key is None else network(mirrored, key=jax.random.fold_in(key, next(calls)))
        return jnp.flip(logits, axes)

    return apply


def check_dropout(model: nnx.Module, config: NetworkConfig, shape: tuple[int, ...]) -> None:
    """Raises InputError if the network has no dropout, so that all draws would be equal."""
    if isinstance(config, SwinUNETRConfig):
        if not (config.drop_rate or config.attn_drop_rate or config.dropout_path_rate):
            raise InputError(
                "the network was trained without dropout (`drop_rate`, `attn_drop_rate` and `dropout_path_rate` are 0), so that all draws "
                "would be equal: give a rate such as --drop-rate 0.1, or use several networks instead of --mc-dropout."
            )
    elif not uses_key(model, shape):
        raise InputError(
            f"the network {config.name} does not use the key of its call, so that all draws of dropout would be equal: use several "
            "networks instead of --mc-dropout."
        )
