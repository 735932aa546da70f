"""Sums over several axes for ONNX: one axis after the other, so that float32 keeps the digits of a mean over a window.

jax2onnx writes a sum over all voxels as one operator, and onnxruntime adds interleaved channels voxel by voxel in a single float32 number.
With 96³ voxels, the means and variances of the norms then lose two to three digits. The sums here have at most as many terms as an axis has
voxels.
"""

import importlib
from typing import Any  # jax2onnx is no dependency, so its types are unknown here

import jax.numpy as jnp

PRIMITIVE = "reduce_sum"


def is_ours(eqn: Any) -> bool:
    """Returns whether an equation is a sum of floats over more than one axis."""
    return len(eqn.params["axes"]) > 1 and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating)


def lower(ctx: Any, eqn: Any) -> None:
    """Adds the nodes of a sum to the graph of ONNX, which begin with its last axis."""
    ir = importlib.import_module("onnx_ir")
    (operand,), (result,) = eqn.invars, eqn.outvars
    value, sizes = ctx.get_value_for_var(operand), list(operand.aval.shape)
    element, axes = value.type, sorted(eqn.params["axes"], reverse=True)
    for axis in axes:
        name = ctx.get_value_for_var(result).name if axis == axes[-1] else ctx.fresh_name("partial_sum")
        index = ctx.builder.const_i64(ctx.fresh_name("axis"), [axis])
        value = ctx.builder.ReduceSum(value, index, keepdims=0, _outputs=[name])
        del sizes[axis]
        value.shape = ir.Shape([size if isinstance(size, int) else str(size) for size in sizes])
        value.type = element
    ctx.bind_value_for_var(result, value)
