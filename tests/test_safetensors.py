"""Safetensors files: the format, files of this project and files of other trainers."""

import json
import os
import re
import struct

import ml_dtypes
import numpy as np
import pytest
from helpers.torch_archives import DTYPES, FLOAT8, NO_STORAGE_CLASS, archive, array_of, assert_same_tensor, refusal
from helpers.weight_states import CONFIG_2D, CONFIG_3D, assert_same_tensors, open_refused, prefixed, random_params

from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task
from swinunetr_jax.weights.load import open_checkpoint, save_params
from swinunetr_jax.weights.safetensors_file import read_safetensors, write_safetensors

pytest_plugins = ["helpers.fixtures"]

# The format


def test_arrays_are_read_as_they_were_written(tmp_path):
    names = [n for n in DTYPES + NO_STORAGE_CLASS if n != "complex128"]
    state = {name: array_of(name) for name in names}
    state |= {
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3)),
        "big": np.ones(2, ">f4"),
    }
    path = tmp_path / "a.safetensors"
    write_safetensors(path, state, metadata={"format": "pt"})
    arrays = read_safetensors(path)
    assert set(arrays) == set(state)
    for name, array in state.items():
        native = array.astype(array.dtype.newbyteorder("="))
        assert (
            arrays[name].shape == array.shape
            and arrays[name].dtype == native.dtype
            and arrays[name].tobytes() == native.tobytes()
        )
    assert arrays["bfloat16"].dtype == ml_dtypes.bfloat16
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert "a safetensors file" in refusal(path)


def test_arrays_are_exchanged_with_torch(tmp_path):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    names = [name for name in (*DTYPES, *FLOAT8) if name != "complex128"]
    state = {name: torch.tensor([[0.0, 1], [3, 100]]).to(getattr(torch, name)) for name in names}
    safetensors.save_file(state, tmp_path / "a.safetensors")
    arrays = read_safetensors(tmp_path / "a.safetensors")
    for name, value in state.items():
        assert_same_tensor(arrays[name], value)
    write_safetensors(tmp_path / "b.safetensors", arrays)
    for name, value in safetensors.load_file(tmp_path / "b.safetensors").items():
        assert_same_tensor(arrays[name], value)


@pytest.mark.fault("4.6")
def test_float8_is_read_and_unsupported_types_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    header = b'{"w":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes([0x38, 0x40, 0xB8, 0x01]))
    assert read_safetensors(path)["w"].astype(float).tolist() == [[1, 2], [-1, 2**-9]]
    for dtype in ("F4", "F6_E2M3", "I4", "Q8_0"):
        changed = header.replace(b"F8_E4M3", dtype.encode())
        path.write_bytes(struct.pack("<Q", len(changed)) + changed + bytes(4))
        message = refusal(path, read_safetensors)
        assert f"the type {dtype} in w" in message and "damaged" not in message


def test_truncated_files_and_unsupported_arrays_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"w": np.ones((3, 4)), "b": np.ones(3)})
    content = path.read_bytes()
    for length in (1, 8, 20, 100, len(content) - 1):
        path.write_bytes(content[:length])
        refusal(path, read_safetensors)
    path.write_bytes(content.replace(b'"F64"', b'"XYZ"', 1))
    message = refusal(path, read_safetensors)
    assert "the type XYZ in b" in message and "damaged" not in message
    assert "PyTorch" in refusal(archive(tmp_path / "a.pt"), read_safetensors)
    for value in (np.array([None]), np.array(["a"]), np.ones(2, np.complex128)):
        with pytest.raises(InputError, match="cannot be written"):
            write_safetensors(path, {"w": value})
    with pytest.raises(InputError, match="cannot be written"):
        write_safetensors(path, {"w": np.ones(2)}, metadata={"epoch": 3})


# Networks


def test_a_file_of_another_trainer_is_read(tmp_path, state_3d):
    write_safetensors(tmp_path / "a.safetensors", prefixed(state_3d, "model."), {"format": "pt"})
    assert "give `downsample`" in open_refused(tmp_path / "a.safetensors")
    assert_same_tensors(open_checkpoint(tmp_path / "a.safetensors", downsample="legacy"), state_3d)


@pytest.mark.parametrize("task", [None, Task.classes(3, ("background", "a", "b"), channels=("CT", "PET"))])
def test_our_own_file_states_configuration_and_task(tmp_path, state_3d, task):
    path, params = tmp_path / "a.safetensors", random_params(CONFIG_3D)
    save_params(path, CONFIG_3D, params, task=task, to="safetensors")
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == CONFIG_3D and checkpoint.task == task
    assert_same_tensors(checkpoint, state_3d)
    message = open_refused(path, downsample="merging")
    assert message == f"{path} was created with `downsample` 'legacy', but 'merging' was given: leave it out."


def test_damage_of_our_own_file_is_noticed(tmp_path):
    path = tmp_path / "a.safetensors"
    save_params(path, CONFIG_2D, random_params(CONFIG_2D), to="safetensors")
    content, rng = path.read_bytes(), np.random.default_rng(0)
    header_end = 8 + int.from_bytes(content[:8], "little")
    digest, length = open_checkpoint(path).digest, len(content)
    positions = [*range(8), *rng.integers(8, header_end, 30), *rng.integers(header_end, length, 30), length - 1]
    for position in positions:
        path.write_bytes(content[:position] + bytes([content[position] ^ 1 << rng.integers(8)]) + content[position + 1 :])
        try:
            assert open_checkpoint(path).digest == digest
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
    path.write_bytes(content[:-4] + b"\0\0\0\0")
    assert "is damaged, because these parts differ from their digests or are missing: swinViT" in open_refused(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "nothing", json.dumps({"config": {}}), '{"digest": 1}', "[" * 100_000])
def test_invalid_metadata_under_our_key_is_refused(tmp_path, state_2d, text):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, state_2d, {"swinunetr_jax": text})
    assert re.search("is damaged|has unexpected content", open_refused(path))
