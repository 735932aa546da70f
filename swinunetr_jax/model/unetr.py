"""Swin UNETR (Hatamizadeh et al. 2022, arXiv 2201.01266): a Swin transformer encoder and a convolutional decoder with skips.

    x ──────────────── encoder1 ──────────────────────────────────────── decoder1 ── out ── logits     full resolution
    patch embedding ── encoder2 ───────────────────────────── decoder2 ──┘                             1/2
    stage 0 ────────── encoder3 ────────────────── decoder3 ──┘                                        1/4
    stage 1 ────────── encoder4 ─────── decoder4 ──┘                                                   1/8
    stage 2 ─────────────── decoder5 ───┘                                                              1/16
    stage 3 ── encoder10 ───┘                                                                          1/32

The names are those of MONAI. Unlike in the paper's figure, and as in MONAI, there is no block between stage 2 and decoder5.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.model.blocks import ResBlock, UpBlock, call_block, named
from swinunetr_jax.model.intermediates import Perturbations, check_perturbations, perturbed, under
from swinunetr_jax.model.layers import Conv, OneKey
from swinunetr_jax.model.summary import Summary, count_parameters, summarize
from swinunetr_jax.model.swin import SwinTransformer, check_input
from swinunetr_jax.ops.lane_blocks import Grid, from_blocks, maybe_to_blocks
from swinunetr_jax.ops.norm import layer_norm
from swinunetr_jax.runtime.forward_mode import require_reverse_mode
from swinunetr_jax.runtime.sharding import auto_sharded

DEFAULT_SIZE = 96  # voxels along each axis in a summary


class SwinUNETR(nnx.Module):
    """The network, [b, d, h, w, in_channels] -> [b, d, h, w, out_channels].

    Args:
        config: the configuration.
        rngs: the random number generator of the initial parameters, such as `nnx.Rngs(0)`.
    """

    def __init__(self, config: SwinUNETRConfig, *, rngs: nnx.Rngs):
        self.config = config
        width = config.feature_size
        self.swin = SwinTransformer(config, rngs=rngs)
        self.encoder1 = ResBlock(config.in_channels, width, config, rngs=rngs)
        self.encoder2 = ResBlock(width, width, config, rngs=rngs)
        self.encoder3 = ResBlock(2 * width, 2 * width, config, rngs=rngs)
        self.encoder4 = ResBlock(4 * width, 4 * width, config, rngs=rngs)
        self.encoder10 = ResBlock(16 * width, 16 * width, config, rngs=rngs)
        self.decoder5 = UpBlock(16 * width, 8 * width, config, rngs=rngs)
        self.decoder4 = UpBlock(8 * width, 4 * width, config, rngs=rngs)
        self.decoder3 = UpBlock(4 * width, 2 * width, config, rngs=rngs)
        self.decoder2 = UpBlock(2 * width, width, config, rngs=rngs)
        self.decoder1 = UpBlock(width, width, config, rngs=rngs)
        self.out = Conv(width, config.out_channels, 1, config, bias=True, rngs=rngs)

    def __call__(self, x: Array, *, key: Array | None = None, train: bool = False) -> Array:
        """Returns the logits of a batch of volumes.

        Args:
            x: [b, d, h, w, in_channels] (2-D: [b, h, w, in_channels]); sizes are multiples of 32. The axes are those of the scan as
                nibabel returns it.
            key: the random key of dropout and stochastic depth; without it the result is deterministic.
            train: whether a batch norm uses the statistics of the batch instead of the running ones.

        Returns:
            [b, d, h, w, out_channels] in `config.dtype`.

        Raises:
            InputError: the network cannot take the shape of x.
        """
        return self.forward(x, key=key, train=train)[0]

    def forward(
        self, x: Array, *, key: Array | None = None, train: bool = False, perturbations: Mapping[str, Array] | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Returns the logits, and every intermediate by name, such as "swin.stage2.block1", "hidden3", "encoder1" or "decoder4".

        In training with a batch norm the intermediates contain the new running statistics, under "batch_stats." and the variable's path.
        The network itself is not changed: see `update_batch_stats`.

        Args:
            x, key, train: the arguments of `__call__`.
            perturbations: arrays that are added to the intermediates of these names, each with the shape of its intermediate. The gradient
                with respect to a perturbation of zeros is the gradient with respect to the intermediate.

        Raises:
            InputError: the network cannot take the shape of x, or a perturbation has an unknown name or another shape.
        """
        check_input(x, self.config)
        self.config.check_spatial(tuple(x.shape[1:-1]))
        perturbations = dict(perturbations or {})
        structure, weights = nnx.split(self)
        x, weights, perturbations = require_reverse_mode((x, weights, perturbations))

        def run(
            x: Array, weights: nnx.State, key: Array | None, perturbations: Perturbations
        ) -> tuple[Array, dict[str, Array], dict[str, Array]]:
            return nnx.merge(structure, weights)._forward(x, key, train, perturbations)

        def specs(spec: PartitionSpec) -> tuple[PartitionSpec, ...]:
            """Shards logits like the input, and intermediates along the batch only, because the mesh may not divide their grids evenly."""
            return PartitionSpec(*spec[:-1]), PartitionSpec(*spec[:1]), PartitionSpec()

        logits, grids, stats = auto_sharded(run, x, weights, key, perturbations, specs=specs)
        grids |= {"logits": logits}
        check_perturbations(perturbations, grids)
        return logits, grids | stats

    def _forward(
        self, x: Array, key: Array | None, train: bool, perturbations: Perturbations
    ) -> tuple[Array, dict[str, Array], dict[str, Array]]:
        """Returns the logits, every intermediate grid by name, and new running statistics by name."""
        x = jnp.asarray(x, self.config.dtype)
        features, encoder_intermediates = self.swin(x, key, under("swin", perturbations))
        hidden = [layer_norm(feature) for feature in features] if self.config.normalize else features
        hidden = [perturbed(grid, perturbations.get(f"hidden{index}")) for index, grid in enumerate(hidden)]
        statistics: dict[str, Array] = {}
        intermediates = named("swin", encoder_intermediates) | {f"hidden{index}": grid for index, grid in enumerate(hidden)}

        def block(name: str, *inputs: Grid) -> Grid:
            y, stats = call_block(getattr(self, name), *inputs, train=train, remat=self.config.use_checkpoint)
            y = perturbed(y, perturbations.get(name))
            intermediates[name] = from_blocks(y)
            statistics.update(named(f"batch_stats.{name}", stats))
            return y

        # on a TPU the finest grids are divided into blocks (see `lane_blocks`)
        skip0 = block("encoder1", maybe_to_blocks(x))
        skip1 = block("encoder2", maybe_to_blocks(hidden[0]))
        skip2 = block("encoder3", hidden[1])
        skip3 = block("encoder4", hidden[2])
        y = block("encoder10", hidden[4])
        y = block("decoder5", y, hidden[3])
        y = block("decoder4", y, skip3)
        y = block("decoder3", y, skip2)
        y = block("decoder2", y, skip1)
        y = block("decoder1", y, skip0)
        return perturbed(from_blocks(self.out(y)), perturbations.get("logits")), intermediates, statistics

    def update_batch_stats(self, intermediates: dict[str, Array]) -> None:
        """Stores the running statistics that a training pass of `forward` returned. Call it outside of `jax.jit`."""
        for name, value in intermediates.items():
            if name.startswith("batch_stats."):
                *path, leaf = name.split(".")[1:]
                module = self
                for part in path:
                    module = getattr(module, part)
                variable = getattr(module, leaf)
                variable[...] = value.astype(variable.dtype)  # running statistics are float32 also in a float64 network

    def summary(self, shape: tuple[int, ...] | None = None) -> Summary:
        """Returns the parameters and the arithmetic of each part of the network; `print` shows them as a table.

        Args:
            shape: the spatial shape of a sample, by default 96 voxels along each axis. The arithmetic depends on it.

        Raises:
            InputError: the network cannot take the shape.
        """
        parameters = count_parameters(nnx.to_flat_state(nnx.state(self, nnx.Param)))
        return summarize(self.config, parameters, shape or (DEFAULT_SIZE,) * self.config.spatial_dims)

    @classmethod
    def summary_of(cls, config: SwinUNETRConfig, shape: tuple[int, ...] | None = None) -> Summary:
        """Returns the `summary` of the network that a configuration describes, without creating its weights."""
        return nnx.eval_shape(lambda: cls(config, rngs=OneKey())).summary(shape)
