"""Compares the rounding errors of every operation in float32 with those of PyTorch, for inputs that are hard for float32.

The errors of values and gradients are compared. An error is the largest absolute error of a result, divided by its largest true
value. PyTorch computes the true values in float64 from the same numbers. Each error may be four times that of PyTorch, or 1e-6 if this is
larger.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.compile_effort import OPTIMIZED

from swinunetr_jax import SwinUNETRConfig, losses
from swinunetr_jax.model.layers import ConvNorm
from swinunetr_jax.ops.attention import window_attention
from swinunetr_jax.ops.conv import conv, patch_conv
from swinunetr_jax.ops.norm import group_norm, instance_norm, layer_norm
from swinunetr_jax.ops.norm.norm_act_conv import norm_act_conv
from swinunetr_jax.ops.norm.pointwise_conv_norm import pointwise_conv_norm
from swinunetr_jax.ops.pointwise import add_bias, dense, gelu, leaky_relu
from swinunetr_jax.ops.up_conv import up_conv
from swinunetr_jax.ops.up_conv.upsample import upsample

torch = pytest.importorskip("torch")
F = torch.nn.functional

FACTOR, FLOOR = 4, 1e-6
GRID = (12, 13, 14)
DRAWS = 2  # of random inputs; the largest errors are compared, since the ratio of two small errors is random


def hard_inputs(shape: tuple[int, ...], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns scans [b, *grid, c] with raw intensities (a mean of 1000, a deviation of 300) and z-scored ones."""
    base, noise = rng.normal(size=(*shape[:-1], 1)), rng.normal(size=shape)
    bright, constant, raw_constant = noise.copy(), noise.copy(), 1000 + 300 * noise
    bright[(0, *(size // 2 for size in shape[1:-1]), 0)] = 1e4
    constant[..., 0], raw_constant[..., 0] = 0.1, 1000.1
    inputs = {
        "ordinary": noise,
        "nearly equal channels": base + 1e-2 * noise,
        "even more nearly equal channels": base + 1e-3 * noise,
        "raw, nearly equal channels": 1000 + 300 * base + noise,
        "copies of one channel": np.repeat(base, shape[-1], -1),
        "raw, copies of one channel": 1000 + 300 * np.repeat(base, shape[-1], -1),
        "raw": 1000 + 300 * noise,
        "a mean of 1000 deviations": 1000 + noise,
        "a mean of 100,000 deviations": 1000 + 0.01 * noise,
        "one bright voxel": bright,
        "a constant channel": constant,
        "raw, a constant channel": raw_constant,
        "zeros": np.zeros(shape),
    }
    return {name: values.astype(np.float32) for name, values in inputs.items()}


class Case(NamedTuple):
    """An operation in JAX and in PyTorch, both on arrays with channels last.

    Attributes:
        ours, theirs: functions of the first input and of further inputs.
        shape: the shape of the first input, which is one of `hard_inputs`.
        others: the shapes of the further inputs, which are normally distributed.
        change: a function that is applied to the further inputs first.
    """

    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    shape: tuple[int, ...]
    others: tuple[tuple[int, ...], ...] = ()
    change: Callable[[np.ndarray], np.ndarray] = lambda a: a


def channels_first(x: Any) -> Any:
    return x.movedim(-1, 1).contiguous()


def channels_last(x: Any) -> Any:
    # instance_norm has wrong gradients if the incoming gradients have channels last
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient.contiguous())
    return x.movedim(1, -1).contiguous()


def conv_kernel(k: Any) -> Any:
    """Returns [c_out, c_in, *sizes] for [*sizes, c_in, c_out]."""
    return k.movedim((-1, -2), (0, 1))


def transposed_kernel(k: Any) -> Any:
    return k.movedim((-2, -1), (0, 1))


def torch_instance_norm(x: Any) -> Any:
    return channels_last(F.instance_norm(channels_first(x)))


def torch_up_conv(x: Any, skip: Any, up: Any, k: Any, shortcut: Any) -> tuple[Any, Any]:
    concatenated = torch.cat([F.conv_transpose3d(channels_first(x), transposed_kernel(up), stride=2), channels_first(skip)], 1)
    return channels_last(F.conv3d(concatenated, conv_kernel(k), padding=1)), channels_last(
        F.conv3d(concatenated, conv_kernel(shortcut))
    )


def torch_attention(q: Any, k: Any, v: Any, bias: Any) -> Any:
    return torch.einsum("nmts,nsmc->ntmc", torch.softmax(torch.einsum("ntmc,nsmc->nmts", q, k) + bias, -1), v)


def batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    layer = ConvNorm(4, SwinUNETRConfig(in_channels=1, out_channels=1, norm_name="batch"))
    layer.scale, layer.bias = nnx.Param(scale), nnx.Param(bias)
    return layer(x, train=True)[0]


def windows(x: Any) -> Any:
    return x.reshape(-1, 14, 2, x.shape[-1] // 2)


HEADS = ((156, 14, 2, 4), (156, 14, 2, 4), (2, 14, 14))
CUBE = (3, 3, 3)
LABELS = np.random.default_rng(0).integers(0, 4, (1, *GRID))
ONE_HOT = np.eye(4, dtype=np.float32)[LABELS]


def torch_dice(x: Any, probabilities: Callable[[Any], Any]) -> Any:
    p, t, axes = probabilities(x), torch.tensor(ONE_HOT).to(x.dtype), (1, 2, 3)
    return (1 - (2 * (p * t).sum(axes) + 1e-5) / (p.sum(axes) + t.sum(axes) + 1e-5)).mean()


SCAN = (1, *GRID, 4)
CASES = {
    "pointwise_conv_norm": Case(pointwise_conv_norm, lambda x, k: torch_instance_norm(x @ k), SCAN, ((4, 12),)),
    "pointwise_conv_norm of differences": Case(
        pointwise_conv_norm,
        lambda x, k: torch_instance_norm(x @ k),
        SCAN,
        ((4, 12),),
        lambda k: k - k.mean(0),
    ),
    "pointwise_conv_norm of one channel": Case(
        pointwise_conv_norm, lambda x, k: torch_instance_norm(x @ k), (2, *GRID, 1), ((1, 12),)
    ),
    "pointwise_conv_norm in 2-D": Case(pointwise_conv_norm, lambda x, k: torch_instance_norm(x @ k), (2, 30, 33, 2), ((2, 12),)),
    "norm_act_conv": Case(
        norm_act_conv,
        lambda x, k: channels_last(F.conv3d(F.leaky_relu(F.instance_norm(channels_first(x))), conv_kernel(k), padding=1)),
        SCAN,
        ((*CUBE, 4, 5),),
    ),
    "instance norm": Case(instance_norm, torch_instance_norm, SCAN),
    "instance norm in 2-D": Case(instance_norm, torch_instance_norm, (2, 30, 33, 4)),
    "layer norm": Case(layer_norm, lambda x, s, b: F.layer_norm(x, x.shape[-1:], s, b), (1, *GRID, 24), ((24,), (24,))),
    "layer norm without scale and bias": Case(layer_norm, lambda x: F.layer_norm(x, x.shape[-1:]), (1, *GRID, 24)),
    "group norm": Case(
        lambda x, s, b: group_norm(x, 2, s, b),
        lambda x, s, b: channels_last(F.group_norm(channels_first(x), 2, s, b)),
        SCAN,
        ((4,), (4,)),
    ),
    "batch norm in training": Case(
        batch_norm,
        lambda x, s, b: channels_last(F.batch_norm(channels_first(x), None, None, s, b, training=True)),
        (2, *GRID, 4),
        ((4,), (4,)),
    ),
    "conv of kernel 1 with bias": Case(
        lambda x, k, b: add_bias(conv(x, k), b),
        lambda x, k, b: channels_last(F.conv3d(channels_first(x), conv_kernel(k), b)),
        SCAN,
        ((1, 1, 1, 4, 5), (5,)),
    ),
    "conv of kernel 3 with bias": Case(
        lambda x, k, b: add_bias(conv(x, k), b),
        lambda x, k, b: channels_last(F.conv3d(channels_first(x), conv_kernel(k), b, padding=1)),
        SCAN,
        ((*CUBE, 4, 5), (5,)),
    ),
    "conv of few voxels": Case(
        conv,
        lambda x, k: channels_last(F.conv3d(channels_first(x), conv_kernel(k), padding=1)),
        (1, 6, 6, 6, 16),
        ((*CUBE, 16, 18),),
    ),
    "patch_conv": Case(
        patch_conv,
        lambda x, k: channels_last(F.conv3d(channels_first(x), conv_kernel(k), stride=2)),
        (1, 12, 14, 10, 4),
        ((2, 2, 2, 4, 5),),
    ),
    "upsample": Case(
        upsample,
        lambda x, k: channels_last(F.conv_transpose3d(channels_first(x), transposed_kernel(k), stride=2)),
        (1, 6, 7, 5, 4),
        ((2, 2, 2, 4, 5),),
    ),
    "up_conv": Case(
        up_conv,
        torch_up_conv,
        (1, 3, 4, 5, 6),
        ((1, 6, 8, 10, 4), (2, 2, 2, 6, 4), (*CUBE, 8, 3), (1, 1, 1, 8, 3)),
    ),
    "up_conv with fused kernels": Case(
        up_conv,
        torch_up_conv,
        (1, 8, 8, 8, 8),
        ((1, 16, 16, 16, 8), (2, 2, 2, 8, 8), (*CUBE, 16, 8), (1, 1, 1, 16, 8)),
    ),
    "dense with bias": Case(
        lambda x, k, b: add_bias(dense(x, k), b), lambda x, k, b: x @ k + b, (1, *GRID, 24), ((24, 30), (30,))
    ),
    "gelu": Case(gelu, F.gelu, SCAN),
    "leaky_relu": Case(leaky_relu, F.leaky_relu, SCAN),
    "attention, queries": Case(
        lambda x, *rest: window_attention(windows(x), *rest),
        lambda x, *rest: torch_attention(windows(x), *rest),
        (1, *GRID, 8),
        HEADS,
    ),
    "attention, keys": Case(
        lambda x, q, v, b: window_attention(q, windows(x), v, b),
        lambda x, q, v, b: torch_attention(q, windows(x), v, b),
        (1, *GRID, 8),
        HEADS,
    ),
    "attention, values": Case(
        lambda x, q, k, b: window_attention(q, k, windows(x), b),
        lambda x, q, k, b: torch_attention(q, k, windows(x), b),
        (1, *GRID, 8),
        HEADS,
    ),
    "Dice of a softmax": Case(
        lambda x: losses.dice_loss(x, ONE_HOT, activation="softmax"),
        lambda x: torch_dice(x, lambda x: torch.softmax(x, -1)),
        SCAN,
    ),
    "Dice of sigmoids": Case(
        lambda x: losses.dice_loss(x, ONE_HOT, activation="sigmoid"), lambda x: torch_dice(x, torch.sigmoid), SCAN
    ),
    "cross-entropy": Case(
        lambda x: losses.cross_entropy(x, LABELS, activation="softmax"),
        lambda x: F.cross_entropy(channels_first(x), torch.tensor(LABELS)),
        SCAN,
    ),
    "binary cross-entropy": Case(
        lambda x: losses.cross_entropy(x, ONE_HOT, activation="sigmoid"),
        lambda x: F.binary_cross_entropy_with_logits(x, torch.tensor(ONE_HOT).to(x.dtype)),
        SCAN,
    ),
}


@pytest.mark.fault("1.7")
@pytest.mark.fault("1.8")
@pytest.mark.fault("1.9")
@pytest.mark.parametrize("name", CASES)
def test_rounding_errors_are_at_most_four_times_those_of_torch(name):
    case, worst = CASES[name], {}
    values_and_gradients = jax.jit(our_results, static_argnums=0, compiler_options=OPTIMIZED)
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        others = [rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[:-1]))) for shape in case.others]
        others = [case.change(a).astype(np.float32) for a in others]
        for kind, x in hard_inputs(case.shape, rng).items():
            true = torch_results(case.theirs, [x, *others], torch.float64)
            theirs = torch_results(case.theirs, [x, *others], torch.float32)
            ours = values_and_gradients(case.ours, [x, *others])
            for index, (got, their_result, expected) in enumerate(zip(ours, theirs, true, strict=True)):
                errors = worst.setdefault((kind, index), [0.0, 0.0])
                errors[:] = np.maximum(errors, [error(got, expected), error(their_result, expected)])
    bad = {key: errors for key, errors in worst.items() if not errors[0] <= max(FACTOR * errors[1], FLOOR)}
    assert not bad  # (kind of input, index of the result): [our error, error of PyTorch]


def error(got: Any, expected: np.ndarray) -> float:
    """Returns the largest absolute error divided by the largest true value, or by 1 if all true values are 0."""
    return float(np.abs(np.asarray(got, np.float64) - expected).max() / (np.abs(expected).max() or 1))


def weights_of(shape: tuple[int, ...]) -> np.ndarray:
    """Returns weights for a sum of results, mostly positive, as the gradients of a loss often are."""
    return (np.random.default_rng(7).normal(size=shape) + 0.5).astype(np.float32)


def our_results(function: Callable[..., Any], inputs: list[np.ndarray]) -> list[jax.Array]:
    def loss(*inputs: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        results = jax.tree.leaves(function(*inputs))
        return sum(jnp.sum(y * weights_of(y.shape)) for y in results), results

    (_, results), gradients = jax.value_and_grad(loss, tuple(range(len(inputs))), has_aux=True)(*inputs)
    return [*results, *gradients]


def torch_results(function: Callable[..., Any], inputs: list[np.ndarray], dtype: Any) -> list[np.ndarray]:
    tensors = [torch.tensor(a, dtype=dtype, requires_grad=True) for a in inputs]
    results = function(*tensors)
    results = results if isinstance(results, tuple) else (results,)
    sum((y * torch.tensor(weights_of(tuple(y.shape)), dtype=dtype)).sum() for y in results).backward()
    return [y.detach().numpy() for y in results] + [a.grad.numpy() for a in tensors]
