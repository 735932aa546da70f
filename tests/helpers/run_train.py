"""`python -m train` for tests, in a separate process.

The network is `small_network`, and no pictures are drawn. With SWINUNETR_TEST_WHOLE=1 it is Swin UNETR, and pictures are drawn.
SWINUNETR_TEST_SLICES=1,0 states that the devices of process 0 belong to slice 1, and those of process 1 to slice 0.
SWINUNETR_TEST_HANG="deadlock PROCESS STEP" lets a process wait for ever after it has dispatched a step, and "stop PROCESS STEP" stops
it by SIGSTOP.
SWINUNETR_TEST_LEASE=3 sets the lease of claims in seconds.
"""

import os
import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/
sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository

import jax
import pytest

from helpers.small_network import replace_swin_unetr
from swinunetr_jax.runtime import sharding
from swinunetr_jax.training import claim, command, loop

if os.environ.get("SWINUNETR_TEST_WHOLE") != "1":
    replace_swin_unetr(pytest.MonkeyPatch())
    loop._draw = lambda *_: None

if slices := os.environ.get("SWINUNETR_TEST_SLICES"):
    sharding.slice_of = lambda device: int(slices.split(",")[device.process_index])

if hang := os.environ.get("SWINUNETR_TEST_HANG"):
    kind, hanging_process, hanging_step = hang.split()

    def pending_step(step, *rest):
        if (jax.process_index(), step) == (int(hanging_process), int(hanging_step)):
            if kind == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            else:
                lock = threading.Lock()
                lock.acquire()
                lock.acquire()
        return PendingStep(step, *rest)

    PendingStep, loop.PendingStep = loop.PendingStep, pending_step

if lease := os.environ.get("SWINUNETR_TEST_LEASE"):
    claim.LEASE_SECONDS = float(lease)

if __name__ == "__main__":
    try:
        command.main()
    finally:
        print(
            "packages for buckets:", *sorted({"fsspec", "gcsfs", "s3fs", "aiohttp", "botocore"} & sys.modules.keys()) or ["none"]
        )
