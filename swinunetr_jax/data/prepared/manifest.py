"""prepared.json, the description of a prepared data set."""

from typing import Any, NotRequired, TypedDict

from swinunetr_jax import files
from swinunetr_jax.data.discovery.formats import PREPARED
from swinunetr_jax.data.prepared.place import Place
from swinunetr_jax.errors import InputError

MANIFEST = PREPARED
FORMAT = 1
_REMEDY = "run `swinunetr prepare` again"


class Sample(TypedDict):
    """A prepared case: a case of the data set or, for pre-training, one of its channels.

    `entry` is the name of its JSON, `sha256` the digest of the JSON, and `files` the names and sizes in bytes of its arrays. `plane` is the
    number of the channel in a file with several.
    """

    name: str
    channels: list[str] | None
    plane: int | None
    entry: str
    sha256: str
    files: dict[str, int]


class StoredCase(TypedDict):
    """A case of the data set, with the split, the fold and the channels that the data set states."""

    name: str
    channels: list[str] | None
    split: str
    fold: int | None
    needs_label: bool
    samples: list[Sample]


class Manifest(TypedDict):
    """The content of prepared.json.

    `options` are the options of the training that decide what is stored, by their names. `task`, `channels` and `in_channels` are those of
    the training. `notes` are sentences on entries of the data set that are not used. `splits` is the digest of splits_final.json.
    """

    format: int
    options: dict[str, Any]
    task: dict[str, Any]
    channels: list[str]
    in_channels: int
    layout: str
    labels: dict[str, int | list[int]] | None
    regions_class_order: list[int] | None
    et_label: int | None
    notes: list[str]
    splits: str | None
    cases: list[StoredCase]
    digest: NotRequired[str]


def write_manifest(place: Place, manifest: Manifest) -> None:
    """Writes the description with its digest. Raises OSError, or InputError for an address."""
    stamped = manifest | {"digest": files.digest_of_json(manifest)}
    place.write(MANIFEST, (files.json_text(stamped, indent=1) + "\n").encode("utf-8", "backslashreplace"))


def read_manifest(place: Place) -> Manifest | None:
    """Returns the description of a prepared data set, or None if the place holds none.

    Raises:
        InputError: it is damaged, has another format, or cannot be read.
    """
    where = f"{place}/{MANIFEST}"
    try:
        data = place.read(MANIFEST)
    except FileNotFoundError:
        return None
    values = files.decode_json(data, dict[str, Any], where, _REMEDY)
    files.check_stamp(values, where, FORMAT, _REMEDY)
    manifest = files.decode_json(data, Manifest, where, _REMEDY)
    names = [name for sample in samples_of(manifest) for name in (sample["entry"], *sample["files"])]
    if any("/" in name or "\\" in name or name in ("", ".", "..") for name in names):
        raise InputError(f"{where} names files outside its folder: {_REMEDY}.")
    return manifest


def samples_of(manifest: Manifest) -> list[Sample]:
    """Returns all prepared cases of a data set."""
    return [sample for case in manifest["cases"] for sample in case["samples"]]
