"""Three-dimensional convolutions for jax2onnx, which converts those of one and two axes only (version 0.17.1).

ONNX has the operator Conv for any number of axes, with channels first. The convolutions of the network have channels last.
"""

import importlib
from typing import Any  # jax2onnx is no dependency, so its types are unknown here

PRIMITIVE = "conv_general_dilated"
CHANNELS_LAST, KERNEL = (0, 4, 1, 2, 3), (4, 3, 0, 1, 2)  # NDHWC and DHWIO, as JAX states them in an equation
TO_CHANNELS_FIRST, TO_OIDHW, TO_CHANNELS_LAST = (0, 4, 1, 2, 3), (4, 3, 0, 1, 2), (0, 2, 3, 4, 1)


def is_ours(eqn: Any) -> bool:
    """Returns whether an equation is a convolution of three axes in the layout of the network, without dilation."""
    numbers = eqn.params["dimension_numbers"]
    undilated = all(set(eqn.params[name] or (1,)) == {1} for name in ("lhs_dilation", "rhs_dilation"))
    layout = (tuple(numbers.lhs_spec), tuple(numbers.rhs_spec), tuple(numbers.out_spec))
    return layout == (CHANNELS_LAST, KERNEL, CHANNELS_LAST) and undilated and eqn.params["batch_group_count"] == 1


def lower(ctx: Any, eqn: Any) -> None:
    """Adds the nodes of a convolution [b, d, h, w, c_in], [d, h, w, c_in, c_out] -> [b, d, h, w, c_out] to the graph of ONNX."""
    ir = importlib.import_module("onnx_ir")
    x, kernel = (ctx.get_value_for_var(variable) for variable in eqn.invars)
    (result,) = eqn.outvars

    def typed(value: Any, variable: Any, order: tuple[int, ...]) -> Any:
        """Returns a new value of the graph, with the type of a variable and its shape in another order of the axes."""
        sizes = (variable.aval.shape[axis] for axis in order)
        value.shape = ir.Shape([size if isinstance(size, int) else str(size) for size in sizes])
        value.type = ir.TensorType(x.dtype)
        return value

    def transpose(value: Any, variable: Any, order: tuple[int, ...]) -> Any:
        name = ctx.fresh_name("transposed")
        return typed(ctx.builder.Transpose(value, perm=list(order), _outputs=[name]), variable, order)

    pads = eqn.params["padding"]
    convolved = ctx.builder.Conv(
        transpose(x, eqn.invars[0], TO_CHANNELS_FIRST),
        transpose(kernel, eqn.invars[1], TO_OIDHW),
        strides=list(eqn.params["window_strides"]),
        pads=[low for low, _ in pads] + [high for _, high in pads],
        group=eqn.params["feature_group_count"],
        _outputs=[ctx.fresh_name("convolved")],
    )
    convolved = typed(convolved, result, TO_CHANNELS_FIRST)
    name = ctx.get_value_for_var(result).name
    last = ctx.builder.Transpose(convolved, perm=list(TO_CHANNELS_LAST), _outputs=[name])
    ctx.bind_value_for_var(result, typed(last, result, (0, 1, 2, 3, 4)))
