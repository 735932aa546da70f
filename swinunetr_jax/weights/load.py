"""One door to all weight files: our folder, a PyTorch file, safetensors. A load is whole or an error, unless a part was asked for."""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.model.unetr import SwinUNETR
from swinunetr_jax.task import Task
from swinunetr_jax.weights import params as flat
from swinunetr_jax.weights.checkpoint import is_checkpoint, read_checkpoint, write_checkpoint
from swinunetr_jax.weights.infer import infer_config
from swinunetr_jax.weights.monai import Source, from_monai, to_monai, unwrap
from swinunetr_jax.weights.report import LoadReport
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
_METADATA_KEY = "swinunetr_jax"


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
    path = Path(path)
    if path.is_dir() and not is_checkpoint(path) and is_checkpoint(path / "best"):
        path = path / "best"  # a training run serves as its best checkpoint
    if path.is_dir():
        stored = read_checkpoint(path)
        task, source = stored.task, Source(str(path), to_monai(stored.params, stored.config), ())
        config = _with_given(stored.config, fields, adapt_channels, path)
    else:
        safe = file_kind(path) == SAFETENSORS
        source = unwrap(read_safetensors(path) if safe else read_torch_file(path), str(path))
        described = _described(path) if safe else None
        if described:
            config, task = _with_given(described[0], fields, adapt_channels, path), described[1]
        else:
            config, task = infer_config(source.tensors, str(path), **fields), None
    params, report = _fit(source, config, encoder_only, adapt_channels, seed)
    if task is not None and (len(task.outputs), len(task.channels) or config.in_channels) != (
        config.out_channels,
        config.in_channels,
    ):
        task = None  # channels were adapted: what they mean is for the caller to say
    return Checkpoint(config, task, params, report)


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
    if Path(path).exists() and not overwrite:
        raise InputError(f"{path} exists already: choose another name or remove it.")
    if to == "monai":
        write_torch_file(path, to_monai(params, config))
        return
    described = {"config": config.to_dict(), "task": None if task is None else task.to_dict()}
    write_safetensors(path, to_monai(params, config), {_METADATA_KEY: json.dumps(described)})


def _described(path: Path) -> tuple[SwinUNETRConfig, Task | None] | None:
    """Configuration and task in the metadata of a safetensors file of ours."""
    text = read_safetensors_metadata(path).get(_METADATA_KEY)
    if text is None:
        return None
    try:
        values = json.loads(text)
        task = values["task"]
        return SwinUNETRConfig.from_dict(values["config"]), None if task is None else Task.from_dict(task)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: its description of the network cannot be read.") from error


def _with_given(config: SwinUNETRConfig, given: dict[str, Any], adapt_channels: bool, path: Path) -> SwinUNETRConfig:
    """A stored configuration with fields given: those of use are free, those of structure must agree."""
    changed = config.replace(**given)
    free = RUNTIME_FIELDS | ({"in_channels", "out_channels"} if adapt_channels else set())
    for name, value in changed.to_dict().items():
        if name not in free and value != config.to_dict()[name]:
            raise InputError(f"{path} was made with `{name}` {config.to_dict()[name]!r}, and {value!r} was given: leave it out.")
    return changed


def _fit(
    source: Source, config: SwinUNETRConfig, encoder_only: bool, adapt_channels: bool, seed: int
) -> tuple[flat.Params, LoadReport]:
    """Brings a file's tensors into the network's places; what is made up or adapted is what was asked for."""
    expected = flat.shapes(config)
    if encoder_only:
        kept = {name: tensor for name, tensor in source.tensors.items() if name.startswith("swinViT.")}
        source = Source(source.path, kept, source.left + tuple(sorted(set(source.tensors) - set(kept))))
    found, faults = from_monai(source, config, {name: leaf.shape for name, leaf in expected.items()})
    report = LoadReport(left=list(source.left))
    fresh: flat.Params = {}
    if encoder_only or adapt_channels:
        fresh = flat.flatten(SwinUNETR(config, rngs=nnx.Rngs(seed)))
    if encoder_only:
        faults = [fault for fault in faults if fault.startswith("swinViT.")]
    if adapt_channels:
        faults = [fault for fault in faults if not fault.startswith(_CHANNEL_NAMES)]
    bad = [path for path, array in found.items() if not np.all(np.isfinite(array.astype(np.float32)))]
    faults += [f"{path}: NaN or infinite values" for path in bad]
    if faults:
        raise InputError(_mismatch(source, config, faults, encoder_only))
    params = {}
    for name, leaf in expected.items():
        array = found.get(name)
        if array is not None and array.shape == leaf.shape:
            params[name] = array.astype(leaf.dtype)
            report.read.append(name)
        elif array is not None and name in _INPUT_KERNELS and array.ndim == len(leaf.shape):
            params[name] = _adapt_input(array, leaf.shape).astype(leaf.dtype)
            report.adapted[name] = f"averaged over {array.shape[1]} input channels for {leaf.shape[-2]}"
        else:
            params[name] = fresh[name]
            report.made.append(name)
    if not report.read:
        raise InputError(f"{source.path}: nothing in it matches the network.")
    return params, report


_CHANNEL_NAMES = ("swinViT.patch_embed.proj.weight", "encoder1.layer.conv1.", "encoder1.layer.conv3.", "out.conv.conv.")
_INPUT_KERNELS = ("swin.patch_embed.proj.kernel", "encoder1.conv1.kernel", "encoder1.conv3.kernel")


def _adapt_input(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """MONAI's [out, in, *k] to [*k, new in, out]: the mean over the old channels, scaled so that like inputs give like outputs."""
    mean = array.mean(axis=1) * (array.shape[1] / shape[-2])
    return np.broadcast_to(np.moveaxis(mean, 0, -1)[..., None, :], shape).copy()


def _mismatch(source: Source, config: SwinUNETRConfig, faults: list[str], encoder_only: bool) -> str:
    hints = []
    if not encoder_only and all("missing" in fault for fault in faults) and not any(f.startswith("swinViT.") for f in faults):
        hints.append("to take the encoder alone and start the rest anew, ask for it (`encoder_only`, --encoder-only)")
    if any(fault.startswith(_CHANNEL_NAMES) for fault in faults):
        hints.append("for another number of input or output channels, ask for it (`adapt_channels`, --adapt-channels)")
    hint = f" Hint: {'; '.join(hints)}." if hints else ""
    return f"{source.path} does not match the network, {len(faults)} names differ:\n  " + "\n  ".join(sorted(faults)) + hint
