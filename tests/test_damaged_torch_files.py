"""Files of other formats and damaged PyTorch files are refused in one sentence."""

import gzip
import io
import os
import pickle
import random
import tarfile

import numpy as np
import pytest
from helpers.torch_archives import refusal

from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.safetensors_file import read_safetensors
from swinunetr_jax.weights.torch_file import read_torch_file, write_torch_file

pytest_plugins = ["helpers.fixtures"]


@pytest.fixture
def file(tmp_path):
    """Returns the path of a PyTorch file, which a test can damage."""
    path = tmp_path / "file.pt"
    write_torch_file(path, {"state_dict": {"w": np.arange(12.0).reshape(3, 4), "b": np.arange(3, dtype=np.float32)}, "epoch": 3})
    return path


# Other formats


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n", "git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html><body>Not found</body></html>", "HTML"),
        (b"<html>", "HTML"),
        (gzip.compress(b"x", mtime=0), "gzip"),
        (b"\x93NUMPY\x01\x00", ".npy"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (pickle.dumps({"w": 1}), "bare Python pickle"),
        (b"just text", "not a known weight file"),
        (bytes(1000), "not a known weight file"),
        (b"PK\x03\x04", "damaged"),
        (b"\x00", "not a known weight file"),
    ],
)
def test_a_file_of_another_format_is_named(tmp_path, content, words):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    assert words in refusal(path)
    refusal(path, read_safetensors)


def test_a_path_that_is_not_a_file_is_refused(tmp_path):
    for read in (read_torch_file, read_safetensors):
        assert "does not exist" in refusal(tmp_path / "missing.pt", read)
        assert "is a folder" in refusal(tmp_path, read)
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in refusal(tmp_path / "pipe")


def test_old_formats_of_torch_are_named(torch_file, tmp_path):
    torch = pytest.importorskip("torch")
    assert "legacy" in refusal(torch_file({"w": torch.ones(2)}, _use_new_zipfile_serialization=False))
    with tarfile.open(tmp_path / "old.pt", "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert "tar archive" in refusal(tmp_path / "old.pt")


# Damage


def test_a_truncated_file_is_refused(file):
    content = file.read_bytes()
    for length in [4, 30, 100, len(content) // 2, *range(len(content) - 130, len(content), 7), len(content) - 1]:
        file.write_bytes(content[:length])
        refusal(file)


def test_a_flipped_bit_in_the_weights_is_noticed(file, torch_file):
    torch = pytest.importorskip("torch")
    value = np.full(100, 7.25, np.float32)
    write_torch_file(file, {"w": value})
    for path in (file, torch_file({"w": torch.from_numpy(value)})):
        content = bytearray(path.read_bytes())
        content[content.index(value.tobytes()) + 123] ^= 0x10
        path.write_bytes(content)
        assert "CRC" in refusal(path)


def test_a_file_without_checksums_is_refused(torch_file):
    torch = pytest.importorskip("torch")
    torch.serialization.set_crc32_options(False)
    try:
        path = torch_file({"w": torch.ones(2)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert "set_crc32_options(True)" in refusal(path)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in a damaged name
def test_a_randomly_damaged_file_is_read_correctly_or_refused(file):
    """A damaged file never causes another exception and never gives wrong numbers."""
    content, expected, times_read = file.read_bytes(), read_torch_file(file)["state_dict"], 0
    rng = random.Random(0)
    for _ in range(3000):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 8])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        file.write_bytes(damaged)
        try:
            read = read_torch_file(file)["state_dict"]
        except InputError:
            continue
        assert all(np.array_equal(read[name], array) for name, array in expected.items())
        times_read += 1
    assert 0 < times_read < 3000
