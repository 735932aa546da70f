"""Several processes that train one network, such as the hosts of a pod: how they find, follow and end one another.

All of them run the same loop in the same order; the leader alone speaks, and writes the run's folder (but its cache), which all must
see. What they do together (`barrier`, `gather`, …) every one of them has to call. With one process nothing here waits or sends.
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

# A process that was lost is noticed after so long; a collective operation may notice at once.
HEARTBEAT_SECONDS = 20


@dataclass(frozen=True)
class Launch:
    """Which of several processes this one is."""

    distributed: str = "auto"
    """auto: one of several under SLURM's srun or where TPU_WORKER_HOSTNAMES names several hosts, else alone; detect: let JAX ask the
    cluster (TPU pods, MPI, Kubernetes); off: alone; or HOST:PORT of the first process, with --processes and --process."""
    processes: int | None = None
    """How many there are."""
    process: int | None = None
    """Which one this is, from 0."""


def join(launch: Launch) -> None:
    """Meets the other processes, if there are any; before anything asks for devices.

    Raises:
        InputError: the options contradict one another, or the others cannot be met.
    """
    where, numbers = launch.distributed, (launch.processes, launch.process)
    given = [number is not None for number in numbers]
    if where in ("auto", "detect", "off"):
        if any(given):
            raise InputError("--processes and --process say who is who at an address: give --distributed HOST:PORT with them.")
        if where == "off" or (where == "auto" and not _among_several(os.environ)):
            return
        told: dict[str, Any] = {}
    else:
        if not re.fullmatch(r"\S+:\d+", where):
            raise InputError(f"--distributed must be auto, detect, off or HOST:PORT, got {where!r}.")
        if not all(given) or not 0 <= launch.process < launch.processes:
            raise InputError("--distributed HOST:PORT needs --processes N and --process from 0 to N - 1.")
        told = {"coordinator_address": where, "num_processes": launch.processes, "process_id": launch.process}
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from us
    try:
        jax.distributed.initialize(**told, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"the other processes could not be met ({reason}): check --distributed and that all were started."
        ) from error
    barrier("all are here")  # devices give one another little time at their first meeting, and what follows may take long


def _among_several(environment: Any) -> bool:
    slurm = "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS") or 1) > 1
    return slurm or "," in environment.get("TPU_WORKER_HOSTNAMES", "")


def check_joined() -> None:
    """Raises InputError where devices are those of several processes that have not met, as on a TPU pod without being told."""
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise InputError(f"this is one of {jax.process_count()} processes and has not met the others: give --distributed detect.")


def check_same(values: Any, what: str) -> None:
    """Raises InputError in all processes where they do not have the same values (plain ones, as for JSON)."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).digest()
    if len({row.tobytes() for row in gather(np.frombuffer(digest, np.uint8))}) > 1:
        raise InputError(f"the processes have other {what}: start all with the same command and let all see the same files.")


def several() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1  # which alone would start the devices


def is_leader() -> bool:
    return not several() or jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all are here."""
    if several():
        multihost_utils.sync_global_devices(name)


def gather(array: np.ndarray) -> np.ndarray:
    """What each of them has, [process, ...]."""
    if not several():
        return array[None]
    sent = np.frombuffer(array.tobytes(), np.uint8)  # as bytes: devices would make float32 of float64
    return np.asarray(multihost_utils.process_allgather(sent)).view(array.dtype).reshape(-1, *array.shape)


def from_process(array: np.ndarray, owner: int) -> np.ndarray:
    """The array that one of them has, in all; the others give one of the same shape and type."""
    return np.asarray(multihost_utils.broadcast_one_to_all(array, is_source=jax.process_index() == owner)) if several() else array


def leave(code: int) -> NoReturn:
    """Ends this process. One that failed does not wait for the others, who then end too instead of waiting for it."""
    if code and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
