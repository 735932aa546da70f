"""Copies prepared cases from a bucket to this machine, and reads them. Every file is compared with its digest."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from hashlib import sha256
from pathlib import Path

from swinunetr_jax import console, files
from swinunetr_jax.buckets.scratch import check_space
from swinunetr_jax.buckets.stored import StoredObject
from swinunetr_jax.data.prepare.cache_entry import Entry, arrays_of, read_entry
from swinunetr_jax.data.prepare.prepared_case import PreparedCase, prepared_case
from swinunetr_jax.data.prepare.write_case import CaseWriter
from swinunetr_jax.data.prepared.manifest import Sample
from swinunetr_jax.data.prepared.place import Place
from swinunetr_jax.errors import InputError

THREADS = 8
Progress = Callable[[int, int, str], None]
_REMEDY = "remove it and run `swinunetr prepare` again"


def fetch(place: Place, samples: Sequence[Sample], progress: Progress | None = None) -> None:
    """Makes sure that `place.folder` holds the files of cases, by copying missing and damaged ones from the bucket.

    Files are replaced atomically, so that several processes may fetch the same cases into the same folder.

    Args:
        place: the prepared data set. If it is a folder of this machine, the files are only compared with their digests.
        samples: the cases.
        progress: called with the numbers of cases done and of all cases, and a note on the bytes of both.

    Raises:
        InputError: a file is missing or damaged in the place itself, or there is not enough space for the copy.
    """
    if place.bucket is not None:
        files.remove_stale_temporaries(place.folder)
        needed = sum(size for sample in samples for name, size in sample["files"].items() if not _has(place.folder / name, size))
        check_space(place.folder, needed, str(place))
    sizes = [sum(sample["files"].values()) for sample in samples]
    done = 0
    with ThreadPoolExecutor(THREADS) as pool:
        futures = {pool.submit(_fetch_case, place, sample): size for sample, size in zip(samples, sizes)}
        try:
            for count, future in enumerate(as_completed(futures), 1):
                future.result()
                done += futures[future]
                if progress:
                    progress(count, len(samples), f"{console.size(done)} of {console.size(sum(sizes))}")
        finally:
            pool.shutdown(cancel_futures=True)


def read_samples(place: Place, samples: Sequence[Sample], writer: CaseWriter) -> list[PreparedCase]:
    """Returns the cases whose files are in `place.folder`, after checking their values and the sizes of their arrays.

    Args:
        place: the prepared data set.
        samples: the cases.
        writer: how they were prepared.

    Raises:
        InputError: a file is missing or damaged.
    """
    cases = []
    for sample in samples:
        path = place.folder / sample["entry"]
        entry = read_entry(path, writer.dtype, writer.in_channels, writer.known)
        lacking = [name for name, size in sample["files"].items() if not _has(place.folder / name, size)]
        if entry is None or lacking:
            missing = place.folder / (lacking[0] if entry is not None else sample["entry"])
            raise InputError(
                f"{missing} does not exist any more or has another size: {_REMEDY if not place.bucket else 'start the same command again'}."
            )
        if files.digest_of_json(entry["settings"]) != files.digest_of_json(writer.settings):
            raise InputError(f"{path} was prepared with other settings than prepared.json states: {_REMEDY}.")
        reference = entry.get("reference")
        sources = [place.folder / reference["file"]] if reference else []
        cases.append(prepared_case(sample["name"], path, sources, writer.above, entry))
    return cases


class DamagedError(InputError):
    """The JSON of a case is damaged."""


def decode_entry(data: bytes, where: str) -> Entry:
    """Returns the content of a case's JSON. Raises DamagedError if it is damaged."""
    try:
        return files.decode_json(data, Entry, where, _REMEDY)
    except InputError as error:
        raise DamagedError(*error.args) from error


def _fetch_case(place: Place, sample: Sample) -> None:
    """Makes sure that the folder holds a case. Its JSON is read first, because it states the digests, and written last."""
    path = place.folder / sample["entry"]
    data = _read(path)
    is_new = data is None or sha256(data).hexdigest() != sample["sha256"]
    if is_new and place.bucket is not None:
        try:
            data = place.read(sample["entry"])
        except FileNotFoundError as error:
            raise InputError(f"{place}/{sample['entry']} does not exist any more: run `swinunetr prepare` again.") from error
    if data is None or sha256(data).hexdigest() != sample["sha256"]:
        raise InputError(f"{place}/{sample['entry']} is missing or damaged: {_REMEDY}.")
    digests = {array["file"]: array["sha256"] for array in arrays_of(decode_entry(data, f"{place}/{sample['entry']}"))}
    if digests.keys() != sample["files"].keys():
        raise InputError(f"{place}/{sample['entry']} names other files than prepared.json: {_REMEDY}.")
    faulty = _faulty(place.folder, digests)
    if faulty and place.bucket is not None:
        try:
            place.bucket.download({name: StoredObject(sample["files"][name], "") for name in faulty}, place.folder)
        except FileNotFoundError as error:
            raise InputError(f"{place} lacks an array of {sample['name']}: {_REMEDY.replace('it', 'its JSON', 1)}.") from error
        faulty = _faulty(place.folder, {name: digests[name] for name in faulty})
    if faulty:
        raise InputError(
            f"{place}/{faulty[0]} is missing or damaged (its SHA-256 differs from that of the file that was written): {_REMEDY}."
        )
    if is_new:
        files.write_bytes(path, data)


def _faulty(folder: Path, digests: dict[str, str]) -> list[str]:
    """Returns the names of the files that are missing or whose content has another digest."""
    faulty = []
    for name, digest in digests.items():
        try:
            unchanged = files.digest_of_file(folder / name) == digest
        except OSError:
            unchanged = False
        if not unchanged:
            faulty.append(name)
    return faulty


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _has(path: Path, size: int) -> bool:
    """Returns whether a file exists with this size."""
    try:
        return os.stat(path).st_size == size
    except OSError:
        return False
