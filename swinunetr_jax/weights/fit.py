"""Turns the tensors of a file into the parameters of a network. All of them come from the file unless a partial load is requested."""

from typing import Any

import numpy as np
from flax import nnx

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.model.unetr import SwinUNETR
from swinunetr_jax.weights import params as flat
from swinunetr_jax.weights.find_network import Source
from swinunetr_jax.weights.load_report import LoadReport
from swinunetr_jax.weights.monai import Entry, entries, from_tensors, own_entries
from swinunetr_jax.weights.weight_file import printable

_INPUTS = ("swin.patch_embed.proj.kernel", "encoder1.conv1.kernel", "encoder1.conv3.kernel")
_OUTPUTS = ("out.kernel", "out.bias")
_ENCODER = "swin."


def fit(
    source: Source, config: SwinUNETRConfig, *, encoder_only: bool, adapt_channels: bool, new_outputs: bool, seed: int
) -> tuple[flat.Params, LoadReport]:
    """Returns the network's parameters and a report. Parameters are initialised randomly or adapted only if the options allow it.

    Args:
        source: the file's tensors.
        config: the network's configuration.
        encoder_only: take only the Swin encoder from the file and initialise the rest randomly.
        adapt_channels: allow another number of input or output channels in the file than in the network.
        new_outputs: initialise the output layer randomly, also if the file has the same number of outputs.
        seed: the seed of the random initialisation.

    Raises:
        InputError: the tensors do not fit the network. The message lists every name that differs, with both shapes.
    """
    expected = flat.shapes(config)
    table = own_entries(config, expected) if source.is_ours else entries(config)
    ignored = source.ignored
    if encoder_only:
        table = [entry for entry in table if entry.path is None or entry.path.startswith(_ENCODER)]
        prefix = _ENCODER if source.is_ours else "swinViT."
        encoder_tensors = {name: tensor for name, tensor in source.tensors.items() if name.startswith(prefix)}
        ignored += tuple(sorted(source.tensors.keys() - encoder_tensors.keys()))
        source = Source(source.path, encoder_tensors, is_ours=source.is_ours)
    fitting, faults = from_tensors(source, table, config, expected)
    report = LoadReport(ignored=list(ignored))
    dropped: set[str] = set()
    if adapt_channels:
        fitting |= _adapt_inputs(source, table, expected, faults, report)
        dropped = _drop_outputs(source, table, expected, faults, report)
    if new_outputs and not dropped and all(name in fitting for name in _OUTPUTS):
        fitting = {name: array for name, array in fitting.items() if name not in _OUTPUTS}
        dropped = set(_OUTPUTS)
        report.output_layer = "the one of the file returns images"
    if faults:
        raise _mismatch(source, table, faults, encoder_only, adapt_channels)

    report.initialized = [name for name in expected if name not in fitting]
    may_be_random = dropped | ({name for name in expected if not name.startswith(_ENCODER)} if encoder_only else set())
    missing = [name for name in report.initialized if name not in may_be_random]
    if missing:  # A name that is missing from the table must not result in random weights.
        raise InputError(
            f"{source.path} has no tensors for {', '.join(missing)} of the network: save it as a checkpoint folder of this project."
        )

    with np.errstate(over="ignore"):  # numbers that overflow in a smaller type are reported below
        params = {name: array.astype(expected[name].dtype, order="C") for name, array in fitting.items()}
    non_finite = set(flat.not_finite(params))
    if non_finite:
        names = ", ".join(entry.name for entry in table if entry.path in non_finite)
        raise InputError(
            f"{source.path} contains NaN, or numbers that are infinite in {config.param_dtype}, expected finite weights in {names}: "
            "take an earlier checkpoint."
        )
    report.read = [name for name in expected if name in params and name not in report.adapted]
    if report.initialized:
        initial = flat.flatten(SwinUNETR(config, rngs=nnx.Rngs(seed)))
        params |= {name: initial[name] for name in report.initialized}
    return {name: params[name] for name in expected}, report


def _adapt_inputs(
    source: Source, table: list[Entry], expected: dict[str, Any], faults: dict[str, str], report: LoadReport
) -> flat.Params:
    """Returns the weights that are applied to the input, adapted to the network's number of input channels.

    The adapted weights are added to the report and removed from `faults`. Weights with any other fault remain in `faults`.
    """
    adapted = {}
    for entry in table:
        tensor = source.tensors.get(entry.name)
        if entry.path not in _INPUTS or entry.name not in faults or tensor is None or tensor.dtype.kind not in "fV":
            continue
        shape = expected[entry.path].shape
        if tensor.ndim != len(shape):
            continue
        array = entry.order.to_jax(tensor)  # [*k, channels, width]
        *kernel, new_channels, width = shape
        old_channels = array.shape[-2]
        if array.shape == (*kernel, old_channels, width) and old_channels not in (0, new_channels):
            # This is the mean over the old channels, scaled so that the output keeps its magnitude.
            mean = array.astype(np.float32).mean(axis=-2, keepdims=True) * (old_channels / new_channels)
            adapted[entry.path] = np.broadcast_to(mean, shape)
            report.adapted[entry.path] = f"averaged over {old_channels} input channels for {new_channels}"
            del faults[entry.name]
    return adapted


def _drop_outputs(
    source: Source, table: list[Entry], expected: dict[str, Any], faults: dict[str, str], report: LoadReport
) -> set[str]:
    """Accepts another number of outputs, or a file without an output layer: the output layer will be initialised randomly.

    Returns the paths of the layer's parameters, or an empty set if the file's layer fits or has another fault. The layer is removed from
    `faults`, and the report states the reason.
    """
    layer = {entry.path: entry for entry in table if entry.path is not None and entry.path in _OUTPUTS and entry.name in faults}
    if len(layer) < len(_OUTPUTS):
        return set()
    tensors = {path: source.tensors[entry.name] for path, entry in layer.items() if entry.name in source.tensors}
    differ_in_outputs = [
        tensor.ndim == len(expected[path].shape) and layer[path].order.to_jax(tensor).shape[:-1] == expected[path].shape[:-1]
        for path, tensor in tensors.items()
    ]
    if tensors and not (len(tensors) == len(layer) and all(differ_in_outputs)):
        return set()
    bias = _OUTPUTS[-1]
    file_outputs = tensors[bias].shape[0] if tensors else "none in the file"
    outputs = expected[bias].shape[0]
    report.output_layer = f"{outputs} output{'s' * (outputs != 1)} instead of {file_outputs}"
    for entry in layer.values():
        del faults[entry.name]
    return set(_OUTPUTS)


def _mismatch(source: Source, table: list[Entry], faults: dict[str, str], encoder_only: bool, adapt_channels: bool) -> InputError:
    """Returns the error that lists all faults, with a hint if an option would allow them."""
    hint = ""
    channel_layers = {entry.name for entry in table if entry.path in (*_INPUTS, *_OUTPUTS)}
    encoder = {entry.name for entry in table if entry.path is None or entry.path.startswith(_ENCODER)}
    if not adapt_channels and faults.keys() <= channel_layers:
        hint = " (for another number of input or output channels, use `adapt_channels`, --adapt-channels)"
    elif not encoder_only and source.tensors.keys() <= encoder:
        hint = " (to take only the encoder and initialise the rest randomly, use `encoder_only`, --encoder-only)"
    count = f"{len(faults)} names differ" if len(faults) > 1 else "one name differs"
    lines = (f"  {printable(name)}: {faults[name]}" for name in sorted(faults))
    return InputError(f"{source.path} does not match the network, {count}{hint}:", *lines)
