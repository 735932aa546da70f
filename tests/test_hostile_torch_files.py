"""Hostile PyTorch files are refused in one sentence: nothing is executed, and little memory and time are used."""

import os
import pickle
import random
import struct
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from helpers.torch_archives import FLOATS, W_BYTES, archive, number, numbers, program, refusal, storage, tensor, text

from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.torch_file import read_torch_file

pytest_plugins = ["helpers.fixtures"]

# Pickles


class CallWhenUnpickled:
    """An object whose pickle calls a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "name, make",
    [
        ("system", lambda s: CallWhenUnpickled(os.system, f"touch {s}")),
        ("eval", lambda s: CallWhenUnpickled(eval, f"open({str(s)!r}, 'w')")),
        ("open", lambda s: CallWhenUnpickled(open, str(s), "w")),
        ("getattr", lambda s: CallWhenUnpickled(getattr, CallWhenUnpickled(__import__, "os"), "system")),
        ("CallWhenUnpickled", lambda s: CallWhenUnpickled),
    ],
)
def test_calls_are_refused_by_name(tmp_path, protocol, name, make):
    sentinel = tmp_path / "sentinel"
    path = archive(tmp_path / "a.pt", pickle.dumps({"w": make(sentinel)}, protocol))
    message = refusal(path)
    assert name in message and "nothing was executed" in message
    assert not sentinel.exists()


def test_calls_through_torch_are_refused_by_name(torch_file, tmp_path):
    torch = pytest.importorskip("torch")
    path = torch_file({"w": CallWhenUnpickled(os.system, f"touch {tmp_path / 'sentinel'}")})
    assert "`posix.system`" in refusal(path) or "`nt.system`" in refusal(path)
    assert "`torch.nn.modules.linear.Linear`" in refusal(torch_file({"model": torch.nn.Linear(1, 1)}))
    assert not (tmp_path / "sentinel").exists()


@pytest.mark.parametrize(
    "value, words",
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
        (tensor(where=storage(numel=5)), "states 5"),
        (tensor(where=storage(numel=10**12)), "states 1000000000000"),
        (tensor(where=storage(numel=-1)), "states -1"),
        (tensor(where=storage(key="1")), "data/1"),
        (tensor(where=storage(key="../../../etc/passwd")), "data/../../../etc/passwd"),
        (tensor(where=storage(kind=b"ctorch\nQInt8Storage\n")), "`torch.QInt8Storage`"),
        (tensor(where=storage(kind=b"cos\nsystem\n")), "`os.system`"),
        (tensor(where=b"(" + text("module") + FLOATS + b"tQ"), "storage reference"),
        (b"(tQ", "storage reference"),
        (b"r\xff\xff\xff\xff" + b"j\xff\xff\xff\xfe", "damaged"),
        (b"}(((((" + number(1) + b"tttt" + number(1) + b"u", "neither text nor a number"),
        (b"0" * 9, "`POP`"),
        (b"R", "damaged"),
        (b"t", "damaged"),
        (b"tttttttt", "damaged"),
        (b"h\x07", "damaged"),
        (b"a", "damaged"),
    ],
)
def test_a_hostile_pickle_is_refused_with_the_reason(tmp_path, value, words):
    assert words in refusal(archive(tmp_path / "a.pt", value))


def test_a_hostile_pickle_changes_nothing(tmp_path):
    """The instruction BUILD sets attributes. It must not change functions and classes that a file names."""
    import collections

    before = dict(vars(read_torch_file)), dict(vars(collections.OrderedDict))
    for module, name in (("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"), ("numpy", "dtype")):
        build = f"c{module}\n{name}\n".encode() + b"N}" + text("__defaults__") + b")s\x86b"
        refusal(archive(tmp_path / "a.pt", build))
    assert (dict(vars(read_torch_file)), dict(vars(collections.OrderedDict))) == before


@pytest.mark.parametrize(
    "value",
    [
        b"]q\x00h\x00a",  # a list that contains itself
        b"]" * 100 + b"a" * 99,
        b")" + b"q\x01h\x01\x86" * 40,  # a billion laughs
        b"](" + tensor(size=(100_000,), where=storage(100_000)) + b"q\x05" + b"h\x05" * 100_000 + b"e",
        b"]"
        + b"r\xff\xff\xff\xf0" * 1000
        + b"j\xff\xff\xff\xf0a",  # Python's unpickler would allocate a memo of 4 billion entries
    ],
)
def test_a_small_file_needs_little_memory(tmp_path, value):
    path = archive(tmp_path / "a.pt", value, data=bytes(400_000) if b"torch" in value else W_BYTES)
    tracemalloc.start()
    try:
        assert "expands" in refusal(path)
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
def test_a_long_pickle_is_refused_within_seconds(tmp_path, unit):
    start = b"\x80\x02}q\x00ccollections\nOrderedDict\nq\x01"
    path = archive(tmp_path / "a.pt", start + unit * ((7 << 20) // len(unit)) + b".")
    started = time.process_time()
    refusal(path)
    assert time.process_time() - started < 2


@pytest.mark.fault("3.6")
def test_keys_with_equal_hashes_are_refused_within_a_second(tmp_path):
    """Python hashes integers modulo 2**61 - 1, so that a dict of multiples of this number takes quadratic time."""
    keys = b"".join(number(n * ((1 << 61) - 1)) + b"N" for n in range(1, 50_000))
    started = time.process_time()
    assert "too large a number" in refusal(archive(tmp_path / "a.pt", b"}(" + keys + b"u"))
    assert time.process_time() - started < 1


def test_a_file_without_a_dict_is_refused(torch_file):
    torch = pytest.importorskip("torch")
    assert "ndarray" in refusal(torch_file(torch.ones(2)))
    assert "list" in refusal(torch_file([torch.ones(2)]))


def test_unusual_tensors_are_refused_with_the_remedy(torch_file):
    torch = pytest.importorskip("torch")
    assert "contiguous()" in refusal(torch_file({"w": torch.ones(1).expand(1000)}))
    assert "resolve_conj()" in refusal(torch_file({"w": torch.ones(2, dtype=torch.complex64).conj()}))
    assert "_rebuild_sparse_tensor" in refusal(torch_file({"w": torch.eye(2).to_sparse()}))
    assert "meta" in refusal(torch_file({"w": torch.ones(2, device="meta")}))


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_a_random_pickle_is_read_or_refused(tmp_path):
    """The checksums are correct, as in the file of an attacker, and only the pickle is damaged."""
    scalar = b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(" + text("f8") + b"\x89\x88tR("
    scalar += number(3) + text("<") + b"NNN" + number(-1) * 2 + number(0) + b"tbC\x08" + bytes(8) + b"tR"
    start = program(
        b"](" + tensor() + tensor(size=(2, 2), stride=(2, 1)) + scalar + b"G" + bytes(8) + b"N" + numbers(1, 2) + b"e"
    )
    assert len(read_torch_file(archive(tmp_path / "a.pt", start))["w"]) == 6
    rng = random.Random(0)
    for _ in range(3000):
        damaged = bytearray(start)
        for _ in range(rng.choice([1, 1, 2, 4])):
            position = rng.randrange(2, len(damaged))
            damaged[position : position + rng.randrange(3)] = rng.choice(
                [rng.randbytes(1), b"h\x00", b"R", b"b", b"Q", b"t", b"("]
            )
        try:
            assert type(read_torch_file(archive(tmp_path / "a.pt", bytes(damaged)))) is dict
        except InputError as error:
            assert "\n" not in str(error)


# Archives


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["archive/data.pkl", "archive/data/0", "archive/version"])
def test_duplicate_members_are_refused(tmp_path, name):
    assert "two members of the same name" in refusal(archive(tmp_path / "a.pt", extra=[(name, b"x")]))


def test_compressed_members_are_refused(tmp_path):
    path = archive(tmp_path / "a.pt", tensor(where=storage(25 << 20)), data=bytes(100 << 20), compress=True)
    assert path.stat().st_size < 1 << 20
    assert "compressed" in refusal(path)


def test_wrong_sizes_and_encryption_of_members_are_refused(tmp_path):
    path = archive(tmp_path / "a.pt")
    original = path.read_bytes()
    entry = original.rindex(b"PK\x01\x02", 0, original.rindex(b"archive/data/0"))
    resized = bytearray(original)
    resized[entry + 20 : entry + 28] = struct.pack("<II", 1 << 30, 1 << 30)  # both sizes
    path.write_bytes(resized)
    assert "larger than the file" in refusal(path)
    encrypted = bytearray(original)
    encrypted[entry + 8] |= 1
    path.write_bytes(encrypted)
    assert "encrypted" in refusal(path)


def test_an_archive_without_exactly_one_pickle_is_refused(tmp_path):
    assert "one data.pkl" in refusal(archive(tmp_path / "a.pt", extra=[("other/data.pkl", program())]))
    assert "one data.pkl" in refusal(archive(tmp_path / "a.pt", root="a/b/"))
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as z:
        z.writestr("word/document.xml", "x")
    assert "a zip archive of another kind" in refusal(tmp_path / "a.pt")
    np.savez(tmp_path / "a.npz", w=np.ones(2))
    assert "npz" in refusal(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.pt", "w"):
        pass
    refusal(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused(tmp_path):
    for extra in ("archive/constants.pkl", "archive/code/__torch__.py"):
        assert "TorchScript" in refusal(archive(tmp_path / "a.pt", extra=[(extra, b"x")]))
    torch = pytest.importorskip("torch")
    model = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
    torch.jit.save(model, str(tmp_path / "b.pt"))
    assert "TorchScript" in refusal(tmp_path / "b.pt")


def test_big_endian_files_are_refused(tmp_path):
    assert "big-endian" in refusal(archive(tmp_path / "a.pt", extra=[("archive/byteorder", b"big")]))
    assert read_torch_file(archive(tmp_path / "a.pt", extra=[("archive/byteorder", b"little")]))["w"][0] == 1


def test_a_pickle_that_is_too_long_is_refused(tmp_path):
    assert "pickle of" in refusal(archive(tmp_path / "a.pt", program() + bytes(17 << 20)))
