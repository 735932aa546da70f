"""A network of three layers that replaces Swin UNETR in tests of the trainer.

Such a test checks that a run which was stopped, killed or shared by processes has the same bytes as an uninterrupted one. This does not
depend on the network. Swin UNETR compiles in half a minute and takes seconds for a step; this network takes a moment for both. Only the
class is replaced. Everything else is that of the trainer and the library: configurations, checkpoints, steps and validations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from swinunetr_jax import SwinUNETRConfig
from swinunetr_jax.training import step
from swinunetr_jax.weights import fit, params

if TYPE_CHECKING:
    import pytest  # the check of the documentation runs without it


class SmallNetwork(nnx.Module):
    """Adds features at half and at full resolution: [b, d, h, w, in_channels] -> [b, d, h, w, out_channels]."""

    def __init__(self, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.coarse = nnx.Conv(config.in_channels, config.feature_size, (2, 2, 2), (2, 2, 2), rngs=rngs)
        self.fine = nnx.Linear(config.in_channels, config.feature_size, rngs=rngs)
        self.out = nnx.Linear(config.feature_size, config.out_channels, rngs=rngs)

    def __call__(self, x: Array, *, key: Array | None = None, train: bool = False) -> Array:
        return self.forward(x)[0]

    def forward(self, x: Array, *, perturbations: Mapping[str, Array] | None = None, **_: Any) -> tuple[Array, dict[str, Array]]:
        coarse = self.coarse(jnp.asarray(x, self.config.dtype))
        coarse += (perturbations or {}).get("decoder2", 0)
        # Swin UNETR also has these intermediates, with the same sizes.
        doubled = jnp.concatenate([coarse, -coarse], axis=-1)
        grids = {"decoder2": coarse, "decoder3": doubled[:, ::2, ::2, ::2]}
        grids["decoder4"] = jnp.concatenate([doubled, doubled], axis=-1)[:, ::4, ::4, ::4]
        for axis in range(1, x.ndim - 1):
            coarse = jnp.repeat(coarse, 2, axis=axis)
        return self.out(nnx.relu(coarse + self.fine(x))), grids

    def update_batch_stats(self, intermediates: dict[str, Array]) -> None:
        """Does nothing, because the network has no batch norms."""


def replace_swin_unetr(patch: pytest.MonkeyPatch) -> None:
    """Replaces Swin UNETR by this network in the library. Call `forget` after undoing the patch."""
    for module in (params, fit):
        patch.setattr(module, "SwinUNETR", SmallNetwork)
    forget()


def forget() -> None:
    """Clears the caches of networks and programs that were made from configurations."""
    params._abstract_network.cache_clear()
    step._compiled.cache_clear()
