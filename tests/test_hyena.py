"""HyenaND stages: the block against a reference written here with torch.fft, the gradients of the goldens, and initial weights."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swinunetr_jax import SwinUNETR, SwinUNETRConfig, open_checkpoint, save_checkpoint
from swinunetr_jax.model import hyena
from swinunetr_jax.model.swin import Stage
from swinunetr_jax.ops import pointwise
from swinunetr_jax.ops.hyena import depthwise_conv, fft_conv
from swinunetr_jax.runtime.dispatch import reference_ops
from swinunetr_jax.runtime.sharding import device_mesh, with_mesh
from swinunetr_jax.weights.monai import entries, to_monai
from swinunetr_jax.weights.params import build, flatten
from tools import golden_weights

BASE: dict[str, Any] = {"in_channels": 1, "out_channels": 2, "feature_size": 12, "depths": (1, 1, 1, 1)}
ALL = (True, True, True, True)
ROOT = Path(__file__).parents[1]
GOLDENS = Path(__file__).parent / "goldens"


def tensor(name: str, *shape: int) -> np.ndarray:
    return golden_weights.signed(name, shape, 1)


def perturbed(module: nnx.Module) -> dict[str, np.ndarray]:
    """Returns weights by name that differ from the initial ones in every element; some masks are beyond their limits."""
    return {
        path: 0.3 + 0.29 * tensor(path, *value.shape) if path.endswith("std") else value + 0.3 * tensor(path, *value.shape)
        for path, value in flatten(module).items()
    }


def filled(module: nnx.Module, weights: dict[str, Any]) -> Any:
    graph, state = nnx.split(module)
    values = [(path, jnp.asarray(weights[".".join(map(str, path))])) for path, _ in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(values))


def close(ours: Any, theirs: np.ndarray, tolerance: float, name: str = "") -> None:
    assert np.abs(np.asarray(ours) - theirs).max() <= tolerance * np.abs(theirs).max(), name


# ---- the block in float64 against torch ------------------------------------------------------------------------------------------


def torch_block(torch: Any, x: Any, w: dict[str, Any], config: SwinUNETRConfig) -> Any:
    """Returns the block's output for x [b, c, *grid], computed from the description of the operator: convolutions in the space of the
    voxels become products of complex spectra, and the kernel is a function of coordinates."""
    dims, grid = config.spatial_dims, x.shape[2:]
    axes = tuple(range(2, 2 + dims))
    single, circular = config.hyena_grid_type == "single", config.hyena_fft_padding == "circular"

    def norm(y: Any, name: str) -> Any:
        y = torch.nn.functional.layer_norm(y.movedim(1, -1), y.shape[1:2], w[f"{name}.scale"], w[f"{name}.bias"])
        return y.movedim(-1, 1)

    def project(y: Any, name: str) -> Any:
        y = y.movedim(1, -1) @ w[f"{name}.kernel"]
        return (y + w[f"{name}.bias"] if f"{name}.bias" in w else y).movedim(-1, 1)

    short = w["mixer.short_conv.kernel"]  # [*k, 1, 3c] -> [3c, 1, *k]
    short = short.permute(dims + 1, dims, *range(dims))
    conv = {2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}[dims]
    mixed = conv(project(norm(x, "norm1"), "mixer.qkv"), short, padding=config.hyena_kernel_size // 2, groups=short.shape[0])
    q, k, v = mixed.chunk(3, dim=1)
    z = norm(q, "mixer.q_norm") * norm(k, "mixer.k_norm")
    z = torch.nn.functional.group_norm(z, 1, w["mixer.gate_norm.scale"], w["mixer.gate_norm.bias"])

    length = (config.hyena_l_cache + 1) // 2 if single else config.hyena_l_cache
    halves = [(size - 1) // 2 if single else size - 1 for size in grid]
    points = torch.stack(torch.meshgrid(*[torch.arange(-half, half + 1, dtype=x.dtype) for half in halves], indexing="ij"), -1)
    points = points / (length - 1)
    kernel_name = "mixer.global_kernel"
    features = torch.sin(points @ w[f"{kernel_name}.embed.kernel"] + w[f"{kernel_name}.embed.bias"])
    for layer in range(max(config.hyena_kernel_layers - 1, 1)):
        name = f"{kernel_name}.hidden.{layer}"
        features = torch.sin(features @ w[f"{name}.kernel"] + w[f"{name}.bias"])
    kernel = features @ w[f"{kernel_name}.out.kernel"] + w[f"{kernel_name}.out.bias"]
    least = 1 / (length - 1) / math.sqrt(-2 * math.log(0.1))
    most = 1 / math.sqrt(-2 * math.log(config.hyena_mask_max_attenuation))
    std = w[f"{kernel_name}.std"]
    std = std + (std.clamp(least, most) - std).detach()
    kernel = kernel * torch.exp(-0.5 * ((points[..., None] / std) ** 2).sum(-2))

    # Zeros beyond the grid: a period that is long enough. The full spectrum is used, with exact phases for the shift of the middle.
    sizes = tuple(grid) if circular else tuple(2 * size + 1 for size in grid)
    spectrum = torch.fft.fftn(kernel.movedim(-1, 0), s=sizes, dim=tuple(range(1, 1 + dims)))
    for axis, (size, half) in enumerate(zip(sizes, halves)):
        phase = torch.exp(2j * math.pi * half * torch.fft.fftfreq(size, dtype=x.dtype))
        spectrum = spectrum * phase.reshape(-1, *[1] * (dims - 1 - axis))
    y = torch.fft.ifftn(torch.fft.fftn(z, s=sizes, dim=axes) * spectrum, dim=axes).real
    y = y[(..., *(slice(size) for size in grid))] + w["mixer.shortcut"].reshape(-1, *[1] * dims) * z
    x = x + project(y * v, "mixer.proj")
    hidden = torch.nn.functional.gelu(project(norm(x, "norm2"), "mlp.linear1"))
    return x + project(hidden, "mlp.linear2")


OPTIONS = {
    "circular": ((6, 4, 3), {}),
    "zero": ((5, 4, 6), {"hyena_fft_padding": "zero", "hyena_kernel_layers": 2}),
    "double, chunked": (
        (4, 3, 2),
        {"hyena_fft_padding": "zero", "hyena_grid_type": "double", "hyena_use_chunked_fft": True, "hyena_l_cache": 3},
    ),
    "2-D, short convolution by FFT": (
        (7, 10),
        {
            "spatial_dims": 2,
            "window_size": 7,
            "hyena_kernel_size": 5,
            "hyena_use_fft_short_conv": True,
            "hyena_short_conv_fft_chunks": 10,
            "hyena_kernel_mlp_dim": 5,
            "hyena_mask_max_attenuation": 0.2,
        },
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_block_in_float64_equals_the_formula_in_values_and_gradients(name, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(hyena, "CHANNELS_AT_A_TIME", 5)  # three parts of four channels
    grid, options = OPTIONS[name]
    with jax.enable_x64(True):
        config = SwinUNETRConfig(
            **{**BASE, "hyena_l_cache": 8, **options}, use_hyena=True, dtype="float64", param_dtype="float64"
        )
        block = hyena.HyenaBlock(12, 0.0, config, rngs=nnx.Rngs(0))
        weights = perturbed(block)
        x, cotangent = tensor("x", 2, *grid, 12), tensor("dy", 2, *grid, 12)

        def loss(weights: dict[str, Any], x: Any) -> Any:
            y = filled(block, weights)(x)
            return (y * cotangent).sum(), y

        (_, ours), (dweights, dx) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(weights, x)
        theirs = {path: torch.tensor(value, requires_grad=True) for path, value in weights.items()}
        tx = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
        y = torch_block(torch, tx, theirs, config)
        (y * torch.tensor(np.moveaxis(cotangent, -1, 1).copy())).sum().backward()
        close(ours, np.moveaxis(y.detach().numpy(), 1, -1), 1e-10)
        close(dx, np.moveaxis(tx.grad.numpy(), 1, -1), 1e-10)
        for path, value in theirs.items():
            close(dweights[path], value.grad.numpy(), 1e-10, path)


# ---- the gradients of MONAI's network, which tools/make_goldens.py stored; test_goldens.py compares the values --------------------


@pytest.mark.parametrize("name", ["hyena_2d", pytest.param("hyena", marks=pytest.mark.long)])
def test_gradients_of_the_network_equal_those_of_monai(name, monkeypatch):
    monkeypatch.setattr(pointwise, "NEGATIVE_SLOPE", 1.0)  # as in the stored case
    with np.load(GOLDENS / f"{name}.npz") as content:
        golden = dict(content)
    about = json.loads(str(golden["about"]))
    config, seed = SwinUNETRConfig(**about["config"]), about["seed"]
    model = hyena_golden_network(config, about)
    x, cotangent = (
        golden_weights.volume((*about["shape"][:-1], c), seed + i)
        for i, c in enumerate((config.in_channels, config.out_channels))
    )
    graph, params = nnx.split(model)
    loss = lambda params: (nnx.merge(graph, params)(x) * cotangent).sum()  # noqa: E731
    gradients = to_monai(flatten(nnx.merge(graph, jax.jit(jax.grad(loss))(params))), config)
    assert set(about["gradients"]) == {key for key in gradients if not key.endswith(golden_weights.COMPUTED)}
    for key, samples, (mean, std, top) in zip(about["gradients"], golden["gradients"], golden["gradient_statistics"]):
        ours = gradients[key]
        size = min(samples.size, ours.size)
        assert np.abs(golden_weights.sample(ours, samples.size) - samples[:size]).max() <= 1e-4 * top, key
        np.testing.assert_allclose(golden_weights.statistics(ours), (mean, std, top), rtol=0, atol=1e-4 * top, err_msg=key)


def hyena_golden_network(config: SwinUNETRConfig, about: dict[str, Any]) -> SwinUNETR:
    tensors = golden_weights.state({name: tuple(shape) for name, shape in about["state"].items()}, about["seed"])
    return build(config, {entry.path: entry.order.to_jax(tensors[entry.name]) for entry in entries(config) if entry.path})


@pytest.mark.long
@pytest.mark.parametrize("options", [{"use_hyena": True, "use_v2": True}, {"hyena_stages": (False, True, True, False)}])
def test_live_values_equal_those_of_monai(options, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("nvsubquadratic", reason="MONAI's Hyena stages need nvsubquadratic")
    from tools import reference

    config = SwinUNETRConfig(**{**BASE, **options})
    net = reference.network(config.to_dict())
    reference.fill(net, 3)
    path = tmp_path / "network.pt"
    torch.save(net.state_dict(), path)
    checkpoint = open_checkpoint(path, downsample="merging", hyena_fft_padding="circular")
    x = golden_weights.volume((1, 64, 32, 96, 1), 3)
    with torch.no_grad():
        theirs = reference.channels_last(net(reference.channels_first(x)))
    close(jax.jit(checkpoint.model())(x), theirs, 1e-4)
    save_checkpoint(tmp_path / "again.pt", checkpoint.model(), to="monai")
    net.load_state_dict(torch.load(tmp_path / "again.pt"), strict=True)


# ---- initial weights -------------------------------------------------------------------------------------------------------------


def test_initial_weights_have_the_distributions_of_the_source():
    block = hyena.HyenaBlock(48, 0.0, SwinUNETRConfig(**{**BASE, "feature_size": 48}, use_hyena=True), rngs=nnx.Rngs(0))
    weights = {name.removeprefix("mixer."): value for name, value in flatten(block).items()}
    bounds = {  # the largest values of 60 initialisations of MONAI's block approach these numbers from below
        "global_kernel.embed.kernel": 20.944,
        "global_kernel.hidden.0.kernel": 0.43301,
        "global_kernel.hidden.1.kernel": 0.43301,
        "global_kernel.out.kernel": 0.0067658,
        "short_conv.kernel": 0.19245,
        "shortcut": 0.14434,
    }
    for name, bound in bounds.items():
        values = weights[name]
        assert 0.9 * bound <= np.abs(values).max() <= bound, name
        assert np.abs(values).mean() == pytest.approx(bound / 2, rel=0.25), name
    for name in ("qkv.kernel", "proj.kernel"):
        assert weights[name].std() == pytest.approx(0.02, rel=0.05)
    for name in ("global_kernel.embed", "global_kernel.hidden.0", "global_kernel.out"):
        assert not weights[f"{name}.bias"].any()
    std = weights["global_kernel.std"]  # the values that MONAI's module has, the same along each axis
    np.testing.assert_allclose(std, np.tile(std[0], (3, 1)))
    np.testing.assert_allclose(std[0, [0, 1, 47]], [0.031066036, 0.0329085737, 0.4659906], rtol=2e-7)
    np.testing.assert_allclose(np.diff(np.log(std[0])), np.log(15) / 47, rtol=1e-4)
    assert hyena.mask_limits(block.mixer.global_kernel.config) == pytest.approx((0.031066040, 3.122156766))


def test_masks_are_limited_by_the_trainer_and_by_the_network():
    config = SwinUNETRConfig(**BASE, use_hyena=True, hyena_l_cache=8, hyena_mask_max_attenuation=0.2)
    weights = {"swin.stages.0.blocks.0.mixer.global_kernel.std": jnp.array([0.0, 0.5, 9.0]), "out.bias": jnp.array([9.0])}
    limited = hyena.limit_masks(weights, config)
    np.testing.assert_allclose(limited["swin.stages.0.blocks.0.mixer.global_kernel.std"], [0.15533, 0.5, 0.55739], rtol=1e-4)
    assert limited["out.bias"] == 9
    assert hyena.limit_masks(weights, SwinUNETRConfig(**BASE)) is weights


# ---- how it computes -------------------------------------------------------------------------------------------------------------


def small_mixer(**options: Any) -> Any:
    mixer = hyena.HyenaMixer(12, SwinUNETRConfig(**BASE, use_hyena=True, **options), rngs=nnx.Rngs(0))
    return filled(mixer, {name: value.astype(np.float32) for name, value in perturbed(mixer).items()})


def test_a_mixer_of_16_bits_computes_the_convolutions_in_float32():
    x = tensor("x", 2, 4, 6, 8, 12).astype(np.float32)
    y = jax.jit(small_mixer(dtype="bfloat16"))(x.astype(jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    wide = jax.jit(small_mixer())(x.astype(jnp.bfloat16).astype(jnp.float32))
    # the projections round to 8 bits; a kernel or a transform of 8 bits would be off by a tenth
    assert np.linalg.norm(y.astype(np.float32) - wide) <= 0.02 * np.linalg.norm(wide)


def test_vmap_and_forward_mode_of_the_global_convolution():
    x, kernel = tensor("x", 3, 2, 4, 5, 6).astype(np.float32), tensor("k", 4, 5, 3).astype(np.float32)
    convolve = lambda x, kernel: fft_conv.fft_conv(x, kernel, circular=False, channels=2)  # noqa: E731
    once = convolve(x.reshape(6, 4, 5, 6), kernel).reshape(x.shape)
    close(jax.vmap(convolve, (0, None))(x, kernel), once, 1e-5)
    value, tangent = jax.jvp(convolve, (x[0], kernel), (x[1], -kernel))
    close(value, once[0], 1e-5)
    close(tangent, once[1] - once[0], 1e-5)  # bilinear


def test_forward_mode_of_a_mixer_is_the_difference_quotient():
    with jax.enable_x64(True):
        mixer = hyena.HyenaMixer(
            12, SwinUNETRConfig(**BASE, spatial_dims=2, use_hyena=True, dtype="float64", param_dtype="float64"), rngs=nnx.Rngs(0)
        )
        x, dx = tensor("x", 1, 4, 6, 12), tensor("dx", 1, 4, 6, 12)
        with reference_ops():
            _, tangent = jax.jvp(mixer, (jnp.asarray(x),), (jnp.asarray(dx),))
        close(tangent, (np.asarray(mixer(x + 1e-6 * dx)) - np.asarray(mixer(x - 1e-6 * dx))) / 2e-6, 1e-6)


@pytest.mark.parametrize(("size", "length"), [(1, 1), (7, 8), (34, 36), (48, 48), (49, 50), (97, 100)])
def test_lengths_of_transforms_have_small_factors(size, length):
    assert fft_conv.fast_length(size) == length


@pytest.mark.parametrize("shape", [(2, 5, 4, 3, 6), (1, 6, 5, 4)])
def test_the_short_convolution_equals_the_compilers_in_values_and_gradients(shape):
    x, kernel, dy = tensor("x", *shape), tensor("k", *[3] * (len(shape) - 2), shape[-1]), tensor("dy", *shape)
    with jax.enable_x64(True):
        results = [
            jax.jit(lambda x, k, f=f: (*jax.vjp(f, x, k)[1](dy), f(x, k)))(x, kernel)
            for f in (depthwise_conv.depthwise_conv, depthwise_conv.grouped_conv)
        ]
        for ours, theirs in zip(*results):
            close(ours, np.asarray(theirs), 1e-12)


def in_subprocess(function: str) -> Any:
    """Returns the result of a function of this file in a process with four devices."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    done = subprocess.run([sys.executable, __file__, function], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_devices_share_channels_and_the_results_are_the_same():
    results = in_subprocess("compare_devices")
    assert results["error"] < 1e-5 and results["gradients"] < 1e-4 and results["explicit"] < 1e-5
    assert results["transforms"]


def compare_devices() -> dict[str, Any]:
    """Returns errors of a mixer on four devices, which share samples and planes.

    `transforms` is whether each device transforms a fourth of the rows, `explicit` the error of a network over a user's own mesh.
    """
    mixer, x = small_mixer(), tensor("x", 2, 4, 6, 8, 12).astype(np.float32)
    mesh = device_mesh(2, 2, jax.devices())
    graph, weights = nnx.split(mixer)

    def run(weights: Any, x: Any) -> Any:
        return nnx.merge(graph, weights)(x)

    def gradients(weights: Any, x: Any) -> Any:
        return jax.tree.leaves(jax.grad(lambda *args: (run(*args) ** 2).sum(), (0, 1))(weights, x))

    def error(ours: Any, theirs: Any) -> float:
        return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max() / np.abs(np.asarray(theirs)).max())

    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data", "spatial"))
    shared = jax.device_put(x, sharding)
    program = jax.jit(with_mesh(mesh, run)).lower(weights, shared).compile()
    whole = jax.jit(run)(weights, x)
    transforms = [line for line in program.as_text().splitlines() if "fft_type=RFFT" in line]
    explicit = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))
    model = SwinUNETR(SwinUNETRConfig(**BASE, spatial_dims=2, use_hyena=True), rngs=nnx.Rngs(0))
    plane, (network, params) = tensor("plane", 1, 64, 64, 1).astype(np.float32), nnx.split(model)
    call = jax.jit(lambda params, x: nnx.merge(network, params)(x))
    alone = call(params, plane)
    with jax.set_mesh(explicit):
        rows = jax.device_put(plane, jax.sharding.NamedSharding(explicit, jax.sharding.PartitionSpec(None, "rows")))
        params = jax.device_put(params, jax.sharding.NamedSharding(explicit, jax.sharding.PartitionSpec()))
        logits = call(params, rows)
    return {
        "error": error(program(weights, shared), whole),
        "gradients": max(map(error, jax.jit(with_mesh(mesh, gradients))(weights, shared), jax.jit(gradients)(weights, x))),
        "transforms": all("c64[6,4,6,5]" in line for line in transforms)
        and bool(transforms),  # 2 samples × 12 channels on 4 devices
        "explicit": error(logits, alone),
    }


@pytest.mark.long
def test_recomputation_and_drop_rates():
    config = SwinUNETRConfig(
        **{**BASE, "depths": (2, 1, 1, 1)}, spatial_dims=2, use_hyena=True, drop_rate=0.2, dropout_path_rate=0.4
    )
    x = tensor("x", 2, 8, 6, 12).astype(np.float32)

    def gradient(config: SwinUNETRConfig) -> Any:
        stage = Stage(0, config, rngs=nnx.Rngs(0))
        graph, params = nnx.split(stage)
        loss = lambda params: (nnx.merge(graph, params)(x, jax.random.key(1))[0] ** 2).sum()  # noqa: E731
        assert [block.drop_path_rate for block in stage.blocks] == pytest.approx([0, 0.1])
        return jax.tree.leaves(jax.jit(jax.grad(loss))(params))

    for ours, theirs in zip(gradient(config.replace(use_checkpoint=True)), gradient(config), strict=True):
        close(ours, np.asarray(theirs), 1e-5)


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
