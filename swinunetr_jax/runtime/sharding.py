"""Meshes of devices, and functions that are sharded over them.

Steps and networks are written as for one device. A mesh has two axes: the samples of a batch are sharded along `data`, the first spatial
axis of each sample along `spatial`, so that a network can be applied to, and trained on, whole volumes that are too large for one device.
The compiler partitions the program by the shardings of its inputs. Two kinds of functions are sharded here by hand, because the compiler
cannot partition the loops in their implementations: functions of rows (`shard_rows`) and convolutions along depth
(`shard_depth_with_halo`).

Letters in shapes: b batch, d h w grid, c channels.
"""

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from swinunetr_jax.errors import InputError
from swinunetr_jax.runtime.device import Device
from swinunetr_jax.runtime.dispatch import for_device

DATA, SPATIAL = "data", "spatial"

T = TypeVar("T")


# ---- meshes


def device_mesh(batch: int, spatial: int = 1, devices: Sequence[Device] | None = None) -> Mesh:
    """Returns the mesh of `device_grid`, by default of all devices."""
    grid = device_grid(batch, spatial, jax.devices() if devices is None else devices)
    return Mesh(grid, (DATA, SPATIAL), axis_types=(AxisType.Auto,) * 2)


def device_grid(batch: int, spatial: int, devices: Sequence[Device]) -> np.ndarray:
    """Returns an array [data, spatial] of as many of the devices as can share a batch of `batch` samples evenly.

    Each sample is shared by `spatial` devices, which belong to one process. Several processes use all of their devices. Devices of one
    slice are neighbours, so that most of what neighbours exchange stays on the fast links within a slice.

    Raises:
        InputError: there are too few devices, or some processes would have no work.
    """
    devices = sort_devices(devices)
    processes = len({device.process_index for device in devices})
    per_process = len(devices) // processes
    if spatial < 1 or per_process < spatial or (processes > 1 and per_process % spatial):
        raise InputError(
            f"a volume cannot be divided among {spatial} of the {per_process} devices of a process: choose another number of spatial "
            "shards."
        )
    groups = len(devices) // spatial
    used = max(n for n in range(1, groups + 1) if batch % n == 0)
    if processes > 1 and used < groups:
        sharing = f" with {spatial} for each sample" if spatial > 1 else ""
        raise InputError(
            f"a batch of {batch} cannot be shared evenly by {len(devices)} devices of {processes} processes{sharing}: choose a multiple "
            f"of {groups}."
        )
    return np.array(devices[: used * spatial]).reshape(used, spatial)


def sort_devices(devices: Iterable[Device]) -> list[Device]:
    """Returns the devices sorted by slice, process and number; those of a process are adjacent even if they are in several slices."""
    devices, first_slice = list(devices), dict[int, int]()
    for device in devices:
        process, number = device.process_index, slice_of(device)
        first_slice[process] = min(first_slice.get(process, number), number)
    return sorted(
        devices, key=lambda device: (first_slice[device.process_index], device.process_index, slice_of(device), device.id)
    )


def slice_of(device: Device) -> int:
    """Returns the number of a device's slice, which is a group of devices with fast links. It is 0 if the device does not state one."""
    return getattr(device, "slice_index", None) or 0


@dataclass(frozen=True)
class Share:
    """One of `count` equal parts of a batch, which consist of consecutive samples: part 0 has the first ones."""

    number: int
    count: int


def process_share(devices: Iterable[Device], process: int) -> Share:
    """Returns the part of each batch that belongs to a process.

    Args:
        devices: the devices of a mesh in the order of its rows.
        process: the number of the process. The part may have another number, because slices come before processes in the order.
    """
    processes = list(dict.fromkeys(device.process_index for device in devices))
    return Share(processes.index(process), len(processes))


def with_mesh(mesh: Mesh, function: Callable[..., T]) -> Callable[..., T]:
    """Returns the same function, but it is traced for the mesh over which it will be sharded, and for the platform of its devices."""

    @functools.wraps(function)
    def traced(*args: Any) -> T:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return for_device(mesh.devices.flat[0], traced)


def replicate(tree: T, mesh: Mesh) -> T:
    """Copies weights to every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


# ---- functions sharded by the compiler


def spatially_sharded(
    network: Callable[[Any, Array], Array], mesh: Mesh, options: Mapping[str, Any]
) -> Callable[[Any, Array], Array]:
    """Compiles (weights, patches [n, d, h, w, c]) -> logits for a mesh whose devices share each patch along d.

    The weights must be replicated. The patches come from one device, and the logits are returned on the mesh's first device.
    """
    replicated, sharded = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(None, SPATIAL)))
    run = jax.jit(
        with_mesh(mesh, network), in_shardings=(replicated, sharded), out_shardings=sharded, compiler_options=dict(options)
    )
    return lambda weights, patches: jax.device_put(run(weights, jax.device_put(patches, sharded)), mesh.devices.flat[0])


def auto_sharded(function: Callable[..., Any], x: Array, *rest: Any, specs: Callable[[PartitionSpec], Any]) -> Any:
    """Returns `function(x, *rest)` and lets the compiler partition it, even over a mesh whose axes are explicit.

    Explicit axes, the default of `jax.make_mesh`, are part of an array's type, and each operation has to say how its result is sharded.
    Inside the function they are automatic.

    Args:
        x: an array, whose type contains its sharding.
        rest: pytrees of arrays.
        specs: maps the sharding of `x` to that of the results, a pytree prefix of them. It is only used over explicit axes.
    """
    meshes = (jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves((x, rest)))
    mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
    if mesh is None:
        return function(x, *rest)
    axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == AxisType.Explicit)
    _warn_of_idle_axes(jax.typeof(x).sharding.spec, mesh)
    results = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(jax.typeof(x).sharding.spec))
    return jax.sharding.auto_axes(function, axes=axes, out_sharding=results)(x, *rest)


def _warn_of_idle_axes(spec: PartitionSpec, mesh: AbstractMesh) -> None:
    """Warns if space is sharded and an axis of the mesh shards nothing of the input.

    XLA's gradients of kernels are then multiplied by the size of this axis. This holds for every convolution of XLA in JAX 0.10.2 and
    0.12.0; `docs/transformations.md` describes it.
    """
    by_axis = [names if isinstance(names, tuple) else (names,) for names in spec]
    used = {name for names in by_axis for name in names}
    idle = [name for name, size in mesh.shape.items() if size > 1 and name not in used]
    if idle and any(name is not None for names in by_axis[1:-1] for name in names):
        warnings.warn(
            f"the input's spatial axes are sharded, but the axis {idle[0]!r} of the mesh shards nothing of the input: XLA then multiplies "
            f"the gradients of convolutions' kernels by {mesh.shape[idle[0]]}. Shard the samples over {idle[0]!r}, or use a mesh "
            "without it.",
            stacklevel=3,
        )


# ---- functions sharded by hand


def shard_rows(function: Callable[..., Array], rows: Sequence[Array | None], shared: Sequence[Array]) -> Array:
    """Returns `function(*rows, *shared)` for rows that are independent of one another; every device computes its share of them.

    Args:
        function: maps arrays of n rows, and the shared arrays, to n rows.
        rows: arrays of rows, or None. An array with fewer rows than the others applies to them cyclically: `function` repeats it, or it is
            repeated here if a device's share is not a multiple of its rows. Arrays are padded with zeros to the same number of rows for
            each device.
        shared: arrays that every device needs completely.
    """
    mesh = _sharding_mesh()
    if mesh is None:
        return function(*rows, *shared)
    count = max(len(array) for array in rows if array is not None)
    if count < mesh.size:
        return function(*rows, *shared)
    rows_per_device, by_row, replicated = -(-count // mesh.size), PartitionSpec((DATA, SPATIAL)), PartitionSpec()

    def prepare(array: Array | None) -> tuple[Array | None, PartitionSpec]:
        if array is None or (len(array) < count and rows_per_device * mesh.size == count and rows_per_device % len(array) == 0):
            return array, replicated  # each device repeats it itself
        repeated = jnp.tile(array, (count // len(array), *[1] * (array.ndim - 1)))
        return jnp.pad(repeated, [(0, rows_per_device * mesh.size - count), *[(0, 0)] * (array.ndim - 1)]), by_row

    prepared, specs = zip(*map(prepare, rows))
    sharded = jax.shard_map(function, in_specs=(*specs, *[replicated] * len(shared)), out_specs=by_row, check_vma=False)
    return sharded(*prepared, *shared)[:count]


@dataclass(frozen=True)
class HaloOperation:
    """An operation on grids [b, d, h, w, c] that reads one plane beyond each end of a slab along d, and takes zeros beyond the grid.

    Attributes:
        interior: (*grids, *shared) -> the results for a slab as if there were zeros beyond it.
        edge: (*planes, *shared, tap) -> what must be added to the first or last plane of each result of the slab, or None if it is nothing.
            `planes` has the neighbouring plane [b, h, w, c] of each grid. `tap` is the plane of the kernel by which the neighbouring
            plane is multiplied: 0 for the plane before the slab, 2 for the plane after it.
    """

    interior: Callable[..., tuple[Array, ...]]
    edge: Callable[..., tuple[Array | None, ...]]


def shard_depth_with_halo(operation: HaloOperation, grids: Sequence[Array], shared: Sequence[Array]) -> tuple[Array, ...]:
    """Returns the operation's results on grids [b, d, h, w, c]; every device computes a slab of d.

    A slab is not concatenated with its neighbours' planes, because the copy would take twice the memory. A convolution is linear, so the
    contributions of the neighbouring planes are added afterwards.
    """
    mesh = _sharding_mesh()
    parts = 1 if mesh is None else mesh.shape[SPATIAL]
    if mesh is None or parts == 1 or any(grid.shape[1] % parts for grid in grids) or grids[0].shape[0] % mesh.shape[DATA]:
        return operation.interior(*grids, *shared)
    up = [(low, low + 1) for low in range(parts - 1)]
    down = [(high, low) for low, high in up]

    def slab(*args: Array) -> tuple[Array, ...]:
        slabs, shared = args[: len(grids)], args[len(grids) :]
        # at the ends of the grid nothing is sent, and ppermute returns zeros
        below = [lax.ppermute(grid[:, -1], SPATIAL, up) for grid in slabs]
        above = [lax.ppermute(grid[:, 0], SPATIAL, down) for grid in slabs]
        results = operation.interior(*slabs, *shared)
        first, last = operation.edge(*below, *shared, 0), operation.edge(*above, *shared, 2)
        return tuple(
            y if low is None or high is None else y.at[:, 0].add(low).at[:, -1].add(high)
            for y, low, high in zip(results, first, last, strict=True)
        )

    spec = PartitionSpec(DATA, SPATIAL)
    specs = (spec,) * len(grids) + (PartitionSpec(),) * len(shared)
    return jax.shard_map(slab, in_specs=specs, out_specs=spec, check_vma=False)(*grids, *shared)


def is_spatially_sharded() -> bool:
    """Returns whether devices share each volume of the program that is being traced."""
    mesh = _sharding_mesh()
    return mesh is not None and mesh.shape[SPATIAL] > 1


def _sharding_mesh() -> AbstractMesh | None:
    """Returns the mesh over which the program that is being traced is sharded, or None for one device or inside `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    is_ours = mesh.axis_names == (DATA, SPATIAL) and all(kind == AxisType.Auto for kind in mesh.axis_types)
    return mesh if is_ours and mesh.size > 1 else None
