"""`python -m train` for tests, in a separate process.

The network is `small_network`, and no pictures are drawn. With SWINUNETR_TEST_WHOLE=1 it is Swin UNETR, and pictures are drawn.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/
sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository

import pytest

from helpers.small_network import replace_swin_unetr
from swinunetr_jax.training import command, loop

if os.environ.get("SWINUNETR_TEST_WHOLE") != "1":
    replace_swin_unetr(pytest.MonkeyPatch())
    loop._draw = lambda *_: None

if __name__ == "__main__":
    command.main()
