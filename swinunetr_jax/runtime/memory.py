"""Frees the host memory that compilation has used, which the C library would otherwise keep."""

import ctypes
import functools
import sys
from typing import Any

import jax

# JAX's names of the two steps of compilation that take much memory
COMPILE_EVENTS = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
MIN_SECONDS = 0.2  # a step of compilation that is faster takes little memory


@functools.cache
def release_compile_memory() -> None:
    """Makes JAX free the memory that it needed to trace and compile a large program as soon as the program is compiled.

    The C library glibc would keep it: half a gigabyte for one of these networks, in addition to what the program then allocates. With
    another C library the function does nothing.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is None:
        return

    def on_duration(event: str, duration_secs: float, **_: Any) -> None:
        if event in COMPILE_EVENTS and duration_secs > MIN_SECONDS:
            trim(0)

    jax.monitoring.register_event_duration_secs_listener(on_duration)
