"""Explains which implementation of each operation a program would run on a platform, and why not another one.

    >>> print(swinunetr_jax.explain("conv", [(1, 96, 96, 96, 48), (3, 3, 3, 48, 48)], "tpu"))
    conv [1, 96, 96, 96, 48], [3, 3, 3, 48, 48] float32 on tpu: conv.tpu.planes_as_batch
        not conv.cpu.im2col: it is for cpu
        …

The operation or the network is traced for the platform, and the choices of `runtime.dispatch` are recorded. They are therefore the same
as in a compiled program.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
from flax import nnx

from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.errors import InputError
from swinunetr_jax.model.unetr import SwinUNETR
from swinunetr_jax.ops.attention import window_attention
from swinunetr_jax.ops.conv import conv, patch_conv
from swinunetr_jax.ops.hyena.depthwise_conv import depthwise_conv
from swinunetr_jax.ops.lane_blocks import maybe_to_blocks
from swinunetr_jax.ops.norm import instance_norm, layer_norm
from swinunetr_jax.ops.norm.norm_act_conv import norm_act_conv
from swinunetr_jax.ops.pointwise import dense
from swinunetr_jax.ops.up_conv import up_conv
from swinunetr_jax.runtime.dispatch import Choice, Implementation, record_choices

PLATFORMS = ("cpu", "cuda", "tpu")
OPERATIONS: dict[str, Callable[..., Any]] = {
    "conv": conv,
    "dense": dense,
    "depthwise_conv": depthwise_conv,
    "instance_norm": instance_norm,
    "lane_blocks": maybe_to_blocks,
    "layer_norm": layer_norm,
    "norm_act_conv": norm_act_conv,
    "patch_conv": patch_conv,
    "up_conv": up_conv,
    "window_attention": window_attention,
}


@dataclass(frozen=True)
class ExplainedChoice:
    """The implementation that is chosen for one call of an operation.

    Attributes:
        operation: the name of the operation.
        shapes: the shapes of the inputs that are arrays.
        dtype: the type of the first of these inputs.
        chosen: the name of the implementation, such as "conv.cpu.im2col".
        others: for each other implementation, why it was not chosen.
    """

    operation: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    chosen: str
    others: dict[str, str]


@dataclass(frozen=True)
class Explanation:
    """The implementations that a program calls on a platform, in order. `str` returns text in which equal choices appear once.

    Operations that are called inside an implementation are not listed.
    """

    platform: str
    choices: tuple[ExplainedChoice, ...]

    def __str__(self) -> str:
        lines, explained = [], set()
        for choice in self.choices:
            shapes = ", ".join(str(list(shape)) for shape in choice.shapes)
            head = f"{choice.operation} {shapes} {choice.dtype} on {self.platform}: {choice.chosen}"
            if head not in explained:
                lines += [head, *(f"    not {name}: {reason}" for name, reason in choice.others.items())]
                explained.add(head)
        return "\n".join(lines)


def explain(
    operation: str | SwinUNETRConfig, shapes: Sequence[int] | Sequence[Sequence[int]], platform: str, dtype: str = "float32"
) -> Explanation:
    """Returns which implementations an operation or a whole network would run on a platform, and why not the others.

    Args:
        operation: one of `OPERATIONS`, or the configuration of a network.
        shapes: the shapes of the operation's inputs (those of "conv" are [b, d, h, w, c_in] and [3, 3, 3, c_in, c_out]), or the shape
            [b, d, h, w, c] of the network's input.
        platform: "cpu", "cuda" or "tpu".
        dtype: the type of the operation's inputs; for a network, the type in its configuration is used instead.

    Raises:
        InputError: the operation or the platform is unknown, or the operation cannot take the shapes.
    """
    if platform not in PLATFORMS:
        raise InputError(f"the platform must be one of {', '.join(PLATFORMS)}, got {platform!r}.")
    if isinstance(operation, SwinUNETRConfig):
        function, inputs = _network(operation), [jax.ShapeDtypeStruct(tuple(cast("Sequence[int]", shapes)), operation.dtype)]
    elif operation in OPERATIONS:
        function, inputs = (
            OPERATIONS[operation],
            [jax.ShapeDtypeStruct(tuple(shape), dtype) for shape in cast("Sequence[Sequence[int]]", shapes)],
        )
    else:
        raise InputError(f"the operation must be one of {', '.join(OPERATIONS)}, or a SwinUNETRConfig, got {operation!r}.")
    with record_choices(platform) as choices:
        try:
            jax.eval_shape(lambda *inputs: jax.tree.leaves(function(*inputs)), *inputs)
        except InputError:
            raise
        except (TypeError, ValueError, IndexError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"{operation} cannot take inputs of the shapes {shapes}: {reason}") from error
    return Explanation(platform, tuple(_explained(choice, platform) for choice in choices))


def _network(config: SwinUNETRConfig) -> Callable[[jax.Array], jax.Array]:
    structure, weights = nnx.split(nnx.eval_shape(lambda: SwinUNETR(config.replace(use_checkpoint=False), rngs=nnx.Rngs(0))))
    leaves, tree = jax.tree.flatten(weights)

    def forward(x: jax.Array) -> jax.Array:
        zeros = [jax.numpy.zeros(leaf.shape, leaf.dtype) for leaf in leaves]
        return nnx.merge(structure, jax.tree.unflatten(tree, zeros))(x)

    return forward


def _reason(other_platform: str, platform: str, implementation: Implementation, choice: Choice) -> str:
    if other_platform != platform:
        return f"it is for {other_platform}"
    if implementation.supports is not None and not implementation.supports(*choice.inputs):
        return f"it requires {implementation.requires}"
    return "an implementation before it in the table supports the inputs"


def _explained(choice: Choice, platform: str) -> ExplainedChoice:
    table, chosen = choice.table, choice.implementation
    arrays = [value for value in choice.inputs if hasattr(value, "shape")]
    others = {
        f"{implementation.name} ({other_platform})" if other_platform != platform else implementation.name: _reason(
            other_platform, platform, implementation, choice
        )
        for other_platform, implementations in table.platforms.items()
        for implementation in implementations
        if not (other_platform == platform and implementation == chosen)
    }
    if chosen is not table.reference:
        others[table.reference.name] = f"it is for inputs that no implementation for {platform} supports"
    return ExplainedChoice(
        table.operation, tuple(tuple(array.shape) for array in arrays), str(arrays[0].dtype), chosen.name, others
    )
