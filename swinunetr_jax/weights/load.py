"""One door to all weight files: our folder, a PyTorch file, safetensors. A load is whole or an error, unless a part was asked for."""

import contextlib
import dataclasses
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from flax import nnx

from swinunetr_jax import files
from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.console import literal, warn
from swinunetr_jax.errors import InputError
from swinunetr_jax.model.unetr import SwinUNETR
from swinunetr_jax.task import Task
from swinunetr_jax.weights import params as flat
from swinunetr_jax.weights.checkpoint import (
    check_digests,
    describe,
    is_checkpoint,
    parse_description,
    read_checkpoint,
    write_checkpoint,
)
from swinunetr_jax.weights.infer import infer_config
from swinunetr_jax.weights.monai import Source, entries, from_monai, to_monai, unwrap
from swinunetr_jax.weights.report import LoadReport
from swinunetr_jax.weights.run_folder import network_of_run
from swinunetr_jax.weights.safetensors_file import read_safetensors, read_safetensors_metadata, write_safetensors
from swinunetr_jax.weights.torch_file import read_torch_file, write_torch_file
from swinunetr_jax.weights.weight_file import SAFETENSORS, file_kind

FORMATS = ("orbax", "monai", "safetensors")
RUNTIME_FIELDS = {
    "dtype",
    "param_dtype",
    "use_checkpoint",
    "use_flash_attention",
    "drop_rate",
    "attn_drop_rate",
    "dropout_path_rate",
}
CHANNEL_FIELDS = {"in_channels", "out_channels"}
DECODER_FIELDS = {"out_channels", "norm_name", "num_groups", "normalize"}  # no part of the Swin encoder depends on them
_METADATA_KEY = "swinunetr_jax"
OUT_OF_FOLD = "out_of_fold.json"  # what the trainer writes when every fold is finished


@dataclass(frozen=True)
class Checkpoint:
    """A network's weights, its configuration, what it is for (None where the file does not say), and what loading did."""

    config: SwinUNETRConfig
    task: Task | None
    params: flat.Params
    report: LoadReport

    def model(self) -> SwinUNETR:
        """The network itself."""
        return flat.build(self.config, self.params)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all weights; the same for the same weights, whatever file they came from."""
        return flat.digest_all({name: flat.digest(array) for name, array in self.params.items()})


def open_checkpoint(
    path: str | os.PathLike, *, encoder_only: bool = False, adapt_channels: bool = False, seed: int = 0, **fields: Any
) -> Checkpoint:
    """Reads the weights of a Swin UNETR from any kind of file.

    Args:
        path: our checkpoint folder, a PyTorch file in any of the known layouts, or a safetensors file.
        encoder_only: take the Swin encoder alone and start the rest anew.
        adapt_channels: `in_channels` and `out_channels` may differ from the file's: input weights are averaged over the file's
            channels, the output layer starts anew.
        seed: of what starts anew.
        fields: configuration fields, such as `downsample`, which a PyTorch file does not tell, or `dtype`.

    Raises:
        InputError: the file cannot be read, does not tell all it must, or does not match, listing every name and both shapes.
    """
    _check_names(fields)
    path, note = network_of_run(path)
    if note is not None:
        warn(literal(note))
    source, stored, task = _read(path)
    if stored is None:
        config = infer_config(source.tensors, str(path), **fields)
    else:
        free = RUNTIME_FIELDS | (DECODER_FIELDS if encoder_only else set()) | (CHANNEL_FIELDS if adapt_channels else set())
        config = _with_given(stored, fields, free, path)
        if (config.in_channels, config.out_channels) != (stored.in_channels, stored.out_channels):
            task = None  # what the new channels mean is for the caller to say
    params, report = _fit(source, config, encoder_only, adapt_channels, seed)
    return Checkpoint(config, task, params, report)


class _Folds(TypedDict, total=False):
    """What is needed here of a run.json: the folds of a cross-validation, by number."""

    folds: list[int]


def members(path: str | os.PathLike) -> tuple[Path, ...]:
    """The checkpoints that a path stands for: the folds of a cross-validation (folders fold0, fold1, …), else the path alone.

    `missing_members` says which folds are not among them.
    """
    return _folds(Path(path)) or (Path(path),)


def missing_members(path: str | os.PathLike) -> str | None:
    """A sentence about a cross-validation that is not finished: which folds `members` gives, and which are missing.

    None where `path` is no cross-validation, or a finished one. A cross-validation is finished when its out_of_fold.json was written.

    Raises:
        InputError: the run.json of the cross-validation is damaged.
    """
    path = Path(path)
    found = [run.name for run in _folds(path)]
    if not found:
        return None
    finished = files.exists(path / OUT_OF_FOLD)
    missing = [name for name in _expected_folds(path) if name not in found]
    if finished and not missing:
        return None
    averaged = f"{path} is a cross-validation that is not finished: {', '.join(found)} {'are' if len(found) > 1 else 'is'} used"
    if missing:
        return f"{averaged}, and {', '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing."
    return f"{averaged}, and there is no {OUT_OF_FOLD} yet, so the training of the last one may not have ended."


def _folds(path: Path) -> tuple[Path, ...]:
    """The runs of a cross-validation that have a network, in the order of their numbers."""
    if is_checkpoint(path) or is_checkpoint(path / "best"):
        return ()
    runs = [run for run in path.glob("fold*") if is_checkpoint(run / "best")]
    return tuple(sorted(runs, key=lambda run: (int(run.name[4:]) if run.name[4:].isdecimal() else math.inf, run.name)))


def _expected_folds(path: Path) -> list[str]:
    """The folds that the run's description names, and those whose folder exists."""
    numbers = {int(run.name[4:]) for run in path.glob("fold*") if run.name[4:].isdecimal() and run.is_dir()}
    with contextlib.suppress(FileNotFoundError):
        numbers |= set(files.read_json(path / "run.json", _Folds, "restore it, or name the folds one by one").get("folds", ()))
    return [f"fold{number}" for number in sorted(numbers)]


def load_checkpoint(path: str | os.PathLike, **options: Any) -> SwinUNETR:
    """The network of any weight file; arguments and errors are those of `open_checkpoint`."""
    return open_checkpoint(path, **options).model()


def save_checkpoint(
    path: str | os.PathLike, model: SwinUNETR, *, task: Task | None = None, to: str = "orbax", overwrite: bool = False
) -> None:
    """Writes a network: `to` is "orbax" (our folder), "monai" (a PyTorch state dict) or "safetensors" (MONAI's names).

    Raises:
        InputError: `path` is taken and not to be overwritten, or cannot be written.
    """
    save_params(path, model.config, flat.flatten(model), task=task, to=to, overwrite=overwrite)


def save_params(
    path: str | os.PathLike,
    config: SwinUNETRConfig,
    params: flat.Params,
    *,
    task: Task | None = None,
    to: str = "orbax",
    overwrite: bool = False,
) -> None:
    """As `save_checkpoint`, from flat parameters."""
    if to not in FORMATS:
        raise InputError(f"`to` must be one of {', '.join(FORMATS)}, got {to!r}.")
    if task is not None:
        task.check(config)
    if to == "orbax":
        write_checkpoint(path, config, params, task, overwrite=overwrite)
        return
    if os.path.lexists(path) and not overwrite:
        raise InputError(
            f"{path} exists already, expected a free name: choose another or ask for it with `overwrite` (--overwrite)."
        )
    flat.check(params, config)
    tensors = to_monai(params, config)
    if to == "monai":
        write_torch_file(path, tensors)
    else:
        write_safetensors(path, tensors, {_METADATA_KEY: describe(config, task, tensors)})


def _check_names(given: dict[str, Any]) -> None:
    """A misspelt name is told at once, not after a large file was read."""
    known = {field.name for field in dataclasses.fields(SwinUNETRConfig)} | {"patch_size", "use_hyena"}
    unknown = sorted(given.keys() - known)
    if unknown:
        raise InputError(
            f"unknown option or configuration field {', '.join(unknown)}: known fields are {', '.join(sorted(known))}."
        )


def _read(path: Path) -> tuple[Source, SwinUNETRConfig | None, Task | None]:
    """A file's tensors under MONAI's names, and what the file says of them (a foreign one: nothing)."""
    if os.path.isdir(path):
        stored = read_checkpoint(path)
        return Source(str(path), to_monai(stored.params, stored.config), ()), stored.config, stored.task
    if file_kind(path) != SAFETENSORS:
        return unwrap(read_torch_file(path), str(path)), None, None
    tensors = read_safetensors(path)
    text = read_safetensors_metadata(path).get(_METADATA_KEY)
    config = task = None
    if text is not None:
        config, task, values = parse_description(text, path)
        check_digests(path, tensors, values)
    return unwrap(tensors, str(path)), config, task


def _with_given(config: SwinUNETRConfig, given: dict[str, Any], free: set[str], path: Path) -> SwinUNETRConfig:
    """A stored configuration with fields given: those of use are free, those of structure must agree."""
    changed, stored = config.replace(**given), config.to_dict()
    for name, value in changed.to_dict().items():
        if name not in free and value != stored[name]:
            hint = " or ask for `adapt_channels` (--adapt-channels)" if name in CHANNEL_FIELDS else ""
            raise InputError(f"{path} was made with `{name}` {stored[name]!r}, and {value!r} was given: leave it out{hint}.")
    return changed


# ---- into the network's places ---------------------------------------------------------------------------------------------------

_INPUTS = {
    "swinViT.patch_embed.proj.weight": "swin.patch_embed.proj.kernel",
    "encoder1.layer.conv1.conv.weight": "encoder1.conv1.kernel",
    "encoder1.layer.conv3.conv.weight": "encoder1.conv3.kernel",
}
_OUTPUTS = {"out.conv.conv.weight": "out.kernel", "out.conv.conv.bias": "out.bias"}
_ENCODER = "swinViT."


def _fit(
    source: Source, config: SwinUNETRConfig, encoder_only: bool, adapt_channels: bool, seed: int
) -> tuple[flat.Params, LoadReport]:
    """Brings a file's tensors into the network's places; what is made up or adapted is what was asked for."""
    expected = flat.shapes(config)
    if encoder_only:
        kept = {name: tensor for name, tensor in source.tensors.items() if name.startswith(_ENCODER)}
        source = Source(source.path, kept, source.left + tuple(sorted(set(source.tensors) - set(kept))))
    found, faults = from_monai(source, config, {name: leaf.shape for name, leaf in expected.items()})
    report = LoadReport(left=list(source.left))
    if encoder_only:
        faults = {name: fault for name, fault in faults.items() if name.startswith(_ENCODER)}
    if adapt_channels:
        found |= _adapt_inputs(source, expected, faults, report)
        _drop_outputs(source, config, faults, report)
    if faults:
        raise InputError(_mismatch(source, faults, encoder_only, adapt_channels))

    with np.errstate(over="ignore"):  # what a smaller type cannot hold is found below
        params = {name: array.astype(expected[name].dtype, order="C") for name, array in found.items()}
    bad = set(flat.not_finite(params))
    if bad:
        names = ", ".join(entry.name for entry in entries(config) if entry.path in bad)
        raise InputError(
            f"{source.path} holds NaN, or numbers that are infinite in {config.param_dtype}, expected finite weights in {names}: "
            "take an earlier checkpoint."
        )
    report.read = [name for name in expected if name in params and name not in report.adapted]
    report.made = [name for name in expected if name not in params]
    if report.made:
        fresh = flat.flatten(SwinUNETR(config, rngs=nnx.Rngs(seed)))
        params |= {name: fresh[name] for name in report.made}
    return {name: params[name] for name in expected}, report


def _adapt_inputs(source: Source, expected: dict[str, Any], faults: dict[str, str], report: LoadReport) -> flat.Params:
    """The weights that see the input, for another number of channels; what else is wrong with them stays a fault."""
    adapted = {}
    for name, path in _INPUTS.items():
        tensor = source.tensors.get(name)
        if name not in faults or tensor is None or path not in expected or tensor.dtype.kind not in "fV":
            continue
        *kernel, new, width = expected[path].shape
        if tensor.shape == (width, *tensor.shape[1:2], *kernel) and tensor.shape[1] not in (0, new):
            # the mean over the old channels, scaled so that like inputs give like outputs: [out, in, *k] -> [*k, new in, out]
            mean = tensor.astype(np.float32).mean(axis=1) * (tensor.shape[1] / new)
            adapted[path] = np.broadcast_to(np.moveaxis(mean, 0, -1)[..., None, :], expected[path].shape)
            report.adapted[path] = f"averaged over {tensor.shape[1]} input channels for {new}"
            del faults[name]
    return adapted


def _drop_outputs(source: Source, config: SwinUNETRConfig, faults: dict[str, str], report: LoadReport) -> None:
    """Another number of outputs, or no output layer at all, is no fault: the layer starts anew."""
    tensors = [source.tensors.get(name) for name in _OUTPUTS if name in faults]
    rest = (config.feature_size, *[1] * config.spatial_dims), ()
    absent = all(tensor is None for tensor in tensors)
    others = all(tensor is not None and tensor.shape[1:] == shape for tensor, shape in zip(tensors, rest))
    if len(tensors) == len(_OUTPUTS) and (absent or others):
        had = "none" if absent else len(tensors[0])
        report.notes.append(f"out starts anew: {config.out_channels} outputs wanted, the file has {had}")
        for name in _OUTPUTS:
            del faults[name]


def _mismatch(source: Source, faults: dict[str, str], encoder_only: bool, adapt_channels: bool) -> str:
    hint = ""
    if not adapt_channels and faults.keys() <= _INPUTS.keys() | _OUTPUTS.keys():
        hint = " (for another number of input or output channels, ask for `adapt_channels`, --adapt-channels)"
    elif not encoder_only and all(name.startswith(_ENCODER) for name in source.tensors):
        hint = " (to take the encoder alone and start the rest anew, ask for `encoder_only`, --encoder-only)"
    count = f"{len(faults)} names differ" if len(faults) > 1 else "one name differs"
    lines = "".join(f"\n  {name}: {faults[name]}" for name in sorted(faults))
    return f"{source.path} does not match the network, {count}{hint}:{lines}"
