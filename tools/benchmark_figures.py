"""The operations of the network, the speed of the machine, and its name, for `tools.benchmark`."""

import platform
import time
from pathlib import Path

import numpy as np

from tools.contenders import CASE, CHANNELS


def flops(size: int, features: int) -> float:
    """Returns the operations of one forward pass, counted as 2 for each multiplication in convolutions, linear layers and attention."""
    f, total = features, 0.0

    def voxels(level: int) -> float:
        return float(size // 2**level) ** 3

    def conv(level: int, c_in: int, c_out: int, taps: int = 27) -> float:
        return 2.0 * voxels(level) * taps * c_in * c_out

    total += conv(1, 8 * CHANNELS[0], f, 1) + conv(0, CHANNELS[0], f) + conv(0, f, f) + conv(0, CHANNELS[0], f, 1)
    for stage in range(4):
        width, grid = f * 2**stage, size // 2 ** (stage + 1)
        window = min(7, grid)
        tokens = float(-(-grid // window) * window) ** 3
        total += 2 * (2 * voxels(stage + 1) * 8 * width**2 + 2 * tokens * (4 * width**2 + 2 * window**3 * width))
        total += 2 * voxels(stage + 2) * 8 * width * 2 * width
    total += sum(2 * conv(level, f * 2 ** (level - 1), f * 2 ** (level - 1)) for level in (1, 2, 3)) + 2 * conv(5, 16 * f, 16 * f)
    for level, c_in, c_out in ((4, 16 * f, 8 * f), (3, 8 * f, 4 * f), (2, 4 * f, 2 * f), (1, 2 * f, f), (0, f, f)):
        total += conv(level, c_in, c_out, 1) + conv(level, 2 * c_out, c_out, 28) + conv(level, c_out, c_out)
    return total + conv(0, f, CHANNELS[1], 1)


def windows(size: int) -> int:
    """Returns the number of windows of a whole case."""
    from swinunetr_jax.inference.plan import Plan

    return Plan.of(CASE, (size,) * 3, 0.5).windows


def matmul_rate(dtype: str) -> float:
    """Returns the floating-point operations per second of a large square matrix product of JAX on this machine."""
    import jax
    import jax.numpy as jnp

    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.asarray(np.random.default_rng(0).normal(size=(n, n)), dtype)
    multiply = jax.jit(lambda a: a @ a)
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        multiply(a).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


def device() -> str:
    """Returns the name of the accelerator, or of the processor if there is none."""
    import jax

    if jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    try:
        names = [
            line.partition(":")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
        ]
    except OSError:  # another system than Linux
        names = []
    return names[0].strip() if names else platform.processor() or "CPU"
