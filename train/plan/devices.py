"""The devices that a plan is made for: those of this machine, or a TPU that this machine lacks but whose compiler is installed."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from swinunetr_jax import InputError
from swinunetr_jax.runtime.device import Device
from swinunetr_jax.runtime.sharding import sort_devices
from swinunetr_jax.runtime.xla import compiler_options

CHIP_BYTES = {"v5e": 16 << 30, "v6e": 32 << 30}  # memory of a chip
USABLE = 0.92  # share of the memory that a step may need; the rest is for the kernels' work spaces and for fragmentation
# Without LLVM's optimizations a step compiles several times as fast. The memory is assigned before LLVM runs, so it stays the same.
CPU_OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


@dataclass(frozen=True)
class Target:
    """The devices that a plan is made for.

    Attributes:
        kind: the kind of device, such as "cpu" or "NVIDIA H100 80GB HBM3".
        devices: the devices, or descriptions of them.
        memory: the memory of one device in bytes.
        options: the options with which steps are compiled.
        is_here: whether programs can be run on the devices.
    """

    kind: str
    devices: tuple[Device, ...]
    memory: int
    options: dict[str, Any]
    is_here: bool

    @property
    def platform(self) -> str:
        return self.devices[0].platform

    @property
    def limit(self) -> float:
        """The bytes that a step may need on a device."""
        return USABLE * self.memory


def find_target(name: str | None = None, memory: float | None = None) -> Target:
    """Returns the devices that a name stands for.

    Args:
        name: "cpu", "gpu", a kind of TPU such as "v5e" (one chip), or a topology such as "v5e:2x4". None selects JAX's default devices.
        memory: the memory of one device in GiB; by default what the device reports.

    Raises:
        InputError: the name is not known, there is no such device or compiler, or the memory is not known or not above 0.
    """
    if memory is not None and not memory > 0:
        raise InputError(f"--memory is {memory:g}, expected the memory of a device in GiB, above 0.")
    memory_bytes = None if memory is None else int(memory * (1 << 30))
    kind = (name or "").partition(":")[0]
    if name is not None and kind in CHIP_BYTES:
        devices = topology_devices(name if ":" in name else f"{name}:2x2")
        return Target(kind, tuple(devices if ":" in name else devices[:1]), memory_bytes or CHIP_BYTES[kind], {}, False)
    if name not in (None, "cpu", "gpu", "tpu"):
        raise InputError(
            f"there is no device {name}: give cpu, gpu or tpu for those of this machine, or {', '.join(CHIP_BYTES)} or a topology such as "
            "v5e:2x4 for a TPU."
        )
    try:
        available = jax.devices() if name is None else jax.devices(name)
    except RuntimeError as error:
        raise InputError(
            f"this machine has no {name} that JAX can use ({str(error)[:120]}): give another --device, or leave it out."
        ) from error
    device = available[0]
    options = CPU_OPTIONS if device.platform == "cpu" else compiler_options()
    return Target(device.device_kind, tuple(available), memory_bytes or _memory(device), dict(options), True)


def topology_devices(topology: str, slices: int = 1) -> list[Device]:
    """Returns descriptions of the chips of a TPU topology such as v5e:2x4, for which programs can be compiled without a TPU.

    Args:
        topology: the kind and the grid of the chips of a slice.
        slices: the number of equal slices.

    Raises:
        InputError: the compiler is not installed, or does not know the topology.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to query
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=topology, num_slices=slices).devices
    except Exception as error:
        raise InputError(
            f"the TPU compiler does not know {topology} ({str(error)[:200]}): is `libtpu` installed, and does no other program use "
            "it? A killed program does not remove /tmp/libtpu_lockfile."
        ) from error
    return sort_devices(devices)


def _memory(device: Any) -> int:
    """Returns the bytes that JAX may use on a device of this machine."""
    if device.platform == "cpu":
        return _host_memory(_LIMIT_FILES)
    statistics = device.memory_stats() or {}
    if "bytes_limit" not in statistics:
        raise InputError(f"{device.device_kind} does not state its memory: give it in GiB with --memory.")
    return int(statistics["bytes_limit"])


def _host_memory(limit_files: Sequence[str]) -> int:
    """Returns the bytes of memory of this machine, or of this container if it has less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in limit_files:
        try:
            total = min(total, int(Path(file).read_text()))
        except (OSError, ValueError):  # no container, or the word "max"
            continue
    return total
