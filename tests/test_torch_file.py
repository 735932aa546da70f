"""PyTorch and safetensors files: both directions against torch, and every hostile or damaged file refused in one sentence."""

import gzip
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.safetensors_file import read_safetensors, write_safetensors
from swinunetr_jax.weights.torch_file import read_torch_file, write_torch_file

DTYPES = [
    "float16",
    "float32",
    "float64",
    "bfloat16",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "bool",
    "complex64",
    "complex128",
]
FLOAT8 = ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]
YOUNG_DTYPES = ["uint16", "uint32", "uint64", *FLOAT8]  # torch has no named storage for these


def array_of(dtype: str) -> np.ndarray:
    return np.array([[0, 1, 2], [3, 100, 1]]).astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))


def as_bytes(tensor) -> bytes:
    torch = pytest.importorskip("torch")
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def same(array: np.ndarray, tensor) -> None:
    """The array has the tensor's type, shape and bytes."""
    assert array.dtype.name == str(tensor.dtype).removeprefix("torch.")
    assert array.shape == tuple(tensor.shape)
    assert array.tobytes() == as_bytes(tensor)


def refusal(path: Path, read=read_torch_file) -> str:
    """The message with which a file is refused: one line, one sentence, with the file's name."""
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and message.endswith(".") and message.count(". ") == 0
    assert "expected" in message or "refused" in message
    return message


@pytest.fixture
def saved(tmp_path):
    """Save an object with torch, give the path."""
    torch = pytest.importorskip("torch")

    def save(value, **options) -> Path:
        torch.save(value, tmp_path / "saved.pt", **options)
        return tmp_path / "saved.pt"

    return save


# An archive made by hand: by default one float32 tensor [1, 2, 3, 4] called "w".

W = np.arange(1, 5, dtype=np.float32).tobytes()
FLOATS = b"ctorch\nFloatStorage\n"


def number(n: int) -> bytes:
    digits = pickle.encode_long(n)
    return b"\x8a" + bytes([len(digits)]) + digits


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(numel: int = 4, key: str = "0", kind: bytes = FLOATS) -> bytes:
    return b"(" + text("storage") + kind + text(key) + text("cpu") + number(numel) + b"tQ"


def tensor(offset=0, size=(4,), stride=(1,), where=None, views=b"") -> bytes:
    layout = number(offset) + numbers(*size) + numbers(*stride)
    hooks = b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + (where or storage()) + layout + b"\x89" + hooks + views + b"tR"


def program(value: bytes | None = None) -> bytes:
    return b"\x80\x02}(" + text("w") + (tensor() if value is None else value) + b"u."


def archive(path: Path, value: bytes | None = None, *, root: str = "archive/", extra=(), data: bytes = W, compress=False) -> Path:
    with zipfile.ZipFile(path, "w") as z:
        z.writestr(root + "data.pkl", program(value) if value is None or not value.startswith(b"\x80") else value)
        z.writestr(root + "data/0", data, zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED)
        z.writestr(root + "version", "3\n")
        for name, content in extra:
            z.writestr(name, content)
    return path


# ---- reading what torch writes


@pytest.mark.parametrize("dtype", DTYPES + YOUNG_DTYPES)
def test_reads_every_dtype(saved, dtype):
    torch = pytest.importorskip("torch")
    value = torch.tensor([[0.0, 1, 2], [3, 100, 1]]).to(getattr(torch, dtype))
    same(read_torch_file(saved({"w": value}))["w"], value)


def test_reads_every_layout(saved):
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
    read = read_torch_file(saved(tensors))
    assert list(read) == list(tensors)
    for name, value in tensors.items():
        same(read[name], value)
        assert not value.numel() or not read[name].flags.writeable


def test_shared_storages_stay_shared(saved):
    torch = pytest.importorskip("torch")
    base = torch.arange(6.0)
    read = read_torch_file(saved({"whole": base, "part": base[2:4], "tied": base, "apart": base.clone()}))
    assert np.shares_memory(read["whole"], read["part"]) and np.shares_memory(read["whole"], read["tied"])
    assert not np.shares_memory(read["whole"], read["apart"])
    assert read["part"].tolist() == [2.0, 3.0]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_a_training_checkpoint(saved, protocol):
    """The layout of MONAI's BraTS trainer: best_acc is a NumPy scalar, which torch's own weights_only=True refuses."""
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
    read = read_torch_file(saved(checkpoint, pickle_protocol=protocol))
    assert type(read["best_acc"]) is float and read["best_acc"] == 0.75 and read["epoch"] == 299
    assert type(read["state_dict"]) is dict and list(read["state_dict"]) == list(model.state_dict())
    for name, value in model.state_dict().items():
        same(read["state_dict"][name], value)
    assert read["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]
    for place, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            same(read["optimizer"]["state"][place][name], value)
    assert read["scheduler"] == scheduler.state_dict()
    same(read["parameter"], checkpoint["parameter"])
    assert read["numpy"] == [0.5, -3, True] and [type(n) for n in read["numpy"]] == [float, int, bool]
    assert read["size"] == (96, 96, 96) and read["dtype"] == np.float32 and read["other"] == checkpoint["other"]


def test_numpy_1_scalars(tmp_path):
    module = b"cnumpy.core.multiarray\nscalar\n"
    dtype = (
        b"cnumpy\ndtype\n(" + text("f8") + b"\x89\x88tR(" + number(3) + text("<") + b"NNN" + number(-1) * 2 + number(0) + b"tb"
    )
    eight = b"c_codecs\nencode\n(" + b"X" + struct.pack("<I", 9) + "\0\0\0\0\0\0è?".encode() + text("latin1") + b"tR"
    assert read_torch_file(archive(tmp_path / "a.pt", module + b"(" + dtype + eight + b"tR")) == {"w": 0.75}


@pytest.mark.parametrize("root", ["archive/", "model.final epoch 3/", ""])
def test_any_root(tmp_path, root):
    assert read_torch_file(archive(tmp_path / "a.pt", root=root))["w"].tolist() == [1, 2, 3, 4]


def test_needs_no_torch(tmp_path):
    """Weights are read and written without torch ever being imported."""
    path = archive(tmp_path / "a.pt")
    code = (
        "import sys; from swinunetr_jax.weights.torch_file import read_torch_file, write_torch_file\n"
        f"write_torch_file({str(tmp_path / 'b.pt')!r}, read_torch_file({str(path)!r}))\n"
        "assert not {'torch', 'monai'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert read_torch_file(tmp_path / "b.pt")["w"].tolist() == [1, 2, 3, 4]


# ---- writing what torch reads


@pytest.mark.parametrize("dtype", DTYPES + YOUNG_DTYPES)
def test_torch_reads_every_dtype(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    path, array = tmp_path / "a.pt", array_of(dtype)
    write_torch_file(path, {"w": array})
    value = torch.load(path, weights_only=True)["w"]
    same(array, value)
    assert value.is_contiguous() and not value.requires_grad
    back = read_torch_file(path)["w"]
    assert back.dtype == array.dtype and back.tobytes() == array.tobytes()


def test_torch_reads_every_layout(tmp_path):
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
            same(array.astype(array.dtype.newbyteorder("=")), read["state_dict"][name])
            assert read["state_dict"][name].is_contiguous()
        assert {k: v for k, v in read.items() if k != "state_dict"} == {k: v for k, v in state.items() if k != "state_dict"}
    read = read_torch_file(path)
    assert (
        read["seed"] == 1 << 62
        and read["flags"] == state["flags"]
        and np.array_equal(read["state_dict"]["sliced"], base[:, 1:, ::2])
    )


def test_layout_of_the_archive(tmp_path):
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
def test_unwritable_values(tmp_path, value):
    (tmp_path / "a.pt").write_bytes(b"before")
    with pytest.raises(InputError, match=r"cannot be written: w .*|key"):
        write_torch_file(tmp_path / "a.pt", {"w": value})
    assert os.listdir(tmp_path) == ["a.pt"] and (tmp_path / "a.pt").read_bytes() == b"before"


@pytest.mark.parametrize("write", [write_torch_file, write_safetensors])
def test_writing_is_atomic(tmp_path, monkeypatch, write):
    path = tmp_path / "a.bin"
    path.write_bytes(b"before")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken, pytest.raises(InputError, match="No space left"):
        broken.setattr(os, "fsync", full)
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


# ---- hostile files


class Runs:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "name, make",
    [
        ("system", lambda s: Runs(os.system, f"touch {s}")),
        ("eval", lambda s: Runs(eval, f"open({str(s)!r}, 'w')")),
        ("open", lambda s: Runs(open, str(s), "w")),
        ("getattr", lambda s: Runs(getattr, Runs(__import__, "os"), "system")),
        ("Runs", lambda s: Runs),
    ],
)
def test_calls_are_refused_by_name(tmp_path, protocol, name, make):
    sentinel = tmp_path / "sentinel"
    path = archive(tmp_path / "a.pt", pickle.dumps({"w": make(sentinel)}, protocol))
    message = refusal(path)
    assert name in message and "nothing was executed" in message
    assert not sentinel.exists()


def test_calls_through_torch_are_refused_by_name(saved, tmp_path):
    torch = pytest.importorskip("torch")
    path = saved({"w": Runs(os.system, f"touch {tmp_path / 'sentinel'}")})
    assert "`posix.system`" in refusal(path) or "`nt.system`" in refusal(path)
    assert "`torch.nn.modules.linear.Linear`" in refusal(saved({"model": torch.nn.Linear(1, 1)}))
    assert not (tmp_path / "sentinel").exists()


@pytest.mark.parametrize(
    "value, what",
    [
        (b"cos\nsystem\n(" + text("true") + b"tR", "`os.system`"),
        (b"ctorch\nserialization.os.system\n(" + text("true") + b"tR", "`torch.serialization.os.system`"),
        (text("torch") + text("serialization.os.system") + b"\x93(" + text("true") + b"tR", "`torch.serialization.os.system`"),
        (b"c\x1b[2Jos\nsys\rtem\n)R", r"`\x1b[2Jos.sys\rtem`"),
        (b"(ios\nsystem\n", "`INST os system`"),
        (b"(cos\nsystem\no", "`os.system`"),
        (b"ccollections\nOrderedDict\n)\x81", "`NEWOBJ`"),
        (b"\x82\x01", "`EXT1`"),
        (b"Pabc\n", "`PERSID abc`"),
        (b"I01\n", "`INT`"),
        (FLOATS + b"(" + number(1 << 40) + b"tR", "calls `torch.FloatStorage`"),
        (b"ccollections\nOrderedDict\n(]tR", "calls `collections.OrderedDict`"),
        (b"cnumpy\ndtype\n(" + text("O8") + b"\x89\x88tR", "calls `numpy.dtype`"),
        (b"cnumpy\ndtype\n(" + text("f8,(1000000,1000000)f8") + b"\x89\x88tR", "calls `numpy.dtype`"),
        (
            b"cnumpy\ndtype\n(" + text("f8") + b"\x89\x88tR(" + number(3) + text(">") + b"NNN" + number(-1) * 2 + b"tb",
            "sets attributes",
        ),
        (
            b"cnumpy._core.multiarray\nscalar\n(" + b"cnumpy\ndtype\n(" + text("f8") + b"tRC\x01atR",
            "calls `numpy._core.multiarray.scalar`",
        ),
        (b"c_codecs\nencode\n(" + text("a") + text("rot13") + b"tR", "calls `_codecs.encode`"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n}b", "sets attributes"),
        (b"ccollections\nOrderedDict\n}b", "sets attributes"),
        (tensor() + b"}b", "sets attributes"),
        (b"ccollections\nOrderedDict\n", "bare collections.OrderedDict"),
        (storage(), "bare storage"),
        (tensor(views=b"}" + text("conj") + b"\x88s"), "conjugate"),
        (tensor(offset=1), "ends at element 5"),
        (tensor(offset=10**9), "ends at element"),
        (tensor(size=(2, 2), stride=(3, 1)), "ends at element 5"),
        (tensor(size=(10**9,), stride=(0,)), "1000000000 elements"),
        (tensor(size=(10**9, 10**9, 10**9), stride=(0, 0, 0)), "elements"),
        (tensor(size=(10**9,)), "elements"),
        (tensor(size=(1 << 62,)), "out of range"),
        (tensor(size=(-4,)), "out of range"),
        (tensor(stride=(-1,), offset=3), "out of range"),
        (tensor(offset=-1), "out of range"),
        (tensor(size=(0, 1 << 40, 1 << 40), stride=(1, 1, 1)), "damaged"),
        (tensor(size=(1,) * 33, stride=(1,) * 33), "as many strides"),
        (tensor(size=(2, 2)), "as many strides"),
        (tensor(where=storage(numel=5)), "claims 5"),
        (tensor(where=storage(numel=10**12)), "claims 1000000000000"),
        (tensor(where=storage(numel=-1)), "claims -1"),
        (tensor(where=storage(key="1")), "data/1"),
        (tensor(where=storage(key="../../../etc/passwd")), "data/../../../etc/passwd"),
        (tensor(where=storage(kind=b"ctorch\nQInt8Storage\n")), "`torch.QInt8Storage`"),
        (tensor(where=storage(kind=b"cos\nsystem\n")), "`os.system`"),
        (tensor(where=b"(" + text("module") + FLOATS + b"tQ"), "storage reference"),
        (b"(tQ", "storage reference"),
        (b"r\xff\xff\xff\xff" + b"j\xff\xff\xff\xfe", "damaged"),
        (b"}(((((" + number(1) + b"tttt" + number(1) + b"u", "neither text nor number"),
        (b"0" * 9, "`POP`"),
        (b"R", "damaged"),
        (b"t", "damaged"),
        (b"tttttttt", "damaged"),
        (b"h\x07", "damaged"),
        (b"a", "damaged"),
    ],
)
def test_hostile_pickles(tmp_path, value, what):
    assert what in refusal(archive(tmp_path / "a.pt", value))


def test_a_hostile_pickle_changes_nothing(tmp_path):
    """BUILD on what a file named could otherwise set attributes of live functions and classes."""
    import collections

    before = dict(vars(read_torch_file)), dict(vars(collections.OrderedDict))
    for module, name in (("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"), ("numpy", "dtype")):
        build = f"c{module}\n{name}\n".encode() + b"N}" + text("__defaults__") + b")s\x86b"
        refusal(archive(tmp_path / "a.pt", build))
    assert (dict(vars(read_torch_file)), dict(vars(collections.OrderedDict))) == before


@pytest.mark.parametrize(
    "value",
    [
        b"]q\x00h\x00a",  # a list in itself
        b"]" * 100 + b"a" * 99,
        b")" + b"q\x01h\x01\x86" * 40,  # a billion laughs
        b"](" + tensor(size=(100_000,), where=storage(100_000)) + b"q\x05" + b"h\x05" * 100_000 + b"e",
        b"]" + b"r\xff\xff\xff\xf0" * 1000 + b"j\xff\xff\xff\xf0a",  # unpickling would make room for 4 billion places
    ],
)
def test_small_files_take_little_memory(tmp_path, value):
    path = archive(tmp_path / "a.pt", value, data=bytes(400_000) if b"torch" in value else W)
    tracemalloc.start()
    try:
        assert "unfolds" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.fault("3.6")
@pytest.mark.parametrize(
    "unit",
    [
        b"N",
        b"(",
        b"}",
        b")\x85",
        b"h\x00",
        b"\x80\x02",
        b"]a",
        b"\x8c\x01a",
        b"}b",
        b"h\x01)R",
        b"N0",
        b"K\x01K\x02\x86r\1\0\0\0",
    ],
)
def test_a_pickle_of_eight_megabytes_is_refused_soon(tmp_path, unit):
    start = b"\x80\x02}q\x00ccollections\nOrderedDict\nq\x01"
    path = archive(tmp_path / "a.pt", start + unit * ((7 << 20) // len(unit)) + b".")
    begun = time.process_time()
    refusal(path)
    assert time.process_time() - begun < 2


@pytest.mark.fault("3.6")
def test_keys_that_collide_are_refused_soon(tmp_path):
    """Python hashes integers modulo 2**61 - 1: a dict of multiples of that takes quadratic time."""
    keys = b"".join(number(n * ((1 << 61) - 1)) + b"N" for n in range(1, 50_000))
    begun = time.process_time()
    assert "too large a number" in refusal(archive(tmp_path / "a.pt", b"}(" + keys + b"u"))
    assert time.process_time() - begun < 1


@pytest.mark.fault("3.6")
def test_a_checkpoint_of_many_tensors_is_read(tmp_path):
    """Instructions and bytes grow with the number of tensors, and so do the limits."""
    tensors = {f"{n}.{'layer.' * 340}weight": np.full((1,), n, np.float32) for n in range(4_000)}
    write_torch_file(tmp_path / "a.pt", {"state_dict": tensors, "epochs": {str(n): n for n in range(30_000)}})
    with zipfile.ZipFile(tmp_path / "a.pt") as z:
        assert z.getinfo("archive/data.pkl").file_size > 8 << 20
    read = read_torch_file(tmp_path / "a.pt")["state_dict"]
    assert all(read[name][0] == tensor[0] for name, tensor in tensors.items())


def test_a_top_that_is_no_dict(saved):
    torch = pytest.importorskip("torch")
    assert "ndarray" in refusal(saved(torch.ones(2)))
    assert "list" in refusal(saved([torch.ones(2)]))


def test_tensors_that_need_the_user(saved):
    torch = pytest.importorskip("torch")
    assert "contiguous()" in refusal(saved({"w": torch.ones(1).expand(1000)}))
    assert "resolve_conj()" in refusal(saved({"w": torch.ones(2, dtype=torch.complex64).conj()}))
    assert "_rebuild_sparse_tensor" in refusal(saved({"w": torch.eye(2).to_sparse()}))
    assert "meta" in refusal(saved({"w": torch.ones(2, device="meta")}))


# ---- hostile archives


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["archive/data.pkl", "archive/data/0", "archive/version"])
def test_duplicate_members(tmp_path, name):
    assert "two members of one name" in refusal(archive(tmp_path / "a.pt", extra=[(name, b"x")]))


def test_compressed_members(tmp_path):
    path = archive(tmp_path / "a.pt", tensor(where=storage(25 << 20)), data=bytes(100 << 20), compress=True)
    assert path.stat().st_size < 1 << 20
    assert "compressed" in refusal(path)


def test_claims_about_members(tmp_path):
    path = archive(tmp_path / "a.pt")
    good = path.read_bytes()
    entry = good.rindex(b"PK\x01\x02", 0, good.rindex(b"archive/data/0"))
    claims = bytearray(good)
    claims[entry + 20 : entry + 28] = struct.pack("<II", 1 << 30, 1 << 30)  # both sizes
    path.write_bytes(claims)
    assert "larger than the file" in refusal(path)
    locked = bytearray(good)
    locked[entry + 8] |= 1
    path.write_bytes(locked)
    assert "encrypted" in refusal(path)


def test_roots(tmp_path):
    assert "one data.pkl" in refusal(archive(tmp_path / "a.pt", extra=[("other/data.pkl", program())]))
    assert "one data.pkl" in refusal(archive(tmp_path / "a.pt", root="a/b/"))
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as z:
        z.writestr("word/document.xml", "x")
    assert "some other zip archive" in refusal(tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", w=np.ones(2))
    assert "npz" in refusal(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.pt", "w"):
        pass
    refusal(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(tmp_path):
    for extra in ("archive/constants.pkl", "archive/code/__torch__.py"):
        assert "TorchScript" in refusal(archive(tmp_path / "a.pt", extra=[(extra, b"x")]))
    torch = pytest.importorskip("torch")
    model = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
    torch.jit.save(model, str(tmp_path / "b.pt"))
    assert "TorchScript" in refusal(tmp_path / "b.pt")


def test_other_byte_order(tmp_path):
    assert "big-endian" in refusal(archive(tmp_path / "a.pt", extra=[("archive/byteorder", b"big")]))
    assert read_torch_file(archive(tmp_path / "a.pt", extra=[("archive/byteorder", b"little")]))["w"][0] == 1


def test_a_pickle_too_long(tmp_path):
    assert "pickle of" in refusal(archive(tmp_path / "a.pt", program() + bytes(17 << 20)))


# ---- files of other kinds


@pytest.mark.parametrize(
    "content, what",
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
def test_other_kinds(tmp_path, content, what):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    assert what in refusal(path)
    refusal(path, read_safetensors)


def test_no_file(tmp_path):
    for read in (read_torch_file, read_safetensors):
        assert "does not exist" in refusal(tmp_path / "missing.pt", read)
        assert "is a folder" in refusal(tmp_path, read)
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in refusal(tmp_path / "pipe")


def test_legacy_formats(saved, tmp_path):
    torch = pytest.importorskip("torch")
    assert "legacy" in refusal(saved({"w": torch.ones(2)}, _use_new_zipfile_serialization=False))
    with tarfile.open(tmp_path / "old.pt", "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert "tar archive" in refusal(tmp_path / "old.pt")


# ---- damage


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.pt"
    write_torch_file(path, {"state_dict": {"w": np.arange(12.0).reshape(3, 4), "b": np.arange(3, dtype=np.float32)}, "epoch": 3})
    return path


def test_truncation(good):
    content = good.read_bytes()
    for length in [4, 30, 100, len(content) // 2, *range(len(content) - 130, len(content), 7), len(content) - 1]:
        good.write_bytes(content[:length])
        refusal(good)


def test_one_flipped_bit_in_the_weights(good, saved):
    torch = pytest.importorskip("torch")
    value = np.full(100, 7.25, np.float32)
    write_torch_file(good, {"w": value})
    for path in (good, saved({"w": torch.from_numpy(value)})):
        content = bytearray(path.read_bytes())
        content[content.index(value.tobytes()) + 123] ^= 0x10
        path.write_bytes(content)
        assert "CRC" in refusal(path)


def test_a_file_without_checksums(saved):
    torch = pytest.importorskip("torch")
    torch.serialization.set_crc32_options(False)
    try:
        path = saved({"w": torch.ones(2)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert "set_crc32_options(True)" in refusal(path)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in a damaged name
def test_random_damage(good):
    """Whatever is flipped, the outcome is the file's arrays or a refusal: never another exception, never wrong numbers."""
    content, expected, read_well = good.read_bytes(), read_torch_file(good)["state_dict"], 0
    dice = random.Random(0)
    for _ in range(3000):
        damaged = bytearray(content)
        for _ in range(dice.choice([1, 1, 2, 8])):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        good.write_bytes(damaged)
        try:
            read = read_torch_file(good)["state_dict"]
        except InputError:
            continue
        assert all(np.array_equal(read[name], array) for name, array in expected.items())
        read_well += 1
    assert 0 < read_well < 3000


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_random_pickles(tmp_path):
    """The same below the checksums, where an attacker writes: any program gives a dict or a refusal."""
    scalar = b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(" + text("f8") + b"\x89\x88tR("
    scalar += number(3) + text("<") + b"NNN" + number(-1) * 2 + number(0) + b"tbC\x08" + bytes(8) + b"tR"
    start = program(
        b"](" + tensor() + tensor(size=(2, 2), stride=(2, 1)) + scalar + b"G" + bytes(8) + b"N" + numbers(1, 2) + b"e"
    )
    assert len(read_torch_file(archive(tmp_path / "a.pt", start))["w"]) == 6
    dice = random.Random(0)
    for _ in range(3000):
        damaged = bytearray(start)
        for _ in range(dice.choice([1, 1, 2, 4])):
            place = dice.randrange(2, len(damaged))
            damaged[place : place + dice.randrange(3)] = dice.choice([dice.randbytes(1), b"h\x00", b"R", b"b", b"Q", b"t", b"("])
        try:
            assert type(read_torch_file(archive(tmp_path / "a.pt", bytes(damaged)))) is dict
        except InputError as error:
            assert "\n" not in str(error)


# ---- safetensors


def test_safetensors_round_trip(tmp_path):
    names = [n for n in DTYPES + YOUNG_DTYPES if n != "complex128"]
    state = {name: array_of(name) for name in names}
    state |= {
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "scalar": np.array(2.5),
        "empty": np.zeros((0, 3)),
        "big": np.ones(2, ">f4"),
    }
    path = tmp_path / "a.safetensors"
    write_safetensors(path, state, metadata={"format": "pt"})
    read = read_safetensors(path)
    assert set(read) == set(state)
    for name, array in state.items():
        native = array.astype(array.dtype.newbyteorder("="))
        assert read[name].shape == array.shape and read[name].dtype == native.dtype and read[name].tobytes() == native.tobytes()
    assert read["bfloat16"].dtype == ml_dtypes.bfloat16
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert "a safetensors file" in refusal(path)


def test_safetensors_and_torch(tmp_path):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    names = [name for name in (*DTYPES, *FLOAT8) if name != "complex128"]
    state = {name: torch.tensor([[0.0, 1], [3, 100]]).to(getattr(torch, name)) for name in names}
    safetensors.save_file(state, tmp_path / "a.safetensors")
    read = read_safetensors(tmp_path / "a.safetensors")
    for name, value in state.items():
        same(read[name], value)
    write_safetensors(tmp_path / "b.safetensors", read)
    for name, value in safetensors.load_file(tmp_path / "b.safetensors").items():
        same(read[name], value)


@pytest.mark.fault("4.6")
def test_float8_is_read_and_types_that_nothing_reads_are_named(tmp_path):
    path = tmp_path / "a.safetensors"
    header = b'{"w":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes([0x38, 0x40, 0xB8, 0x01]))
    assert read_safetensors(path)["w"].astype(float).tolist() == [[1, 2], [-1, 2**-9]]
    for dtype in ("F4", "F6_E2M3", "I4", "Q8_0"):
        changed = header.replace(b"F8_E4M3", dtype.encode())
        path.write_bytes(struct.pack("<Q", len(changed)) + changed + bytes(4))
        message = refusal(path, read_safetensors)
        assert f"the type {dtype} in w" in message and "damaged" not in message


def test_safetensors_refusals(tmp_path, good):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"w": np.ones((3, 4)), "b": np.ones(3)})
    content = path.read_bytes()
    for length in (1, 8, 20, 100, len(content) - 1):
        path.write_bytes(content[:length])
        refusal(path, read_safetensors)
    path.write_bytes(content.replace(b'"F64"', b'"XYZ"', 1))
    message = refusal(path, read_safetensors)
    assert "the type XYZ in b" in message and "damaged" not in message
    assert "PyTorch" in refusal(good, read_safetensors)
    for value in (np.array([None]), np.array(["a"]), np.ones(2, np.complex128)):
        with pytest.raises(InputError, match="cannot be written"):
            write_safetensors(path, {"w": value})
    with pytest.raises(InputError, match="cannot be written"):
        write_safetensors(path, {"w": np.ones(2)}, metadata={"epoch": 3})
