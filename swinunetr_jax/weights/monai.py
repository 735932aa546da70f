"""MONAI's Swin UNETR state dict, read and written: one table of names and layouts, used in both directions.

`entries(config)` lists every tensor of a network with MONAI's name, our path and how the two layouts relate. Nothing is guessed: a
name that is not in the list is unexpected, a name of the list that is absent is missing, and either is an error unless a partial
load was asked for. Files of other trainers are brought to MONAI's names first (find_network.py, foreign_names.py).
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

# ---- the table -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How a tensor of MONAI's lies here: `axes(ndim)` are its axes in our order; `whole` numbers are int64 there, int32 here."""

    axes: Callable[[int], Sequence[int]]
    whole: bool = False

    def read(self, array: np.ndarray) -> np.ndarray:
        """MONAI's tensor as ours."""
        array = np.asarray(array.transpose(self.axes(array.ndim)), order="C")
        return array.astype(np.int32) if self.whole else array

    def write(self, array: np.ndarray) -> np.ndarray:
        """Our array as MONAI's."""
        array = np.asarray(array.transpose(np.argsort(self.axes(array.ndim))), order="C")
        return array.astype(np.int64) if self.whole else array

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The shape there of an array that has this one here."""
        return tuple(ours[axis] for axis in np.argsort(self.axes(len(ours))))


SAME = Layout(range)
LINEAR = Layout(lambda ndim: (1, 0))  # [out, in] <-> [in, out]
CONV = Layout(lambda ndim: (*range(2, ndim), 1, 0))  # [out, in, *k] <-> [*k, in, out]
UPCONV = Layout(lambda ndim: (*range(2, ndim), 0, 1))  # [in, out, *k] <-> [*k, in, out]
COUNT = Layout(range, whole=True)


@dataclass(frozen=True)
class Entry:
    """One tensor: MONAI's name, our path, the layout between them. `path` is None for a buffer that we compute."""

    name: str
    path: str | None
    layout: Layout = SAME


def entries(config: SwinUNETRConfig) -> list[Entry]:
    """Every entry of MONAI's state dict for this network."""
    table = [
        Entry("swinViT.patch_embed.proj.weight", "swin.patch_embed.proj.kernel", CONV),
        Entry("swinViT.patch_embed.proj.bias", "swin.patch_embed.proj.bias"),
    ]
    if config.patch_norm:
        table += _affine("swinViT.patch_embed.norm", "swin.patch_embed.norm")
    for stage in range(STAGES):
        theirs, ours = f"swinViT.layers{stage + 1}.0", f"swin.stages.{stage}"
        for block in range(config.depths[stage]):
            table += _swin_block(f"{theirs}.blocks.{block}", f"{ours}.blocks.{block}", config)
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
    """Every variable of the network as an entry of our own checkpoint, which has our names and axes."""
    return [Entry(path, path, COUNT if leaf.dtype.kind in "iu" else SAME) for path, leaf in expected.items()]


def to_monai(params: Mapping[str, np.ndarray], config: SwinUNETRConfig) -> Tensors:
    """Our flat parameters as a state dict that MONAI loads with strict=True (buffers included).

    Raises:
        InputError: a parameter has no place in MONAI's network.
    """
    table = entries(config)
    homeless = sorted(params.keys() - {entry.path for entry in table})
    if homeless:
        raise InputError(
            f"MONAI's network has no place for {', '.join(homeless)}, nothing was written: save as our own checkpoint."
        )
    index = relative_index(config.window_size).astype(np.int64)
    return {e.name: index if e.path is None else e.layout.write(np.asarray(params[e.path])) for e in table}


# ---- from tensors to parameters --------------------------------------------------------------------------------------------------


def from_tensors(
    source: Source, table: list[Entry], config: SwinUNETRConfig, expected: Mapping[str, jax.ShapeDtypeStruct]
) -> tuple[Tensors, dict[str, str]]:
    """Our flat parameters, as far as the file has them and they fit, and by the file's name what is wrong with all others.

    Args:
        source: the file's tensors.
        table: the network's entries, under the names that the file has.
        config: the network.
        expected: shape and type of each of our parameters.
    """
    params, faults = {}, {}
    for entry in table:
        tensor = source.tensors.get(entry.name)
        if entry.path is None:
            if tensor is not None and not is_index(tensor, config.window_size):
                faults[entry.name] = f"{tensor.shape} in the file is not the index table of window {config.window_size}"
            continue
        shape = entry.layout.shape(expected[entry.path].shape)
        if tensor is None:
            faults[entry.name] = f"missing in the file, {shape} in the network"
        elif tensor.shape != shape:
            faults[entry.name] = f"{tensor.shape} in the file, {shape} in the network"
        elif tensor.dtype.kind not in (
            "iu" if entry.layout.whole else "fV"
        ):  # V is bfloat16; integers would be quantised weights
            kind = "whole" if entry.layout.whole else "real"
            faults[entry.name] = f"numbers of type {tensor.dtype} in the file, {kind} ones in the network"
        else:
            params[entry.path] = entry.layout.read(tensor)
    for name in source.tensors.keys() - {entry.name for entry in table}:
        faults[name] = f"{source.tensors[name].shape} in the file, not in the network"
    return params, faults


def is_index(tensor: np.ndarray, window: tuple[int, ...]) -> bool:
    """Whether this is the index table (`relative_position_index`) of a window."""
    # shape first: a table is as large as the window's sixth power, and only the file's own size bounds a window that a file names
    return tensor.shape == (math.prod(window),) * 2 and np.array_equal(tensor, relative_index(window))
