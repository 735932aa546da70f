"""Prepares the cases of a data set, and stores them in a place."""

import os
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from swinunetr_jax import files
from swinunetr_jax.buckets import BucketError
from swinunetr_jax.data.check.problems import problem_lines
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.formats import scan_files
from swinunetr_jax.data.prepare.cache import THREADS, case_files, path_below
from swinunetr_jax.data.prepare.cache_entry import Source, arrays_of, entry_fault, entry_json
from swinunetr_jax.data.prepare.write_case import CaseWriter, file_name, source_of_file
from swinunetr_jax.data.prepared.copy import DamagedError, decode_entry
from swinunetr_jax.data.prepared.manifest import Sample
from swinunetr_jax.data.prepared.place import Place
from swinunetr_jax.errors import InputError


@dataclass
class WrittenCases:
    """The prepared cases by name, and the number of those that this call has prepared."""

    samples: dict[str, Sample]
    new: int = 0


def prepare_cases(
    cases: Sequence[Case], writer: CaseWriter, place: Place, root: Path, progress: Callable[[int, int, str], None] | None = None
) -> WrittenCases:
    """Prepares the cases that a place does not hold yet, in random order, so that several processes share the work.

    Args:
        cases: the cases.
        writer: how they are prepared.
        place: the place. A case is uploaded as soon as it is prepared, and then removed from this machine.
        root: the folder of the data set.
        progress: called with the numbers of cases done and of all cases, and the number of those that were there already.

    Raises:
        InputError: some cases cannot be used, in which case all of them are named, one per line; or the place cannot be written.
    """
    names = [case.name for case in cases]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"several cases are called {', '.join(repeated)}; give each case a different name.")
    stored, written, faults = place.names(), WrittenCases({}), dict[str, str]()
    order = random.Random(os.urandom(8)).sample(list(cases), len(cases))
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        futures = {pool.submit(_prepare, case, writer, place, root, stored): case for case in order}
        try:
            for count, future in enumerate(as_completed(futures), 1):
                name = futures[future].name
                try:
                    written.samples[name], is_new = future.result()
                    written.new += is_new
                except InputError as error:
                    faults[name] = str(error)
                    if isinstance(error, PlaceError):
                        raise
                if progress:
                    there = len(written.samples) - written.new
                    progress(count, len(cases), f"{there} were prepared before" if there else "")
        finally:
            pool.shutdown(cancel_futures=True)
    if faults:
        lines = problem_lines([(name, faults[name]) for name in names if name in faults])
        raise InputError(f"{len(faults)} of {len(cases)} cases cannot be used for training:", *lines)
    return written


class PlaceError(InputError):
    """The place cannot be written, so that the next case would fail, too."""


def _prepare(case: Case, writer: CaseWriter, place: Place, root: Path, stored: Mapping[str, int]) -> tuple[Sample, bool]:
    """Returns a case after preparing it if necessary, and whether it was prepared now."""
    if case.problem:
        raise InputError(case.problem)
    # On another machine, the same files have other times, and may be in other folders.
    sources: list[Source] = [
        {**source_of_file(file), "path": path_below(file, root), "modified_ns": 0}
        for path in case_files(case)
        for file in scan_files(path)
    ]
    key = writer.key(case, sources)
    name = f"{file_name(case.name)}-{files.digest_of_json([case.name, key])[:16]}.json"
    try:
        if (data := _complete(place, name, writer, stored)) is not None:
            return _sample(case, name, data), False
        with place.workspace() as folder:
            entry = writer.write(case, key, sources, folder, for_copies=True)
            place.store(folder, [array["file"] for array in arrays_of(entry)])
            data = entry_json(entry)
            place.write(name, data)
    except OSError as error:  # errors of reading are InputErrors, so this one is an error of writing
        raise PlaceError(f"{place}: cannot be written ({files.reason(error)}); give a place with space.") from error
    except BucketError as error:
        raise PlaceError(str(error)) from error
    return _sample(case, name, data), True


def _complete(place: Place, name: str, writer: CaseWriter, stored: Mapping[str, int]) -> bytes | None:
    """Returns the JSON of a case if the place holds it and its arrays have their sizes, and otherwise None.

    Args:
        place: the place.
        name: the name of the JSON.
        writer: how cases are prepared.
        stored: the files at the start. Another process may have added the case since, whose arrays then exist, too.
    """
    try:
        data = place.read(name)
        entry = decode_entry(data, name)
    except (FileNotFoundError, DamagedError):
        return None
    if entry_fault(entry, writer.dtype, writer.in_channels, writer.known):
        return None
    if name in stored and any(stored.get(array["file"]) != array.get("bytes") for array in arrays_of(entry)):
        return None
    return data


def _sample(case: Case, name: str, data: bytes) -> Sample:
    """Returns the description of a case whose JSON has this name and content."""
    return {
        "name": case.name,
        "channels": list(case.channels) if case.channels else None,
        "plane": case.plane,
        "entry": name,
        "sha256": sha256(data).hexdigest(),
        "files": {array["file"]: array.get("bytes", 0) for array in arrays_of(decode_entry(data, name))},
    }
