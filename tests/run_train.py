"""`python -m train` for tests, in a process of its own: compiled with less effort, which takes longer than running small networks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from swinunetr_jax.inference import predict
from train import __main__ as command
from train import step

for module in (predict, step):
    module.compiler_options = lambda: {"xla_backend_optimization_level": 0}

if __name__ == "__main__":
    command.main()
