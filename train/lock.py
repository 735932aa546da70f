"""The lock on the folder of a run, so that only one process trains in it."""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from swinunetr_jax import InputError, files
from swinunetr_jax.training.checkpoints import FOLDER

LOCK = "lock"
# Temporary names of a run, in addition to those of `files.atomic_path`. Other hidden files belong to the user.
_UNFINISHED = re.compile(r"\.(last|\d{8}(\.old)?|best\.[0-9a-f]{8})\.tmp")


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Creates the folder of a run, locks it during the block, and removes the incomplete files of killed processes from it.

    Raises:
        InputError: another process holds the lock, or the folder cannot be created.
    """
    if files.is_file(run):
        raise InputError(f"{run} is a file, expected a folder for the run: choose another --out.")
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = open(run / LOCK, "w")  # noqa: SIM115 - open until the block ends
    except (OSError, ValueError) as error:
        raise InputError(
            f"{run} cannot be used for a run ({files.reason(error)}): choose a folder that can be written."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{run} is in use by another training process: wait for it, or choose another --out.") from error
        except OSError as error:
            raise InputError(
                f"{run} cannot be locked ({files.reason(error)}): choose --out on a file system that supports locks."
            ) from error
        _remove_unfinished(run)
        yield


def _remove_unfinished(run: Path) -> None:
    """Removes the temporary files of killed processes of this run. The lock ensures that no process is writing them."""
    for folder in (run, run / FOLDER):
        with contextlib.suppress(OSError):  # there are no saved states yet
            for entry in os.scandir(folder):
                if not (_UNFINISHED.fullmatch(entry.name) or files.is_temporary(entry.name)):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)
