"""What the compiler has to be told beside the program, since its own choice is slower for these networks."""

import ctypes
import functools
import sys
from typing import Any, TypeVar

import jax
from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint

T = TypeVar("T")

# Without it XLA lays 3-D convolutions out with channels first: a transposition of the volume in front of the network and behind it, and
# kernels inside cuDNN that transpose each volume back to what tensor cores take.
GPU_OPTIONS = {"xla_gpu_force_conv_nhwc": True}

COMPILING = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)  # JAX's names of its steps
SMALL = 0.2  # seconds


def compiler_options() -> dict[str, bool]:
    """For `jax.jit(..., compiler_options=compiler_options())` around a network: what helps on this machine's device.

    Nothing but on a GPU. An option that the installed XLA does not know is left out, so a program compiles with any version.
    """
    if jax.default_backend() != "gpu":
        return {}
    return {name: value for name, value in GPU_OPTIONS.items() if is_known(name, value)}


@functools.cache
def is_known(name: str, value: bool) -> bool:
    """Whether the installed XLA accepts an option."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except Exception as error:
        if name in str(error):
            return False
        raise
    return True


@functools.cache
def trim_after_compiling() -> None:
    """From now on, what tracing and compiling a large program took goes back to the system when it is done.

    glibc would keep it: half a gigabyte for one of these networks, beside what the program then takes for itself. Nothing where there
    is another C library.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

    def compiled(event: str, seconds: float, **_: Any) -> None:
        if event in COMPILING and seconds > SMALL:
            trim(0)

    if trim is not None:
        jax.monitoring.register_event_duration_secs_listener(compiled)


def in_order(gradients: T) -> T:
    """Gradients of parameters laid out as the parameters are, for a train step to call before its optimizer.

    On a GPU the gradients of convolution kernels come from cuDNN in another layout. Left alone, XLA carries it into the optimizer, whose
    results are then copied back: every kernel and both its moments, in each step.
    """

    def pin(gradient: Array) -> Array:
        return with_layout_constraint(gradient, Layout(major_to_minor=tuple(range(gradient.ndim))))

    def one(gradient: Array) -> Array:
        return lax.platform_dependent(gradient, cuda=pin, default=lambda gradient: gradient) if gradient.ndim > 2 else gradient

    return jax.tree.map(one, gradients)
