"""Stores a run in a bucket, of which a folder on this machine is a copy.

The trainer works in a folder also then, and calls the methods of its store. Those of `BucketStore` copy complete states and files between
the folder and the bucket (see `buckets.run_objects` for their names there):

    owned        acquires a claim instead of the lock; then every process downloads the small files of the run
    fetch_state  downloads the files of a state, before they are verified and read
    state_saved  uploads the files of a state, its training.json last, and then removes old states
    best_saved   uploads the weights of the best network, and its checkpoint.json last
    sync         uploads every other file that has changed, such as run.json, pictures and the report
"""

import contextlib
import itertools
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np

from swinunetr_jax import InputError, console, files
from swinunetr_jax.buckets import Bucket, address_of
from swinunetr_jax.buckets.bucket import wait_longer
from swinunetr_jax.buckets.run_objects import (
    BEST,
    CLAIMS,
    COMMIT,
    DAMAGED,
    STATES,
    StoredState,
    log_name,
    logs,
    states,
    usable_states,
)
from swinunetr_jax.buckets.scratch import check_space
from swinunetr_jax.buckets.stored import StoredObject
from swinunetr_jax.training import processes, watchdog
from swinunetr_jax.training.claim import Claim, ReplacedError
from swinunetr_jax.training.lock import LOCK
from swinunetr_jax.training.log import LOG
from swinunetr_jax.training.store import Store
from swinunetr_jax.weights.checkpoint import DESCRIPTION as CHECKPOINT
from swinunetr_jax.weights.checkpoint import PARAMS

RUN = "run.json"
REPORT = "report.html"
EXIT_REPLACED = 2  # the code of mistakes, after which launchers do not start the same command again
# The files that mark a finished run or cross-validation are copied after all others, in this order.
_LAST = ("out_of_fold.csv", "out_of_fold.json", REPORT)
PLAN = "plan.json"
ATTEMPTS = 5  # a run that another process changes while it is copied is copied again, at most this many times in all
PRINT_SECONDS = 5.0  # a process that was replaced ends after this time, even if it could not print the reason
_FOLD = re.compile(r"fold\d+/")
# Folders of a run that `sync` does not copy, because other methods do or because only this machine needs them.
_NOT_SYNCED = {STATES, BEST, CLAIMS, "data", "cache", "programs", "last", "wandb", "mlruns"}


class BucketStore(Store):
    """A run in a bucket. The folder is a copy of it, which belongs to this process.

    Args:
        folder: the folder.
        address: the address of the run.
    """

    save_minutes = 5.0
    is_remote = True

    def __init__(self, folder: Path, address: str):
        super().__init__(folder)
        wait_longer()
        self.bucket = Bucket(address)
        self.claim: Claim | None = None
        self.copied = 0  # files that have been copied into the bucket
        self._states: dict[int, StoredState] = {}
        self._old_logs: list[str] = []
        self._synced: dict[str, tuple[int, int]] = {}  # name -> (size, modification time) of the file that is in the bucket

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        if processes.is_leader():
            self.claim = Claim.take(Bucket(self.bucket.address, announces=False), _end_process)
            self.bucket.guard = self.claim.guard
        try:
            # The others wait here for the leader.
            self.waited = bool(processes.from_process(np.array(self.claim is not None and self.claim.waited), 0))
            self.pull()
            yield
        except InputError as error:
            # The messages name the folder, but the user knows the address.
            error.args = tuple(console.with_names(str(line)) for line in error.args)
            raise
        finally:
            if self.claim is not None:
                self.claim.release()

    def check(self) -> None:
        if self.claim is not None and self.claim.replaced:
            self.claim.check()

    def check_space(self, state_bytes: int, keep: int) -> None:
        if processes.is_leader():  # there are the states that are kept, the one that is being written, and the best network
            check_space(self.folder, (keep + 2) * state_bytes, f"the run {self.bucket.address}")

    def pull(self) -> None:
        """Replaces the content of the folder with the small files of the run: its descriptions, log, pictures, and each training.json."""
        for attempt in itertools.count(1):
            objects = {name: stored for name, stored in self.bucket.objects().items() if name}
            for path in self.folder.iterdir() if files.is_folder(self.folder) else ():
                # A plan that this process has just made is not in the bucket yet.
                if path.name != PLAN or PLAN in objects:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            self._states, self._synced = {}, {}
            folds = {match[0] for name in objects if (match := _FOLD.match(name)) and f"{match[0]}{RUN}" in objects}
            try:
                for run in ("", *sorted(folds)):  # the run itself, and the folds of a cross-validation
                    self._pull(run, {name.removeprefix(run): stored for name, stored in objects.items() if name.startswith(run)})
                return
            except FileNotFoundError:  # the owner of the run has removed or replaced a file since the objects were listed
                if attempt == ATTEMPTS:
                    raise InputError(
                        f"{self.bucket.address} cannot be copied, because another process changes it: try again later."
                    ) from None

    def _pull(self, run: str, objects: Mapping[str, StoredObject]) -> None:
        """Downloads the small files of the run itself, or of one of its folds. Raises FileNotFoundError if one has been replaced."""
        folder, bucket = self.folder / run, self.bucket / run.rstrip("/") if run else self.bucket
        newest, usable = logs(objects)[:1], usable_states(objects)
        chosen = {name for name in objects if "/" not in name} - set(logs(objects)) | set(newest)
        chosen |= {f"{BEST}/{CHECKPOINT}"} & objects.keys() | {f"{state.name}/{COMMIT}" for state in usable}
        bucket.download({name: objects[name] for name in chosen}, folder)
        for name in newest:
            (folder / name).replace(folder / LOG)
        for state in usable:
            local = folder / STATES / f"{state.step:08d}"
            if files.is_folder(folder / state.name):
                (folder / state.name).rename(local)
                console.show_as(str(local), f"{bucket.address}/{state.name}")
        if not run:
            self._states, self._old_logs = {state.step: state for state in usable}, logs(objects)[1:]
            self._synced = {name: _stamp(folder / name) for name in chosen if files.is_file(folder / name)}
            self._synced.pop(LOG, None)  # it is written again, as the log of the new claim

    def fetch_state(self, step: int, *, again: bool = False) -> bool:
        state = self._states.get(step)
        if state is None:
            return False
        self._fetch(state.name, self.folder / STATES / f"{step:08d}", again)
        return True

    def fetch(self, name: str) -> None:
        self._fetch(name, self.folder / name)

    def _fetch(self, name: str, folder: Path, again: bool = False) -> None:
        """Downloads the objects below a name, by default only those whose files are not in the folder."""
        bucket = self.bucket / name
        objects = {name: stored for name, stored in bucket.objects().items() if name not in ("", DAMAGED)}
        missing = {name: stored for name, stored in objects.items() if again or not files.is_file(folder / name)}
        with contextlib.suppress(FileNotFoundError):  # reading reports what is missing
            bucket.download(missing, folder, watchdog.beating(lambda *_: None))

    def set_aside(self, step: int, fault: str) -> str:
        state = self._states.pop(step)
        self._check()
        self.bucket.write(f"{state.name}/{DAMAGED}", files.json_text({"fault": console.with_names(fault)}).encode())
        shutil.rmtree(self.folder / STATES / f"{step:08d}", ignore_errors=True)
        return f"It was marked as damaged (by its {DAMAGED}) and is not used again."

    def state_saved(self, step: int, keep: int) -> None:
        assert self.claim is not None
        state, folder = StoredState(self.claim.number, step), self.folder / STATES / f"{step:08d}"
        console.show_as(str(folder), f"{self.bucket.address}/{state.name}")
        self.sync()
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != COMMIT]
        self.bucket.upload({f"{state.name}/{path.relative_to(folder).as_posix()}": path for path in paths}, self._count)
        self._commit(f"{state.name}/{COMMIT}", folder / COMMIT)
        self._states[step] = state
        self._prune(keep)

    def progress_saved(self, step: int) -> None:
        self._write_log()
        self._commit(f"{self._states[step].name}/{COMMIT}", self.folder / STATES / f"{step:08d}" / COMMIT)

    def best_saved(self) -> None:
        best = self.folder / BEST
        weights = [path for path in sorted(best.rglob("*")) if path.is_file() and path.name != CHECKPOINT]
        names = {f"{BEST}/{path.relative_to(best).as_posix()}": path for path in weights}
        stored = self.bucket.names(f"{BEST}/")
        self._check()
        self.bucket.upload({name: path for name, path in names.items() if name not in stored}, self._count)
        self._commit(f"{BEST}/{CHECKPOINT}", best / CHECKPOINT)
        self.bucket.remove(name for name in stored if name.startswith(f"{BEST}/{PARAMS}") and name not in names)

    def sync(self, *names: str) -> None:
        self._check()
        self._write_log()
        found = {path.relative_to(self.folder).as_posix(): path for path in _files(self.folder)}
        changed = [name for name, path in found.items() if self._synced.get(name) != _stamp(path)]
        for name in sorted(changed, key=lambda name: (_LAST.index(name) if name in _LAST else -1, name)):
            if not names or name.partition("/")[0] in names:
                stamp = _stamp(found[name])
                self.bucket.upload({name: found[name]})
                self._synced[name] = stamp

    def remove(self, name: str) -> None:
        super().remove(name)
        self._check()
        self.bucket.remove([name])

    def _check(self) -> None:
        if self.claim is not None:
            self.claim.check()

    def _commit(self, name: str, path: Path) -> None:
        """Writes the object that makes earlier ones count, after checking that this process still owns the run."""
        content = path.read_bytes()
        self._check()
        self.bucket.write(name, content)

    def _write_log(self) -> None:
        """Writes the log, if this process owns the run and the log has changed."""
        log = self.folder / LOG
        if self.claim is not None and files.exists(log) and self._synced.get(LOG) != (stamp := _stamp(log)):
            content = log.read_bytes()
            self._check()
            self.bucket.write(log_name(self.claim.number), content)
            self._synced[LOG] = stamp

    def _prune(self, keep: int) -> None:
        """Removes all states except the newest usable and the damaged ones, and the logs of earlier starts except the last one."""
        names = self.bucket.names(f"{STATES}/")
        kept = usable_states(names)[:keep]
        self._check()
        for state, stored in states(names).items():
            if state not in kept and DAMAGED not in stored:
                rest = sorted(stored - {COMMIT})
                self.bucket.remove(f"{state.name}/{name}" for name in ([COMMIT] if COMMIT in stored else []) + rest)
        self._states = {step: state for step, state in self._states.items() if state in kept}
        if self._old_logs:
            self.bucket.remove(self._old_logs)
            self._old_logs = []

    def _count(self, done: int, total: int) -> None:
        """Counts copied files, so that the thread that waits for them knows that there is progress."""
        self.copied += 1


def _end_process(error: ReplacedError) -> NoReturn:
    """Ends this process immediately, because another one has replaced it and its writing threads cannot be stopped in another way."""

    def say() -> None:
        console.say(f"error: {error}", sys.stderr)
        sys.stdout.flush()

    printing = threading.Thread(target=say, daemon=True)  # in a thread, because printing hangs if nobody reads stderr
    printing.start()
    printing.join(PRINT_SECONDS)
    os._exit(EXIT_REPLACED)


def _files(folder: Path) -> Iterable[Path]:
    """Yields the files of a run that `sync` copies. Folders of other runs, such as the folds of a cross-validation, are not included."""
    for path in sorted(folder.iterdir()):
        if path.name in _NOT_SYNCED or path.name in (LOCK, LOG) or files.is_temporary(path.name) or path.name.startswith("."):
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and not files.exists(path / RUN):
            yield from (file for file in sorted(path.rglob("*")) if file.is_file() and not files.is_temporary(file.name))


def _stamp(path: Path) -> tuple[int, int]:
    """Returns the size and the modification time of a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def store_of(folder: Path) -> Store:
    """Returns the store of the run in a folder, which may be the scratch folder of a run in a bucket."""
    address = address_of(folder)
    return Store(folder) if address is None else BucketStore(folder, address)


def pull(folder: Path) -> None:
    """Downloads the small files of a run if the folder is a copy of one in a bucket."""
    store = store_of(folder)
    if isinstance(store, BucketStore):
        store.pull()
