"""Stores a run in its folder. The methods that a run in a bucket needs in addition do nothing here; see `bucket_store.BucketStore`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from swinunetr_jax.training import processes, restore
from swinunetr_jax.training.lock import locked


class Store:
    """A run that is stored in its folder on this machine, or on a disk that all processes share.

    Attributes:
        folder: the folder in which the trainer works.
        save_minutes: the time between saved states, by default.
    """

    save_minutes = 20.0
    is_remote = False
    waited = False  # whether another process owned the run when this one started

    def __init__(self, folder: Path):
        self.folder = folder

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Keeps other trainers out of the run during the block.

        Raises:
            InputError: another process trains in this run, or it cannot be read.
        """
        with locked(self.folder) if processes.is_leader() else contextlib.nullcontext():
            yield

    copied = 0  # the number of files that have been copied into a bucket; while it grows, a write makes progress

    def check(self) -> None:
        """Raises InputError if another process is known to own the run now. It sends no request unless this is the case."""

    def check_space(self, state_bytes: int, keep: int) -> None:
        """Raises InputError if the folder has too little space for the states of a run in a bucket.

        Args:
            state_bytes: the size of a state.
            keep: the number of states that are kept.
        """

    def fetch_state(self, step: int, *, again: bool = False) -> bool:
        """Makes sure that the files of a state are in the folder, and returns whether they have been copied.

        Args:
            step: the step of the state.
            again: whether to copy files that are in the folder already, too.
        """
        return False

    def fetch(self, name: str) -> None:
        """Makes sure that the files below a name, such as those of the best network, are in the folder."""

    def set_aside(self, step: int, fault: str) -> str:
        """Marks a damaged state, so that it is not used again, and returns a sentence that says how."""
        return restore.rename_damaged(self.folder, step)

    def state_saved(self, step: int, keep: int) -> None:
        """Stores a state that has been written into the folder, and keeps `keep` states. The thread that writes calls this."""

    def progress_saved(self, step: int) -> None:
        """Stores the training.json of a saved state, which has been written again."""

    def best_saved(self) -> None:
        """Stores the best network, which has been written."""

    def sync(self, *names: str) -> None:
        """Stores the files of these names in the run, by default all files that no other method stores."""

    def remove(self, name: str) -> None:
        """Removes a file of the run, if it exists."""
        (self.folder / name).unlink(missing_ok=True)
