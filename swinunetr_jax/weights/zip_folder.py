"""Reads a zip archive as a folder with a model: a packed model (`swinunetr pack`), a zipped MONAI bundle, or a zipped folder with weights.

    MODEL.zip/manifest.json    a packed model: its format, and the SHA-256 of every other member, which are all compared when it is opened
    MODEL.zip/fold0            the path of a member that is a folder, as if the archive were a folder itself

An archive may come from anybody. Nothing in it is executed, and it is not unpacked as a whole: the needed members are copied into a
temporary folder. An archive is refused if a member lies outside of its folder, is a link, appears twice, is encrypted, or would unpack
to far more than weights can compress. If all members are in one folder, this folder is the root.
"""

import contextlib
import functools
import hashlib
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from swinunetr_jax import console, files
from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.weight_file import printable

MANIFEST, CARD = "manifest.json", "MODEL_CARD.md"
FORMAT = 1
NO_DIGEST = "no digest"
REMEDY = "download or copy it again, and do not use it if that does not help"
MAX_TEXT_BYTES = 64 << 20  # no description of a model is larger
_MAX_MEMBERS = 100_000
# Weights hardly compress, so an archive that promises more than this multiple of its size is an attempt to fill the disk.
_MAX_COMPRESSION, _SMALL_BYTES = 64, 64 << 20
_CHUNK = 1 << 20
_DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError)
_DRIVE = re.compile(r"[A-Za-z]:")


class Manifest(TypedDict):
    """The content of manifest.json; `digest` is that of all other fields."""

    format: int
    networks: list[str]  # the names of the weight files
    members: dict[str, str]  # name → SHA-256 of every other member
    digest: str


@dataclass(frozen=True)
class ZipFolder:
    """The members of an archive.

    Attributes:
        path: the archive.
        members: the files by their names below the root.
        manifest: the manifest of a packed model, otherwise None.
    """

    path: Path
    members: Mapping[str, zipfile.ZipInfo]
    manifest: Manifest | None = None

    def names(self, inner: str = "") -> dict[str, int]:
        """Returns the names and the sizes of the files below a folder of the archive."""
        start = f"{inner}/" if inner else ""
        return {name[len(start) :]: info.file_size for name, info in self.members.items() if name.startswith(start)}

    def read(self, name: str) -> bytes:
        """Returns the content of a member with a description. Raises InputError if it is damaged or larger than such a text can be."""
        if self.members[name].file_size > MAX_TEXT_BYTES:
            raise InputError(f"{self.path}/{name} is larger than a description can be: {REMEDY}.")
        with self._checked(name):
            return b"".join(self._chunks(name))

    def copy(self, names: Iterable[str], folder: Path, inner: str = "") -> None:
        """Copies members below `inner` into a folder.

        Raises:
            InputError: a member is damaged or differs from the manifest's digest, or the disk has too little space.
        """
        names = set(names)
        needed, free = sum(size for name, size in self.names(inner).items() if name in names), shutil.disk_usage(folder).free
        if needed > free:
            raise InputError(
                f"{self.path} needs {console.size(needed)} for a copy of the weights, but {folder.parent} has only {console.size(free)} "
                "free: set TMPDIR to a folder with more space."
            )
        for name in names:
            target, member = folder / name, f"{inner}/{name}" if inner else name
            target.parent.mkdir(parents=True, exist_ok=True)
            with self._checked(member), open(target, "xb") as file:
                for chunk in self._chunks(member):
                    file.write(chunk)

    def verify(self) -> None:
        """Raises InputError unless the members are those of the manifest, with the same digests, which the model card states too."""
        if self.manifest is None:
            return
        stated, there = self.manifest["members"].keys(), self.members.keys() - {MANIFEST}
        if stated != there:
            which = "lacks" if stated - there else "has the additional member"
            name = min(stated - there or there - stated)
            raise InputError(f"{self.path} {which} {printable(name)}, unlike its {MANIFEST} states: {REMEDY}.")
        for name in self.manifest["members"]:
            with self._checked(name):
                for _ in self._chunks(name):
                    pass
        card = self.read(CARD).decode(errors="replace") if CARD in self.members else ""
        for name in self.manifest["networks"]:
            if self.manifest["members"].get(name, NO_DIGEST) not in card:
                raise InputError(f"{self.path}/{CARD} does not state the digest that {printable(name)} has: {REMEDY}.")

    @contextlib.contextmanager
    def _checked(self, name: str) -> Iterator[None]:
        """Turns the errors of a damaged archive in the block into an InputError."""
        try:
            yield
        except InputError:
            raise
        except _DAMAGE as error:
            raise InputError(f"{self.path}/{printable(name)} cannot be read ({printable(error)}): {REMEDY}.") from error

    def _chunks(self, name: str) -> Iterator[bytes]:
        """Yields the content of a member, and raises InputError at its end if its size or its digest is not the stated one."""
        info, digest, size = self.members[name], hashlib.sha256(), 0
        with zipfile.ZipFile(self.path) as archive, archive.open(info) as stream:
            while chunk := stream.read(_CHUNK):
                size += len(chunk)
                if size > info.file_size:
                    break
                digest.update(chunk)
                yield chunk
        stated = None if self.manifest is None or name == MANIFEST else self.manifest["members"].get(name)
        if size != info.file_size or (self.manifest is not None and name != MANIFEST and digest.hexdigest() != stated):
            raise InputError(
                f"{self.path}/{printable(name)} does not match the digest in {MANIFEST}, so it was changed: {REMEDY}."
            )


def find_zip(path: str | os.PathLike) -> tuple[ZipFolder, str] | None:
    """Returns the archive that a path is or is in, and the path's name below the archive's root; None for a path outside of archives.

    A PyTorch file is a zip archive too, but no folder, and the result is None.

    Raises:
        InputError: the archive is damaged or hostile, or a packed model's member differs from its digest.
    """
    path = Path(path)
    for folder in (path, *path.parents):
        try:
            status = os.stat(folder)
        except (OSError, ValueError):  # it does not exist, or is a name below a file
            continue
        if not stat.S_ISREG(status.st_mode):
            return None
        try:
            opened = _open(folder.absolute(), status.st_size, status.st_mtime_ns)
        except OSError:  # `file_kind` reports files that cannot be read
            return None
        inner = path.relative_to(folder).as_posix()
        return None if opened is None else (ZipFolder(folder, opened.members, opened.manifest), "" if inner == "." else inner)
    return None


@contextlib.contextmanager
def unpacked(archive: ZipFolder, inner: str, names: Iterable[str]) -> Iterator[Path]:
    """Yields a temporary folder with copies of some members below `inner`. It is removed after the block, and messages name the archive."""
    with tempfile.TemporaryDirectory(prefix="swinunetr-") as folder:
        console.show_as(folder, str(archive.path / inner))
        archive.copy(names, Path(folder), inner)
        yield Path(folder)


@functools.lru_cache(maxsize=8)
def _open(path: Path, size: int, changed: int) -> ZipFolder | None:
    """Returns the checked archive at a path, or None if the file is none or is a PyTorch file. A changed file is opened again."""
    with open(path, "rb") as file:
        head = file.read(1024)
    if not head.startswith(b"PK\x03\x04"):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except _DAMAGE as error:
        if b"/data.pkl" in head:  # a truncated PyTorch file, which its own reader reports
            return None
        raise InputError(f"{path} is a damaged zip archive ({printable(error)}): {REMEDY}.") from error
    if any(info.filename.rpartition("/")[2] == "data.pkl" for info in infos):
        return None
    folder = ZipFolder(path, _members(path, size, infos))
    if MANIFEST in folder.members:
        values = files.decode_json(folder.read(MANIFEST), dict[str, Any], f"{path}/{MANIFEST}", REMEDY)
        files.check_stamp(values, f"{path}/{MANIFEST}", FORMAT, REMEDY)
        manifest = files.decode_json(folder.read(MANIFEST), Manifest, f"{path}/{MANIFEST}", REMEDY)
        folder = ZipFolder(path, folder.members, manifest)
        folder.verify()
    return folder


def _members(path: Path, size: int, infos: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Returns the files among the members by their names below the root. Raises InputError for a hostile archive."""
    total = sum(info.file_size for info in infos)
    limit = max(_MAX_COMPRESSION * size, _SMALL_BYTES)
    if total > limit or len(infos) > _MAX_MEMBERS:
        raise InputError(
            f"{path} would unpack to {console.size(total)} in {len(infos)} files, far more than an archive of {console.size(size)} with "
            "weights can hold: do not use it."
        )
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name, kind = info.orig_filename.rstrip("/"), stat.S_IFMT(info.external_attr >> 16)
        fault = _fault(name, info, kind)
        if fault is None and name in members:
            fault = "appears twice"
        if fault is not None:
            raise InputError(f"{path} has the member {printable(name)!r}, which {fault}: do not use it.")
        if not info.is_dir() and not name.startswith("__MACOSX/") and name.rpartition("/")[2] != ".DS_Store":
            members[name] = info
    tops = {name.partition("/")[0] for name in members}
    if len(tops) == 1 and all("/" in name for name in members):
        (top,) = tops
        members = {name[len(top) + 1 :]: info for name, info in members.items()}
    return members


def _fault(name: str, info: zipfile.ZipInfo, kind: int) -> str | None:
    """Returns why a member is refused, or None."""
    if "\\" in name or name.startswith("/") or _DRIVE.match(name) or {"", ".", ".."} & set(name.split("/")) or "\0" in name:
        return "lies outside of the archive's folder"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device and not a file"
    if info.flag_bits & 1:
        return "is encrypted"
    return None
