"""`python -m train` for tests, in a separate process.

The network is `small_network`, and no pictures are drawn. With SWINUNETR_TEST_WHOLE=1 it is Swin UNETR, and pictures are drawn.
SWINUNETR_TEST_SLICES=1,0 states that the devices of process 0 belong to slice 1, and those of process 1 to slice 0.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/
sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository

import pytest

from helpers.small_network import replace_swin_unetr
from swinunetr_jax.runtime import sharding
from swinunetr_jax.training import command, loop

if os.environ.get("SWINUNETR_TEST_WHOLE") != "1":
    replace_swin_unetr(pytest.MonkeyPatch())
    loop._draw = lambda *_: None

if slices := os.environ.get("SWINUNETR_TEST_SLICES"):
    sharding.slice_of = lambda device: int(slices.split(",")[device.process_index])

if __name__ == "__main__":
    command.main()
