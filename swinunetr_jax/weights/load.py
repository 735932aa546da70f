"""Reads and writes weights in every supported format: the project's checkpoint folder, PyTorch files and safetensors files.

A load that does not find all parameters is an error, unless a partial load is requested.
"""

import dataclasses
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flax import nnx

from swinunetr_jax import console, files
from swinunetr_jax.buckets import is_address, path_or_address
from swinunetr_jax.buckets.fetch import errors_with_addresses
from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.model.custom import CustomConfig, CustomNetwork, NetworkFactory
from swinunetr_jax.model.unetr import SwinUNETR
from swinunetr_jax.task import Task
from swinunetr_jax.weights import params as flat
from swinunetr_jax.weights.bundle import bundle_of
from swinunetr_jax.weights.checkpoint import (
    check_digests,
    describe,
    is_checkpoint,
    parse_description,
    parse_task,
    read_checkpoint,
    read_description,
    write_checkpoint,
)
from swinunetr_jax.weights.find_network import Source, find_network
from swinunetr_jax.weights.fit import fit
from swinunetr_jax.weights.format_of_name import FORMATS, format_of
from swinunetr_jax.weights.infer import infer_config
from swinunetr_jax.weights.load_report import LoadReport, summary
from swinunetr_jax.weights.local_copy import local_copy, stored_description
from swinunetr_jax.weights.monai import to_monai
from swinunetr_jax.weights.params import NetworkConfig
from swinunetr_jax.weights.run_folder import network_of_run
from swinunetr_jax.weights.safetensors_file import read_safetensors, read_safetensors_metadata, write_safetensors
from swinunetr_jax.weights.torch_file import read_torch_file, write_torch_file
from swinunetr_jax.weights.upload import new_file, upload_checkpoint
from swinunetr_jax.weights.weight_file import SAFETENSORS, file_kind, printable
from swinunetr_jax.weights.weight_folder import INDEX, read_shards, weight_file_in

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


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a network with its configuration, its task (None if the file does not state it) and the report of the load."""

    config: NetworkConfig
    task: Task | None
    params: flat.Params
    report: LoadReport

    def model(self) -> Any:
        """Returns the network."""
        return flat.build(self.config, self.params)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of all weights, which does not depend on the format of the file."""
        return flat.digest_all({name: flat.digest(array) for name, array in self.params.items()})


@errors_with_addresses()
def open_checkpoint(
    path: str | os.PathLike,
    *,
    key: str | None = None,
    encoder_only: bool = False,
    adapt_channels: bool = False,
    seed: int = 0,
    network: NetworkFactory | CustomNetwork | None = None,
    **fields: Any,
) -> Checkpoint:
    """Reads the weights of a network from a file or folder of any supported format. A warning names tensors that were ignored.

    Args:
        path: a checkpoint folder, packed model or training run of this project, a PyTorch or safetensors file of any trainer, a MONAI
            bundle, or the index file of several shards; or the address of one of these in a bucket or on the Hugging Face hub, such as
            gs://bucket/model or hf://org/name.
        key: the dotted path of the entry of a file that contains the network, such as "model_ema"; required if there are several networks.
        encoder_only: take only the Swin encoder and initialise the rest randomly.
        adapt_channels: allow `in_channels` and `out_channels` that differ from the file's: input weights are averaged over the file's
            channels, and the output layer is initialised randomly. The output layer of a network that was pre-trained to return images is
            also initialised randomly if `out_channels` is the file's.
        seed: the seed of the random initialisation.
        network: the factory of a network that is neither a Swin UNETR nor registered (`swinunetr_jax.registry`):
            (in_channels, out_channels, *, rngs) -> `flax.nnx.Module`.
        fields: fields of the configuration, such as `downsample`, which a PyTorch file does not state, or `dtype`.

    Raises:
        InputError: the file cannot be read, lacks a required field, contains several networks, or does not fit the configuration; the
            message lists every tensor that differs, with both shapes.
    """
    _check_names(fields)
    path, note = network_of_run(path)
    if note is not None:
        console.warn(console.literal(note))
    with local_copy(path) as copy:
        custom = None if network is None else CustomNetwork.of(network)
        source, stored, task = _read(copy, key, encoder_only, custom)
        bundle = bundle_of(copy) if stored is None else None
    if isinstance(stored, CustomConfig):
        return _open_custom(source, stored, task, encoder_only or adapt_channels, fields)
    new_outputs = False
    if stored is None:
        config = infer_config(source.tensors, source.path, **({} if bundle is None else bundle.fields) | fields)
        if bundle is not None:
            task = bundle.task_for(config, path)
    else:
        changeable = RUNTIME_FIELDS | (DECODER_FIELDS if encoder_only else set()) | (CHANNEL_FIELDS if adapt_channels else set())
        config = _with_fields(stored, fields, changeable, path)
        # An output layer that returns images is no start for one that segments, even if it has the same number of outputs.
        new_outputs = adapt_channels and "out_channels" in fields and task is not None and task.kind == "images"
        if new_outputs or (config.in_channels, config.out_channels) != (stored.in_channels, stored.out_channels):
            task = None  # the meaning of the new channels is unknown
    params, report = fit(
        source, config, encoder_only=encoder_only, adapt_channels=adapt_channels, new_outputs=new_outputs, seed=seed
    )
    if source.doubtful:
        console.warn(
            f"{source.path} contains tensors that are not part of the network, which were ignored: {summary(source.doubtful)}."
        )
    return Checkpoint(config, task, params, report)


def _open_custom(source: Source, config: CustomConfig, task: Task | None, is_partial: bool, fields: dict[str, Any]) -> Checkpoint:
    """Returns the checkpoint of a network that is not a Swin UNETR.

    Raises:
        InputError: a partial load was requested, or a field of the configuration of a Swin UNETR was given.
    """
    unsupported = [name for name, value in fields.items() if (name, value) != ("dtype", config.dtype)]
    if is_partial or unsupported:
        names = ", ".join(unsupported) or "encoder_only and adapt_channels"
        raise InputError(f"{source.path} holds the network {config.name}, and {names} are for a Swin UNETR: leave them out.")
    return Checkpoint(config, task, source.tensors, LoadReport(read=sorted(source.tensors)))


@errors_with_addresses()
def read_task(path: str | os.PathLike) -> Task | None:
    """Returns the task that a file or folder of `open_checkpoint` states, or None if it states none.

    No weights are read, but a weight file in a bucket is copied to this machine.

    Raises:
        InputError: the path does not exist, its description is damaged, or the bucket cannot be read.
    """
    path, _ = network_of_run(path)
    if is_address(path) and (description := stored_description(path)) is not None:
        return parse_task(description, path)
    with local_copy(path) as copy:
        return _task_of(copy)


def _task_of(path: Path) -> Task | None:
    """Returns the task that a file or folder on this machine states, with the errors of `read_task`."""
    if is_checkpoint(path):
        return parse_task(read_description(path), path)
    folder = path
    if files.is_folder(path):
        path = weight_file_in(path) or path
    text = None
    if not path.name.endswith(INDEX) and file_kind(path) == SAFETENSORS:
        text = read_safetensors_metadata(path).get(_METADATA_KEY)
    if text is not None:
        return parse_task(text.encode(), path)
    return bundle.task if (bundle := bundle_of(folder)) else None


def load_checkpoint(path: str | os.PathLike, **options: Any) -> SwinUNETR:
    """Returns the network in a file or folder of any supported format, with the arguments and errors of `open_checkpoint`."""
    return open_checkpoint(path, **options).model()


def save_checkpoint(
    path: str | os.PathLike,
    model: nnx.Module,
    *,
    config: NetworkConfig | None = None,
    task: Task | None = None,
    to: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a network.

    Args:
        path: the file or folder to write, or the address of one in a bucket, such as gs://bucket/model.
        model: the network.
        config: its configuration, by default its attribute `config`, which a Swin UNETR has. That of a registered network is
            `swinunetr_jax.registry.find(name).config(in_channels, out_channels)`.
        task: the task that the network was trained for.
        to: "orbax" (a checkpoint folder), "monai" (a PyTorch state dict) or "safetensors" (with MONAI's names); by default,
            `format_of_name.format_of(path)`.
        overwrite: replace an existing file or checkpoint.

    Raises:
        InputError: `path` exists and `overwrite` is not set, or it cannot be written, or its ending belongs to another format; or the
            configuration is missing or does not fit, or the network is not a Swin UNETR and `to` is not "orbax".
    """
    config = flat.config_of(model, "config") if config is None else config
    save_params(path, config, flat.flatten(model), task=task, to=to, overwrite=overwrite)


def save_params(
    path: str | os.PathLike,
    config: NetworkConfig,
    params: flat.Params,
    *,
    task: Task | None = None,
    to: str | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a network from its flat parameters, with the arguments and errors of `save_checkpoint`."""
    path = path_or_address(path)
    to = format_of(path) if to is None else to
    if to not in FORMATS:
        raise InputError(f"`to` must be one of {', '.join(FORMATS)}, got {to!r}.")
    if task is not None:
        task.check(config)
    if to == "orbax":
        write = upload_checkpoint if is_address(path) else write_checkpoint
        write(path, config, params, task, overwrite=overwrite)
        return
    if not isinstance(config, SwinUNETRConfig):
        raise InputError(
            f"{path}: the format {to} is for a Swin UNETR, and the network is {config.name}: write a checkpoint folder."
        )
    flat.check(params, config)
    with new_file(path, flat.count_bytes(config), overwrite=overwrite) as file:
        tensors = to_monai(params, config)
        if to == "monai":
            write_torch_file(file, tensors)
        else:
            write_safetensors(file, tensors, {_METADATA_KEY: describe(config, task, tensors)})


def _check_names(fields: dict[str, Any]) -> None:
    """Raises InputError for names that are not fields of the configuration, before a large file is read."""
    known = {field.name for field in dataclasses.fields(SwinUNETRConfig)} | {"patch_size"}
    unknown = sorted(fields.keys() - known)
    if unknown:
        raise InputError(
            f"unknown option or configuration field {', '.join(unknown)}: known fields are {', '.join(sorted(known))}."
        )


def _read(
    path: Path, key: str | None, encoder_only: bool, network: CustomNetwork | None
) -> tuple[Source, NetworkConfig | None, Task | None]:
    """Returns the network in a file or folder, and the configuration and the task, which are None in the files of other trainers."""
    if files.is_folder(path):
        weight_file = None if is_checkpoint(path) else weight_file_in(path)
        if weight_file is None:
            if key is not None:
                raise InputError(
                    f"{path} is a checkpoint folder, which holds one network: leave out `key` (--key) {printable(key)}."
                )
            stored = read_checkpoint(path, network)
            return Source(str(path), stored.params, is_ours=True), stored.config, stored.task
        path = weight_file
    config = task = None
    if path.name.endswith(INDEX):
        content: dict[str, Any] = read_shards(path)
    elif file_kind(path) == SAFETENSORS:
        content = read_safetensors(path)
        text = read_safetensors_metadata(path).get(_METADATA_KEY)
        if text is not None:
            config, task, values = parse_description(text.encode(), path, network)
            check_digests(path, content, values)
    else:
        content = read_torch_file(path)
    return find_network(content, str(path), key=key, encoder_only=encoder_only), config, task


def _with_fields(config: SwinUNETRConfig, fields: dict[str, Any], changeable: set[str], path: Path) -> SwinUNETRConfig:
    """Returns a stored configuration with the given fields. Raises InputError if a field that is not in `changeable` changes."""
    changed, stored = config.replace(**fields), config.to_dict()
    for name, value in changed.to_dict().items():
        if name not in changeable and value != stored.get(name):
            hint = " or use `adapt_channels` (--adapt-channels)" if name in CHANNEL_FIELDS else ""
            raise InputError(
                f"{path} was created with `{name}` {stored.get(name)!r}, but {value!r} was given: leave it out{hint}."
            )
    return changed
