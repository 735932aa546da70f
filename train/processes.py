"""Several processes that train one network, such as the hosts of a pod: how they connect, communicate and stop.

All of them run the same loop in the same order. Only the leader prints messages and writes the run's folder, except for the cache, which
all of them write. Every process must be able to read that folder, and has to call the collective functions (`barrier`, `gather`, …), which
return at once if there is a single process.
"""

import hashlib
import json
import os
import re
import sys
from dataclasses import dataclass
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from swinunetr_jax import InputError
from swinunetr_jax.training import watchdog

# A lost process is detected after this time, or earlier by a collective operation.
HEARTBEAT_SECONDS = 20


class UnreachableError(InputError):
    """The other processes could not be reached, because of a mistake in the options or because one was lost before it was connected."""


@dataclass(frozen=True)
class Launch:
    """The number of processes, and the number of this process."""

    distributed: str = "auto"
    """auto: several processes under SLURM's srun, if TPU_WORKER_HOSTNAMES names several hosts or if MEGASCALE_NUM_SLICES is above 1,
    otherwise one; detect: JAX asks the cluster (TPU pods, MPI, Kubernetes); off: one process; or HOST:PORT of the first process, with
    --processes and --process."""
    processes: int | None = None
    """The number of processes."""
    process: int | None = None
    """The number of this process, from 0."""


def initialize(launch: Launch) -> None:
    """Connects to the other processes, if there are any. It has to be called before anything uses devices.

    Raises:
        InputError: the options contradict one another.
        UnreachableError: the other processes cannot be reached.
    """
    distributed = launch.distributed
    if distributed in ("auto", "detect", "off"):
        if launch.processes is not None or launch.process is not None:
            raise InputError(
                "--processes and --process need the address of the first process: give --distributed HOST:PORT with them."
            )
        if distributed == "off" or (distributed == "auto" and not _is_one_of_several(os.environ)):
            return
        address: dict[str, Any] = {}
    else:
        if not re.fullmatch(r"\S+:\d+", distributed):
            raise InputError(f"--distributed must be auto, detect, off or HOST:PORT, got {distributed!r}.")
        count, number = launch.processes, launch.process
        if count is None or number is None or not 0 <= number < count:
            raise InputError("--distributed HOST:PORT needs --processes N and --process from 0 to N - 1.")
        address = {"coordinator_address": distributed, "num_processes": count, "process_id": number}
    jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM instead of the trainer
    try:
        jax.distributed.initialize(**address, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        # A ValueError means that there is no cluster to detect.
        unreachable = UnreachableError if isinstance(error, RuntimeError) else InputError
        raise unreachable(
            f"the other processes could not be reached ({reason}): check --distributed, and that all of them were started."
        ) from error
    # The first collective operation has a short timeout, so it is done now, before work that takes each process a different time.
    barrier("all processes are connected")


def _is_one_of_several(environment: Any) -> bool:
    slurm = "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS") or 1) > 1
    slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1)
    return slurm or "," in environment.get("TPU_WORKER_HOSTNAMES", "") or slices > 1


def check_joined() -> None:
    """Raises InputError if the devices belong to several processes that are not connected, as on a TPU pod without `--distributed`."""
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise InputError(
            f"this is one of {jax.process_count()} processes and is not connected to the others: give --distributed detect."
        )


def check_same(values: Any, what: str) -> None:
    """Raises InputError in all processes unless they have the same values, which must be serialisable as JSON."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).digest()
    if len({row.tobytes() for row in gather(np.frombuffer(digest, np.uint8))}) > 1:
        raise InputError(
            f"the processes have different {what}: start all of them with the same command, with access to the same files."
        )


def is_distributed() -> bool:
    """Returns whether several processes train together."""
    return jax.distributed.is_initialized() and jax.process_count() > 1  # `process_count` alone would initialise the devices


def is_leader() -> bool:
    """Returns whether this process prints the messages and writes the run's folder."""
    return not is_distributed() or jax.process_index() == 0


@watchdog.phase(watchdog.WAITING)
def barrier(name: str) -> None:
    """Waits until all processes have called it."""
    if is_distributed():
        multihost_utils.sync_global_devices(name)


@watchdog.phase(watchdog.WAITING)
def gather(array: np.ndarray) -> np.ndarray:
    """Returns the arrays of all processes, [process, ...]."""
    if not is_distributed():
        return array[None]
    # The array is sent as bytes, since devices would convert float64 to float32.
    sent = np.frombuffer(np.int32(jax.process_index()).tobytes() + array.tobytes(), np.uint8)
    return in_order_of_processes(np.asarray(multihost_utils.process_allgather(sent))).view(array.dtype).reshape(-1, *array.shape)


def in_order_of_processes(rows: np.ndarray) -> np.ndarray:
    """Returns the rows that the processes have sent, uint8 [process, bytes], sorted by process.

    Rows are received in the order of the devices. Each begins with the number of its process, an int32, which is removed.
    """
    numbers = np.ascontiguousarray(rows[:, :4]).view(np.int32)[:, 0]
    return np.ascontiguousarray(rows[np.argsort(numbers), 4:])


@watchdog.phase(watchdog.WAITING)
def from_process(array: np.ndarray, owner: int) -> np.ndarray:
    """Returns the array of the process `owner` in all processes; the others pass an array of the same shape and type."""
    return (
        np.asarray(multihost_utils.broadcast_one_to_all(array, is_source=jax.process_index() == owner))
        if is_distributed()
        else array
    )


def leave(code: int) -> NoReturn:
    """Ends this process. After a failure it does not wait for the other processes, which otherwise would wait for this one."""
    if code and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
