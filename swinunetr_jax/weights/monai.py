"""Converts from and to MONAI's state dict of a Swin UNETR, with one table of names and orders of axes for both directions.

`entries(config)` lists every tensor of a network with MONAI's name, our path and the order of its axes. Nothing is guessed: a name that
is not in the table is unexpected, a name of the table that is absent is missing, and either is an error unless a partial load is
requested. Names of other trainers are first replaced by MONAI's names (find_network.py, foreign_names.py).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from swinunetr_jax.config import STAGES, SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.model.windows import relative_index
from swinunetr_jax.weights.find_network import Source, Tensors

# The table of names and orders of axes


@dataclass(frozen=True)
class AxisOrder:
    """The relation between a tensor of PyTorch and the same array in JAX.

    Attributes:
        axes: maps the number of axes to the permutation that transposes the tensor of PyTorch to the array of JAX.
        is_integer: whether the tensor holds integers, which are int64 in PyTorch and int32 in JAX.
    """

    axes: Callable[[int], Sequence[int]]
    is_integer: bool = False

    def to_jax(self, tensor: np.ndarray) -> np.ndarray:
        """Returns a tensor of PyTorch as an array with the order of axes of JAX."""
        array = np.asarray(tensor.transpose(self.axes(tensor.ndim)), order="C")
        return array.astype(np.int32) if self.is_integer else array

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns an array with the order of axes of PyTorch."""
        tensor = np.asarray(array.transpose(np.argsort(self.axes(array.ndim))), order="C")
        return tensor.astype(np.int64) if self.is_integer else tensor

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape in PyTorch of an array that has the given shape in JAX."""
        return tuple(shape[axis] for axis in np.argsort(self.axes(len(shape))))


SAME = AxisOrder(range)
LINEAR = AxisOrder(lambda ndim: (1, 0))  # [out, in] <-> [in, out]
CONV = AxisOrder(lambda ndim: (*range(2, ndim), 1, 0))  # [out, in, *k] <-> [*k, in, out]
UPCONV = AxisOrder(lambda ndim: (*range(2, ndim), 0, 1))  # [in, out, *k] <-> [*k, in, out]
COUNT = AxisOrder(range, is_integer=True)


@dataclass(frozen=True)
class Entry:
    """A tensor with MONAI's name, our path and the order of axes. `path` is None for a buffer that we compute instead of storing it."""

    name: str
    path: str | None
    order: AxisOrder = SAME


def entries(config: SwinUNETRConfig) -> list[Entry]:
    """Returns every entry of MONAI's state dict for a network with this configuration."""
    table = [
        Entry("swinViT.patch_embed.proj.weight", "swin.patch_embed.proj.kernel", CONV),
        Entry("swinViT.patch_embed.proj.bias", "swin.patch_embed.proj.bias"),
    ]
    if config.patch_norm:
        table += _affine("swinViT.patch_embed.norm", "swin.patch_embed.norm")
    for stage in range(STAGES):
        theirs, ours = f"swinViT.layers{stage + 1}.0", f"swin.stages.{stage}"
        for block in range(config.depths[stage]):
            make = _hyena_block if config.hyena[stage] else _swin_block
            table += make(f"{theirs}.blocks.{block}", f"{ours}.blocks.{block}", config)
        table.append(Entry(f"{theirs}.downsample.reduction.weight", f"{ours}.merge.reduction.kernel", LINEAR))
        table += _affine(f"{theirs}.downsample.norm", f"{ours}.merge.norm")
        if config.use_v2:
            table += _res_block(f"swinViT.layers{stage + 1}c.0.layer", f"swin.convs.{stage}", "instance", shortcut=False)
    shortcut = config.in_channels != config.feature_size
    table += _res_block("encoder1.layer", "encoder1", config.norm_name, shortcut=shortcut)
    for name in ("encoder2", "encoder3", "encoder4", "encoder10"):
        table += _res_block(f"{name}.layer", name, config.norm_name, shortcut=False)
    for name in ("decoder5", "decoder4", "decoder3", "decoder2", "decoder1"):
        table.append(Entry(f"{name}.transp_conv.conv.weight", f"{name}.up.kernel", UPCONV))
        table += _res_block(f"{name}.conv_block", f"{name}.block", config.norm_name, shortcut=True)
    table += [Entry("out.conv.conv.weight", "out.kernel", CONV), Entry("out.conv.conv.bias", "out.bias")]
    return table


def _affine(theirs: str, ours: str) -> list[Entry]:
    return [Entry(f"{theirs}.weight", f"{ours}.scale"), Entry(f"{theirs}.bias", f"{ours}.bias")]


def _linear(theirs: str, ours: str, bias: bool = True) -> list[Entry]:
    weight = Entry(f"{theirs}.weight", f"{ours}.kernel", LINEAR)
    return [weight, Entry(f"{theirs}.bias", f"{ours}.bias")] if bias else [weight]


def _swin_block(theirs: str, ours: str, config: SwinUNETRConfig) -> list[Entry]:
    return [
        *_affine(f"{theirs}.norm1", f"{ours}.norm1"),
        Entry(f"{theirs}.attn.relative_position_bias_table", f"{ours}.attn.relative_position_bias"),
        Entry(f"{theirs}.attn.relative_position_index", None),
        *_linear(f"{theirs}.attn.qkv", f"{ours}.attn.qkv", config.qkv_bias),
        *_linear(f"{theirs}.attn.proj", f"{ours}.attn.proj"),
        *_affine(f"{theirs}.norm2", f"{ours}.norm2"),
        *_linear(f"{theirs}.mlp.linear1", f"{ours}.mlp.linear1"),
        *_linear(f"{theirs}.mlp.linear2", f"{ours}.mlp.linear2"),
    ]


def _hyena_block(theirs: str, ours: str, config: SwinUNETRConfig) -> list[Entry]:
    mixer, kernel = f"{theirs}.mixer.mixer", f"{theirs}.mixer.mixer.global_conv.kernel"
    hidden = max(config.hyena_kernel_layers - 1, 1)
    return [
        *_affine(f"{theirs}.norm1", f"{ours}.norm1"),
        Entry(f"{mixer}.global_conv.shortcut", f"{ours}.mixer.shortcut"),
        *_linear(f"{kernel}.positional_embedding.linear", f"{ours}.mixer.global_kernel.embed"),
        *(
            entry
            for index in range(hidden)
            for entry in _linear(f"{kernel}.hidden_linears.{index}", f"{ours}.mixer.global_kernel.hidden.{index}")
        ),
        *_linear(f"{kernel}.out_linear", f"{ours}.mixer.global_kernel.out"),
        Entry(f"{mixer}.global_conv.mask.std_param", f"{ours}.mixer.global_kernel.std"),
        Entry(f"{mixer}.short_conv.weight", f"{ours}.mixer.short_conv.kernel", CONV),
        *_affine(f"{mixer}.pixelhyena_norm", f"{ours}.mixer.gate_norm"),
        *_affine(f"{mixer}.q_norm", f"{ours}.mixer.q_norm"),
        *_affine(f"{mixer}.k_norm", f"{ours}.mixer.k_norm"),
        *_linear(f"{theirs}.mixer.qkv_proj", f"{ours}.mixer.qkv", bias=False),
        *_linear(f"{theirs}.mixer.out_proj", f"{ours}.mixer.proj", bias=False),
        *_affine(f"{theirs}.norm2", f"{ours}.norm2"),
        *_linear(f"{theirs}.mlp.linear1", f"{ours}.mlp.linear1"),
        *_linear(f"{theirs}.mlp.linear2", f"{ours}.mlp.linear2"),
    ]


def _res_block(theirs: str, ours: str, norm: str, *, shortcut: bool) -> list[Entry]:
    table = []
    for index in (1, 2, 3) if shortcut else (1, 2):
        table.append(Entry(f"{theirs}.conv{index}.conv.weight", f"{ours}.conv{index}.kernel", CONV))
        if norm != "instance":
            table += _affine(f"{theirs}.norm{index}", f"{ours}.norm{index}")
        if norm == "batch":
            table += [
                Entry(f"{theirs}.norm{index}.running_mean", f"{ours}.norm{index}.mean"),
                Entry(f"{theirs}.norm{index}.running_var", f"{ours}.norm{index}.var"),
                Entry(f"{theirs}.norm{index}.num_batches_tracked", f"{ours}.norm{index}.count", COUNT),
            ]
    return table


def own_entries(config: SwinUNETRConfig, expected: Mapping[str, jax.ShapeDtypeStruct]) -> list[Entry]:
    """Returns every variable of the network as an entry of a checkpoint folder, which has our names and orders of axes."""
    return [Entry(path, path, COUNT if leaf.dtype.kind in "iu" else SAME) for path, leaf in expected.items()]


def to_monai(params: Mapping[str, np.ndarray], config: SwinUNETRConfig) -> Tensors:
    """Returns our flat parameters as a state dict with all buffers, which MONAI's network loads with strict=True.

    Raises:
        InputError: MONAI's network has no counterpart for a parameter.
    """
    table = entries(config)
    unknown = sorted(params.keys() - {entry.path for entry in table})
    if unknown:
        raise InputError(
            f"MONAI's network has no counterpart for {', '.join(unknown)}, so nothing was written: save a checkpoint folder of this "
            "project."
        )
    index = relative_index(config.window).astype(np.int64)
    return {e.name: index if e.path is None else e.order.to_torch(np.asarray(params[e.path])) for e in table}


# From tensors to parameters


def from_tensors(
    source: Source, table: list[Entry], config: SwinUNETRConfig, expected: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[Tensors, dict[str, str]]:
    """Returns those of our flat parameters that the file has and that fit, and a description of each fault by the tensor's name.

    Args:
        source: the file's tensors.
        table: the network's entries, with the names that the file uses.
        config: the network's configuration.
        expected: the shape and the type of each of our parameters.
    """
    params, faults = {}, {}
    for entry in table:
        tensor = source.tensors.get(entry.name)
        if entry.path is None:
            if tensor is not None and not is_index_table(tensor, config.window):
                faults[entry.name] = f"{tensor.shape} in the file is not the index table of window {config.window}"
            continue
        shape = entry.order.torch_shape(expected[entry.path].shape)
        if tensor is None:
            faults[entry.name] = f"missing in the file, {shape} in the network"
        elif tensor.shape != shape:
            faults[entry.name] = f"{tensor.shape} in the file, {shape} in the network"
        # The kind of bfloat16 is V. Integers in the place of floating-point numbers are quantised weights, which are refused.
        elif tensor.dtype.kind not in ("iu" if entry.order.is_integer else "fV"):
            kind = "integers" if entry.order.is_integer else "floating-point numbers"
            faults[entry.name] = f"numbers of type {tensor.dtype} in the file, {kind} in the network"
        else:
            params[entry.path] = entry.order.to_jax(tensor)
    for name in source.tensors.keys() - {entry.name for entry in table}:
        faults[name] = f"{source.tensors[name].shape} in the file, not in the network"
    return params, faults


def is_index_table(tensor: np.ndarray, window: tuple[int, ...]) -> bool:
    """Returns whether a tensor is the index table (`relative_position_index`) of a window."""
    # The shape is compared first, because the table of a huge window, which a file may ask for, would not fit into the memory.
    return tensor.shape == (math.prod(window),) * 2 and np.array_equal(tensor, relative_index(window))
