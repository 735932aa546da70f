"""`swinunetr` for tests, in a separate process: the network is `small_network`, as in `run_train`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/
sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository

import pytest

from helpers.small_network import replace_swin_unetr
from swinunetr_jax import cli

replace_swin_unetr(pytest.MonkeyPatch())

if __name__ == "__main__":
    cli.main()
