"""Grad-CAM: which places of an intermediate of the network speak for one of its outputs.

Source: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", arXiv 1610.02391; for
segmentation: Vinogradova, Dibrov and Myers 2020, "Towards Interpretable Semantic Segmentation via Gradient-weighted Class Activation
Mapping" (Seg-Grad-CAM), arXiv 2002.11434.

For the activations A [*grid, c] of an intermediate, and the logits y [*voxels] of an output:

    score = Σ y over a set of voxels        weight of channel c = mean of ∂score/∂A[..., c]        map = max(0, Σ_c weight_c · A[..., c])
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from swinunetr_jax.errors import InputError
from swinunetr_jax.model.intermediates import check_name
from swinunetr_jax.runtime.promotion import wide_dtype
from swinunetr_jax.task import Task

DEFAULT_LAYER = "decoder4"


class Explainable(Protocol):
    """A network with named intermediates, such as `SwinUNETR`."""

    @property
    def config(self) -> Any: ...  # a configuration with the fields in_channels, out_channels and spatial_dims

    def forward(self, x: Array, *, perturbations: dict[str, Array]) -> tuple[Array, dict[str, Array]]: ...


def grad_cam(
    model: Explainable,
    x: Array,
    *,
    output: int | str,
    layer: str = DEFAULT_LAYER,
    voxels: Array | None = None,
    task: Task | None = None,
    resize: bool = False,
) -> Array:
    """Returns the Grad-CAM map of an output: where the intermediate `layer` raises the logits of this output.

    The score is the sum of the output's logits over a set of voxels, as in Seg-Grad-CAM. Each sample of the batch has a map of its own.
    Compile the function for speed: `jax.jit(functools.partial(grad_cam, output=1))(model, x)`.

    Args:
        model: the network.
        x: [b, *grid, in_channels], as for the network.
        output: the output, by its number or by its name in the task.
        layer: the name of an intermediate of `SwinUNETR.forward`, such as "decoder4", "encoder10", "swin.stage3" or "hidden2". Fine grids
            show edges, and coarse grids show structures.
        voxels: the set of voxels, a mask [b, *grid] or [*grid]; numbers are weights of the voxels. By default these are the voxels that
            the network assigns to the output: those with the largest logit for a class, those with a logit above 0 for a region.
        task: the task of the network, which states whether outputs are classes or regions, and their names. By default it is the one that
            `Task.default` assumes: regions for 4 inputs and 3 outputs and for a single output, otherwise classes.
        resize: whether the map is interpolated linearly to the grid of x.

    Returns:
        Maps ≥ 0, [b, *grid of the layer] or [b, *grid], in float32 or wider. If no voxel belongs to the set, the map is 0 everywhere. The
        scale depends on the number of voxels, so divide by the maximum to compare maps.

    Raises:
        InputError: the network has no such output or intermediate, `voxels` has another shape, or the network was only pre-trained and
            `voxels` is None.
    """
    task = task or Task.default(model.config)
    task.check(model.config)
    channel = output_channel(task, output)
    if task.kind == "images" and voxels is None:
        raise InputError("the network was pre-trained without labels, so no voxel is assigned to an output: give `voxels`.")
    logits, activations, gradient_of = run(model, x, layer)
    chosen = assigned(logits, task)[..., channel] if voxels is None else _checked(voxels, logits)
    weights = channel_weights(gradient_of(jnp.zeros_like(logits).at[..., channel].set(chosen)))
    cam = weighted_map(activations, weights)
    return resized(cam, logits.shape[1:-1]) if resize else cam


def output_channel(task: Task, output: int | str) -> int:
    """Returns the number of an output that is given by its number or its name. Raises InputError if there is none."""
    names = [item.name for item in task.outputs]
    if isinstance(output, str) and output in names:
        return names.index(output)
    if isinstance(output, int) and 0 <= output < len(names):
        return output
    listed = ", ".join(f"{name} ({number})" for number, name in enumerate(names))
    raise InputError(f"the network has no output {output!r}: choose one of {listed}.")


def run(model: Explainable, x: Array, layer: str) -> tuple[Array, Array, Callable[[Array], Array]]:
    """Returns the logits, the activations of an intermediate, and a function from the gradient of the logits to that of the activations.

    Raises:
        InputError: the network has no such intermediate, or none at all.
    """
    check_explainable(model)
    shapes = jax.eval_shape(lambda model, x: model.forward(x, perturbations={})[1], model, x)
    check_name(layer, shapes)
    zeros = jnp.zeros(shapes[layer].shape, shapes[layer].dtype)

    def logits_of(perturbation: Array) -> tuple[Array, Array]:
        logits, intermediates = model.forward(x, perturbations={layer: perturbation})
        return logits, intermediates[layer]

    logits, pull_back, activations = jax.vjp(logits_of, zeros, has_aux=True)
    return logits, activations, lambda cotangent: pull_back(cotangent)[0]


def check_explainable(model: object) -> None:
    """Raises InputError unless the network can return its intermediates and add perturbations to them."""
    forward = getattr(model, "forward", None)
    if forward is None or "perturbations" not in inspect.signature(forward).parameters:
        raise InputError(
            f"Grad-CAM needs the intermediates of the network, and a {type(model).__name__} has no method `forward` with the argument "
            "`perturbations`, as `SwinUNETR.forward`: use a Swin UNETR, or add the method."
        )


def assigned(logits: Array, task: Task) -> Array:
    """Returns the voxels that belong to each output, bool of the same shape [..., c]; a voxel has one class, and any number of regions."""
    if task.kind == "classes":
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
    return logits > 0


def channel_weights(gradient: Array) -> Array:
    """Returns the mean over the grid of each channel's gradient, [b, c] for [b, *grid, c]."""
    return jnp.mean(_wide(gradient), axis=tuple(range(1, gradient.ndim - 1)))


def weighted_map(activations: Array, weights: Array) -> Array:
    """Returns the positive part of the weighted sum over channels, [b, *grid] for [b, *grid, c] and weights [b, c] or [c]."""
    weights = weights.reshape(-1, *[1] * (activations.ndim - 2), weights.shape[-1])
    return jax.nn.relu(jnp.sum(_wide(activations) * weights, axis=-1))


def resized(maps: Array, grid: tuple[int, ...]) -> Array:
    """Returns maps [b, *coarse grid] interpolated linearly to a finer grid, whose voxels divide those of the coarse one evenly."""
    return jax.image.resize(maps, (len(maps), *grid), "linear")


def _wide(array: Array) -> Array:
    return array.astype(wide_dtype(array.dtype))


def _checked(voxels: Array, logits: Array) -> Array:
    """Returns the weights of voxels in the type of the logits. Raises InputError for another shape than theirs."""
    voxels = jnp.asarray(voxels)
    expected = logits.shape[:-1]
    if voxels.shape not in (expected, expected[1:]):
        raise InputError(
            f"`voxels` has shape {voxels.shape}, expected {expected} or {expected[1:]}: one number for each voxel of x."
        )
    return jnp.broadcast_to(voxels.astype(logits.dtype), expected)
