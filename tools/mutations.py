"""Random damage to files: to any bytes, to the structure of JSON, to the fields of a NIfTI header, and to members of a zip archive.

Every function takes a `random.Random` and the content of an intact file, and returns the damaged content, which the seed determines.
"""

import gzip
import io
import json
import math
import random
import zipfile
from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np

_NUMBERS = (0, 1, -1, 2, 127, 128, 255, 256, 32767, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64, -(2**63), 10**30)
_VALUES = (
    *(None, True, False, "", "a", "../a", "a\0b", "\x1b[31m", "\ud800", "=1+1", "a" * 10_000, [], {}, [[]], [None], {"a": 1}),
    *(0.5, -0.0, 1e308, math.nan, math.inf, -math.inf, *_NUMBERS),
)
_FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e-30, 1e30, -1e30, 3.4e38, 352.5, math.nan, math.inf, -math.inf)


def damage_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flips bits, or replaces, inserts, repeats, removes or zeroes bytes, or cuts off the rest, at one to four places."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        size = len(content)
        start = rng.choice((rng.randrange(size + 1), rng.randrange(min(size, 600) + 1)))  # headers are at the start
        stop = min(size, start + rng.choice((1, 2, 4, 8, 64, 1000)))
        kind = rng.randrange(8)
        if kind == 0 and start < size:
            content[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[start:stop] = rng.randbytes(stop - start)
        elif kind == 2:
            content[start:stop] = (rng.choice(_NUMBERS) % 2**64).to_bytes(8, rng.choice(("little", "big")))[: stop - start]
        elif kind == 3:
            del content[start:]
        elif kind == 4:
            content[start:start] = rng.randbytes(rng.choice((1, 3, 8, 500)))
        elif kind == 5:
            content[start:start] = content[start:stop]
        elif kind == 6:
            del content[start:stop]
        else:
            content[start:stop] = bytes(stop - start)
    return bytes(content)


def edit_json(rng: random.Random, data: bytes) -> bytes:
    """Deletes, renames, nests, repeats or replaces values at one to three places of a JSON text."""
    tree = {"": json.loads(data)}
    for _ in range(rng.choice((1, 1, 2, 3))):
        if places := _places(tree):  # an edit may have deleted all of them
            _edit_place(rng, *rng.choice(places))
    try:
        text = json.dumps(tree.get(""))
    except (RecursionError, ValueError):  # a value was nested several times, or in itself
        return data
    if rng.random() < 0.05:
        text = rng.choice(
            ("[" * 50_000, '{"a":' * 50_000, text + text, text[1:], f"\ufeff{text}", text.replace('"', "'"), "1e999")
        )
    return text.encode()


def _places(tree: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    """Returns every container of a tree with each of its keys."""
    places: list[tuple[Any, Any]] = []
    if depth < 30 and isinstance(tree, dict | list):
        for key, value in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
            places += [(tree, key), *_places(value, depth + 1)]
    return places


def _edit_place(rng: random.Random, container: Any, key: Any) -> None:
    value, kind = container[key], rng.randrange(8)
    if kind == 0:
        del container[key]
    elif kind == 1:
        container[key] = [value]
    elif kind == 2:
        container[key] = {rng.choice(("a", "\ud800", "")): value}
    elif kind == 3 and isinstance(container, dict):
        container[rng.choice((f"{key}x", "\udcff", "", "0"))] = container.pop(key)
    elif kind == 4 and isinstance(container, list):
        container += [value] * rng.choice((1, 2, 1000))
    elif kind == 5 and isinstance(value, int | float):
        container[key] = rng.choice((-value, value * 2, value + 1, str(value), float(value), *_NUMBERS))
    elif kind == 6:
        nested: Any = value
        for _ in range(rng.choice((2, 50, 500))):
            nested = [nested]
        container[key] = nested
    else:
        container[key] = rng.choice(_VALUES)


def edit_log(rng: random.Random, data: bytes) -> bytes:
    """Applies `edit_json` to one line of a log, which has a JSON value in each line."""
    lines = data.splitlines()
    index = rng.randrange(len(lines))
    lines[index] = edit_json(rng, lines[index])
    return b"\n".join(lines) + b"\n"


def edit_nifti(rng: random.Random, data: bytes) -> bytes:
    """Sets one to three fields of the header. The file may be compressed."""
    compressed = data.startswith(b"\x1f\x8b")
    raw = bytearray(gzip.decompress(data) if compressed else data)
    kind = nib.Nifti1Header if int.from_bytes(raw[:4], "little") == 348 else nib.Nifti2Header
    header = np.frombuffer(raw[: kind.sizeof_hdr], kind.template_dtype).copy()
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(kind.template_dtype.names or ())
        field = header[name][0:1].reshape(-1)  # a view of the value, or of all values of a field that is an array
        index = rng.randrange(field.size)
        if field.dtype.kind == "f":
            field[index] = rng.choice((*_FLOATS, rng.uniform(-3, 3)))
        elif field.dtype.kind == "S":
            field[index] = rng.randbytes(field.dtype.itemsize)
        else:
            limits = np.iinfo(field.dtype)
            field[index] = rng.choice([n for n in (*_NUMBERS, *range(1, 20)) if limits.min <= n <= limits.max])
    raw[: kind.sizeof_hdr] = header.tobytes()
    return gzip.compress(bytes(raw), 1, mtime=0) if compressed else bytes(raw)


def repack_gzip(rng: random.Random, data: bytes) -> bytes:
    """Damages the content of a gzip file and compresses it again, as two members and perhaps with additional bytes at the end."""
    raw = damage_bytes(rng, gzip.decompress(data))
    cut = rng.randrange(len(raw) + 1)
    tail = rng.choice((b"", b"", bytes(8), rng.randbytes(5)))
    return gzip.compress(raw[:cut], 1, mtime=0) + gzip.compress(raw[cut:], 1, mtime=0) + tail


def repack_zip(rng: random.Random, data: bytes) -> bytes:
    """Damages, renames, deletes or repeats one member of a zip archive, and corrects the checksums."""
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    pickles = [index for index, (name, _) in enumerate(members) if name.endswith(".pkl")]
    index = rng.choice((rng.randrange(len(members)), rng.choice(pickles)))
    name, member = members[index]
    kind = rng.randrange(8)
    if kind == 0:
        del members[index]
    elif kind == 1:
        members.insert(rng.randrange(len(members)), (name, damage_bytes(rng, member)))
    elif kind == 2:
        members[index] = (rng.choice((f"{name}x", f"../{name}", "a", name.upper())), member)
    else:
        members[index] = (name, damage_bytes(rng, member))
    with zipfile.ZipFile(content, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, member in members:
            archive.writestr(zipfile.ZipInfo(name), member)
    return content.getvalue()


def edit_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Applies `edit_json` to the header and corrects its length."""
    length = int.from_bytes(data[:8], "little")
    header = edit_json(rng, data[8 : 8 + length])
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


Mutation = Callable[[random.Random, bytes], bytes]
