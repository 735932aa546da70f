"""Strategies for a train step on devices that share a batch: one program for all (`JitStrategy`) or one for each (`PmapStrategy`)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from swinunetr_jax.runtime.device import Device
from swinunetr_jax.runtime.dispatch import for_device
from swinunetr_jax.runtime.sharding import DATA, SPATIAL, Share, process_share, with_mesh

T = TypeVar("T")
Step = Callable[..., tuple[Any, dict[str, Array]]]


class ParallelStrategy(Protocol):
    """Distributes states and batches over devices, and compiles a step for states and batches that are distributed in this way."""

    @property
    def size(self) -> int:
        """The number of devices in use."""
        ...

    @property
    def share(self) -> Share:
        """The part of each batch that this process has to prepare."""
        ...

    def compile(self, step: Step, options: Mapping[str, Any]) -> Step:
        """Returns the step as a compiled function (state, batch, stop flags) -> (state, metrics), which donates the state.

        The metric "flag" is true if any process raised its flag. It is computed in the step's program because collective operations of
        two programs may run in a different order in another process.
        """
        ...

    def stop_flags(self, flag: bool) -> Array:
        """Returns this process's flag in the form that the compiled step takes."""
        ...

    def replicate(self, tree: T) -> T:
        """Copies a state from the host or from one device to every device."""
        ...

    def shard_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
        """Puts the part `share` of a batch on this process's devices."""
        ...

    def unreplicate(self, tree: T) -> T:
        """Returns one device's copy of a replicated tree."""
        ...


@dataclass(frozen=True)
class JitStrategy:
    """One program that the compiler partitions over a mesh. The results are the same as on one device."""

    mesh: Mesh

    @property
    def size(self) -> int:
        return self.mesh.size

    @property
    def share(self) -> Share:
        return process_share(self.mesh.devices.flat, jax.process_index())

    def compile(self, step: Step, options: Mapping[str, Any]) -> jax.stages.Wrapped:
        def step_with_flags(state: Any, batch: dict[str, Array], flags: Array) -> tuple[Any, dict[str, Array]]:
            state, metrics = step(state, batch)
            return state, metrics | {"flag": flags.sum() > 0}

        replicated, per_device = (NamedSharding(self.mesh, spec) for spec in (PartitionSpec(), PartitionSpec((DATA, SPATIAL))))
        return jax.jit(
            with_mesh(self.mesh, step_with_flags),
            in_shardings=(replicated, None, per_device),  # the batch is sharded already
            out_shardings=(replicated, replicated),
            donate_argnums=0,
            compiler_options=dict(options),
        )

    def stop_flags(self, flag: bool) -> Array:
        local_count = sum(device.process_index == jax.process_index() for device in self.mesh.devices.flat)
        return jax.make_array_from_process_local_data(
            NamedSharding(self.mesh, PartitionSpec((DATA, SPATIAL))), np.full(local_count, flag, np.int32)
        )

    def replicate(self, tree: T) -> T:
        replicated = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(
            lambda leaf: jax.make_array_from_callback(np.shape(leaf), replicated, np.asarray(leaf).__getitem__), tree
        )

    def shard_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
        return {
            name: jax.make_array_from_process_local_data(self.batch_sharding(array.ndim), array) for name, array in batch.items()
        }

    def batch_sharding(self, ndim: int) -> NamedSharding:
        """Returns how an array of a batch is sharded: along its first axis and, if it holds volumes [b, x, y, z, …], along its second."""
        return NamedSharding(self.mesh, PartitionSpec(DATA, SPATIAL) if ndim >= 4 else PartitionSpec(DATA))

    def unreplicate(self, tree: T) -> T:
        return jax.tree.map(lambda leaf: leaf.addressable_data(0) if isinstance(leaf, Array) else leaf, tree)


@dataclass(frozen=True)
class PmapStrategy:
    """One program for each device and its samples (`jax.pmap`); gradients and metrics are averaged over the devices.

    The results are the same as on one device if the loss is the mean of the samples' losses and no random numbers are sampled. States
    have a leading axis with an entry for each device of this process. `jax.pmap` takes no compiler options.
    """

    devices: tuple[Device, ...]

    @property
    def size(self) -> int:
        return len(self.devices)

    @property
    def share(self) -> Share:
        return process_share(self.devices, jax.process_index())

    @property
    def _local_devices(self) -> list[Device]:
        return [device for device in self.devices if device.process_index == jax.process_index()]

    def compile(self, step: Step, options: Mapping[str, Any]) -> Step:
        def step_with_flag(state: Any, batch: dict[str, Array], flag: Array) -> tuple[Any, dict[str, Array]]:
            state, metrics = step(state, batch, average=lambda tree: lax.pmean(tree, DATA), share=lax.axis_index(DATA))
            return state, metrics | {"flag": lax.psum(flag, DATA) > 0}

        traced = for_device(self.devices[0], step_with_flag)
        return jax.pmap(traced, axis_name=DATA, devices=self.devices, donate_argnums=0)

    def stop_flags(self, flag: bool) -> Array:
        return self._put(np.full(len(self._local_devices), flag, np.int32))

    def replicate(self, tree: T) -> T:
        count = len(self._local_devices)
        return jax.tree.map(lambda leaf: self._put(np.broadcast_to(leaf, (count, *np.shape(leaf)))), tree)

    def shard_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
        count = len(self._local_devices)
        return {name: self._put(array.reshape(count, -1, *array.shape[1:])) for name, array in batch.items()}

    def unreplicate(self, tree: T) -> T:
        return jax.tree.map(lambda leaf: leaf.addressable_data(0)[0] if isinstance(leaf, Array) else leaf, tree)

    def _put(self, array: np.ndarray) -> Array:
        """Puts one slice of the first axis on each of this process's devices."""
        return jax.device_put(array, NamedSharding(Mesh(np.array(self._local_devices), (DATA,)), PartitionSpec(DATA)))
