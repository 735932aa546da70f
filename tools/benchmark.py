"""This project against MONAI on this machine: forward pass, training step and a whole case, in one run, in turns.

    python -m tools.benchmark --work forward train --sizes 64 96
    python -m tools.benchmark --work case --feature-size 24
    python -m tools.benchmark --dtype bfloat16 --sizes 96 128           # on a GPU

Every contender lives in a process of its own, so that peak memory is its own, and waits there for its turn: A B A B … Machines are
noisy: what counts is the ratio of medians. Contenders: ours; MONAI eager; with its fused attention (forward only, it has no
gradient); under torch.compile, in both memory layouts; medicai, where it is installed. On a GPU torch runs under autocast for bfloat16.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

CASE = (240, 240, 155)
CHANNELS = 4, 3
CONTENDERS = ("ours", "monai", "monai-flash", "monai-compile", "monai-compile-channels-last", "medicai")
Work = Literal["forward", "train", "case"]


@dataclass
class Options:
    """What to measure."""

    work: tuple[Work, ...] = ("forward",)
    """forward; train: forward, backward and AdamW; case: a 240×240×155 volume by windows of --sizes, overlap 0.5."""
    sizes: tuple[int, ...] = (64,)
    """Edge of the volume or window."""
    feature_size: int = 48
    dtype: Literal["float32", "bfloat16"] = "float32"
    against: tuple[str, ...] = ("monai",)
    """Peers: monai, monai-flash, monai-compile, monai-compile-channels-last, medicai."""
    repeats: int = 5
    """Timed turns of each contender, after one warm-up."""
    out: Path | None = None
    """Also write the table as JSON here."""


def main(options: Options) -> None:
    unknown = set(options.against) - set(CONTENDERS)
    if unknown:
        sys.exit(f"error: unknown contender {', '.join(unknown)}; known are {', '.join(CONTENDERS)}")
    rows = []
    rate = matmul_rate(options.dtype)
    for work in options.work:
        for size in options.sizes:
            rows += measure(work, size, options)
            print(table(rows[-1 - len(options.against) :], rate), flush=True)
    print("\n" + table(rows, rate))
    if options.out:
        options.out.write_text(json.dumps({"machine": machine(), "matmul_flops": rate, "rows": rows}, indent=1))


def measure(work: str, size: int, options: Options) -> list[dict[str, Any]]:
    """One row for each contender."""
    with tempfile.TemporaryDirectory() as cache:
        jobs = {name: Worker(name, work, size, options, cache) for name in ("ours", *options.against)}
        seconds: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(options.repeats):
            for name, job in jobs.items():
                if job.alive:
                    seconds[name].append(job.turn())
        rows = []
        for name, job in jobs.items():
            row = {"work": work, "size": size, "contender": name, "features": options.feature_size, "dtype": options.dtype}
            row |= {"first_call": job.first_call, "seconds": seconds[name], "error": job.error} | job.finish()
            if seconds[name]:
                row["median"] = statistics.median(seconds[name])
                row["flops"] = flops(size, options.feature_size) * {"forward": 1, "train": 3, "case": windows(size)}[work]
            rows.append(row)
        ours = rows[0]
        if "median" in ours:
            again = Worker("ours", work, size, options, cache)  # a second start finds the compiled program in the cache
            ours["cached_first_call"], ours["cached_compiling"] = again.first_call, again.finish()["compiling"]
            for row in rows[1:]:
                if "median" in row:
                    row["ratio"] = row["median"] / ours["median"]
    return rows


class Worker:
    """A contender in its own process: it warms up, then works once for every line it is sent."""

    def __init__(self, name: str, work: str, size: int, options: Options, cache: str):
        task = json.dumps([name, work, size, options.feature_size, options.dtype])
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        command = [sys.executable, "-m", "tools.benchmark", "--worker", task]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        first = self.process.stdout.readline()
        self.alive = first.startswith("ready ")
        self.first_call = float(first.split()[1]) if self.alive else None
        self.error = None if self.alive else (first.strip() or "it died")

    def turn(self) -> float:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def finish(self) -> dict[str, float]:
        if not self.alive:
            self.process.kill()
            return {}
        return json.loads(self.process.communicate("")[0].strip().splitlines()[-1])


# ---- in the worker's process -----------------------------------------------------------------------------------------------------


def work_in_turns(name: str, work: str, size: int, features: int, dtype: str) -> None:
    started = time.perf_counter()
    try:
        if name == "ours":
            contender = ours(work, size, features, dtype)
        elif name == "medicai":
            contender = medicai(work, size, features)
        else:
            contender = monai(name, work, size, features, dtype)
        if work != "case":  # a case is minutes long: it was warmed up by one window
            contender.run()
    except Exception as error:  # a contender that cannot run is a row of the table, not the end of it
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:150]}", flush=True)
        return
    print(f"ready {time.perf_counter() - started}", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        contender.run()
        print(time.perf_counter() - started, flush=True)
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"host_bytes": host, "device_bytes": contender.device_peak(), "compiling": contender.compiling}))


@dataclass
class Contender:
    run: Callable[[], None]
    device_peak: Callable[[], int | None]
    compiling: float | None = None
    """Seconds from the function to a compiled program, where that can be had apart from the first call."""


def volume(work: str, size: int) -> np.ndarray:
    shape = CASE if work == "case" else (size,) * 3
    return np.random.default_rng(0).normal(size=(1, *shape, CHANNELS[0])).astype(np.float32)


def ours(work: str, size: int, features: int, dtype: str) -> Contender:
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from swinunetr_jax import SwinUNETR, SwinUNETRConfig, compiler_options, sliding_window_inference, traced_for
    from swinunetr_jax.compiler import in_order, trim_after_compiling

    config = SwinUNETRConfig(in_channels=CHANNELS[0], out_channels=CHANNELS[1], feature_size=features, dtype=dtype)
    structure, state = nnx.split(SwinUNETR(config, rngs=nnx.Rngs(0)))
    x = volume(work, size)

    def peak() -> int | None:
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """For this device, as the trainer compiles its step."""
        return jax.jit(traced_for(jax.devices()[0], function), compiler_options=compiler_options(), **options)

    trim_after_compiling()
    forward = compiled(lambda state, x: nnx.merge(structure, state)(x))
    if work == "case":

        def segment(x: np.ndarray) -> None:
            sliding_window_inference(x, (size,) * 3, 1, lambda p: forward(state, p), 0.5, "gaussian")

        segment(x[:, :size, :size, :size])
        return Contender(lambda: segment(x), peak)
    x = jnp.asarray(x)
    if work == "forward":
        started = time.perf_counter()
        forward = forward.lower(state, x).compile()
        return Contender(lambda: jax.block_until_ready(forward(state, x)), peak, time.perf_counter() - started)
    optimizer = optax.adamw(1e-4)

    def step(state: Any, moments: Any, x: Any) -> tuple[Any, Any]:
        gradients = jax.grad(lambda state: jnp.square(nnx.merge(structure, state)(x).astype(jnp.float32)).mean())(state)
        updates, moments = optimizer.update(in_order(gradients), moments, state)
        return optax.apply_updates(state, updates), moments

    held = [state, jax.jit(optimizer.init)(state)]
    started = time.perf_counter()
    step = compiled(step, donate_argnums=(0, 1)).lower(*held, x).compile()
    compiling = time.perf_counter() - started

    def run() -> None:
        held[:] = jax.block_until_ready(step(*held, x))

    return Contender(run, peak, compiling)


def monai(name: str, work: str, size: int, features: int, dtype: str) -> Contender:
    import torch
    from monai.inferers import sliding_window_inference
    from monai.networks.nets import SwinUNETR

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    flash = {"use_flash_attention": True} if name == "monai-flash" else {}
    net = SwinUNETR(*CHANNELS, feature_size=features, **flash).to(device)
    x = torch.tensor(np.moveaxis(volume(work, size), -1, 1).copy(), device=device)
    if name.endswith("channels-last"):
        net, x = net.to(memory_format=torch.channels_last_3d), x.to(memory_format=torch.channels_last_3d)
    run_net = torch.compile(net) if "compile" in name else net
    low = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def peak() -> int | None:
        return torch.cuda.max_memory_allocated() if device == "cuda" else None

    if work == "train":
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            with low:
                loss = run_net(x).float().square().mean()
            loss.backward()
            optimizer.step()
            wait()

        return Contender(run, peak)
    net.eval()

    def run(x: torch.Tensor = x) -> None:
        with torch.no_grad(), low:
            if work == "forward":
                run_net(x)
            else:
                sliding_window_inference(x, (size,) * 3, 1, run_net, overlap=0.5, mode="gaussian")
        wait()

    if work == "case":
        run(x[..., :size, :size, :size])
    return Contender(run, peak)


def medicai(work: str, size: int, features: int) -> Contender:
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    from medicai.models import SwinUNETR

    if work != "forward":
        raise ValueError("medicai takes part in the forward pass alone")
    net = SwinUNETR(input_shape=(size, size, size, CHANNELS[0]), num_classes=CHANNELS[1], feature_size=features)
    forward = jax.jit(lambda x: net(x, training=False))
    x = volume(work, size)
    return Contender(lambda: jax.block_until_ready(forward(x)), lambda: None)


# ---- figures ---------------------------------------------------------------------------------------------------------------------


def flops(size: int, features: int) -> float:
    """Of one forward pass as it reads, 2 for each multiplication of convolutions, linear layers and attention."""
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
    from swinunetr_jax.inference.sliding_window import Plan

    return Plan.of(CASE, (size,) * 3, 0.5).windows


def matmul_rate(dtype: str) -> float:
    """FLOP/s of a large square matrix product here, by JAX."""
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


def machine() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    import jax

    found = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count()}
    for name in ("jax", "flax", "torch", "monai", "medicai"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def table(rows: list[dict[str, Any]], rate: float) -> str:
    """Markdown: ratios are a contender's median over ours, so more than 1 means that ours is faster."""
    lines = [
        "| work | size | contender | median s | ratio to ours | compiling s, from cache | to first result s, from cache | peak host GB | "
        "peak device GB | of matmul rate |"
    ]
    lines.append("| --- " * 10 + "|")

    def number(value: float | None, scale: float = 1, digits: int = 2) -> str:
        return "" if value is None else f"{value * scale:.{digits}f}"

    for row in rows:
        if row["error"]:
            lines.append(f"| {row['work']} | {row['size']} | {row['contender']} | {row['error']} |" + " |" * 6)
            continue
        cells = [row["work"], f"{row['size']}³", row["contender"], number(row["median"], digits=3)]
        cells.append(number(row.get("ratio")))
        for kind in ("compiling", "first_call"):
            both = (number(row.get(name), digits=1) for name in (kind, f"cached_{kind}"))
            cells.append(", ".join(filter(None, both)))
        cells += [number(row["host_bytes"], 1e-9), number(row["device_bytes"], 1e-9)]
        cells.append(f"{row['flops'] / row['median'] / rate:.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work_in_turns(*json.loads(sys.argv[2]))
    else:
        main(tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__))
