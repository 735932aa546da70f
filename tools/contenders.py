"""The contenders of `tools.benchmark`: this project's network, MONAI's and medicai's, each ready to run a step.

A contender runs in its own process and imports its libraries there.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from swinunetr_jax.hyena_options import HYENA_VARIANTS

CASE = (240, 240, 155)  # voxels
CHANNELS = 4, 3  # of the input and of the output
HYENA = tuple(f"ours-{stages}" for stages in HYENA_VARIANTS)  # this project's network with Hyena stages
NAMES = ("ours", *HYENA, "monai", "monai-flash", "monai-compile", "monai-compile-channels-last", "medicai")

# Networks that were looked for on 2026-11-28 and cannot be compared, with the reason.
NOT_INSTALLABLE = {
    "nnunet": "nnU-Net 2.8.1 and its dynamic-network-architectures 0.4.4 contain no Swin UNETR, and the Swin UNETR of the package "
    "nnunet-extend 2025.4.24 is MONAI's (2026-11-28).",
    "fast-swin-unetr": "FastSwinUNETR (Triton kernels for a GPU under MONAI's network) is not on PyPI (2026-11-28).",
}

waited = 0.0  # the seconds for which this process has waited for others


@contextlib.contextmanager
def exclusive(lock: str) -> Iterator[None]:
    """Lets only one contender at a time run the block, because libraries choose kernels by timing them."""
    global waited
    started = time.perf_counter()
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waited += time.perf_counter() - started
        yield


@dataclass
class Contender:
    """A network that is ready to work.

    Attributes:
        run: starts a step.
        device_peak: returns the peak memory on the device in bytes, or None on a CPU.
        wait: waits for the steps that were started.
        warm: runs before the first turn, instead of a step.
        tune: allows the library to choose kernels by timing them.
        rest: frees the memory that is not needed until the next turn, and restarts the measurement of its peak.
        on_device: whether the work runs on an accelerator.
        compiling: the seconds of compilation, if they can be measured without the first call.
    """

    run: Callable[[], None]
    device_peak: Callable[[], int | None]
    wait: Callable[[], None] = lambda: None
    warm: Callable[[], None] | None = None
    tune: Callable[[], None] = lambda: None
    rest: Callable[[], None] = lambda: None
    on_device: bool = False
    compiling: float | None = None


def build(name: str, work: str, size: int, features: int, dtype: str, lock: str) -> Contender:
    """Returns the contender of this name; `lock` is the file that `exclusive` locks."""
    if name == "ours" or name in HYENA:
        return ours(work, size, features, dtype, lock, name.partition("-")[2] or None)
    if name == "medicai":
        return medicai(work, size, features)
    return monai(name, work, size, features, dtype)


def volume(work: str, size: int) -> np.ndarray:
    """Returns the input [1, d, h, w, c] for a kind of work."""
    shape = CASE if work == "case" else (size,) * 3
    return np.random.default_rng(0).normal(size=(1, *shape, CHANNELS[0])).astype(np.float32)


def ours(work: str, size: int, features: int, dtype: str, lock: str, hyena_stages: str | None = None) -> Contender:
    """Returns this project's network, with Hyena stages if they are given."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from swinunetr_jax import SwinUNETR, SwinUNETRConfig, jit, sliding_window_inference
    from swinunetr_jax.runtime.memory import release_compile_memory
    from swinunetr_jax.runtime.xla import pin_gradient_layout

    config = SwinUNETRConfig(
        in_channels=CHANNELS[0], out_channels=CHANNELS[1], feature_size=features, dtype=dtype, hyena_stages=hyena_stages
    )
    structure, state = nnx.split(SwinUNETR(config, rngs=nnx.Rngs(0)))
    x = volume(work, size)
    on_device = jax.default_backend() != "cpu"

    def peak() -> int | None:
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    release_compile_memory()
    forward = jit(lambda state, x: nnx.merge(structure, state)(x))  # this project's `jit`, as its documentation recommends
    if work == "case":

        def segment(x: np.ndarray) -> None:
            sliding_window_inference(x, (size,) * 3, 1, lambda p: forward(state, p), 0.5, "gaussian")

        return Contender(lambda: segment(x), peak, warm=lambda: segment(x[:, :size, :size, :size]), on_device=on_device)
    x = jnp.asarray(x)
    result: list[Any] = [None]

    def wait() -> None:
        jax.block_until_ready(result)

    if work == "forward":
        forward, compiling = compile_exclusively(lock, forward, state, x)

        def run_forward() -> None:
            result[0] = forward(state, x)

        return Contender(run_forward, peak, wait, on_device=on_device, compiling=compiling)
    optimizer = optax.adamw(1e-4)

    def step(state: Any, moments: Any, x: Any) -> tuple[Any, Any]:
        gradients = jax.grad(lambda state: jnp.square(nnx.merge(structure, state)(x).astype(jnp.float32)).mean())(state)
        updates, moments = optimizer.update(pin_gradient_layout(gradients), moments, state)
        return optax.apply_updates(state, updates), moments

    result[:] = state, jax.jit(optimizer.init)(state)
    program, compiling = compile_exclusively(lock, jit(step, donate_argnums=(0, 1)), *result, x)

    def run_step() -> None:
        result[:] = program(*result, x)

    return Contender(run_step, peak, wait, on_device=on_device, compiling=compiling)


def compile_exclusively(lock: str, function: Any, *args: Any) -> tuple[Callable[..., Any], float]:
    """Returns the compiled program and the seconds of its compilation."""
    with exclusive(lock):
        started = time.perf_counter()
        program = function.lower(*args).compile()
        return program, time.perf_counter() - started


def monai(name: str, work: str, size: int, features: int, dtype: str) -> Contender:
    """Returns MONAI's network, in the variant that the name states."""
    import torch
    from monai.inferers.utils import sliding_window_inference
    from monai.networks.nets.swin_unetr import SwinUNETR

    device = "cuda" if torch.cuda.is_available() else "cpu"
    flash: dict[str, Any] = {"use_flash_attention": True} if name == "monai-flash" else {}
    net = SwinUNETR(*CHANNELS, feature_size=features, **flash).to(device)
    x = torch.tensor(np.moveaxis(volume(work, size), -1, 1).copy(), device=device)
    if name.endswith("channels-last"):
        layout = torch.channels_last_3d
        net = net.to(memory_format=layout)  # pyright: ignore[reportCallIssue] - torch's annotations lack this argument
        x = x.to(memory_format=layout)
    run_net = torch.compile(net) if "compile" in name else net
    autocast = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    peaks: list[int] = []

    def peak() -> int | None:
        return max(peaks[1:], default=None) if device == "cuda" else None  # without the peak of the warm-up

    def rest() -> None:
        if device == "cuda":
            peaks.append(torch.cuda.max_memory_allocated())
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def tune() -> None:
        torch.backends.cudnn.benchmark = True

    if work == "train":
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

        def run_step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                loss = run_net(x).float().square().mean()
            loss.backward()
            optimizer.step()

        return Contender(run_step, peak, wait, tune=tune, rest=rest, on_device=device == "cuda")
    net.eval()

    def run(x: torch.Tensor = x) -> None:
        with torch.no_grad(), autocast:
            if work == "forward":
                run_net(x)
            else:
                sliding_window_inference(x, (size,) * 3, 1, run_net, overlap=0.5, mode="gaussian")

    warm = (lambda: run(x[..., :size, :size, :size])) if work == "case" else None
    return Contender(run, peak, wait, warm, tune, rest, device == "cuda")


def medicai(work: str, size: int, features: int) -> Contender:
    """Returns medicai's network, which is compared in the forward pass only."""
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    from medicai.models import SwinBackbone, SwinUNETR  # pyright: ignore[reportMissingImports] - not installed by this project

    if work != "forward":
        raise ValueError("medicai is compared in the forward pass only")
    encoder = SwinBackbone(
        input_shape=(size, size, size, CHANNELS[0]),
        embed_dim=features,
        patch_size=2,
        depths=[2, 2, 2, 2],
        downsampling_strategy="swin_unetr_like",
    )
    net = SwinUNETR(encoder=encoder, num_classes=CHANNELS[1], feature_size=features)
    forward = jax.jit(lambda x: net(x, training=False))
    x = volume(work, size)
    return Contender(lambda: jax.block_until_ready(forward(x)), lambda: None)
