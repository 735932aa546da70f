"""`python -m train` for tests, in a separate process.

The network is `small_network`, and no pictures are drawn. With SWINUNETR_TEST_WHOLE=1 it is Swin UNETR, and pictures are drawn. Either is
compiled with less effort, because compiling takes longer than running small networks.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
from small_network import put_in_place

from swinunetr_jax.inference import predict
from swinunetr_jax.training import command, loop, step

for module in (predict, step):
    module.compiler_options = lambda: {"xla_backend_optimization_level": 0}
if os.environ.get("SWINUNETR_TEST_WHOLE") != "1":
    put_in_place(pytest.MonkeyPatch())
    loop._draw = lambda *_: None

if __name__ == "__main__":
    command.main()
