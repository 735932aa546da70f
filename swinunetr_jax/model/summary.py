"""The parameters and the arithmetic of a network by part.

FLOPs are two for each multiplication with an addition in matrix products and convolutions, as the network's definition has them: in
attention also those of the padding of windows. Norms, activations and softmax are not counted, and neither is what an implementation saves.
A real Fourier transform of n points, in Hyena stages, counts as 2.5 n log2 n.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from swinunetr_jax.config import STAGES, SwinUNETRConfig
from swinunetr_jax.model.windows import clip_window, counts

ENCODERS = ("encoder1", "encoder2", "encoder3", "encoder4", "encoder10")
DECODERS = ("decoder5", "decoder4", "decoder3", "decoder2", "decoder1")


@dataclass(frozen=True)
class Part:
    """A part of a network.

    Attributes:
        name: the beginning of the names of its parameters, such as "swin.stages.0".
        output: the shape of its output for one sample, [*grid, channels].
        parameters: the number of its trainable parameters.
        flops: the floating-point operations of a forward pass of one sample.
    """

    name: str
    output: tuple[int, ...]
    parameters: int
    flops: int


@dataclass(frozen=True)
class Summary:
    """The parts of a network in the order of its data flow. `str` returns a table."""

    parts: tuple[Part, ...]

    @property
    def parameters(self) -> int:
        """The number of trainable parameters of the network."""
        return sum(part.parameters for part in self.parts)

    @property
    def flops(self) -> int:
        """The floating-point operations of a forward pass of one sample."""
        return sum(part.flops for part in self.parts)

    def __str__(self) -> str:
        rows = [("part", "output", "parameters", "", "GFLOP", "")]
        for part in (*self.parts, Part("all", (), self.parameters, self.flops)):
            rows.append(
                (
                    part.name,
                    " × ".join(map(str, part.output)),
                    f"{part.parameters:,}",
                    f"{100 * part.parameters / self.parameters:.1f} %",
                    f"{part.flops / 1e9:,.2f}",
                    f"{100 * part.flops / self.flops:.1f} %",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if index < 2 else cell.rjust(width) for index, (cell, width) in enumerate(zip(row, widths))
            ).rstrip()
            for row in rows
        )


def summarize(config: SwinUNETRConfig, parameters: dict[str, int], shape: Sequence[int]) -> Summary:
    """Returns the summary of a Swin UNETR for samples of a spatial shape.

    Args:
        config: the configuration.
        parameters: the number of elements of each trainable parameter by name.
        shape: the spatial shape, multiples of 32.

    Raises:
        InputError: the network cannot take the shape.
    """
    config.check_spatial(tuple(shape))
    parts = []
    for name, output, flops in _parts(config, tuple(shape)):
        own = sum(count for parameter, count in parameters.items() if parameter.startswith(f"{name}."))
        parts.append(Part(name, output, own, flops))
    return Summary(tuple(parts))


def _parts(config: SwinUNETRConfig, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Yields the name, the output shape and the FLOPs of each part."""
    width, dims = config.feature_size, config.spatial_dims
    grids = [tuple(size // 2**level for size in shape) for level in range(STAGES + 2)]
    voxels = [math.prod(grid) for grid in grids]
    yield "swin.patch_embed", (*grids[1], width), _product(voxels[1], config.in_channels * 2**dims, width)
    for stage in range(STAGES):
        grid, channels = grids[stage + 1], config.stage_width(stage)
        if config.use_v2:
            yield f"swin.convs.{stage}", (*grid, channels), _res_block(voxels[stage + 1], channels, channels, dims)
        flops = _product(voxels[stage + 2], 2**dims * channels, 2 * channels)
        for _ in range(config.depths[stage]):
            flops += _hyena_block(grid, channels, config) if config.hyena[stage] else _swin_block(grid, stage, config)
        yield f"swin.stages.{stage}", (*grids[stage + 2], 2 * channels), flops
    # encoder1 is at full resolution, and encoder2, 3, 4 and 10 receive the outputs of the patch embedding and of stages 0, 1 and 3
    for name, level in zip(ENCODERS, (0, 1, 2, 3, 5)):
        channels = width * 2 ** max(level - 1, 0)
        yield (
            name,
            (*grids[level], channels),
            _res_block(voxels[level], channels if level else config.in_channels, channels, dims),
        )
    for name, level in zip(DECODERS, (4, 3, 2, 1, 0)):
        below, channels = width * 2**level, width * 2 ** max(level - 1, 0)
        up = _product(voxels[level + 1], below, 2**dims * channels)
        yield name, (*grids[level], channels), up + _res_block(voxels[level], 2 * channels, channels, dims)
    yield "out", (*shape, config.out_channels), _product(voxels[0], width, config.out_channels)


def _product(rows: int, c_in: int, c_out: int) -> int:
    """Returns the FLOPs of the product of [rows, c_in] and [c_in, c_out]."""
    return 2 * rows * c_in * c_out


def _res_block(voxels: int, c_in: int, c_out: int, dims: int) -> int:
    shortcut = _product(voxels, c_in, c_out) if c_in != c_out else 0
    return _product(voxels, 3**dims * (c_in + c_out), c_out) + shortcut


def _mlp(voxels: int, channels: int, config: SwinUNETRConfig) -> int:
    return 2 * _product(voxels, channels, int(channels * config.mlp_ratio))


def _swin_block(grid: tuple[int, ...], stage: int, config: SwinUNETRConfig) -> int:
    channels = config.stage_width(stage)
    window, _ = clip_window(grid, config.window, (0,) * len(grid))
    windows, tokens = math.prod(counts(grid, window)), math.prod(window)
    projections = _product(windows * tokens, channels, 4 * channels)
    attention = 2 * windows * _product(tokens, channels, tokens)  # queries with keys, and weights with values, of all heads
    return projections + attention + _mlp(math.prod(grid), channels, config)


def _hyena_block(grid: tuple[int, ...], channels: int, config: SwinUNETRConfig) -> int:
    voxels = math.prod(grid)
    is_single, is_circular = config.hyena_grid_type == "single", config.hyena_fft_padding == "circular"
    taps = [2 * ((size + 1) // 2 if is_single else size) - 1 for size in grid]  # of the global kernel
    points = math.prod(grid) if is_circular else math.prod(size + tap // 2 for size, tap in zip(grid, taps))
    features, hidden = config.hyena_kernel_mlp_dim, max(config.hyena_kernel_layers - 1, 1)
    kernel = _product(math.prod(taps), features, hidden * features + channels) + _product(sum(taps), 1, features)
    transforms = 3 * channels * round(2.5 * points * math.log2(points))  # of the input, of the kernel, and of their product
    short_conv = _product(voxels, config.hyena_kernel_size ** len(grid), 3 * channels)
    return _product(voxels, channels, 4 * channels) + short_conv + kernel + transforms + _mlp(voxels, channels, config)


def count_parameters(state: Sequence[tuple[tuple[Any, ...], Any]]) -> dict[str, int]:
    """Returns the number of elements of each parameter by name, from the flat state of a network: paths and arrays or their shapes."""
    return {".".join(map(str, path)): math.prod(value.shape) for path, value in state}
