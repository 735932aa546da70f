"""Options and hints for XLA, whose own choices are slower for these networks."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from jax import Array, lax
from jax.experimental.layout import Layout, with_layout_constraint

from swinunetr_jax.runtime.device import Device
from swinunetr_jax.runtime.dispatch import for_device

T = TypeVar("T")

# By default XLA stores the volumes of 3-D convolutions with channels first: the volume is transposed before and after the network, and
# cuDNN's kernels transpose each volume back into the layout that tensor cores need.
GPU_OPTIONS = {"xla_gpu_force_conv_nhwc": True}
# Level 3 of the code generator, XLA's default, takes a fifth more CPU time to compile a training step, which then runs no faster.
CPU_OPTIONS = {"xla_backend_optimization_level": 2}
OPTIONS: Mapping[str, Mapping[str, bool | int]] = {"gpu": GPU_OPTIONS, "cpu": CPU_OPTIONS}


def jit(function: Callable[..., Any], *, device: Device | None = None, **jit_options: Any) -> Any:
    """Returns `jax.jit(function, **jit_options)`, traced and compiled in the fastest way for a network on one kind of device.

    Only the implementations for the device's platform are traced, which takes a third less time than tracing those of all platforms, and
    on a GPU convolutions keep their channels last. Results are correct on other platforms too, but computed more slowly.

    Args:
        function: a function that calls a network.
        device: a device on which the program will run, or one of several equal ones; by default the default device of JAX.
        jit_options: the options of `jax.jit`. `compiler_options` are added to those that are set here.
    """
    device = _default_device() if device is None else device
    options = _options_for(device.platform) | (jit_options.pop("compiler_options", None) or {})
    return jax.jit(for_device(device, function), compiler_options=options, **jit_options)


def compiler_options() -> dict[str, bool | int]:
    """Returns the options for `jax.jit(..., compiler_options=...)` that make a network faster on the default device.

    They make programs faster on a GPU and compilation faster on a CPU; on a TPU the dictionary is empty. An option that the installed XLA
    does not have, or that the user has set in `XLA_FLAGS`, is omitted.
    """
    return _options_for(jax.default_backend())


def _options_for(platform: str) -> dict[str, bool | int]:
    set_by_user = os.environ.get("XLA_FLAGS", "")
    options = OPTIONS.get(platform, {})
    return {name: value for name, value in options.items() if f"--{name}=" not in set_by_user and xla_supports(name, value)}


def _default_device() -> Device:
    device: Any = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue] - defined at run time
    return device if isinstance(device, jax.Device) else jax.devices(device)[0]


@functools.cache
def xla_supports(name: str, value: bool | int) -> bool:
    """Returns whether the installed XLA accepts an option."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except Exception as error:
        if name in str(error):
            return False
        raise
    return True


def pin_gradient_layout(gradients: T) -> T:
    """Returns the gradients of parameters in the memory layout of the parameters. A train step calls this before its optimizer.

    On a GPU cuDNN returns the gradients of convolution kernels in another layout. XLA would keep that layout in the optimizer and then
    copy its results back: every kernel and both of its moments, in each step.
    """

    def pin(gradient: Array) -> Array:
        return with_layout_constraint(gradient, Layout(major_to_minor=tuple(range(gradient.ndim))))

    def pin_on_gpu(gradient: Array) -> Array:
        return lax.platform_dependent(gradient, cuda=pin, default=lambda gradient: gradient) if gradient.ndim > 2 else gradient

    return jax.tree.map(pin_on_gpu, gradients)
