"""Finds the places of a run's prepared cases and synthetic scans.

A run in a bucket is trained in a scratch folder of each process. Its cache is in the bucket, and all processes of a machine share a copy.
"""

import hashlib
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from swinunetr_jax.buckets import address_of, is_address, scratch_folder
from swinunetr_jax.training import processes
from swinunetr_jax.training.options import Options

T = TypeVar("T")


def cache_of(options: Options, run: Path) -> Path:
    """Returns the folder or the address of the prepared cases of a run in the folder `run`: the option `cache`, or RUN/cache."""
    return options.cache or _below(run, "cache")


def phantom_of(options: Options, run: Path) -> Path:
    """Returns the folder of the synthetic scans of a run in the folder `run`: the option `data`, or RUN/data.

    For an address it is a folder of this machine, because every machine makes the scans for itself.
    """
    place = options.data or _below(run, "data")
    return scratch_folder(place, shared=True) if is_address(place) else place


def makes_scans(folder: Path) -> bool:
    """Returns whether this process makes the synthetic scans in a folder of `phantom_of`.

    The leader makes those in a folder that all processes can read. If each machine has its own folder, every process returns True. They
    take turns, and the first one of a machine makes the scans.
    """
    return processes.is_leader() or address_of(folder) is not None


def share_of_machine(items: Sequence[T], folder: Path) -> list[T]:
    """Returns this process's share of the items, which are divided among the processes of this machine that use the same folder.

    All processes of the run have to call this.
    """
    status = folder.stat()
    machine = f"{socket.gethostname()} {folder.absolute()} {status.st_dev} {status.st_ino}"
    machines = processes.gather(np.frombuffer(hashlib.sha256(machine.encode()).digest(), np.uint8))
    mine = jax.process_index() if processes.is_distributed() else 0
    together = [number for number, other in enumerate(machines) if (other == machines[mine]).all()]
    return list(items[together.index(mine) :: len(together)])


def _below(run: Path, name: str) -> Path:
    address = address_of(run)
    return run / name if address is None else Path(f"{address}/{name}")
