"""The wheel holds only the library, which runs when it is installed without torch and outside this folder."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_only_the_library_and_works(tmp_path):
    source = tmp_path / "source"  # a copy, because setuptools also packs modules that remain in an old build folder
    for name in ("swinunetr_jax", "train"):
        shutil.copytree(ROOT / name, source / name, symlinks=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, source], check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"swinunetr_jax"}
    packaged = {name for name in names if name.endswith(".py")}
    library = {str(path.relative_to(ROOT)) for path in (ROOT / "swinunetr_jax").rglob("*.py")}
    trainer = {f"swinunetr_jax/training/{path.relative_to(ROOT / 'train')}" for path in (ROOT / "train").rglob("*.py")}
    assert packaged == library | trainer
    assert "swinunetr_jax/py.typed" in names
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True, cwd=tmp_path)
    program = (
        "import sys, swinunetr_jax; from swinunetr_jax import *; "
        "assert swinunetr_jax.__file__.startswith(sys.argv[1]), swinunetr_jax.__file__; "
        "assert not {'torch', 'monai'} & set(sys.modules); print(SwinUNETR.__name__, load_checkpoint.__name__)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["SwinUNETR", "load_checkpoint"]
    done = subprocess.run(
        [sys.executable, "-m", "swinunetr_jax.cli", "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert "predict" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "swinunetr_jax.cli", "train", "msd", "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "--network.feature-size" in done.stdout and "swinunetr train msd" in done.stdout, done.stdout + done.stderr


def test_every_fault_of_the_list_has_its_test():
    """tests/faults.md and the marks `fault("NUMBER")` have the same numbers, except for those that the list calls open."""
    listed = dict(re.findall(r"^\| (\d\.\d+) \| (.*) \|$", (ROOT / "tests" / "faults.md").read_text(), re.MULTILINE))
    marked = {
        number
        for path in (ROOT / "tests").glob("test_*.py")
        for mark in re.findall(r"mark\.fault\(([^)]*)\)", path.read_text())
        for number in re.findall(r'"(\d\.\d+)"', mark)
    }
    assert len(listed) == 58
    assert {number for number, text in listed.items() if not text.startswith("(open)")} == marked


@pytest.mark.fault("4.5")
def test_the_lowest_scipy_is_not_below_that_of_jax():
    def lowest(requirements: list[str]) -> tuple[int, ...]:
        (version,) = [match for text in requirements if (match := re.match(r"scipy>=(\d+)\.(\d+)", text))]
        return tuple(map(int, version.groups()))

    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert lowest(ours) >= lowest(importlib.metadata.requires("jax"))
