"""The cache of training cases: each case is read once and stored as arrays that training maps into memory.

FOLDER/NAME-SOURCES.json             written last, so that its existence means that the case is complete
FOLDER/NAME-KEY-image.npy            [x, y, z, c] on the task's grid, with the intensities of the files
FOLDER/NAME-KEY-label.npy            uint8 [x, y, z]; the content map of a case without a label map, see `read_case.content_map`
FOLDER/NAME-KEY-voxels.npy           int32 [n, 3], voxels of each class, see `class_voxels`

SOURCES is a digest of the files' paths and the settings, so that cases of equal names in several data sets do not collide. KEY is a
digest of the files' content and the settings. A file is hashed again only if its path, size or modification time differs from the JSON; the
arrays are hashed at each start. Every file is written atomically, equal input gives equal bytes, and nothing is removed while
another process uses the folder, so that several trainings can share one.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from swinunetr_jax import console, files
from swinunetr_jax.data.check.problems import problem_lines
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.formats import scan_files
from swinunetr_jax.data.prepare.cache_entry import (
    Entry,
    check_arrays,
    open_cache,
    read_entry,
    settings_digest,
    write_entry,
)
from swinunetr_jax.data.prepare.prepared_case import PreparedCase, prepared_case
from swinunetr_jax.data.prepare.write_case import CaseWriter, file_name, source_of_file
from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task

THREADS = 4  # threads suffice, because decompression releases the global interpreter lock; each holds an entire case in memory
Progress = Callable[[int, int], None]


def prepare_training_cases(
    cases: Sequence[Case],
    task: Task,
    folder: str | os.PathLike,
    *,
    in_channels: int,
    dtype: str = "float32",
    root: Path | None = None,
    verify: bool = True,
    progress: Progress | None = None,
    warn: Callable[[str], None] = console.warn,
) -> list[PreparedCase]:
    """Returns the prepared cases in the given order, after reading and storing those that the cache does not hold.

    The stored arrays of the other cases are compared with their digests; a case with a damaged entry or array is prepared again.

    Args:
        cases: the cases to prepare.
        task: how they are prepared.
        folder: the cache; it is created if necessary. Several data sets, tasks and processes may share one.
        in_channels: the number of channels that the network takes.
        dtype: the data type of the stored image; "float16" takes half the space and keeps three digits.
        root: the folder of the data set, if machines on which it has different paths share the cache; only the paths below it then count.
        verify: whether to compare the digests; a caller that has just compared them can give False.
        progress: called with the numbers of cases done and of all cases.
        warn: called with a sentence for each damaged entry, for a cache of another version, and for cases that were prepared from files
            at other paths.

    Raises:
        InputError: some cases cannot be used, in which case all of them are named, one per line; or the folder cannot be written.
    """
    folder = Path(folder)
    names = [case.name for case in cases]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"several cases are called {', '.join(repeated)}; give each case a different name.")
    store = _Store(folder, CaseWriter(task, in_channels, dtype), root, verify, warn)
    prepared: dict[int, PreparedCase] = {}
    faults: dict[int, str] = {}
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        futures = {pool.submit(store.prepared, case): index for index, case in enumerate(cases)}
        try:
            for count, future in enumerate(as_completed(futures), 1):
                try:
                    prepared[futures[future]] = future.result()
                except InputError as error:
                    faults[futures[future]] = str(error)
                if progress:
                    progress(count, len(cases))
        except OSError as error:
            # Errors of reading are InputErrors, so this one is an error of writing, which would recur for the next case.
            raise InputError(f"{folder}: cannot be written ({files.reason(error)}); give a folder with space.") from error
        finally:
            pool.shutdown(cancel_futures=True)
    if store.moved:
        warn(
            f"{console.literal(folder)} holds {console.name_list(map(console.literal, sorted(store.moved)))} prepared from files at other "
            "paths; these cases were prepared again from the files given now."
        )
    if faults:
        lines = problem_lines([(cases[index].name, faults[index]) for index in sorted(faults)])
        raise InputError(f"{len(faults)} of {len(cases)} cases cannot be used for training:", *lines)
    return [prepared[index] for index in range(len(cases))]


class _Store:
    """The cache of one task in a folder."""

    def __init__(self, folder: Path, writer: CaseWriter, root: Path | None, verify: bool, warn: Callable[[str], None]):
        self.folder, self.writer, self.root, self.verify, self.warn = folder, writer, root, verify, warn
        files.make_folder(folder)
        contents = open_cache(folder)
        if contents.note:
            warn(contents.note)
        self.settings_digests, self.moved = contents.settings_digests, set[str]()

    def prepared(self, case: Case) -> PreparedCase:
        """Returns the case from the cache, or prepares it if it is missing or damaged. Raises OSError only if it cannot be written."""
        if case.problem:
            raise InputError(case.problem)
        paths, writer = case_files(case), self.writer
        path = self.folder / entry_name(case, writer, self.root)
        is_new = not files.exists(path)
        entry = self._checked(case, path, read_entry, writer.dtype, writer.in_channels, writer.known)
        known = entry["sources"] if entry else ()
        sources = [source_of_file(file, known) for path in paths for file in scan_files(path)]
        key = writer.key(case, sources)
        if entry is not None and entry["key"] != key:  # a source has changed
            entry = None
        if entry is not None and self.verify:
            entry = self._checked(case, path, check_arrays, entry, writer.dtype, writer.in_channels)
        if entry is None:
            entry = writer.write(case, key, sources, self.folder)
            write_entry(path, entry)
            if is_new and settings_digest(case.name, writer.settings) in self.settings_digests:
                self.moved.add(case.name)
        elif entry["sources"] != sources:
            current: Entry = {**entry, "sources": sources}
            entry = current
            write_entry(path, entry)
        return prepared_case(case.name, path, paths, writer.above, entry)

    def _checked(self, case: Case, path: Path, check: Callable[..., Entry | None], *values: Any) -> Entry | None:
        """Returns the entry in `path`. If it or an array is damaged, warns, removes the entry and returns None."""
        try:
            return check(path, *values)
        except InputError as error:
            self.warn(f"{console.literal(case.name)}: {console.literal(error)}")
            path.unlink(missing_ok=True)
            return None


def case_files(case: Case) -> list[Path]:
    """Returns the files of a case: the images and then the label map."""
    return [*case.images, *([case.label] if case.label else [])]


def entry_name(case: Case, writer: CaseWriter, root: Path | None) -> str:
    """Returns the name of a case's JSON, which depends on the paths of its files, below `root` if one is given.

    Raises:
        InputError: a path cannot be resolved.
    """
    paths = case_files(case)
    try:
        resolved = [os.path.realpath(path) for path in paths]
    except (OSError, ValueError) as error:
        raise InputError(f"{paths[0]}: cannot be read ({files.reason(error)}); give an existing file.") from error
    if root is not None:
        resolved = [path_below(path, root) for path in paths]
    plane = [] if case.plane is None else [case.plane]
    identity = files.digest_of_json([case.name, case.channels, writer.settings, resolved, *plane])
    return f"{file_name(case.name)}-{identity[:16]}.json"


def path_below(path: Path, root: Path) -> str:
    """Returns a path relative to the folder of a data set, which is the same on all machines, or its name if it is elsewhere."""
    absolute, root = Path(os.path.abspath(path)), Path(os.path.abspath(root))
    return absolute.relative_to(root).as_posix() if absolute.is_relative_to(root) else absolute.name
