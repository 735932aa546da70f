"""Compiles the network for machines that are not available, TPUs and an H200, and reports the compilers' estimates.

    pip install libtpu                      # for TPU targets; it compiles without a TPU
    pip install "jax[cuda13]"               # for the H200, in a separate environment; it compiles without a GPU
    python -m tools.aot_report --target v5e v6e --sizes 96 128
    python -m tools.aot_report --target h200 --sizes 96 128

TPU figures are the TPU compiler's estimates of time, floating-point operations and memory. There are two estimates of time. "schedule" is
the sum of the cycles that its cost model assigns to each scheduled instruction (see `tpu_estimate`); "without estimate" is the
number of instructions that have no cycles. "roofline" is `optimal_seconds`, which assumes the chip's peak rates for each instruction and
counts a loop's body once; it lacks the whole seconds of a program that takes more than one. For the H200 there is no estimate of time.
Instead the report reads from the compiled program (`gpu_program`) the transposes next to convolutions, the attention weights that are
written to memory, the temporaries (without cuDNN's work space) and the bytes moved.
"""

import json
import math
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU to query

import jax
import jax.numpy as jnp
import optax
import tyro
from flax import nnx
from jax.experimental import topologies

from swinunetr_jax import SwinUNETR, SwinUNETRConfig, console
from swinunetr_jax.runtime.dispatch import for_device
from swinunetr_jax.runtime.xla import GPU_OPTIONS, pin_gradient_layout
from swinunetr_jax.training.plan.compile import roofline
from swinunetr_jax.training.plan.devices import CHIP_BYTES
from tools import gpu_program
from tools.tpu_estimate import CYCLES_PER_SECOND, estimate

TPU = {"v5e": "v5e:2x2", "v6e": "v6e:2x2"}
DEVICE_BYTES = CHIP_BYTES | {"h200": 141 * 10**9}
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98 device_memory_size: 150000000000
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 15 patch: 0 } device_description_str: "NVIDIA H200"
"""
# Without a GPU the tiles of Triton's matrix products cannot be tuned, and the default tiles fail, so cuBLAS computes all products.
COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {"h200": {**GPU_OPTIONS, "xla_gpu_enable_triton_gemm": False}}


@dataclass
class Options:
    """The programs to compile."""

    target: tuple[Literal["v5e", "v6e", "h200"], ...] = ("v5e", "v6e")
    work: tuple[Literal["forward", "train"], ...] = ("forward", "train")
    sizes: tuple[int, ...] = (96,)
    """Edge lengths of the volume in voxels; the batch is 1."""
    feature_size: int = 48
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    hyena: str | None = None
    """Hyena stages, such as HHAA."""
    remat: bool = False
    """Recompute blocks in the backward pass."""
    top: int = 0
    """The number of a TPU program's most expensive instructions to list."""
    out: Path | None = None
    """Also write the rows as JSON here."""
    programs: Path | None = None
    """Folder into which the text of the compiled programs is written."""


def device(target: str) -> Any:
    """Returns a description of one device of the target."""
    if target in TPU:
        try:
            return topologies.get_topology_desc(platform="tpu", topology_name=TPU[target]).devices[0]
        except Exception as error:
            sys.exit(
                f"error: the TPU compiler does not start ({str(error)[:200]}): is `libtpu` installed, and does no other program use it? "
                "A killed program does not remove /tmp/libtpu_lockfile."
            )
    jax.devices()  # loads the CUDA plugin, which must be present although no device is used
    topology = topologies.get_topology_desc(platform="cuda", topology_name="h200", target_config=H200, topology="1x1x1")
    return topology.devices[0]


def compiled(target: str, work: str, size: int, options: Options) -> Any:
    """Returns the compiled program for one device of the target."""
    config = SwinUNETRConfig(
        in_channels=4,
        out_channels=3,
        feature_size=options.feature_size,
        dtype=options.dtype,
        use_checkpoint=options.remat,
        hyena_stages=options.hyena,
    )
    structure, state = nnx.split(nnx.eval_shape(lambda: SwinUNETR(config, rngs=nnx.Rngs(0))))
    target_device = device(target)
    placement = jax.sharding.SingleDeviceSharding(target_device)

    def on_device(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placement), tree)

    x = on_device(jax.ShapeDtypeStruct((1, size, size, size, 4), options.dtype))
    if work == "forward":
        forward = for_device(target_device, lambda state, x: nnx.merge(structure, state)(x))
        return jax.jit(forward).lower(on_device(state), x).compile(COMPILER_OPTIONS.get(target))
    optimizer = optax.adamw(1e-4)
    labels = on_device(jax.ShapeDtypeStruct((1, size, size, size, 3), options.dtype))

    def step(state: Any, moments: Any, x: Any, labels: Any) -> tuple[Any, Any, Any]:
        def loss(state: Any) -> jax.Array:
            probabilities = jax.nn.sigmoid(nnx.merge(structure, state)(x).astype(jnp.float32))
            axes = (1, 2, 3)
            overlap = 2 * (probabilities * labels).sum(axes) + 1e-5
            return (1 - overlap / (probabilities.sum(axes) + labels.sum(axes, dtype=jnp.float32) + 1e-5)).mean()

        value, gradients = jax.value_and_grad(loss)(state)
        updates, moments = optimizer.update(pin_gradient_layout(gradients), moments, state)
        return value, optax.apply_updates(state, updates), moments

    moments = jax.eval_shape(optimizer.init, state)
    lowered = jax.jit(for_device(target_device, step), donate_argnums=(0, 1)).lower(
        on_device(state), on_device(moments), x, labels
    )
    return lowered.compile(COMPILER_OPTIONS.get(target))


def describe(target: str, work: str, size: int, options: Options) -> dict[str, Any]:
    """Returns a row of the report."""
    started = time.perf_counter()
    program = compiled(target, work, size, options)
    memory, cost = program.memory_analysis(), program.cost_analysis() or {}
    text = program.as_text()
    if options.programs:
        options.programs.mkdir(parents=True, exist_ok=True)
        (options.programs / f"{target}_{work}_{size}.txt").write_text(text)
    time_estimate = estimate(text)
    held_bytes = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "target": target,
        "work": work,
        "size": size,
        "compile_seconds": time.perf_counter() - started,
        "schedule_ms": time_estimate.cycles / CYCLES_PER_SECOND[target] * 1e3 if target in TPU else None,
        "roofline_ms": roofline(cost["optimal_seconds"]) * 1e3 if target in TPU else None,
        "without_estimate": time_estimate.without_estimate if target in TPU else None,
        "top": [(cycles / CYCLES_PER_SECOND[target] * 1e3, line) for cycles, line in time_estimate.top(options.top)]
        if target in TPU
        else [],
        "tflop": cost.get("flops", 0) / 1e12,
        "temporaries_gb": memory.temp_size_in_bytes / 1e9,
        "held_gb": held_bytes / 1e9,
        "share_of_chip": (held_bytes + memory.temp_size_in_bytes) / DEVICE_BYTES[target],
    } | (gpu_program.read(text) if target == "h200" else read_program(text))


def read_program(text: str) -> dict[str, Any]:
    """Returns the largest result of the entry computation, and its numbers of transposed volumes and of t × t tensors."""
    entry = text[text.index("\nENTRY ") :]
    results = re.findall(r"^\s+(?:ROOT )?%?[\w.\-]+ = \(?(\w+)\[([\d,]*)\][^ ]* (\S+?)\(", entry, re.MULTILINE)
    sizes = [
        (gpu_program.BYTES.get(dtype, 0) * math.prod(int(n) for n in shape.split(",") if n), f"{dtype}[{shape}]")
        for dtype, shape, _ in results
    ]
    transposes = re.findall(r"(?:transpose|copy)[\w.\-]* = \w+\[([\d,]+)\]", entry)
    volumes = [t for t in transposes if len(t.split(",")) == 5 and max(map(int, t.split(","))) >= 24]
    attention_weights = [s for _, s in sizes if re.search(r"\b343,343\b", s) and s.count(",") >= 3]
    biggest = max(sizes, default=(0, ""))
    return {
        "largest_result_mb": biggest[0] / 1e6,
        "largest_result": biggest[1],
        "volume_transposes": len(volumes),
        "attention_weights_in_memory": len(attention_weights),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows of TPU programs as a Markdown table."""
    head = ["target", "work", "size", "schedule ms", "without estimate", "roofline ms", "TFLOP", "temporaries GB", "arguments GB"]
    head += ["of chip memory", "largest result", "transposes or copies of volumes", "t × t tensors"]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for row in rows:
        times = [f"{row['schedule_ms']:.2f}", str(row["without_estimate"]), f"{row['roofline_ms']:.2f}"]
        cells = [row["target"], row["work"], f"{row['size']}³", *times, f"{row['tflop']:.2f}", f"{row['temporaries_gb']:.2f}"]
        cells += [
            f"{row['held_gb']:.2f}",
            f"{row['share_of_chip']:.0%}",
            f"{row['largest_result']} {row['largest_result_mb']:.0f} MB",
        ]
        cells += [str(row["volume_transposes"]), str(row["attention_weights_in_memory"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(options: Options) -> None:
    rows = []
    for target in options.target:
        for size in options.sizes:
            for work in options.work:
                print(f"compiling {work} {size}³ for {target}", file=sys.stderr, flush=True)
                rows.append(describe(target, work, size, options))
    for is_of_kind, make_table in (
        (lambda row: row["target"] in TPU, table),
        (lambda row: row["target"] not in TPU, gpu_program.table),
    ):
        if chosen := list(filter(is_of_kind, rows)):
            print(make_table(chosen))
    for row in rows:
        for milliseconds, line in row["top"]:
            print(f"{row['target']} {row['work']} {row['size']}³ {milliseconds:8.3f} ms | {line}")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    console.configure_streams()
    main(tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__))
