"""Operations on the channels of each voxel: matrix products, biases and activations, with gradients that save memory or round less."""

import math

import jax.numpy as jnp
from jax import Array, lax

from swinunetr_jax.runtime.dispatch import Implementation, Table, dispatch, hand_differentiated
from swinunetr_jax.runtime.promotion import wide_dtype, with_rank

NEGATIVE_SLOPE = 0.01

# ---- matrix products


def dense(x: Array, kernel: Array) -> Array:
    """Returns x @ kernel: [..., c_in], [c_in, c_out] -> [..., c_out], all of one dtype."""
    return dispatch(DENSE, x, kernel)


def matmul(x: Array, kernel: Array) -> Array:
    """Returns the matrix product as the compiler computes it."""
    return x @ kernel


def matmul_cpu(x: Array, kernel: Array) -> Array:
    """Returns the matrix product. On a CPU its gradient is written by hand."""
    return x @ kernel


def _matmul_cpu_vjp(inputs: tuple[Array, Array], _y: Array, dy: Array) -> tuple[Array, Array]:
    """Returns the gradients of the matrix product.

    The gradient of the kernel is a sum over all voxels. XLA would let the operations that produce the operands write them transposed
    for this product, one voxel at a time. The barrier keeps them in their layout, which the product also accepts.
    """
    x, kernel = inputs
    x, dy = lax.optimization_barrier((x, dy))
    dkernel = jnp.einsum("ti,to->io", x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1]))
    return dy @ kernel.T, dkernel


DENSE = Table("dense", Implementation(matmul), {"cpu": (Implementation(matmul_cpu, _matmul_cpu_vjp),)})


# ---- bias


@hand_differentiated
def add_bias(x: Array, bias: Array) -> Array:
    """Returns [..., c] + [c] in the dtype of `x`.

    The gradient of the bias is summed in float32 at least and has the dtype of the bias. JAX would sum it in the dtype of `x`: over a
    hundred thousand voxels in bfloat16 most of the gradient would be lost to rounding.
    """
    return x + with_rank(bias.astype(x.dtype), x.ndim)


def _add_bias_backward(bias: Array, dy: Array) -> tuple[Array, Array]:
    wide = wide_dtype(dy.dtype)
    return dy, dy.sum(range(dy.ndim - 1), dtype=wide).astype(bias.dtype)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), _add_bias_backward)


# ---- activations


@hand_differentiated
def leaky_relu(x: Array) -> Array:
    """Returns x where it is positive, else 0.01 x. The derivative at 0 is 0.01, as in PyTorch."""
    return jnp.where(x > 0, x, NEGATIVE_SLOPE * x)


def leaky_relu_gradient(y: Array, dy: Array) -> Array:
    """Returns the gradient of the input from the output, which has the sign of the input and is kept by the next layer anyway."""
    return jnp.where(y > 0, dy, NEGATIVE_SLOPE * dy)


leaky_relu.defvjp(lambda x: (y := leaky_relu(x), y), lambda y, dy: (leaky_relu_gradient(y, dy),))


@hand_differentiated
def gelu(x: Array) -> Array:
    """Returns the exact GELU, x Φ(x), computed in float32 at least.

    It is computed from erf, which compilers fuse into one pass over memory; `jax.nn.gelu` keeps an erfc for the backward pass.
    """
    x_wide = x.astype(wide_dtype(x.dtype))
    return (x_wide * _normal_distribution(x_wide)).astype(x.dtype)


def _gelu_backward(x: Array, dy: Array) -> tuple[Array]:
    x, dy = lax.optimization_barrier((x, dy))  # otherwise XLA keeps the erf of the forward pass instead of computing it again
    x_wide = x.astype(wide_dtype(x.dtype))
    density = jnp.exp(-0.5 * jnp.square(x_wide)) / math.sqrt(2 * math.pi)
    return (((_normal_distribution(x_wide) + x_wide * density) * dy.astype(x_wide.dtype)).astype(x.dtype),)


def _normal_distribution(x: Array) -> Array:
    return 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)
