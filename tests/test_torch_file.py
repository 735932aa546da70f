"""Files that torch writes are read without torch, and torch reads the files that this project writes."""

import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers.torch_archives import DTYPES, NO_STORAGE_CLASS, archive, array_of, assert_same_tensor, number, text

from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.safetensors_file import write_safetensors
from swinunetr_jax.weights.torch_file import read_torch_file, write_torch_file

pytest_plugins = ["helpers.fixtures"]

# Reading files of torch


@pytest.mark.parametrize("dtype", DTYPES + NO_STORAGE_CLASS)
def test_tensors_of_every_dtype_are_read(torch_file, dtype):
    torch = pytest.importorskip("torch")
    value = torch.tensor([[0.0, 1, 2], [3, 100, 1]]).to(getattr(torch, dtype))
    assert_same_tensor(read_torch_file(torch_file({"w": value}))["w"], value)


def test_tensors_with_any_strides_are_read(torch_file):
    torch = pytest.importorskip("torch")
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "transposed": base.transpose(0, 2),
        "permuted": base.permute(1, 2, 0),
        "sliced": base[:, 1:, ::2],
        "one": base[1, 2, 3],
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "empty_inside": torch.zeros(2, 0, 3),
        "size_one": torch.ones(5, 1, 2).transpose(0, 1),
        "channels_last": torch.rand(1, 3, 2, 2, 2).contiguous(memory_format=torch.channels_last_3d),
    }
    read = read_torch_file(torch_file(tensors))
    assert list(read) == list(tensors)
    for name, value in tensors.items():
        assert_same_tensor(read[name], value)
        assert not value.numel() or not read[name].flags.writeable


def test_tensors_that_share_a_storage_still_share_it(torch_file):
    torch = pytest.importorskip("torch")
    base = torch.arange(6.0)
    read = read_torch_file(torch_file({"whole": base, "part": base[2:4], "tied": base, "copy": base.clone()}))
    assert np.shares_memory(read["whole"], read["part"]) and np.shares_memory(read["whole"], read["tied"])
    assert not np.shares_memory(read["whole"], read["copy"])
    assert read["part"].tolist() == [2.0, 3.0]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_training_checkpoint_is_read(torch_file, protocol):
    """MONAI's BraTS trainer stores best_acc as a NumPy scalar. torch refuses such a file with weights_only=True."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    model(torch.rand(4, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    assert hasattr(model.state_dict(), "_metadata")
    checkpoint = {
        "epoch": 299,
        "best_acc": np.float64(0.75),
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "numpy": [np.float32(0.5), np.int64(-3), np.bool_(True)],
        "size": torch.Size([96, 96, 96]),
        "dtype": torch.float32,
        "other": (None, True, False, 1 << 70, -1, "naïve", ["a", ()]),
    }
    read = read_torch_file(torch_file(checkpoint, pickle_protocol=protocol))
    assert type(read["best_acc"]) is float and read["best_acc"] == 0.75 and read["epoch"] == 299
    assert type(read["state_dict"]) is dict and list(read["state_dict"]) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert_same_tensor(read["state_dict"][name], value)
    assert read["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    for parameter, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            assert_same_tensor(read["optimizer"]["state"][parameter][name], value)
    assert read["scheduler"] == scheduler.state_dict()
    assert_same_tensor(read["parameter"], checkpoint["parameter"])
    assert read["numpy"] == [0.5, -3, True] and [type(n) for n in read["numpy"]] == [float, int, bool]
    assert read["size"] == (96, 96, 96) and read["dtype"] == np.float32 and read["other"] == checkpoint["other"]


def test_scalars_of_numpy_1_are_read(tmp_path):
    module = b"cnumpy.core.multiarray\nscalar\n"
    dtype = (
        b"cnumpy\ndtype\n(" + text("f8") + b"\x89\x88tR(" + number(3) + text("<") + b"NNN" + number(-1) * 2 + number(0) + b"tb"
    )
    value = b"c_codecs\nencode\n(" + b"X" + struct.pack("<I", 9) + "\0\0\0\0\0\0è?".encode() + text("latin1") + b"tR"
    assert read_torch_file(archive(tmp_path / "a.pt", module + b"(" + dtype + value + b"tR")) == {"w": 0.75}


@pytest.mark.parametrize("root", ["archive/", "model.final epoch 3/", ""])
def test_the_root_of_an_archive_can_have_any_name(tmp_path, root):
    assert read_torch_file(archive(tmp_path / "a.pt", root=root))["w"].tolist() == [1, 2, 3, 4]


def test_torch_is_never_imported(tmp_path):
    path = archive(tmp_path / "a.pt")
    code = (
        "import sys; from swinunetr_jax.weights.torch_file import read_torch_file, write_torch_file\n"
        f"write_torch_file({str(tmp_path / 'b.pt')!r}, read_torch_file({str(path)!r}))\n"
        "assert not {'torch', 'monai'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert read_torch_file(tmp_path / "b.pt")["w"].tolist() == [1, 2, 3, 4]


@pytest.mark.fault("3.6")
def test_a_checkpoint_of_many_tensors_is_read(tmp_path):
    """The limits for instructions and bytes grow with the number of tensors."""
    tensors = {f"{n}.{'layer.' * 340}weight": np.full((1,), n, np.float32) for n in range(4_000)}
    write_torch_file(tmp_path / "a.pt", {"state_dict": tensors, "epochs": {str(n): n for n in range(30_000)}})
    with zipfile.ZipFile(tmp_path / "a.pt") as z:
        assert z.getinfo("archive/data.pkl").file_size > 8 << 20
    read = read_torch_file(tmp_path / "a.pt")["state_dict"]
    assert all(read[name][0] == tensor[0] for name, tensor in tensors.items())


# Writing files for torch


@pytest.mark.parametrize("dtype", DTYPES + NO_STORAGE_CLASS)
def test_torch_reads_every_dtype_that_was_written(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    path, array = tmp_path / "a.pt", array_of(dtype)
    write_torch_file(path, {"w": array})
    value = torch.load(path, weights_only=True)["w"]
    assert_same_tensor(array, value)
    assert value.is_contiguous() and not value.requires_grad
    restored = read_torch_file(path)["w"]
    assert restored.dtype == array.dtype and restored.tobytes() == array.tobytes()


def test_torch_reads_arrays_with_any_strides(tmp_path):
    torch = pytest.importorskip("torch")
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    state = {
        "state_dict": {
            "transposed": base.T,
            "sliced": base[:, 1:, ::2],
            "scalar": np.array(3.5),
            "empty": np.zeros((2, 0, 3), np.float32),
            "fortran": np.asfortranarray(base),
            "big_endian": base.astype(">f4"),
        },
        "epoch": 3,
        "seed": 1 << 62,
        "best_acc": np.float64(0.75),
        "note": "naïve",
        "none": None,
        "flags": {"yes": True, "no": False, "empty": {}},
    }
    path = tmp_path / "a.pt"
    write_torch_file(path, state)
    for options in ({}, {"mmap": True}):
        read = torch.load(path, weights_only=True, **options)
        for name, array in state["state_dict"].items():
            assert_same_tensor(array.astype(array.dtype.newbyteorder("=")), read["state_dict"][name])
            assert read["state_dict"][name].is_contiguous()
        assert {k: v for k, v in read.items() if k != "state_dict"} == {k: v for k, v in state.items() if k != "state_dict"}
    read = read_torch_file(path)
    assert read["seed"] == 1 << 62 and read["flags"] == state["flags"]
    assert np.array_equal(read["state_dict"]["sliced"], base[:, 1:, ::2])


def test_equal_states_give_equal_and_aligned_archives(tmp_path):
    write_torch_file(tmp_path / "a.pt", {"a": np.ones(3, np.float32), "b": np.ones(5, np.int8)})
    write_torch_file(tmp_path / "b.pt", {"a": np.ones(3, np.float32), "b": np.ones(5, np.int8)})
    content = (tmp_path / "a.pt").read_bytes()
    assert content == (tmp_path / "b.pt").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pt") as z:
        names = ["data.pkl", "byteorder", "data/0", "data/1", "version"]
        assert z.namelist() == [f"archive/{name}" for name in names] and z.testzip() is None
        for member in z.infolist():
            name, extra = struct.unpack_from("<HH", content, member.header_offset + 26)
            assert (member.header_offset + 30 + name + extra) % 64 == 0


@pytest.mark.parametrize(
    "value", [np.array(["a"]), np.array([None]), np.array(["2020"], "M8[D]"), object(), [1], {1: 2}, 1 << 80]
)
def test_a_value_that_cannot_be_written_leaves_the_file_unchanged(tmp_path, value):
    (tmp_path / "a.pt").write_bytes(b"before")
    with pytest.raises(InputError, match=r"cannot be written: w .*|key"):
        write_torch_file(tmp_path / "a.pt", {"w": value})
    assert os.listdir(tmp_path) == ["a.pt"] and (tmp_path / "a.pt").read_bytes() == b"before"


@pytest.mark.parametrize("write", [write_torch_file, write_safetensors])
def test_a_failed_write_leaves_the_file_unchanged(tmp_path, monkeypatch, write):
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")

    def raise_disk_full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(InputError, match="No space left"):
        patched.setattr(os, "fsync", raise_disk_full)
        write(path, {"w": np.ones(3)})
    assert os.listdir(tmp_path) == ["a.bin"] and path.read_bytes() == b"before"
    write(path, {"w": np.ones(3)})
    assert os.listdir(tmp_path) == ["a.bin"] and path.read_bytes() != b"before"
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "missing" / "a.bin", {"w": np.ones(3)})
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "folder", {"w": np.ones(3)})
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "folder"]
