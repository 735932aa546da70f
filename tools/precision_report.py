"""Emulates the faster products of float32 numbers on an accelerator, and reports the errors of the logits compared with float32.

    python -m tools.precision_report --feature-size 48 --size 64 64 64

By default a GPU rounds the operands of matrix products and convolutions to tf32 (10 bits of mantissa) and a TPU to bfloat16 (7 bits), and
both sum in float32; `jax.default_matmul_precision` requests more. A CPU ignores this setting. So the network is traced with the
implementations for a GPU, and its equations are evaluated one by one, with the operands of products rounded to the nearest number.
Weights and input are computed from a seed. The label of a voxel counts as changed if any output changes its sign.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro
from jax import Array, lax
from jax.extend import core

from swinunetr_jax import SwinUNETR, SwinUNETRConfig, console
from swinunetr_jax.weights.monai import entries
from swinunetr_jax.weights.params import build, shapes
from tools import golden_weights

PRODUCTS = ("dot_general", "conv_general_dilated")
TF32, BFLOAT16 = 10, 7  # bits of mantissa

Multiply = Callable[[Array, Array], Array]
Product = Callable[[Multiply, Array, Array], Array]


@dataclass
class Options:
    """The network to measure."""

    size: tuple[int, int, int] = (64, 64, 64)
    """Spatial size of the input, multiples of 32."""
    feature_size: int = 48
    seed: int = 0


class Row(NamedTuple):
    """The errors of one kind of arithmetic, and the share of labels that it changes."""

    name: str
    max_error: float
    mean_error: float
    changed: float


# ---- products --------------------------------------------------------------------------------------------------------------------


def exact(multiply: Multiply, a: Array, b: Array) -> Array:
    """Returns the product of operands that are not rounded."""
    return multiply(a, b)


def in_one_pass(bits: int) -> Product:
    """Returns the function that multiplies operands rounded to `bits` of mantissa."""
    return lambda multiply, a, b: multiply(rounded(a, bits), rounded(b, bits))


def in_three_passes(multiply: Multiply, a: Array, b: Array) -> Array:
    """Returns the product of operands that are sums of two bfloat16 numbers, without the product of the two smaller ones."""
    high_a, high_b = rounded(a, BFLOAT16), rounded(b, BFLOAT16)
    low_a, low_b = rounded(a - high_a, BFLOAT16), rounded(b - high_b, BFLOAT16)
    return multiply(high_a, high_b) + (multiply(high_a, low_b) + multiply(low_a, high_b))


def rounded(a: Array, bits: int) -> Array:
    """Returns the array rounded to `bits` of mantissa."""
    return lax.reduce_precision(a, exponent_bits=8, mantissa_bits=bits)


# ---- evaluation ------------------------------------------------------------------------------------------------------------------


def emulate(function: Callable[..., Array], platform: str, product: Product) -> Callable[..., Array]:
    """Returns a function that evaluates `function` with the implementations for `platform`, and multiplies arrays by `product`."""

    def run(*inputs: Any) -> Array:
        traced = jax.make_jaxpr(function)(*inputs)
        return evaluate(traced, jax.tree.leaves(inputs), platform, product)[0]

    return run


def evaluate(traced: core.ClosedJaxpr, inputs: Sequence[Any], platform: str, product: Product) -> list[Any]:
    """Returns the results of a traced function.

    Raises:
        NotImplementedError: the function contains a loop; no implementation for a GPU contains one.
    """
    values = dict(zip(traced.jaxpr.invars, inputs)) | dict(zip(traced.jaxpr.constvars, traced.consts))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in traced.jaxpr.eqns:
        results = _apply(equation, [read(atom) for atom in equation.invars], platform, product)
        values.update(zip(equation.outvars, results))
    return [read(atom) for atom in traced.jaxpr.outvars]


def _apply(equation: core.JaxprEqn, inputs: list[Any], platform: str, product: Product) -> Sequence[Any]:
    name, parameters = equation.primitive.name, equation.params
    if name in PRODUCTS:
        return [product(lambda a, b: equation.primitive.bind(a, b, **parameters), *inputs)]
    if name == "platform_index":
        return [None]  # the branch is chosen at "cond"
    if name == "cond" and parameters.get("branches_platforms"):
        groups = parameters["branches_platforms"]
        chosen = next(index for index, group in enumerate(groups) if group is None or platform in group)
        return evaluate(parameters["branches"][chosen], inputs[1:], platform, product)
    inner = parameters.get("jaxpr", parameters.get("call_jaxpr"))
    if name in ("scan", "while", "cond"):
        raise NotImplementedError(f"an implementation for {platform} contains a {name}, which cannot be evaluated here")
    if isinstance(inner, core.ClosedJaxpr):
        return evaluate(inner, inputs, platform, product)
    results = equation.primitive.bind(*inputs, **parameters)
    return results if equation.primitive.multiple_results else [results]


# ---- report ----------------------------------------------------------------------------------------------------------------------


def network(config: SwinUNETRConfig, seed: int) -> SwinUNETR:
    """Returns a network whose weights are all different from their initial values."""
    parameters = shapes(config)
    entry_of_path = {entry.path: entry for entry in entries(config) if entry.path is not None}
    weights = golden_weights.state(
        {e.name: e.order.torch_shape(parameters[path].shape) for path, e in entry_of_path.items()}, seed
    )
    return build(config, {path: entry.order.to_jax(weights[entry.name]) for path, entry in entry_of_path.items()})


def measure(options: Options) -> tuple[list[Row], float]:
    """Returns (a row for each kind of arithmetic, standard deviation of the reference logits).

    The reference is float32 with the implementations for a GPU; the first row compares the implementations for a CPU with it.
    """
    config = SwinUNETRConfig(in_channels=4, out_channels=3, feature_size=options.feature_size)
    config.check_spatial(options.size)
    x = golden_weights.volume((1, *options.size, config.in_channels), options.seed)
    model = network(config, options.seed)
    bfloat16 = network(config.replace(dtype="bfloat16"), options.seed)

    def forward(model: SwinUNETR, x: Array) -> Array:
        return model(x)

    def logits(model: SwinUNETR, product: Product) -> np.ndarray:
        return np.asarray(jax.jit(emulate(forward, "cuda", product))(model, x), np.float32)

    reference = logits(model, exact)

    def row(name: str, result: np.ndarray) -> Row:
        error, changed = np.abs(result - reference), ((result > 0) != (reference > 0)).any(-1)
        return Row(name, float(error.max()), float(error.mean()), float(changed.mean()))

    rows = [
        row("float32, by the implementations for a CPU", np.asarray(jax.jit(forward)(model, x))),
        row("bfloat16 in three passes", logits(model, in_three_passes)),
        row("tf32", logits(model, in_one_pass(TF32))),
        row("bfloat16", logits(model, in_one_pass(BFLOAT16))),
        row('all in bfloat16 (`dtype="bfloat16"`)', logits(bfloat16, exact)),
    ]
    return rows, float(reference.std())


def table(rows: list[Row]) -> str:
    """Returns the rows as a Markdown table."""
    lines = ["| products of | max error | mean error | changed labels |", "| --- " * 4 + "|"]
    lines += [f"| {row.name} | {row.max_error:.1e} | {row.mean_error:.1e} | {row.changed:.2%} |" for row in rows]
    return "\n".join(lines)


def main(options: Options) -> None:
    rows, deviation = measure(options)
    print(f"{table(rows)}\n\nstandard deviation of the logits {deviation:.2f}, jax {jax.__version__}")


if __name__ == "__main__":
    console.configure_streams()
    main(tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__))
