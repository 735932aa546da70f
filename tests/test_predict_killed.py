"""A prediction that is killed continues with the cases that are missing, and every file with its final name is complete."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from flax import nnx
from helpers.prediction import run, write_case
from helpers.small_network import SmallNetwork, forget, replace_swin_unetr

from swinunetr_jax import SwinUNETRConfig, Task, save_checkpoint

# This program runs a prediction and kills itself at the moment that its first argument names.
KILLED = (
    f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import pytest
from helpers.small_network import replace_swin_unetr
replace_swin_unetr(pytest.MonkeyPatch())
"""
    + """
from swinunetr_jax import cli
from swinunetr_jax.data.discovery import prediction_record as record
from swinunetr_jax.inference import label_files

moment, *arguments = sys.argv[1:]
write, add = label_files.write_volume, record.Record._add

def kill_at(event, name):
    start = {"a case is reported": "BraTS2021_a", "a label map": ".BraTS2021_b.nii.gz", "a report": "BraTS2021_b"}[moment]
    if event == moment and name.startswith(start):
        os.kill(os.getpid(), signal.SIGKILL)

def write_volume(path, *rest):
    write(path, *rest)
    kill_at("a label map", path.name)

def add_entry(self, case, entry):
    done = "seconds" in entry
    if done:
        kill_at("a report", case.name)
    add(self, case, entry)
    if done:
        kill_at("a case is reported", case.name)

label_files.write_volume, record.Record._add = write_volume, add_entry
cli.main(arguments)
"""
)


def test_a_killed_prediction_continues_with_the_missing_cases(programs, tmp_path, capsys, monkeypatch):
    replace_swin_unetr(monkeypatch)
    config = SwinUNETRConfig(in_channels=4, out_channels=3, feature_size=12, depths=(1, 1, 1, 1))
    model = tmp_path / "net"
    save_checkpoint(model, SmallNetwork(config, rngs=nnx.Rngs(0)), task=Task.brats(roi=(64, 32, 32)))
    for name in ("a", "b", "c"):
        write_case(tmp_path / "data", f"BraTS2021_{name}")
    arguments = ("predict", "-i", tmp_path / "data", "-m", model, "--precision", "float32", "--probabilities", "-o")
    assert run(*arguments, tmp_path / "complete") == 0
    complete = {path.name: path.read_bytes() for path in (tmp_path / "complete").glob("BraTS*")}
    assert len(complete) == 6
    for moment in ("a case is reported", "a label map", "a report"):
        command = [sys.executable, "-c", KILLED, moment, *map(str, arguments), tmp_path / moment]
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(programs)}
        killed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        written = {path.name: path.read_bytes() for path in (tmp_path / moment).glob("BraTS*")}
        assert 2 <= len(written) < 6 and written.items() <= complete.items()  # files with their final names are complete
        capsys.readouterr()
        assert run(*arguments, tmp_path / moment) == 0
        assert re.findall(r"(\S+): done already", capsys.readouterr().out) == ["BraTS2021_a"]
        assert {path.name: path.read_bytes() for path in (tmp_path / moment).glob("BraTS*")} == complete
        assert not list((tmp_path / moment).glob(".*"))
    monkeypatch.undo()
    forget()
