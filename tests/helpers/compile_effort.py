"""Sets how much effort XLA spends on compiling in tests. This module is imported before jax.

Compiling takes most of the time of these tests, and their arrays are small. Therefore XLA compiles with the least effort, in the tests and
in every process that they start: a gradient of Swin UNETR takes 8 instead of 20 seconds. A test of optimized programs asks for `OPTIMIZED`.
"""

import importlib.metadata
import os

# XLA ends a process that sets an unknown flag, so the flags of a version are only set for that version.
KNOWN = importlib.metadata.version("jaxlib").startswith("0.10.")
FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
# The options for `jax.jit(..., compiler_options=...)` under which a program is compiled as outside of the tests.
OPTIMIZED: dict[str, bool | int] = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
if KNOWN:
    FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    OPTIMIZED["xla_cpu_use_fusion_emitters"] = True


def set_least_effort() -> None:
    """Sets the flags for this process and for those that it starts. A caller's own flags are kept."""
    os.environ["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")])
    # Several processes run at the same time, and PyTorch's idle threads would keep the cores busy.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
