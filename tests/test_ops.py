"""Operations equal those of PyTorch, and all implementations equal the reference: values and gradients, odd sizes, every dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swinunetr_jax.model.layers import ConvNorm, drop_path, dropout
from swinunetr_jax.ops import attention, conv, norm, pointwise, up_conv
from swinunetr_jax.ops.attention import cpu as attention_cpu
from swinunetr_jax.ops.attention.reference import attention as reference_attention
from swinunetr_jax.ops.conv import cpu as conv_cpu
from swinunetr_jax.ops.conv import reference as conv_reference
from swinunetr_jax.ops.conv import winograd
from swinunetr_jax.ops.norm.moments import EPSILON
from swinunetr_jax.ops.norm.norm_act_conv import norm_act_conv
from swinunetr_jax.ops.norm.pointwise_conv_norm import pointwise_conv_norm
from swinunetr_jax.ops.up_conv import cpu as up_conv_cpu
from swinunetr_jax.ops.up_conv import reference as up_conv_reference
from swinunetr_jax.ops.up_conv.upsample import upsample

rng = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return rng.normal(size=shape).astype(dtype)


def channels_first(x):
    """Returns an array with channels last as a torch tensor with channels first."""
    torch = pytest.importorskip("torch")
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy())


def channels_last(tensor):
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def close(got, expected, tolerance=1e-6):
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, atol=tolerance * max(np.abs(expected).max(), 1e-30), rtol=0)


GRIDS = [(5, 6, 7), (1, 2, 3), (8, 9, 7), (16, 4, 8), (5, 9), (1, 1)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("size", [1, 3])
def test_conv_equals_torch(grid, size):
    torch = pytest.importorskip("torch")
    x, kernel = normal(2, *grid, 5), normal(*(size,) * len(grid), 5, 4)
    function = torch.nn.functional.conv3d if len(grid) == 3 else torch.nn.functional.conv2d
    torch_kernel = torch.tensor(np.moveaxis(kernel, (-1, -2), (0, 1)).copy())
    close(jax.jit(conv.conv)(x, kernel), channels_last(function(channels_first(x), torch_kernel, padding=size // 2)))


@pytest.mark.parametrize("implementation", [conv.patch_conv, conv_reference.patch_conv, conv_cpu.space_to_depth])
@pytest.mark.parametrize("grid", [(4, 6, 2), (6, 8)])
def test_patch_conv_equals_torch(implementation, grid):
    torch = pytest.importorskip("torch")
    x, kernel = normal(2, *grid, 3), normal(*(2,) * len(grid), 3, 5)
    function = torch.nn.functional.conv3d if len(grid) == 3 else torch.nn.functional.conv2d
    torch_kernel = torch.tensor(np.moveaxis(kernel, (-1, -2), (0, 1)).copy())
    close(implementation(x, kernel), channels_last(function(channels_first(x), torch_kernel, stride=2)))


# c, u, o: the channels of the input, of the upsampled input and the skip connection, and of the output
@pytest.mark.parametrize(("grid", "c", "u", "o"), [((3, 2, 4), 6, 4, 3), ((3, 5), 4, 2, 3)])
def test_up_conv_equals_torch(grid, c, u, o):
    torch = pytest.importorskip("torch")
    functional, n = torch.nn.functional, len(grid)
    transposed, plain = (
        (functional.conv_transpose3d, functional.conv3d) if n == 3 else (functional.conv_transpose2d, functional.conv2d)
    )
    x, skip = normal(2, *grid, c), normal(2, *(2 * size for size in grid), u)
    up, kernel, shortcut = normal(*(2,) * n, c, u), normal(*(3,) * n, 2 * u, o), normal(*(1,) * n, 2 * u, o)

    def torch_kernel(array, *axes):
        return torch.tensor(np.moveaxis(array, axes, (0, 1)).copy())

    concatenated = torch.cat([transposed(channels_first(x), torch_kernel(up, -2, -1), stride=2), channels_first(skip)], dim=1)
    y, y_shortcut = up_conv.up_conv(x, skip, up, kernel, shortcut)
    close(y, channels_last(plain(concatenated, torch_kernel(kernel, -1, -2), padding=1)), 2e-6)
    close(y_shortcut, channels_last(plain(concatenated, torch_kernel(shortcut, -1, -2))), 2e-6)


@pytest.mark.parametrize("implementation", [conv_cpu.BY_PLANES, conv_cpu.IM2COL])
@pytest.mark.parametrize(("shape", "o"), [((1, 5, 6, 7, 3), 4), ((2, 4, 3, 5, 5), 2), ((1, 1, 2, 2, 3), 3), ((2, 9, 8, 7, 2), 6)])
def test_implementations_of_conv_and_their_gradients(implementation, shape, o):
    with jax.enable_x64(True):
        x, kernel, weight = (normal(*s, dtype=np.float64) for s in (shape, (3, 3, 3, shape[-1], o), (*shape[:-1], o)))

        def results(function):
            def loss(x, kernel):
                y = function(x, kernel)
                return (y * weight).sum(), y

            (_, y), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, kernel)
            return y, *gradients

        for got, expected in zip(results(implementation), results(conv_reference.conv)):
            close(got, expected, 1e-12)


@pytest.mark.parametrize("filters", [winograd.F2, winograd.F4, winograd.filters(0, 1, -1, 2)])
@pytest.mark.parametrize("shape", [(1, 3, 12, 24, 2), (2, 1, 24, 12, 3), (1, 4, 96, 48, 1)])
def test_winograd_convolutions_equal_the_reference(filters, shape, monkeypatch):
    monkeypatch.setattr(winograd, "TILES", 300)  # so that the largest planes are divided into several blocks of rows
    with jax.enable_x64(True):
        x, kernel, dy = (normal(*s, dtype=np.float64) for s in (shape, (3, 3, 3, shape[-1], 5), (*shape[:-1], 5)))
        expected, pullback = jax.vjp(conv_reference.conv, x, kernel)
        assert winograd.fits(filters, x)
        close(jax.jit(functools.partial(winograd.conv_with_filters, filters))(x, kernel), expected, 1e-12)
        close(jax.jit(functools.partial(winograd.kernel_gradient, filters))(x, dy), pullback(dy)[1], 1e-12)


@pytest.mark.parametrize(
    "shape", [(1, 3, 32, 32, 16), (2, 2, 64, 34, 17), pytest.param((1, 5, 96, 96, 16), marks=pytest.mark.long)]
)
def test_winograd_convolutions_of_large_planes_equal_the_reference(shape):
    x, kernel, weight = normal(*shape), normal(3, 3, 3, shape[-1], 20), normal(*shape[:-1], 20)
    assert winograd.WINOGRAD.supports(jnp.asarray(x), kernel)

    def results(implementation):
        gradients = jax.jit(jax.grad(lambda x, k: (implementation(x, k) * weight).sum(), (0, 1)))(x, kernel)
        return jax.jit(implementation)(x, kernel), *gradients

    with jax.enable_x64(True):
        exact = conv_reference.conv(jnp.asarray(x, jnp.float64), jnp.asarray(kernel, jnp.float64))
    close(results(winograd.WINOGRAD)[0], exact)
    for got, expected in zip(results(winograd.WINOGRAD), results(conv_reference.conv)):
        close(got, expected, 3e-6)


@pytest.mark.parametrize("implementation", [conv_cpu.BY_PLANES, conv_cpu.IM2COL])
def test_implementations_of_conv_in_bfloat16(implementation):
    x, kernel = jnp.asarray(normal(1, 6, 7, 8, 8), jnp.bfloat16), jnp.asarray(normal(3, 3, 3, 8, 8), jnp.bfloat16)
    got, expected = implementation(x, kernel), conv_reference.conv(x.astype(jnp.float32), kernel.astype(jnp.float32))
    assert got.dtype == jnp.bfloat16
    close(got.astype(jnp.float32), expected, 2e-2)
    dx, dk = jax.grad(lambda x, k: implementation(x, k).astype(jnp.float32).sum(), (0, 1))(x, kernel)
    assert dx.dtype == dk.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(dk, np.float32)).all()


@pytest.mark.parametrize("grid", [(3, 4, 5), (1, 1, 1), (4, 3)])
def test_upsample_equals_torch(grid):
    torch = pytest.importorskip("torch")
    x, kernel = normal(2, *grid, 5), normal(*(2,) * len(grid), 5, 3)
    function = torch.nn.functional.conv_transpose3d if len(grid) == 3 else torch.nn.functional.conv_transpose2d
    torch_kernel = torch.tensor(np.moveaxis(kernel, (-2, -1), (0, 1)).copy())
    close(upsample(x, kernel), channels_last(function(channels_first(x), torch_kernel, stride=2)))


@pytest.mark.parametrize(("shape", "c", "u", "o"), [((1, 3, 4, 5), 6, 4, 3), ((2, 1, 2, 3), 5, 2, 4)])
def test_fused_kernels_and_their_gradients(shape, c, u, o):
    with jax.enable_x64(True):
        fine = (shape[0], *(2 * size for size in shape[1:]))
        shapes = ((*shape, c), (*fine, u), (2, 2, 2, c, u), (3, 3, 3, 2 * u, o), (1, 1, 1, 2 * u, o))
        inputs = [normal(*s, dtype=np.float64) for s in shapes]
        weights = normal(2, *fine, o, dtype=np.float64)

        def results(implementation):
            def loss(*inputs):
                y = implementation(*inputs)
                return sum((a * b).sum() for a, b in zip(y, weights)), y

            (_, y), gradients = jax.jit(jax.value_and_grad(loss, tuple(range(5)), has_aux=True))(*inputs)
            return *y, *gradients

        for got, expected in zip(results(up_conv_cpu.FUSED), results(up_conv_reference.up_conv)):
            close(got, expected, 1e-12)


def test_fused_kernels_in_bfloat16():
    shapes = ((1, 3, 4, 5, 6), (1, 6, 8, 10, 4), (2, 2, 2, 6, 4), (3, 3, 3, 8, 4), (1, 1, 1, 8, 4))
    inputs = [jnp.asarray(normal(*s), jnp.bfloat16) for s in shapes]
    exact = up_conv_reference.up_conv(*(a.astype(jnp.float32) for a in inputs))
    for got, expected in zip(up_conv_cpu.FUSED(*inputs), exact):
        assert got.dtype == jnp.bfloat16
        close(got.astype(jnp.float32), expected, 3e-2)


def expected_attention(q, k, v, bias, regions):
    """Attention by its formula, in float64."""
    logits = np.einsum("ntmc,nsmc->nmts", q, k).astype(np.float64) + bias
    if regions is not None:
        masked = np.tile(regions[:, :, None] != regions[:, None, :], (len(q) // len(regions), 1, 1))
        logits += np.where(masked, -100.0, 0.0)[:, None]
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("nmts,nsmc->ntmc", weights / weights.sum(-1, keepdims=True), v)


# n, windows, t, m, c: windows of the batch, windows of a sample, tokens, heads, channels of a head
@pytest.mark.parametrize("implementation", [attention.window_attention, reference_attention, attention_cpu.CHUNKS])
@pytest.mark.parametrize(("n", "windows", "t", "m", "c"), [(6, 3, 5, 2, 4), (8, 8, 27, 3, 16), (1, 1, 1, 1, 2)])
@pytest.mark.parametrize("shifted", [False, True])
def test_attention(implementation, n, windows, t, m, c, shifted):
    q, k, v, bias = (normal(*s) for s in ((n, t, m, c),) * 3 + ((m, t, t),))
    regions = rng.integers(0, 3, (windows, t)).astype(np.int32) if shifted else None
    got = implementation(
        q, k, v, bias, regions if implementation is attention.window_attention or regions is None else jnp.asarray(regions)
    )
    close(got, expected_attention(q, k, v, bias, regions), 2e-6)


@pytest.mark.parametrize("chunk", [1, 200, 1 << 19])
@pytest.mark.parametrize("shifted", [False, True])
def test_attention_by_chunks_has_the_reference_gradients(chunk, shifted, fresh_traces, monkeypatch):
    monkeypatch.setattr(attention_cpu, "CHUNK", chunk)
    with jax.enable_x64(True):
        q, k, v, weight = (normal(6, 7, 2, 4, dtype=np.float64) for _ in range(4))
        bias = normal(2, 7, 7, dtype=np.float64)
        regions = jnp.asarray(rng.integers(0, 2, (3, 7)), jnp.int32) if shifted else None

        def gradients(implementation):
            return jax.jit(jax.grad(lambda *a: (implementation(*a, regions) * weight).sum(), (0, 1, 2, 3)))(q, k, v, bias)

        for got, expected in zip(gradients(attention_cpu.CHUNKS), gradients(reference_attention)):
            close(got, expected, 1e-12)


def test_attention_keeps_its_softmax_in_float32():
    q, k, v = (jnp.asarray(normal(2, 9, 2, 8), jnp.bfloat16) for _ in range(3))
    bias = jnp.asarray(normal(2, 9, 9))
    exact = expected_attention(*(np.asarray(a, np.float32) for a in (q, k, v, bias)), None)
    for implementation in (reference_attention, attention_cpu.CHUNKS):
        got = implementation(q, k, v, bias, None)
        assert got.dtype == jnp.bfloat16
        close(got.astype(jnp.float32), exact, 1e-2)


def test_attention_dropout_keeps_the_mean():
    q, k = normal(1, 4, 1, 2), normal(1, 4, 1, 2)
    v, bias = np.ones((1, 4, 1, 2), np.float32), np.zeros((1, 4, 4), np.float32)
    keys = jax.random.split(jax.random.key(0), 500)
    y = jax.vmap(lambda key: attention.window_attention(q, k, v, bias, drop_rate=0.3, key=key))(keys)
    assert np.asarray(y).mean() == pytest.approx(1.0, abs=0.03)
    assert np.asarray(y).std() > 0.1


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (1, 7, 9, 12)])
def test_norms_equal_torch(shape):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x, scale, bias = normal(*shape) * 3 + 1, normal(shape[-1]), normal(shape[-1])
    s, b = torch.tensor(scale), torch.tensor(bias)
    close(norm.layer_norm(x, scale, bias), functional.layer_norm(torch.tensor(x), shape[-1:], s, b).numpy(), 2e-6)
    close(norm.layer_norm(x), functional.layer_norm(torch.tensor(x), shape[-1:]).numpy(), 2e-6)
    close(norm.instance_norm(x), channels_last(functional.instance_norm(channels_first(x))), 2e-6)
    close(norm.group_norm(x, 3, scale, bias), channels_last(functional.group_norm(channels_first(x), 3, s, b)), 2e-6)
    mean, var = normal(shape[-1]), np.abs(normal(shape[-1]))
    theirs = functional.batch_norm(channels_first(x), torch.tensor(mean), torch.tensor(var), s, b)
    close(norm.batch_norm(x, mean, var, scale, bias), channels_last(theirs), 2e-6)


def test_norms_are_precise_for_a_large_mean():
    x = normal(1, 32, 32, 32, 2) + 1000
    exact = (x.astype(np.float64) - x.astype(np.float64).mean((1, 2, 3))) / x.astype(np.float64).std((1, 2, 3))
    close(norm.instance_norm(x), exact, 1e-3)


def test_norms_compute_their_statistics_in_float32():
    x = jnp.asarray(normal(1, 8, 8, 8, 4) + 20, jnp.bfloat16)
    exact = norm.instance_norm(x.astype(jnp.float32))
    assert norm.instance_norm(x).dtype == jnp.bfloat16
    close(norm.instance_norm(x).astype(jnp.float32), exact, 5e-3)


@pytest.mark.fault("1.9")
def test_leaky_relu_has_torchs_derivative_also_at_zero():
    x = jnp.array([-2.0, 0.0, 3.0])
    np.testing.assert_allclose(pointwise.leaky_relu(x), [-0.02, 0.0, 3.0])
    np.testing.assert_allclose(jax.grad(lambda x: (pointwise.leaky_relu(x) * 5).sum())(x), [0.05, 0.05, 5.0])


def test_gelu_is_exact_and_has_torch_gradients():
    torch = pytest.importorskip("torch")
    x = torch.linspace(-4, 4, 41, requires_grad=True)
    y = torch.nn.functional.gelu(x)
    y.sum().backward()
    close(pointwise.gelu(jnp.asarray(x.detach().numpy())), y.detach().numpy())
    close(jax.grad(lambda x: pointwise.gelu(x).sum())(jnp.asarray(x.detach().numpy())), x.grad.numpy())


@pytest.mark.parametrize("axes", [(3,), (1, 2)])
@pytest.mark.parametrize("affine", [False, True])
def test_norms_have_the_gradients_of_their_formula(axes, affine):
    def formula(x, scale, bias):
        y = (x - x.mean(axes, keepdims=True)) / jnp.sqrt(x.var(axes, keepdims=True) + EPSILON)
        return y if scale is None else y * scale + bias

    with jax.enable_x64(True):
        x, weight = normal(2, 4, 5, 6, dtype=np.float64) + 3, normal(2, 4, 5, 6, dtype=np.float64)
        scale, bias = (normal(6, dtype=np.float64), normal(6, dtype=np.float64)) if affine else (None, None)
        argnums = (0, 1, 2) if affine else (0,)

        def gradients(implementation):
            return jax.grad(lambda *inputs: (implementation(*inputs) * weight).sum(), argnums)(x, scale, bias)

        got = gradients(lambda x, scale, bias: norm.normalize_by_own_moments(x, scale, bias, axes))
        for ours, theirs in zip(got, gradients(formula)):
            close(ours, theirs, 1e-12)


def test_gelu_in_bfloat16_is_computed_in_float32():
    x = jnp.asarray(np.linspace(-9, 9, 1001), jnp.bfloat16)
    expected = pointwise.gelu(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(pointwise.gelu(x), expected)


def test_dropout_and_drop_path():
    x = jnp.ones((4000, 2, 3))
    assert dropout(x, 0.4, None) is x
    assert drop_path(x, 0.0, jax.random.key(0)) is x
    for function in (dropout, drop_path):
        y = np.asarray(function(x, 0.25, jax.random.key(1)))
        assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
        assert (y == 0).mean() == pytest.approx(0.25, abs=0.03)
    samples = np.asarray(drop_path(x, 0.25, jax.random.key(1))).reshape(4000, -1)
    assert np.all(samples == samples[:, :1])  # a sample is dropped or kept as a whole


def test_a_batch_norm_of_one_voxel_is_an_error():
    from swinunetr_jax import InputError, SwinUNETRConfig

    layer = ConvNorm(12, SwinUNETRConfig(in_channels=1, out_channels=1, feature_size=12, norm_name="batch"))
    with pytest.raises(InputError, match="more than one voxel"):
        layer(jnp.ones((1, 1, 1, 1, 12)), train=True)


VMAPPED = {
    "conv by planes": (conv.conv, ((2, 8, 8, 8, 3), (3, 3, 3, 3, 4))),
    "conv by Winograd": (conv.conv, ((1, 2, 32, 32, 16), (3, 3, 3, 16, 16))),
    "conv by im2col": (conv.conv, ((1, 3, 4, 5, 3), (3, 3, 3, 3, 4))),
    "conv of kernel 1": (conv.conv, ((1, 3, 4, 5, 2), (1, 1, 1, 2, 4))),
    "patch_conv": (conv.patch_conv, ((1, 4, 6, 2, 3), (2, 2, 2, 3, 5))),
    "upsample": (upsample, ((1, 3, 2, 4, 6), (2, 2, 2, 6, 4))),
    "up_conv": (up_conv.up_conv, ((1, 3, 2, 4, 6), (1, 6, 4, 8, 4), (2, 2, 2, 6, 4), (3, 3, 3, 8, 3), (1, 1, 1, 8, 3))),
    "fused up_conv": (up_conv_cpu.FUSED, ((1, 3, 2, 4, 6), (1, 6, 4, 8, 4), (2, 2, 2, 6, 4), (3, 3, 3, 8, 3), (1, 1, 1, 8, 3))),
    "attention": (attention.window_attention, ((6, 5, 2, 4), (6, 5, 2, 4), (6, 5, 2, 4), (2, 5, 5))),
    "layer_norm": (norm.layer_norm, ((2, 3, 4, 6), (6,), (6,))),
    "instance_norm": (norm.instance_norm, ((2, 6, 7, 8, 3),)),
    "pointwise_conv_norm": (pointwise_conv_norm, ((2, 6, 7, 8, 3), (3, 5))),
    "norm_act_conv": (norm_act_conv, ((2, 6, 7, 8, 3), (3, 3, 3, 3, 2))),
    "bias": (pointwise.add_bias, ((2, 3, 4, 5), (5,))),
    "gelu": (pointwise.gelu, ((3, 4),)),
    "leaky_relu": (pointwise.leaky_relu, ((3, 4),)),
}


@pytest.mark.parametrize("name", VMAPPED)
def test_vmap_equals_separate_calls(name):
    """Data and weights have an additional first axis, such as that of an ensemble."""
    function, shapes = VMAPPED[name]
    inputs = [normal(2, *shape) for shape in shapes]

    def results(*inputs):
        def loss(*inputs):
            y = function(*inputs)
            return sum(jnp.sin(a).sum() for a in jax.tree.leaves(y)), y

        (_, y), gradients = jax.value_and_grad(loss, tuple(range(len(inputs))), has_aux=True)(*inputs)
        return y, gradients

    together = jax.jit(jax.vmap(results))(*inputs)
    separately = [jax.jit(results)(*(a[i] for a in inputs)) for i in range(2)]
    for got, *expected in zip(*map(jax.tree.leaves, (together, *separately))):
        close(got, np.stack(expected), 1e-5)
