"""Chooses the implementation of an operation by the platform that a program is compiled for and by the shapes of the inputs.

An operation has one `Table`: a reference implementation for every platform, and for some platforms implementations that are faster. An
implementation says itself which inputs it supports. `dispatch(table, *inputs)` calls the chosen one:

- If the platform is known while the program is traced (`for_device`), only its implementation is traced.
- Otherwise the implementations of all platforms are traced, and the compiler keeps the one of its platform (`lax.platform_dependent`).
- Inside `reference_ops` only the reference is traced, and JAX differentiates it, in forward mode too.

Every gradient that is written by hand is in a table here or is a `hand_differentiated` function, so that `reference_ops` applies to it.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, TypeVar

import jax
import jax.export
from jax import lax

from swinunetr_jax.runtime.device import Device
from swinunetr_jax.runtime.manual_axes import vary_alike

ANY = "any"
CERTAIN_PLATFORMS = ("cpu", "tpu")  # a device of the platform "gpu" may be NVIDIA's or AMD's
_target = jax.make_user_context(ANY)
_reference_only = jax.make_user_context(False)  # a part of the cache key of `jax.jit`, like `_target`

Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")


@contextlib.contextmanager
def reference_ops() -> Iterator[None]:
    """Traces only plain formulations that JAX can differentiate in both modes. It is a context manager and a decorator.

    Outside of this context, gradients are written by hand: this saves time and memory, but JAX cannot differentiate such functions in
    forward mode. Inside of it `jax.jvp`, `jax.linearize`, `jax.jacfwd`, `jax.hessian` and forward-over-reverse products work on the
    network and on its losses. The results are the same up to rounding. They take more time and memory than outside.

    The context applies while a program is traced. A function under `jax.jit` that was traced outside of the context is traced again if it
    is called inside, also if it is compiled by `swinunetr_jax.jit`.
    """
    with _reference_only(True):
        yield


def uses_reference_ops() -> bool:
    """Returns whether the program that is being traced is inside `reference_ops`."""
    return _reference_only.value


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operation. Operations differ in their inputs and outputs, whose types are therefore not stated here.

    Attributes:
        forward: inputs -> output.
        vjp: (inputs, output, gradient of the output) -> gradients of the inputs, None for integers. By default JAX differentiates
            `forward`, which is computed again in the backward pass as far as its gradient needs it.
        supports: inputs -> whether the implementation takes inputs of these shapes and types and is the fastest for them. It is called
            with arrays, tracers or `jax.ShapeDtypeStruct`s. By default all inputs are supported.
        requires: what `supports` tests, for explanations, such as "at most 343 voxels".
    """

    forward: Callable[..., Any]
    vjp: Callable[[tuple[Any, ...], Any, Any], tuple[Any, ...]] | None = None
    supports: Callable[..., bool] | None = None
    requires: str = ""

    def __call__(self, *inputs: Any) -> Any:
        """Computes the operation with this implementation, on every platform. Its gradient is that of `vjp`, except in `reference_ops`."""
        return self.forward(*inputs) if uses_reference_ops() else _with_gradient((("default", self),))(*inputs)

    def backward(self, inputs: tuple[Any, ...], output: Any, dy: Any) -> tuple[Any, ...]:
        """Returns the gradients of the inputs, None for integers."""
        if self.vjp is not None:
            return self.vjp(inputs, output, dy)
        gradients = jax.vjp(self.forward, *inputs)[1](dy)
        return tuple(None if _is_float0(g) else g for g in gradients)

    @property
    def name(self) -> str:
        """The name of the implementation in explanations, such as "conv.cpu.im2col"."""
        function = getattr(self.forward, "func", self.forward)  # a functools.partial has no name
        module = function.__module__.removeprefix("swinunetr_jax.").removeprefix("ops.")
        return f"{module}.{function.__name__.removeprefix('_')}"


@dataclass(frozen=True, eq=False)
class Table:
    """The implementations of one operation.

    Attributes:
        operation: the name of the operation.
        reference: the implementation for inputs and platforms that no other one supports.
        platforms: implementations by platform ("cpu", "cuda", "tpu"). The first one that supports the inputs is chosen.
    """

    operation: str
    reference: Implementation
    platforms: Mapping[str, tuple[Implementation, ...]]

    def choose(self, platform: str, *inputs: Any) -> Implementation:
        """Returns the implementation for these inputs on a platform.

        It is the reference in `reference_ops`, and for inputs of symbolic sizes (`jax.export`), with which sizes cannot be compared.
        """
        if uses_reference_ops() or any(map(_has_symbolic_size, inputs)):
            return self.reference
        for implementation in self.platforms.get(platform, ()):
            if implementation.supports is None or implementation.supports(*inputs):
                return implementation
        return self.reference


def dispatch(table: Table, *inputs: Any) -> Any:
    """Returns the operation's result on the inputs, by the implementation that `select` chooses for them."""
    return select(table, *inputs)(*inputs)


def select(table: Table, *inputs: Any) -> Callable[..., Any]:
    """Returns the operation as a function for inputs of these shapes and types, with the gradient of the chosen implementation.

    The platform is chosen inside the rule for the gradient, not the other way round: if JAX differentiated the choice, it would keep
    the intermediates of every implementation on every platform. So only inputs and output are kept for the backward pass. Forward-mode
    differentiation is supported in `reference_ops` only.
    """
    chosen = _chosen(table, *inputs)
    return table.reference.forward if uses_reference_ops() else _with_gradient(chosen)


def platform_dispatch(table: Table, *inputs: Any) -> Any:
    """Returns the operation's result as `dispatch` does, but differentiated by JAX. It is used inside rules for gradients."""
    return _switch({platform: implementation.forward for platform, implementation in _chosen(table, *inputs)}, *inputs)


def layout_dispatch(table: Table, *inputs: Any) -> Any:
    """Returns the operation's result, for a table whose implementations return different types.

    A compiler cannot choose between types, so the choice is made while the program is traced, for `target_platform()`. Every
    implementation has to be correct on every platform.
    """
    implementation = table.choose(target_platform(), *inputs)
    _record(table, implementation, inputs)
    return implementation.forward(*inputs)


class hand_differentiated(Generic[Inputs, Output]):
    """A function with a gradient that is written by hand, as for `jax.custom_vjp`; in `reference_ops` JAX differentiates the function.

    Args:
        plain: the function; JAX can differentiate it in both modes.
        nondiff_argnums: the positions of the arguments that are not differentiated.
    """

    def __init__(self, plain: Callable[Inputs, Output], nondiff_argnums: tuple[int, ...] = ()):
        functools.update_wrapper(self, plain)
        self._plain = plain
        self._function = jax.custom_vjp(plain, nondiff_argnums=nondiff_argnums)
        self.defvjp = self._function.defvjp

    def __call__(self, *args: Inputs.args, **options: Inputs.kwargs) -> Output:
        if uses_reference_ops():
            return self._plain(*args, **options)
        return self._function(*vary_alike(args), **options)


# ---- the platform


def for_device(device: Device, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the same function, but only the implementations for the device's platform are traced, which takes a third less time.

    It is meant for programs whose devices are known. Otherwise a program is traced for all platforms, and the compiler keeps the
    implementations of its own platform, except where implementations differ in the types of their results: see `layout_dispatch`.
    """

    @functools.wraps(function)
    def traced(*args: Any, **options: Any) -> Any:
        with _target(device.platform if device.platform in CERTAIN_PLATFORMS else ANY):
            return function(*args, **options)

    return traced


def target_platform() -> str:
    """Returns the platform on which the program that is traced is expected to run: that of `for_device`, or of the default device."""
    if _target.value != ANY:
        return _target.value
    device: Any = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue] - defined at run time
    return getattr(device, "platform", device) or jax.default_backend()


# ---- records for explanations


@dataclass(frozen=True)
class Choice:
    """One call of an operation: its inputs, with shapes instead of arrays, and the implementation that was chosen."""

    table: Table
    inputs: tuple[Any, ...]
    implementation: Implementation


@dataclass(frozen=True)
class _Recorder:
    choices: list[Choice] = field(default_factory=list)


_recorder: contextvars.ContextVar[_Recorder | None] = contextvars.ContextVar("recorder", default=None)


@contextlib.contextmanager
def record_choices(platform: str) -> Iterator[list[Choice]]:
    """Yields a list of the choices for this platform that are made in the block, except those inside implementations."""
    recorder = _Recorder()
    token = _recorder.set(recorder)
    try:
        with _target(platform):
            yield recorder.choices
    finally:
        _recorder.reset(token)


def _record(table: Table, implementation: Implementation, inputs: tuple[Any, ...]) -> None:
    if (recorder := _recorder.get()) is not None:
        recorder.choices.append(Choice(table, jax.tree.map(_shape_of, inputs), implementation))


def _shape_of(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, jax.Array) else leaf


def _has_symbolic_size(leaf: Any) -> bool:
    return any(map(jax.export.is_symbolic_dim, getattr(leaf, "shape", ())))


# ---- the choice

Chosen = tuple[tuple[str, Implementation], ...]  # implementations by platform, "default" first


def _chosen(table: Table, *inputs: Any) -> Chosen:
    target = _target.value
    if target != ANY:
        implementation = table.choose(target, *inputs)
        _record(table, implementation, inputs)
        return (("default", implementation),)
    others = ((platform, table.choose(platform, *inputs)) for platform in table.platforms)
    return (("default", table.reference), *(pair for pair in others if pair[1] is not table.reference))


@functools.cache
def _with_gradient(chosen: Chosen) -> Callable[..., Any]:
    forwards = {platform: _compiled(implementation.forward, platform) for platform, implementation in chosen}
    backwards = {platform: _compiled(implementation.backward, platform) for platform, implementation in chosen}

    @jax.custom_vjp
    def function(*inputs: Any) -> Any:
        return _switch(forwards, *inputs)

    def forward(*inputs: Any) -> tuple[Any, tuple[Any, Any]]:
        output = function(*inputs)
        return output, (inputs, output)

    def backward(saved: tuple[Any, Any], dy: Any) -> tuple[Any, ...]:
        return _switch(backwards, *saved, dy)

    function.defvjp(forward, backward)
    return lambda *inputs: function(*vary_alike(inputs))


def _switch(functions: dict[str, Callable[..., Any]], *inputs: Any) -> Any:
    return lax.platform_dependent(*inputs, **functions) if len(functions) > 1 else functions["default"](*inputs)


@functools.cache
def _compiled(function: Callable[..., Any], platform: str) -> Callable[..., Any]:
    """Returns the function under `jax.jit`, so that it is traced only once for each shape. The same shapes occur many times in a network.

    Operations that it calls are traced only for the same platform.
    """

    @functools.wraps(function)
    def traced(*inputs: Any) -> Any:
        token = _recorder.set(None)
        try:
            with _target(_target.value if platform == "default" else platform):
                return function(*inputs)
        finally:
            _recorder.reset(token)

    return jax.jit(traced)


def _is_float0(gradient: Any) -> bool:
    return gradient is None or getattr(gradient, "dtype", None) == jax.dtypes.float0
