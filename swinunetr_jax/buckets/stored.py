"""Reads the entries of a bucket's listing, and computes the MD5 and counts the bytes of copies."""

import base64
import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StoredObject:
    """An object in a listing: its size in bytes, a tag that changes with its content, and the MD5 of its content if the store states it."""

    size: int
    tag: str
    md5: bytes | None = None


def is_object(info: Mapping[str, Any]) -> bool:
    """Returns whether an entry of a listing is an object, and not one that a web console makes for an empty folder."""
    return info["type"] == "file" and not info["name"].endswith("/")


def stored_object(info: Mapping[str, Any]) -> StoredObject:
    """Returns the object that an entry of a listing of gcsfs or s3fs describes.

    Its tag is the MD5 if the store states one, because that depends on the content alone, and otherwise the generation or the ETag.
    """
    md5 = info.get("md5Hash")
    tag = md5 or info.get("generation") or info.get("ETag") or ""
    return StoredObject(int(info["size"] or 0), str(tag), base64.b64decode(md5) if md5 else None)


def md5_of(path: Path) -> bytes:
    """Returns the MD5 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).digest()


@contextlib.contextmanager
def counting_callback(arrived: Callable[[int], None] | None) -> Iterator[Any]:
    """Yields an fsspec callback that calls `arrived` with numbers of bytes, and with minus their sum if the block fails."""
    from fsspec.callbacks import Callback

    class Count(Callback):
        total = 0

        def relative_update(self, inc: int = 1) -> None:
            self.total += inc
            if arrived:
                arrived(inc)

    count = Count()
    try:
        yield count
    except BaseException:
        if arrived:
            arrived(-count.total)
        raise
