"""Prepares the cases of a run in a cache, in a folder that all processes can read or in a bucket.

If the cache is in a bucket, every machine has a copy of it, which its processes share. Cases that the bucket lacks are prepared from the
scans, which every machine then needs, and uploaded. Copies are verified like a cache in a folder, and damaged cases are prepared again.
"""

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax

from swinunetr_jax import InputError, Task, files
from swinunetr_jax.buckets import Bucket, BucketError, is_address, scratch_folder
from swinunetr_jax.console import Progress
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.prepare.cache import PreparedCase, entry_name, prepare_training_cases
from swinunetr_jax.data.prepare.cache_entry import Entry, arrays_of, open_cache
from swinunetr_jax.data.prepare.write_case import CaseWriter
from swinunetr_jax.training import processes, watchdog
from swinunetr_jax.training.places import share_of_machine
from swinunetr_jax.training.recipe import Recipe

THREADS = 8  # cases that are copied at once


def prepare_cases(
    recipe: Recipe, cases: Sequence[Case], task: Task, cache: Path, in_channels: int, root: Path
) -> list[PreparedCase]:
    """Returns the cases from the cache, after preparing those that it does not hold. Processes share this work.

    Args:
        recipe: the recipe.
        cases: the cases, in the order of the result.
        task: the task.
        cache: the folder or the address of the cache.
        in_channels: the number of channels.
        root: the folder of the data set.

    Raises:
        InputError: cases are faulty; the message names all of them.
    """
    store = _BucketCache(recipe, task, cache, in_channels, root) if is_address(cache) else None
    distributed = processes.is_distributed()
    folder = cache if store is None else store.folder

    def prepare(part: Sequence[Case], verify: bool, title: str = "preparing cases") -> list[PreparedCase]:
        with Progress(title, "case", silent=not (processes.is_leader() and title)) as progress:
            return prepare_training_cases(
                part,
                task,
                folder,
                in_channels=in_channels,
                dtype=recipe.cache_dtype,
                root=None if store is None else root,
                verify=verify,
                progress=watchdog.beating(progress),
            )

    # A process finds only the faults of its share. They are suppressed here and raised at the end, where every process reads all entries.
    mine = cases[jax.process_index() :: jax.process_count()] if distributed else cases
    if store is not None:
        store.download(cases)
        for part, verify, title in (
            (mine, False, "preparing cases"),
            (share_of_machine(cases, folder), True, "verifying prepared cases"),
        ):
            with contextlib.suppress(InputError):
                prepare(part, verify, title)
            store.upload(part)
            processes.barrier(f"{title}: done")
            store.download(cases)
    elif distributed:
        with contextlib.suppress(InputError):
            prepare(mine, verify=True)
        processes.barrier("cases are prepared")
    try:
        verified = distributed or store is not None
        return prepare(cases, not verified, "" if verified else "preparing cases")
    except InputError as error:
        raise with_hint(error, recipe, cases, root) from error


def with_hint(error: InputError, recipe: Recipe, cases: Sequence[Case], root: Path) -> InputError:
    """Returns an error on faulty cases, to which the command that lists all faults of the data set is added."""
    how = "" if cases[0].needs_label else " --unlabelled"
    names = f" --channels {' '.join(recipe.channels)}" if how and recipe.channels else ""
    return InputError(*error.args, f"All faults of the data set: swinunetr validate {root}{how}{names}")


class _BucketCache:
    """A cache in a bucket, and its copy on this machine."""

    def __init__(self, recipe: Recipe, task: Task, cache: Path, in_channels: int, root: Path):
        self.bucket, self.folder, self.root = Bucket(cache), scratch_folder(cache, shared=True), root
        self.writer = CaseWriter(task, in_channels, recipe.cache_dtype)
        self._stored_times: dict[str, int] = {}  # array -> its modification time when it was equal to that in the bucket
        open_cache(self.folder)  # from now on no other process removes files that no entry names yet

    def download(self, cases: Sequence[Case]) -> None:
        """Copies the cases that the bucket holds and this machine lacks. The processes of the machine share this work."""
        stored, names = self.bucket.objects(), self._entry_names(cases)
        wanted = [name for name in names if name in stored and not self._is_complete(name)]
        found: dict[str, tuple[bytes, Entry]] = {}
        with ThreadPoolExecutor(THREADS) as pool:
            mine = share_of_machine(wanted, self.folder)
            for name, read in zip(mine, pool.map(self._read, mine)):
                if read is not None and all(array["file"] in stored for array in arrays_of(read[1])):
                    found[name] = read
        arrays = {array["file"] for _, entry in found.values() for array in arrays_of(entry)}
        lacking = {name: stored[name] for name in arrays if _size(self.folder / name) != stored[name].size}
        with Progress(f"copying {self.bucket.address}", "file", silent=not processes.is_leader()) as progress:
            self.bucket.download(lacking, self.folder, watchdog.beating(progress))
        for name, (data, _) in found.items():
            files.write_bytes(self.folder / name, data)
        processes.barrier("prepared cases are copied")
        for name in names:
            for array in self._arrays(name):
                if (status := _status(self.folder / array)) and status.st_size == stored.get(array):
                    self._stored_times.setdefault(array, status.st_mtime_ns)

    def upload(self, cases: Sequence[Case]) -> None:
        """Uploads the cases that the bucket lacks or that were prepared again: first all arrays, and then the JSON of each case."""
        new = {
            name: {array: self.folder / array for array in self._arrays(name) if self._is_new(array)}
            for name in self._entry_names(cases)
        }
        arrays = {array: path for paths in new.values() for array, path in paths.items()}
        with Progress(f"copying to {self.bucket.address}", "file", silent=not processes.is_leader()) as progress:
            self.bucket.upload(arrays, watchdog.beating(progress))
        self.bucket.upload({name: self.folder / name for name, paths in new.items() if paths})
        for array, path in arrays.items():
            if status := _status(path):
                self._stored_times[array] = status.st_mtime_ns

    def _entry_names(self, cases: Sequence[Case]) -> list[str]:
        """Returns the names of the JSONs of the cases that may be usable."""
        names = []
        for case in cases:
            with contextlib.suppress(InputError):  # preparing the case reports this fault
                if not case.problem:
                    names.append(entry_name(case, self.writer, self.root))
        return names

    def _arrays(self, name: str) -> list[str]:
        """Returns the names of the arrays that a JSON on this machine names, or none if it does not exist or is damaged."""
        try:
            return [array["file"] for array in arrays_of(files.read_json(self.folder / name, Entry, ""))]
        except (FileNotFoundError, InputError):
            return []

    def _is_complete(self, name: str) -> bool:
        arrays = self._arrays(name)
        return bool(arrays) and all(_status(self.folder / array) for array in arrays)

    def _is_new(self, array: str) -> bool:
        """Returns whether an array on this machine may differ from that in the bucket."""
        status = _status(self.folder / array)
        return status is not None and self._stored_times.get(array) != status.st_mtime_ns

    def _read(self, name: str) -> tuple[bytes, Entry] | None:
        """Returns the JSON of a case in the bucket as bytes and decoded, or None if it is missing or damaged; the case is then prepared."""
        try:
            data = self.bucket.read(name)
            return data, files.decode_json(data, Entry, name, "")
        except FileNotFoundError:
            return None
        except BucketError:
            raise
        except InputError:
            return None


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _size(path: Path) -> int | None:
    status = _status(path)
    return status and status.st_size
