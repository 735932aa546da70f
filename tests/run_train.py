"""`python -m train` for tests, in a process of its own: compiled with less effort, which takes longer than running small networks."""

import sys
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parents[1]))

jax.config.update("jax_enable_compilation_cache", False)
jax.config.update("jax_compilation_cache_dir", "unused")  # else the trainer chooses one

from swinunetr_jax.inference import predict  # noqa: E402
from train import __main__ as command  # noqa: E402
from train import step  # noqa: E402

for module in (predict, step):
    module.compiler_options = lambda: {"xla_backend_optimization_level": 0}

if __name__ == "__main__":
    command.main()
