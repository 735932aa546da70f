"""The record predict.json: the inputs, settings and outputs of every predicted case. `saliency` writes an equal record, saliency.json.

With this record, `predict` skips finished cases and never replaces files that it did not write. Several processes may write results into
one folder at the same time. Each of them changes the record only while it holds the folder's lock, and reads it again before it adds a
case, so that no process overwrites the entries of another one.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, Required, TypedDict

from swinunetr_jax import files
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.formats import scan_status
from swinunetr_jax.errors import InputError

RECORD = "predict.json"
SALIENCY_RECORD = "saliency.json"
REMEDY = "move it away, and predict again with --overwrite"


class InputFile(TypedDict):
    """An image that was read; size and time are None if it did not exist.

    For an image of several files, such as a DICOM series, the size is that of all, the time the latest, and `files` a digest of their
    names, sizes and times.
    """

    path: str
    bytes: int | None
    modified_ns: int | None
    files: NotRequired[str]


class OutputFile(TypedDict):
    """A file in the record's folder; `bytes` is None until the file is complete."""

    path: str
    bytes: int | None


class MapEntry(TypedDict):
    """A saliency map: the largest value before the map was scaled, and where it is on the scan's grid."""

    voxels: int
    maximum: float
    peak_voxel: list[int]
    peak_mm: list[float]


class CaseEntry(TypedDict, total=False):
    """The entry of one case. `key` is the digest of the settings; `older` are outputs of earlier runs that the last run did not replace.
    `background_windows` is the number of windows without anything but background, whose common result was computed once."""

    key: str
    inputs: list[InputFile]
    outputs: dict[str, OutputFile]
    older: dict[str, OutputFile]
    error: str
    et_label: Literal[3, 4]
    windows: int
    background_windows: int
    seconds: float
    volumes_ml: dict[str, float]
    maps: dict[str, MapEntry]
    notes: list[str]
    warnings: list[str]
    uncertainty: dict[str, Any]


class RecordFile(TypedDict, total=False):
    """The content of the file; `settings` are those of the last run that wrote it."""

    settings: Required[dict[str, Any]]
    cases: Required[dict[str, CaseEntry]]


class AlreadyDone(Exception):
    """Another process has finished the same case under the same settings."""


def read_record(path: str | os.PathLike, remedy: str = REMEDY) -> RecordFile:
    """Returns the content of a predict.json.

    Args:
        path: the path of the file.
        remedy: the advice to the user in the error message of a damaged file.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is damaged, or names outputs outside its folder.
    """
    content = files.read_json(path, RecordFile, remedy)
    try:
        files.digest_of_json(content["settings"])
    except RecursionError as error:
        raise InputError(f"{path} is damaged (its settings are nested too deeply): {remedy}.") from error
    for name, entry in content["cases"].items():
        for output in (*entry.get("outputs", {}).values(), *entry.get("older", {}).values()):
            if not _is_file_name(output["path"]):
                raise InputError(
                    f"{path} is not a valid record (case {name} has the output {output['path'][:100]!r}, expected the name of a "
                    f"file in the same folder): {remedy}."
                )
    return content


class Record:
    """The record of one output folder, which one run reads and changes, possibly from several threads.

    Args:
        out: the folder; it is created if necessary.
        settings: everything that results depend on, as JSON values.
        head: further fields for the top of the file, such as versions.
        name: the name of the file.
        remedy: the advice to the user if the file is damaged.

    Raises:
        InputError: the folder cannot be written, or its record is damaged.
    """

    def __init__(self, out: Path, settings: dict[str, Any], head: dict[str, Any], *, name: str = RECORD, remedy: str = REMEDY):
        self.out, self.path, self.remedy = out, out / name, remedy
        try:
            out.mkdir(parents=True, exist_ok=True)
            if not os.access(out, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except (OSError, ValueError) as error:
            raise InputError(f"{out} cannot be written ({files.reason(error)}): give a folder with write access.") from error
        self.key = files.digest_of_json(settings)
        self.head = {**head, "settings": settings}
        self.lock = threading.RLock()  # one thread at a time reads or changes the record
        self.cases = self._read()
        self.before: dict[str, CaseEntry] = {}  # the entries of cases before they are computed
        files.remove_stale_temporaries(out)

    def begin(self, case: Case) -> None:
        """Reads what other processes have recorded, and remembers the entry of this case before it is computed."""
        with self.lock:
            self.cases = self._read()
            self.before[case.name] = self.cases.get(case.name, {})

    def is_done(self, case: Case, outputs: Mapping[str, Path]) -> bool:
        """Returns whether these outputs were computed from the same inputs under the same settings and are unchanged."""
        entry = self.cases.get(case.name, {})
        if "error" in entry or entry.get("key") != self.key or entry.get("inputs") != input_files(case):
            return False
        recorded = entry.get("outputs", {})
        return recorded.keys() == outputs.keys() and all(recorded[kind] == output_file(path) for kind, path in outputs.items())

    def earlier_outputs(self, case: Case) -> dict[str, OutputFile]:
        """Returns the files that earlier runs wrote for this case and that still exist.

        The keys are kinds. Of two files of one kind, such as label maps in two formats, the older one has its name as the key.
        """
        entry = self.cases.get(case.name, {})
        written = dict(entry.get("outputs", {}))
        for kind, output in entry.get("older", {}).items():
            if output["path"] not in {other["path"] for other in written.values()}:
                written[output["path"] if kind in written else kind] = output
        return {kind: output for kind, output in written.items() if files.exists(self.out / output["path"])}

    def older_outputs(self, case: Case) -> list[OutputFile]:
        """Returns the files of earlier runs that are kept beside the results of this run, but do not belong to them."""
        return list(self.cases[case.name].get("older", {}).values())

    def check_free(self, case: Case, outputs: Mapping[str, Path], overwrite: bool) -> None:
        """Raises InputError if an output would replace an image of the case, or a file that no recorded run wrote."""
        known = {output["path"] for output in self.earlier_outputs(case).values()}
        for path in outputs.values():
            if not files.exists(path):
                continue
            if any(files.exists(image) and path.samefile(image) for image in case.images):
                raise InputError(f"{path}: the result would replace an image that it is computed from; choose another folder.")
            if path.name not in known and not overwrite:
                raise InputError(f"{path} exists and no run recorded here wrote it; choose another folder, or give --overwrite.")

    @contextlib.contextmanager
    def replacing(self, case: Case, outputs: Mapping[str, Path], overwrite: bool) -> Iterator[Callable[[CaseEntry], None]]:
        """Locks the folder's record while the block moves the outputs to their final paths.

        The record lists the files before they are moved. If the process is killed in between, a later run therefore recognises them as its
        own, complete or not, and computes them again.

        Yields:
            The function that records the finished case.

        Raises:
            AlreadyDone: another process has finished the case under the same settings since `begin`.
            InputError: another process has finished it under other settings, or an output would replace a foreign file.
        """
        with self._locked():
            self.cases = self._read()
            entry = self.cases.get(case.name, {})
            if entry != self.before.get(case.name, {}):
                if self.is_done(case, outputs):
                    raise AlreadyDone
                if "error" not in entry and entry.get("key") != self.key and not overwrite:
                    path = next(iter(outputs.values()))
                    raise InputError(
                        f"{path}: another run with other settings wrote it in the meantime; choose another folder, or "
                        "give --overwrite."
                    )
            self.check_free(case, outputs, overwrite)
            known = self.earlier_outputs(case)
            pending = {kind: OutputFile(path=path.name, bytes=None) for kind, path in outputs.items()}
            names = {output["path"] for output in pending.values()}
            older = {kind: output for kind, output in known.items() if output["path"] not in names}
            self._add(case, CaseEntry(inputs=input_files(case), outputs=pending, older=older))
            yield lambda finished: self._add(case, CaseEntry(**finished, **({"older": older} if older else {})))

    def fail(self, case: Case, error: str) -> dict[str, OutputFile]:
        """Records that a case failed, unless another process has recorded the case since `begin`.

        Returns:
            The results of earlier runs that remain, by kind.
        """
        with self._locked():
            self.cases = self._read()
            stale = self.earlier_outputs(case)
            if self.cases.get(case.name, {}) == self.before.get(case.name, {}):
                self._add(case, CaseEntry(inputs=input_files(case), outputs=stale, error=error))
        return stale

    def finished(self, kind: str) -> list[Path]:
        """Returns the outputs of one kind of all cases that any run has finished, by the names of the cases."""
        self.cases = self._read()
        entries = [entry.get("outputs", {}) for _, entry in sorted(self.cases.items()) if "error" not in entry]
        return [self.out / outputs[kind]["path"] for outputs in entries if kind in outputs]

    def _add(self, case: Case, entry: CaseEntry) -> None:
        stored: CaseEntry = {**entry, "key": self.key}
        self.cases[case.name] = stored
        self._write()
        self.before[case.name] = stored

    def _read(self) -> dict[str, CaseEntry]:
        try:
            return read_record(self.path, self.remedy)["cases"]
        except FileNotFoundError:
            return {}

    def _write(self) -> None:
        try:
            files.write_json(self.path, {**self.head, "cases": self.cases})
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({files.reason(error)}): give a folder with write access."
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.lock)
            try:
                stack.enter_context(files.locked(self.out))
            except OSError as error:
                raise InputError(
                    f"{self.out} cannot be opened ({files.reason(error)}): give a folder with write access."
                ) from error
            yield


def input_files(case: Case) -> list[InputFile]:
    """Returns the case's images with their sizes and times of modification, from which a change is detected."""
    inputs = []
    for path in case.images:
        try:
            status = scan_status(path)
            entry = InputFile(path=str(files.real_path(path)), bytes=status.bytes, modified_ns=status.modified_ns)
            inputs.append(entry if status.digest is None else {**entry, "files": status.digest})
        except (OSError, ValueError, InputError):  # ValueError: a null character in the name
            inputs.append(InputFile(path=str(path), bytes=None, modified_ns=None))
    return inputs


def output_file(path: Path) -> OutputFile | None:
    """Returns a file's name and size, or None if it does not exist."""
    return OutputFile(path=path.name, bytes=path.stat().st_size) if files.is_file(path) else None


def _is_file_name(text: str) -> bool:
    return text not in ("", ".", "..") and "\0" not in text and os.path.basename(text) == text
