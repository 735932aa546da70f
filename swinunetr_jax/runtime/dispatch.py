"""One differentiable function out of formulations for different platforms."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax

ANY, CERTAIN_PLATFORMS = "any", ("cpu", "tpu")  # a "gpu" may be one of several kinds
_platform = jax.make_user_context(ANY)


class Implementation(NamedTuple):
    """A formulation.

    forward: inputs -> output.
    vjp: (inputs, output, gradient of the output) -> gradients of the inputs, None for integers. Without it the forward pass is
        differentiated, which forms nothing again that its gradient does not need.
    """

    forward: Callable[..., Any]
    vjp: Callable[[tuple[Any, ...], Any, Any], tuple[Any, ...]] | None = None

    def backward(self, inputs: tuple[Any, ...], output: Any, dy: Any) -> tuple[Any, ...]:
        if self.vjp is not None:
            return self.vjp(inputs, output, dy)
        gradients = jax.vjp(self.forward, *inputs)[1](dy)
        return tuple(None if g is None or g.dtype == jax.dtypes.float0 else g for g in gradients)


def by_platform(default: Implementation, **platforms: Implementation) -> Callable[..., Any]:
    """A function that takes the formulation of the platform its program is compiled for, forward and backward.

    The choice stands inside the rule for the gradient, not the other way round: differentiating the choice would keep what any of the
    formulations wants to keep, on every platform. So nothing but inputs and output lives until the backward pass. Forward-mode
    differentiation is not supported.
    """

    # compiled functions are traced once for each shape, and networks repeat shapes
    forms = {"default": default, **platforms}
    forwards = {name: jax.jit(form.forward) for name, form in forms.items()}
    backwards = {name: jax.jit(form.backward) for name, form in forms.items()}

    @jax.custom_vjp
    def function(*inputs: Any) -> Any:
        return choose(forwards, *inputs)

    def forward(*inputs: Any) -> tuple[Any, tuple[Any, Any]]:
        output = function(*inputs)
        return output, (inputs, output)

    def backward(saved: tuple[Any, Any], dy: Any) -> tuple[Any, ...]:
        return choose(backwards, *saved, dy)

    function.defvjp(forward, backward)
    return function


def for_device(device: jax.Device, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, traced for that device's platform alone: the other platforms' formulations take a third of the time.

    For programs whose devices are known. Without it a program is traced for all platforms, and the compiler takes its own, but for
    choices of shapes: see `targets`.
    """

    @functools.wraps(function)
    def traced(*args: Any, **options: Any) -> Any:
        with _platform(device.platform if device.platform in CERTAIN_PLATFORMS else ANY):
            return function(*args, **options)

    return traced


def choose(forms: dict[str, Callable[..., Any]], *inputs: Any) -> Any:
    """`lax.platform_dependent` of functions by platform, "default" among them."""
    platform = _platform.value
    if platform == ANY:
        return lax.platform_dependent(*inputs, **forms)
    return forms.get(platform, forms["default"])(*inputs)


def targets(platform: str) -> bool:
    """Whether the program that is traced will run there for all one knows: `for_device` tells, otherwise the default device does.

    For choices that change shapes, which `choose` cannot make. What is chosen has to be right everywhere.
    """
    if _platform.value != ANY:
        return platform == _platform.value
    device = jax.config.jax_default_device
    return platform == (getattr(device, "platform", device) or jax.default_backend())
