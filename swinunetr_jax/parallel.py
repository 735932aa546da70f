"""Devices that share a batch. The only file that names a mesh axis: steps and networks are written as for one device, and `jax.jit`
divides them by where their inputs lie."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DATA = "data"

T = TypeVar("T")


def data_mesh(batch: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """As many devices as share a batch of that many samples evenly, the first ones of all there are."""
    devices = jax.devices() if devices is None else devices
    count = max(n for n in range(1, len(devices) + 1) if batch % n == 0)
    return Mesh(np.array(devices[:count]), (DATA,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device: weights, moments, numbers."""
    return NamedSharding(mesh, PartitionSpec())


def by_sample(mesh: Mesh) -> NamedSharding:
    """The first axis divided among the devices: a batch."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def replicate(tree: T, mesh: Mesh) -> T:
    """A state, put whole on every device."""
    return jax.device_put(tree, replicated(mesh))


def divide(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """A batch on the host, each sample put on the device that takes it."""
    return {name: jax.device_put(array, by_sample(mesh)) for name, array in batch.items()}


def on_one(tree: Any) -> Any:
    """A replicated tree as one device holds it, for work that is not divided."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0) if isinstance(leaf, Array) else leaf, tree)
