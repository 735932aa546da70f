"""Devices that share a batch, and each volume. The only file that names a mesh axis.

Steps and networks are written as for one device. A mesh has two axes: along `data` the samples of a batch are divided, along `depth`
the first spatial axis of each sample, so that volumes too large for one device are trained on and predicted whole. `jax.jit` divides
the program by where its inputs lie (`Jitted`); `jax.pmap` runs it as it stands on each device's samples (`Mapped`). Two operations
are told how, since the loops in their formulations cannot be divided by the compiler: `by_rows` and `by_slabs`.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from swinunetr_jax.errors import InputError
from swinunetr_jax.platforms import traced_for

DATA, DEPTH = "data", "depth"

T = TypeVar("T")
Step = Callable[..., tuple[Any, dict[str, Array]]]


class Layout(Protocol):
    """How state and batches lie on devices, and how a step is compiled for that."""

    @property
    def size(self) -> int:
        """Devices in use."""

    def compile(self, step: Step, options: Mapping[str, Any]) -> Step:
        """The step as (state, batch, flags) -> (state, metrics) for states and batches that lie so; the state is donated.

        The metric "flag" tells whether any process raised its flag. It is in the step's program, since collective operations of
        two programs may meet in another order in another process.
        """

    def flags(self, flag: bool) -> Array:
        """This process's flag, for the step."""

    def replicate(self, tree: T) -> T:
        """A state on the host or on one device, put whole on every device."""

    def divide(self, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
        """This process's share of a batch, put on the devices that take it."""

    def one(self, tree: T) -> T:
        """A replicated tree as one device holds it."""


def device_mesh(batch: int, depth: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `device_grid`, by default of all devices there are."""
    grid = device_grid(batch, depth, jax.devices() if devices is None else devices)
    return Mesh(grid, (DATA, DEPTH), axis_types=(AxisType.Auto,) * 2)


def device_grid(batch: int, depth: int, devices: Sequence[jax.Device]) -> np.ndarray:
    """As many devices as share a batch of that many samples evenly, each sample by `depth` of them: [data, depth], the first ones.

    Devices that share a sample belong to one process, and several processes use all of their devices.

    Raises:
        InputError: there are too few devices, or processes would be left without work.
    """
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    processes = len({device.process_index for device in devices})
    own = len(devices) // processes
    if depth < 1 or own < depth or (processes > 1 and own % depth):
        raise InputError(f"a volume cannot be divided among {depth} of the {own} devices of a process: choose another depth.")
    groups = len(devices) // depth
    used = max(n for n in range(1, groups + 1) if batch % n == 0)
    if processes > 1 and used < groups:
        each = f" with {depth} for each sample" if depth > 1 else ""
        raise InputError(
            f"a batch of {batch} cannot be shared evenly by {len(devices)} devices of {processes} processes{each}: choose a multiple "
            f"of {groups}."
        )
    return np.array(devices[: used * depth]).reshape(used, depth)


@dataclass(frozen=True)
class Jitted:
    """One program, divided by the compiler: the numbers are those of one device."""

    mesh: Mesh

    @property
    def size(self) -> int:
        return self.mesh.size

    def compile(self, step: Step, options: Mapping[str, Any]) -> Step:
        def flagged(state: Any, batch: dict[str, Array], flags: Array) -> tuple[Any, dict[str, Array]]:
            state, metrics = step(state, batch)
            return state, metrics | {"flag": flags.sum() > 0}

        whole, each = (NamedSharding(self.mesh, spec) for spec in (PartitionSpec(), PartitionSpec((DATA, DEPTH))))
        return jax.jit(
            within(self.mesh, flagged),
            in_shardings=(whole, None, each),  # a batch is divided already
            out_shardings=(whole, whole),
            donate_argnums=0,
            compiler_options=dict(options),
        )

    def flags(self, flag: bool) -> Array:
        own = sum(device.process_index == jax.process_index() for device in self.mesh.devices.flat)
        return jax.make_array_from_process_local_data(
            NamedSharding(self.mesh, PartitionSpec((DATA, DEPTH))), np.full(own, flag, np.int32)
        )

    def replicate(self, tree: T) -> T:
        whole = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(lambda leaf: jax.make_array_from_callback(np.shape(leaf), whole, np.asarray(leaf).__getitem__), tree)

    def divide(self, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
        def put(array: np.ndarray) -> Array:
            """Along the first axis by samples, along the second, where there is one, by depth."""
            shared = NamedSharding(self.mesh, PartitionSpec(*(DATA, DEPTH)[: array.ndim]))
            return jax.make_array_from_process_local_data(shared, array)

        return {name: put(array) for name, array in batch.items()}

    def one(self, tree: T) -> T:
        return jax.tree.map(lambda leaf: leaf.addressable_data(0) if isinstance(leaf, Array) else leaf, tree)


@dataclass(frozen=True)
class Mapped:
    """The program of one device on each device's samples, its gradients and metrics averaged: `jax.pmap`.

    The numbers are those of one device where a loss is the mean of the samples' losses and nothing is drawn at random. States have a
    leading axis of this process's devices. `jax.pmap` takes no compiler options.
    """

    devices: tuple[jax.Device, ...]

    @property
    def size(self) -> int:
        return len(self.devices)

    @property
    def _own(self) -> list[jax.Device]:
        return [device for device in self.devices if device.process_index == jax.process_index()]

    def compile(self, step: Step, options: Mapping[str, Any]) -> Step:
        def own(state: Any, batch: dict[str, Array], flag: Array) -> tuple[Any, dict[str, Array]]:
            new, metrics = step(state, batch, average=lambda tree: lax.pmean(tree, DATA), share=lax.axis_index(DATA))
            return new, metrics | {"flag": lax.psum(flag, DATA) > 0}

        return jax.pmap(traced_for(self.devices[0], own), axis_name=DATA, devices=self.devices, donate_argnums=0)

    def flags(self, flag: bool) -> Array:
        return self._put(np.full(len(self._own), flag, np.int32))

    def replicate(self, tree: T) -> T:
        return jax.tree.map(lambda leaf: self._put(np.broadcast_to(leaf, (len(self._own), *np.shape(leaf)))), tree)

    def divide(self, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
        return {name: self._put(array.reshape(len(self._own), -1, *array.shape[1:])) for name, array in batch.items()}

    def one(self, tree: T) -> T:
        return jax.tree.map(lambda leaf: leaf.addressable_data(0)[0] if isinstance(leaf, Array) else leaf, tree)

    def _put(self, array: np.ndarray) -> Array:
        """One slice for each of this process's devices."""
        return jax.device_put(array, NamedSharding(Mesh(np.array(self._own), (DATA,)), PartitionSpec(DATA)))


def shared(network: Callable[[Any, Array], Array], mesh: Mesh, options: Mapping[str, Any]) -> Callable[[Any, Array], Array]:
    """(weights, patches [n, x, y, z, c]) -> logits, compiled: the devices of the mesh share each patch.

    Weights are `everywhere`, patches come from one device, and logits go to the first one.
    """
    whole, slabs = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(None, DEPTH)))
    run = jax.jit(within(mesh, network), in_shardings=(whole, slabs), out_shardings=slabs, compiler_options=dict(options))
    return lambda weights, patches: jax.device_put(run(weights, jax.device_put(patches, slabs)), mesh.devices.flat[0])


def everywhere(tree: T, mesh: Mesh) -> T:
    """Weights, put whole on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def within(mesh: Mesh, function: Callable[..., T]) -> Callable[..., T]:
    """The function, traced knowing the mesh that will divide it and what its devices are."""

    @functools.wraps(function)
    def traced(*args: Any) -> T:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return traced_for(mesh.devices.flat[0], traced)


def divided_by_the_compiler(function: Callable[..., Any], x: Array, *rest: Any, specs: Callable[[PartitionSpec], Any]) -> Any:
    """`function(x, *rest)`, inside which the compiler divides the work, also over a mesh whose axes are explicit.

    Explicit axes, those of `jax.make_mesh` by default, are part of an array's type, and each operation has to say how its result is
    divided. Inside the function they are automatic.

    Args:
        x: an array, whose type tells how it is divided.
        rest: pytrees of arrays.
        specs: how `x` is divided -> how the results are, a pytree prefix of them. It is used over explicit axes alone.
    """
    meshes = (jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves((x, rest)))
    mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
    if mesh is None:
        return function(x, *rest)
    axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == AxisType.Explicit)
    results = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(jax.typeof(x).sharding.spec))
    return jax.sharding.auto_axes(function, axes=axes, out_sharding=results)(x, *rest)


def by_rows(function: Callable[..., Array], rows: Sequence[Array | None], shared: Sequence[Array]) -> Array:
    """`function(*rows, *shared)`, where rows are independent of one another: every device does its share of them.

    An array may have fewer rows than the first one, which then repeat. All are filled up with zeros to as many for each device.
    """
    mesh, count = _dividing_mesh(), len(rows[0])
    if mesh is None or count < mesh.size:
        return function(*rows, *shared)
    share, by_row, whole = -(-count // mesh.size), PartitionSpec((DATA, DEPTH)), PartitionSpec()

    def place(a: Array | None) -> tuple[Array | None, PartitionSpec]:
        if a is None or (len(a) < count and share * mesh.size == count and share % len(a) == 0):
            return a, whole  # each device repeats it by itself
        repeated = jnp.tile(a, (count // len(a), *[1] * (a.ndim - 1)))
        return jnp.pad(repeated, [(0, share * mesh.size - count), *[(0, 0)] * (a.ndim - 1)]), by_row

    placed, specs = zip(*map(place, rows))
    divided = jax.shard_map(function, in_specs=(*specs, *[whole] * len(shared)), out_specs=by_row, check_vma=False)
    return divided(*placed, *shared)[:count]


def by_slabs(
    function: Callable[..., tuple[Array, ...]], edge: Callable[..., Array], grids: Sequence[Array], shared: Sequence[Array]
) -> tuple[Array, ...]:
    """`function(*grids, *shared)`, convolutions of 3 planes that are zero beyond the grids: every device does its slab of the first axis.

    No slab is copied together with its neighbours' planes, which would take twice the memory: a convolution is linear, so what a
    neighbouring plane adds to the plane beside it is added afterwards.

    Args:
        function: its first result is that of a kernel of 3 planes, the others do not look at neighbours.
        edge: (*planes, *shared, tap) -> what planes [b, y, z, c] of the grids, met by a kernel's first (0) or last (2) plane, give.
        grids: [b, x, y, z, c].
    """
    mesh = _dividing_mesh()
    parts = 1 if mesh is None else mesh.shape[DEPTH]
    if parts == 1 or any(grid.shape[1] % parts for grid in grids) or grids[0].shape[0] % mesh.shape[DATA]:
        return function(*grids, *shared)
    up = [(low, low + 1) for low in range(parts - 1)]
    down = [(high, low) for low, high in up]

    def slab(*args: Array) -> tuple[Array, ...]:
        own, shared = args[: len(grids)], args[len(grids) :]
        # at the ends of the grid nothing is sent, and zeros come
        below = [lax.ppermute(grid[:, -1], DEPTH, up) for grid in own]
        above = [lax.ppermute(grid[:, 0], DEPTH, down) for grid in own]
        y, *rest = function(*own, *shared)
        y = y.at[:, 0].add(edge(*below, *shared, 0)).at[:, -1].add(edge(*above, *shared, 2))
        return y, *rest

    spec = PartitionSpec(DATA, DEPTH)
    specs = (spec,) * len(grids) + (PartitionSpec(),) * len(shared)
    return jax.shard_map(slab, in_specs=specs, out_specs=spec, check_vma=False)(*grids, *shared)


def divides_volumes() -> bool:
    """Whether devices share each volume of the program being traced."""
    mesh = _dividing_mesh()
    return mesh is not None and mesh.shape[DEPTH] > 1


def _dividing_mesh() -> Any:
    """The mesh that divides the program being traced, None where there is but one device or a program of each."""
    mesh = jax.sharding.get_abstract_mesh()
    ours = mesh.axis_names == (DATA, DEPTH) and all(kind == AxisType.Auto for kind in mesh.axis_types)
    return mesh if ours and mesh.size > 1 else None
