"""Downloads models from the Hugging Face hub into its own cache, with `huggingface_hub`, which is imported only for an address hf://….

Only the files of the network are downloaded: those of a packed model (a zip archive, or its unpacked files), of a run, of a checkpoint
folder, of a MONAI bundle, or a single weight file. Without a connection, what is in the cache is used, and a line says so.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from swinunetr_jax import console
from swinunetr_jax.buckets.address import HubAddress, hub_address
from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.checkpoint import DESCRIPTION, PARAMS_NAME
from swinunetr_jax.weights.weight_file import printable
from swinunetr_jax.weights.weight_folder import INDEX, choose_weight_file, is_configuration

_ENDINGS = (".zip", ".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_FOLD = re.compile(r"fold\d+/(best/|model\.safetensors$)")
_SECONDS = 15  # the time for the hub to answer, before the cache is used
_NOTHING = "/"  # a pattern that no file matches, to find the folder of the cache without asking for files


def download(path: str | os.PathLike) -> Path:
    """Downloads the files of a model, and returns its path in the hub's cache.

    Args:
        path: its address, such as hf://org/name, hf://org/name@v1 or hf://org/name/model.zip.

    Raises:
        InputError: the hub cannot be reached and the cache has no copy, or the model does not exist there, cannot be accessed, or holds no
            weights, or several files with weights.
    """
    address = hub_address(path)
    from huggingface_hub import HfApi, snapshot_download

    try:
        found = HfApi().model_info(address.repository, revision=address.revision, timeout=_SECONDS)
    except Exception as error:  # the client of the hub raises the errors of several libraries
        return _cached(address, error)
    wanted, inner = choose([file.rfilename for file in found.siblings or ()], address)
    try:
        folder = snapshot_download(address.repository, revision=address.revision, allow_patterns=list(map(_pattern, wanted)))
    except Exception as error:
        _fail(address, error)
    return _named(folder, address) / inner


def choose(names: Iterable[str], address: HubAddress) -> tuple[list[str], str]:
    """Returns the names of the files that are needed, and the file or folder that is opened.

    Args:
        names: the files of the repository.
        address: the address; its file or folder is used if it names one.

    Raises:
        InputError: there is no such file, there are no weights, or there are several files with weights.
    """
    names, inner = sorted(names), address.inner
    for place in (inner, *map(str, Path(inner).parents)):
        if place in names:  # a file, or an archive with the named network
            index = place.endswith(INDEX)
            return [name for name in names if name == place or (index and Path(name).parent == Path(place).parent)], inner
    below = {name.removeprefix(f"{inner}/" if inner else ""): name for name in names if not inner or name.startswith(f"{inner}/")}
    if not below:
        listed = printable(console.name_list(names, 5)) or "nothing"
        raise InputError(f"{address} does not exist, because {address.repository} holds {listed}: check the name of the file.")
    texts = [name for name in below if "/" not in name and name.endswith(".json")]
    if DESCRIPTION in below:
        wanted = [name for name in below if name == DESCRIPTION or PARAMS_NAME.fullmatch(name.partition("/")[0])]
    elif f"best/{DESCRIPTION}" in below:
        wanted = [name for name in below if name.startswith("best/") or name in texts]
    elif any(map(_FOLD.match, below)):
        wanted = [name for name in below if _FOLD.match(name) or name in texts]
    elif (weights := choose_weight_file(below, str(address))) is not None:
        index = weights.endswith(INDEX)
        configuration = filter(is_configuration, below)
        wanted = [weights, *(name for name in below if index and "/" not in name and name != weights), *configuration]
        wanted += [name for name in texts if name not in wanted]
    else:
        weights = [name for name in below if name.endswith(_ENDINGS)]
        if len(weights) != 1:
            listed = printable(console.name_list(weights or list(below), 5))
            what = "several files with weights" if weights else "no weights, but"
            raise InputError(f"{address} holds {what} {listed}, expected one: name it, such as {address}/model.zip.")
        return [below[weights[0]]], below[weights[0]]
    return [below[name] for name in wanted], inner


def _cached(address: HubAddress, error: Exception) -> Path:
    """Returns the model in the cache after the hub has failed. Raises InputError if the hub has refused, or the cache has no copy."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError)):
        _fail(address, error)
    try:
        folder = snapshot_download(
            address.repository, revision=address.revision, local_files_only=True, allow_patterns=[_NOTHING]
        )
    except LocalEntryNotFoundError:
        _fail(address, error)
    names = [file.relative_to(folder).as_posix() for file in Path(folder).rglob("*") if file.is_file()]
    if not names:
        _fail(address, error)
    inner = choose(names, address)[1]
    console.say(f"{address}: the copy in the cache of the hub is used, because the hub was not reached ({_reason(error)})")
    return _named(folder, address) / inner


def _named(folder: str, address: HubAddress) -> Path:
    """Returns the folder, after registering that printed text shows the address of the repository instead."""
    console.show_as(folder, str(HubAddress(address.repository, address.revision, "")))
    return Path(folder)


def _fail(address: HubAddress, error: Exception) -> NoReturn:
    """Raises the InputError for an error of the hub's client."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"{constants.ENDPOINT}/{address.repository}"
    if isinstance(error, GatedRepoError):
        text = f"is gated: accept its conditions on {page}, and log in with `hf auth login`."
    elif isinstance(error, RevisionNotFoundError):
        text = f"does not exist, because {address.repository} has no revision {address.revision or 'main'}: see {page}."
    elif isinstance(error, RepositoryNotFoundError):
        text = f"does not exist on the hub, or is private: check the name, or log in with `hf auth login` (asked for {page})."
    elif isinstance(error, HFValidationError):
        text = "is not a name that a model on the hub can have, expected hf://OWNER/NAME: check it."
    else:
        text = (
            f"cannot be downloaded from {constants.ENDPOINT} ({_reason(error)}), and the cache {constants.HF_HUB_CACHE} has no copy: "
            "check the connection, HF_ENDPOINT and HF_HUB_OFFLINE, or download it elsewhere and give its path."
        )
    raise InputError(f"{address} {text}") from error


def _reason(error: Exception) -> str:
    return printable(str(error).strip().splitlines()[0].rstrip(".:") if str(error).strip() else type(error).__name__)


def _pattern(name: str) -> str:
    """Returns the pattern that matches only a file of this name."""
    return re.sub(r"([*?\[])", r"[\1]", name)
