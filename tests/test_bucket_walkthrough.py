"""The commands of docs/buckets.md, from a data set to its scores, on two hosts that share only a bucket and are lost once."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.bucket_runs import bytes_in
from helpers.buckets import Bucket
from helpers.launchers import Launcher, make_launcher
from helpers.runner import ROOT, SECONDS, Runner, bytes_of, free_port
from helpers.small_network import forget, replace_swin_unetr

from swinunetr_jax.buckets.run_objects import usable_states
from swinunetr_jax.data.phantom.dataset import write_phantom

pytestmark = pytest.mark.long
SIZES = ("--phantom.cases", "4", "--phantom.size", "48", "48", "32")
# fmt: off
SMALL = (
    "--batch", "2", "--steps", "4", "--folds", "2", "--roi", "32", "32", "64", "--network.feature-size", "12", "--network.depths", "1", "1",
    "1", "1", "--validation.overlap", "0", "--optim.lr", "1e-3", "--validation.every", "2", "--save-every", "1",
)
# fmt: on
TRAINER = r"""#!/bin/bash
# The trainer of a host, instead of `python -m train ... --distributed detect`. Each host has its own scratch folder.
words=()
while [ $# -gt 0 ]; do
  case $1 in -m) shift ;; --distributed) shift ;; *) words+=("$1") ;; esac
  shift
done
export SWINUNETR_SCRATCH=$PWD/scratch
exec "$REAL_PYTHON" "$RUN_TRAIN" "${words[@]}" --distributed localhost:$(cat "$TEST/port") --processes 2 --process "$HOST"
"""


def commands(bucket: str) -> list[list[str]]:
    """Returns the words of the commands on the page, with the address of a bucket."""
    text = (ROOT / "docs" / "buckets.md").read_text()
    block = re.search(r'```sh title="walk-through"\n(.*?)```', text, re.DOTALL)
    assert block is not None
    lines = block[1].replace("\\\n", " ").replace("$BUCKET", bucket).splitlines()
    return [shlex.split(line) for line in lines]


def swinunetr(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Runs a command of the page, and returns its output."""
    program = [sys.executable, str(ROOT / "tests" / "helpers" / "run_cli.py"), *command[1:]]
    place = {"SWINUNETR_SCRATCH": str(folder / "scratch"), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        program, cwd=folder, env=os.environ | environment | place, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def started(launcher: Launcher, command: list[str], **environment: str) -> subprocess.Popen:
    """Starts the launcher with the arguments of the page and the options of a small run, in its own session."""
    position = command.index("--steps")
    words = [*command[1 : command.index("--batch")], *command[position + 2 :], *SIZES, *SMALL]
    (launcher.folder / "port").write_text(str(free_port()))
    environment = {**launcher.environment, **environment}
    log = open(launcher.folder / "output", "a")  # noqa: SIM115 - the process writes into it
    script = ["bash", str(ROOT / command[0]), *words]
    return subprocess.Popen(
        script, cwd=launcher.folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )


def test_the_commands_of_the_page(runner: Runner, gcs_bucket: Bucket, proxied, tmp_path, monkeypatch):
    prepare, train, info, predict, evaluate = commands(gcs_bucket.url)
    swinunetr([*prepare, *SIZES], tmp_path, gcs_bucket.environment)
    write_phantom(tmp_path / "scans", cases=4, size=(48, 48, 32))
    shutil.rmtree(tmp_path / "scratch")

    proxy = proxied(gcs_bucket)
    proxy.fail("hold", "write", "run/checkpoints/00000003-000001/state", nth=2)
    launcher = make_launcher(tmp_path / "pod", TRAINER)
    programs = {
        "REAL_PYTHON": sys.executable,
        "RUN_TRAIN": str(ROOT / "tests" / "helpers" / "run_train.py"),
        "SWINUNETR_TEST_LEASE": "10",
        **runner.environment,
    }
    script = started(launcher, train, **programs, **proxy.bucket.environment)
    proxy.wait_for_held(seconds=SECONDS)
    os.killpg(script.pid, signal.SIGKILL)  # the launcher, and the processes on both hosts
    script.wait(SECONDS)
    proxy.release(carry_out=False)
    assert [state.step for state in usable_states((gcs_bucket / "run").names())] == [2, 1]
    for host in ("host0", "host1"):
        shutil.rmtree(launcher.folder / host)

    script = started(launcher, train, **programs, **gcs_bucket.environment)
    assert script.wait(SECONDS) == 0, (launcher.folder / "output").read_text()
    printed = (launcher.folder / "output").read_text()
    assert "has not been released by process" in printed and "2 processes, continuing after step 2" in printed

    whole = tmp_path / "whole"
    runner.finish(runner.start("phantom", "--data", str(tmp_path / "scans"), "--out", str(whole), *SIZES, *SMALL), 0)
    replace_swin_unetr(monkeypatch)
    assert bytes_in(gcs_bucket / "run", tmp_path / "copy") == bytes_of(whole)
    monkeypatch.undo()
    forget()

    assert f"{gcs_bucket.url}/run: Swin UNETR" in swinunetr(info, tmp_path, gcs_bucket.environment)
    swinunetr(predict, tmp_path, gcs_bucket.environment)
    assert len(list((tmp_path / "results").glob("*.nii.gz"))) == 4
    assert json.loads((tmp_path / "results" / "predict.json").read_text())
    assert "4 cases" in swinunetr(evaluate, tmp_path, gcs_bucket.environment)
