"""One door to all weight files: our folder, a PyTorch file, safetensors. A load is whole or an error, unless a part was asked for."""

import contextlib
import dataclasses
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from swinunetr_jax import console, files
from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.model.custom import CustomConfig, NetworkFactory
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
from swinunetr_jax.weights.find_network import Source, find_network
from swinunetr_jax.weights.fit import fit
from swinunetr_jax.weights.infer import infer_config
from swinunetr_jax.weights.monai import to_monai
from swinunetr_jax.weights.params import NetworkConfig
from swinunetr_jax.weights.report import LoadReport, summary
from swinunetr_jax.weights.run_folder import network_of_run
from swinunetr_jax.weights.safetensors_file import read_safetensors, read_safetensors_metadata, write_safetensors
from swinunetr_jax.weights.torch_file import read_torch_file, write_torch_file
from swinunetr_jax.weights.weight_file import SAFETENSORS, file_kind, shown
from swinunetr_jax.weights.weight_folder import INDEX, read_shards, weight_file_in

FORMATS = ("orbax", "monai", "safetensors")
_FORMAT_OF_ENDING = {".pt": "monai", ".pth": "monai", ".safetensors": "safetensors"}
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

    config: NetworkConfig
    task: Task | None
    params: flat.Params
    report: LoadReport

    def model(self) -> Any:
        """The network itself."""
        return flat.build(self.config, self.params)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all weights; the same for the same weights, whatever file they came from."""
        return flat.digest_all({name: flat.digest(array) for name, array in self.params.items()})


def open_checkpoint(
    path: str | os.PathLike,
    *,
    key: str | None = None,
    encoder_only: bool = False,
    adapt_channels: bool = False,
    seed: int = 0,
    network: NetworkFactory | None = None,
    **fields: Any,
) -> Checkpoint:
    """Reads the weights of a Swin UNETR from any kind of file. A warning names tensors that were ignored.

    Args:
        path: our checkpoint folder or training run, a PyTorch or safetensors file of any trainer, a MONAI bundle's folder, or the index
            file of several shards.
        key: the entry of a file that holds the network, as a dotted path, such as "model_ema"; needed where there are several networks.
        encoder_only: take the Swin encoder alone and initialise the rest randomly.
        adapt_channels: `in_channels` and `out_channels` may differ from the file's: input weights are averaged over the file's
            channels, the output layer is initialised randomly.
        seed: of the random initialisation.
        network: what makes the network where that is no Swin UNETR: (in_channels, out_channels, *, rngs) -> `flax.nnx.Module`.
        fields: configuration fields, such as `downsample`, which a PyTorch file does not tell, or `dtype`.

    Raises:
        InputError: the file cannot be read, does not tell all it must, holds several networks, or does not match, listing every name
            and both shapes.
    """
    _check_names(fields)
    path, note = network_of_run(path)
    if note is not None:
        console.warn(console.literal(note))
    source, stored, task = _read(path, key, encoder_only, network)
    if isinstance(stored, CustomConfig):
        return _custom(source, stored, task, encoder_only or adapt_channels, fields)
    if stored is None:
        config = infer_config(source.tensors, source.path, **fields)
    else:
        free = RUNTIME_FIELDS | (DECODER_FIELDS if encoder_only else set()) | (CHANNEL_FIELDS if adapt_channels else set())
        config = _with_given(stored, fields, free, path)
        if (config.in_channels, config.out_channels) != (stored.in_channels, stored.out_channels):
            task = None  # what the new channels mean is for the caller to say
    params, report = fit(source, config, encoder_only=encoder_only, adapt_channels=adapt_channels, seed=seed)
    if source.doubtful:
        console.warn(
            f"{source.path} holds tensors that are not part of the network, which were ignored: {summary(source.doubtful)}."
        )
    return Checkpoint(config, task, params, report)


def _custom(source: Source, config: CustomConfig, task: Task | None, partly: bool, fields: dict[str, Any]) -> Checkpoint:
    """The checkpoint of a network that is no Swin UNETR, which is taken as it is.

    Raises:
        InputError: a part of it was asked for, or a field of a Swin UNETR.
    """
    given = [name for name, value in fields.items() if (name, value) != ("dtype", config.dtype)]
    if partly or given:
        what = ", ".join(given) or "encoder_only and adapt_channels"
        raise InputError(f"{source.path} holds the network {config.name}, and {what} are for a Swin UNETR: leave them out.")
    return Checkpoint(config, task, source.tensors, LoadReport(read=sorted(source.tensors)))


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
    path: str | os.PathLike, model: SwinUNETR, *, task: Task | None = None, to: str | None = None, overwrite: bool = False
) -> None:
    """Writes a network.

    Args:
        path: the file or folder to write.
        model: the network.
        task: what it is for.
        to: "orbax" (our folder), "monai" (a PyTorch state dict) or "safetensors" (MONAI's names); by default, `format_of(path)`.
        overwrite: replace what is there.

    Raises:
        InputError: `path` is taken and not to be overwritten, or cannot be written, or its ending is that of another format.
    """
    save_params(path, model.config, flat.flatten(model), task=task, to=to, overwrite=overwrite)


def save_params(
    path: str | os.PathLike,
    config: SwinUNETRConfig,
    params: flat.Params,
    *,
    task: Task | None = None,
    to: str | None = None,
    overwrite: bool = False,
) -> None:
    """As `save_checkpoint`, from flat parameters."""
    to = format_of(path) if to is None else to
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


def format_of(path: str | os.PathLike) -> str:
    """The format that a name asks for: .pt and .pth are "monai", .safetensors is "safetensors", a name without an ending is "orbax".

    Raises:
        InputError: the name has another ending, such as .onnx, which is none of the formats that can be written.
    """
    ending = Path(path).suffix
    if ending.lower() in _FORMAT_OF_ENDING:
        return _FORMAT_OF_ENDING[ending.lower()]
    if not ending[1:].isdigit() and ending and not is_checkpoint(path):  # digits are a part of a version, as in "model_1.5"
        raise InputError(
            f"{path} has the ending {ending}, which is none of the formats that can be written, expected .pt, .pth, .safetensors or, for "
            'a checkpoint folder, no ending: change the name, or say `to` (--to), which is "orbax" for a folder.'
        )
    return "orbax"


def _check_names(given: dict[str, Any]) -> None:
    """Raises InputError for a misspelt name, before a large file is read."""
    known = {field.name for field in dataclasses.fields(SwinUNETRConfig)} | {"patch_size", "use_hyena"}
    unknown = sorted(given.keys() - known)
    if unknown:
        raise InputError(
            f"unknown option or configuration field {', '.join(unknown)}: known fields are {', '.join(sorted(known))}."
        )


def _read(
    path: Path, key: str | None, encoder_only: bool, network: NetworkFactory | None
) -> tuple[Source, NetworkConfig | None, Task | None]:
    """A file's tensors, and what the file says of them (a foreign one: nothing)."""
    if files.is_folder(path):
        inside = None if is_checkpoint(path) else weight_file_in(path)
        if inside is None:
            if key is not None:
                raise InputError(f"{path} is a checkpoint folder, which holds one network: leave out `key` (--key) {shown(key)}.")
            stored = read_checkpoint(path, network)
            return Source(str(path), stored.params, is_ours=True), stored.config, stored.task
        path = inside
    config = task = None
    if path.name.endswith(INDEX):
        content: dict[str, Any] = read_shards(path)
    elif file_kind(path) == SAFETENSORS:
        content = read_safetensors(path)
        text = read_safetensors_metadata(path).get(_METADATA_KEY)
        if text is not None:
            config, task, values = parse_description(text.encode(), path)
            check_digests(path, content, values)
    else:
        content = read_torch_file(path)
    return find_network(content, str(path), key=key, encoder_only=encoder_only), config, task


def _with_given(config: SwinUNETRConfig, given: dict[str, Any], free: set[str], path: Path) -> SwinUNETRConfig:
    """A stored configuration with fields given: those of use are free, those of structure must agree."""
    changed, stored = config.replace(**given), config.to_dict()
    for name, value in changed.to_dict().items():
        if name not in free and value != stored[name]:
            hint = " or ask for `adapt_channels` (--adapt-channels)" if name in CHANNEL_FIELDS else ""
            raise InputError(f"{path} was made with `{name}` {stored[name]!r}, and {value!r} was given: leave it out{hint}.")
    return changed
