"""Files and folders that are written completely or not at all, and locks between processes."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

_MAX_NAME_BYTES = 255  # the limit for one file name on all common file systems
# .NAME.HOST-PROCESS-RANDOM.tmp: the host and the process show whether the process that writes a temporary file is still running.
_TEMPORARY = re.compile(r"\..*\.(?P<host>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}\.tmp(\.\w+)*")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, suffix: str = "") -> Iterator[Path]:
    """Writes a file atomically: the file at the temporary path becomes `path` when the block ends without an error.

    When this returns, the bytes and the new name are on the disk (fsync). After an error the temporary file is removed and `path` is
    unchanged.

    Args:
        path: the file to create or replace.
        suffix: the end of the temporary name, for writers that depend on it, such as ".nii.gz".

    Yields:
        The temporary path, in the same folder.

    Raises:
        OSError: the file cannot be written; `filename` is `path`, not the temporary name.
    """
    path = Path(path)
    _check_encodable(path)
    temporary = path.with_name(temporary_name(path.name, suffix))
    try:
        with _report_path(path, temporary):
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # it was renamed or never created
            os.unlink(temporary)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Writes a folder atomically: the temporary folder becomes `path` when the block ends without an error, and is removed otherwise.

    Folders above it are created. When this returns, all files and the new name are on the disk (fsync).

    Args:
        path: the folder to create; it may exist only as an empty folder.

    Yields:
        The temporary folder, next to `path`.

    Raises:
        OSError: the folder cannot be written; `filename` is `path`, not the temporary name.
    """
    path = Path(path)
    _check_encodable(path)
    temporary = path.with_name(temporary_name(path.name, ""))
    try:
        with _report_path(path, temporary):
            temporary.mkdir(parents=True)
            yield temporary
            for root, _, names in os.walk(temporary):
                for name in names:
                    _sync(Path(root, name))
                _sync(Path(root))
            os.rename(temporary, path)
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _report_path(path: Path, temporary: Path) -> Iterator[None]:
    """Makes an OSError of the block that names the temporary path, or no path, name `path`, which the user knows."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(temporary), temporary):
            error.filename, error.filename2 = str(path), None
        raise


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file with `atomic_path`. Raises OSError, which names `path`."""
    with atomic_path(path) as temporary, open(temporary, "xb") as file:
        file.write(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 with `atomic_path`. Lone surrogates from file names, which UTF-8 cannot encode, become backslash escapes."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Runs the block in only one process at a time for this folder, without a lock file; other processes wait.

    If the system or the file system does not support locks, the block runs without one.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a network file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def remove_stale_temporaries(folder: str | os.PathLike) -> None:
    """Removes from a folder the temporary files and folders that ended processes of this machine have left behind."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            match = _TEMPORARY.fullmatch(entry.name)
            if match and match["host"] == _host() and not _runs(int(match["process"])):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    with contextlib.suppress(OSError):
                        os.unlink(entry.path)


def is_temporary(name: str) -> bool:
    """Returns whether a file name is that of an incomplete file of `atomic_path`."""
    return _TEMPORARY.fullmatch(name) is not None


def temporary_name(name: str, suffix: str) -> str:
    """Returns a temporary name for a file, unique to this process and shortened to what file systems allow."""
    end = f".{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp{suffix}"
    room = _MAX_NAME_BYTES - len(end) - 1
    return f".{name.encode(errors='surrogateescape')[:room].decode(errors='ignore')}{end}"


def _check_encodable(path: Path) -> None:
    """Raises OSError, instead of Python's ValueError, for a name with a null character or a surrogate that cannot be encoded."""
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise OSError(errno.EINVAL, "no file can have such a name", str(path))


def _host() -> str:
    """Returns eight characters that identify this machine."""
    return hashlib.sha256(socket.gethostname().encode(errors="replace")).hexdigest()[:8]


def _runs(process: int) -> bool:
    """Returns whether a process with this ID is running on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is running and belongs to another user
        return True
    return True


def _sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk. Errors of file systems that do not support this, often for folders, are ignored."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EROFS):
            raise
    finally:
        os.close(handle)
