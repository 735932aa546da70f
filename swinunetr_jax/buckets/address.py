"""Addresses among the paths that a user gives: of object stores, such as gs://bucket/run, and of models on the Hugging Face hub.

A place in a bucket can be read and written. A model on the hub, such as hf://org/name, can only be read, by `swinunetr_jax.weights.hub`.
"""

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from swinunetr_jax.console import literal
from swinunetr_jax.errors import InputError
from swinunetr_jax.files import local_path


class _MayBeAddress:
    """Marks an option whose paths may be addresses, as in `Annotated[Path, MAY_BE_ADDRESS]`."""


MAY_BE_ADDRESS = _MayBeAddress()
MAY_BE_MODEL = _MayBeAddress()  # for weights that are read, which may also be on the hub
# scheme -> (the package that reads it, the extra of this project that installs the package)
SCHEMES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
# `Path` reduces the two slashes of an address to one.
_ADDRESS = re.compile(r"(?P<scheme>gs|s3):(?P<slashes>/*)(?P<rest>.*)", re.DOTALL)
_HUB = re.compile(r"hf:(?P<slashes>/*)(?P<owner>[^/@]+)/(?P<name>[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<inner>.+))?")


@dataclass(frozen=True)
class HubAddress:
    """A model on the hub.

    Attributes:
        repository: the owner and the name, such as "org/name".
        revision: a branch, a tag or a commit, or None for the newest one.
        inner: a file or folder in the repository, "" for all of it.
    """

    repository: str
    revision: str | None
    inner: str

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"hf://{self.repository}{revision}{'/' if self.inner else ''}{self.inner}"


def is_hub_address(path: str | os.PathLike) -> bool:
    """Returns whether a path is the address of a model on the hub, also if `Path` has reduced its two slashes to one."""
    return os.fspath(path).startswith("hf:")


def hub_address(path: str | os.PathLike) -> HubAddress:
    """Returns the parts of an address on the hub.

    Raises:
        InputError: it names no repository, or the package that reads it is missing.
    """
    match = _HUB.fullmatch(os.fspath(path).rstrip("/"))
    if match is None or not match["slashes"] or {"", ".", ".."} & set((match["inner"] or "model").split("/")):
        raise InputError(
            f"{literal(path)} does not name a model on the Hugging Face hub: expected hf://OWNER/NAME, hf://OWNER/NAME@REVISION, or one of "
            "these followed by /FILE."
        )
    if find_spec("huggingface_hub") is None:
        raise InputError(
            f"{literal(path)} needs the package huggingface_hub, which is not installed: pip install 'swinunetr-jax[hub]'."
        )
    return HubAddress(f"{match['owner']}/{match['name']}", match["revision"], match["inner"] or "")


def model_path_or_address(path: str | os.PathLike) -> Path:
    """Returns the path of weights that are read, which may be an address in a bucket or on the hub, after checking it.

    Raises:
        InputError: it is an address that cannot be used.
    """
    if is_hub_address(path):
        hub_address(path)
        return Path(path)
    return path_or_address(path)


def is_address(path: str | os.PathLike) -> bool:
    """Returns whether a path is an address of an object store, also if `Path` has reduced its two slashes to one."""
    return _ADDRESS.fullmatch(os.fspath(path)) is not None


def check_address(path: str | os.PathLike) -> str:
    """Returns an address in its usual form, such as gs://bucket/run, without a slash at its end.

    Raises:
        InputError: it has no bucket or no name in the bucket, has an empty part, "." or "..", or the package that reads it is missing.
    """
    match = _ADDRESS.fullmatch(os.fspath(path))
    if match is None:
        raise InputError(f"{path} is not an address: expected gs://BUCKET/NAME or s3://BUCKET/NAME.")
    scheme, parts = match["scheme"], match["rest"].rstrip("/").split("/")
    is_wrong = len(parts) < 2 or not all(parts) or {".", ".."} & set(parts) or any(ord(letter) < 32 for letter in match["rest"])
    if is_wrong or not match["slashes"]:
        raise InputError(
            f"{scheme}://{literal(match['rest'])} does not name a place in a bucket: expected {scheme}://BUCKET/NAME, without empty "
            'parts, "." and "..".'
        )
    package, extra = SCHEMES[scheme]
    if find_spec(package) is None:
        raise InputError(
            f"{scheme}://{match['rest']} needs the package {package}, which is not installed: pip install 'swinunetr-jax[{extra}]'."
        )
    return f"{scheme}://{'/'.join(parts)}"


def path_or_address(path: str | os.PathLike) -> Path:
    """Returns the path, which may be an address, after checking it.

    Raises:
        InputError: it is an address that cannot be used, or its scheme is neither gs nor s3.
    """
    if is_address(path):
        check_address(path)
        return Path(path)
    return local_path(
        path,
        expected="a path on this machine or an address in a bucket, gs://BUCKET/NAME or s3://BUCKET/NAME: copy it to one of these places",
    )
