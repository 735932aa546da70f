"""The entries of folders: images, folders, scans that cannot be read, and other files, which are counted by kind.

No entry is ignored silently: every entry that is neither an image nor a folder is named in a problem or a warning, or is counted.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from swinunetr_jax import files
from swinunetr_jax.console import name_list
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.dicom_folders import dicom_kind, is_scan_path, zipped_folders
from swinunetr_jax.data.discovery.foreign import ARCHIVES, foreign_format, is_dicom_file
from swinunetr_jax.data.discovery.prediction_record import RECORD, read_record
from swinunetr_jax.data.formats.dicom_files import zip_of
from swinunetr_jax.data.formats.names import EXPECTED, ZIP, is_image, is_second_file, stem
from swinunetr_jax.errors import InputError

MAX_KINDS = 5  # one sentence lists at most this number of kinds of ignored entries


def link_fault(path: Path) -> str | None:
    """Returns a sentence on why the path of a scan is neither a regular file nor a folder that may hold DICOM; None if it is."""
    if files.is_file(path) or is_scan_path(path):
        return None
    if path.is_symlink():
        return f"{path}: is a link to {os.readlink(path)}, which is not an existing file; restore the file or remove the link."
    if not os.path.lexists(path):
        return f"{path}: does not exist; restore the file or correct the path."
    return f"{path}: is not a regular file, expected an image; remove it."


class Survey:
    """Lists folders, each of them once, and records every entry that does not become part of a case.

    Args:
        root: the data set's folder.
        read: files that are used although they are not scans, such as the list of cases.
    """

    def __init__(self, root: Path, read: Iterable[Path] = ()):
        self.root, self.read = root, set(read)
        self.problems: list[Case] = []
        self.warnings: list[str] = []
        self.unread: list[Path] = []  # folders that hold images but are not searched, because scans are next to them
        self.without_channel: list[Path] = []  # images whose names do not state their channel
        self.other_labels: list[tuple[Path, list[str]]] = []  # the label of a case, and the names of unused ones
        self._ignored: dict[str, list[Path]] = {}
        self._listed: dict[Path, tuple[list[Path], list[Path]]] = {}
        self._foreign: dict[Path, list[tuple[Path, str]]] = {}

    def list_folder(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Returns (images, folders) in `folder`, sorted by name. A broken link with an image's name counts as an image.

        Raises:
            OSError: the root cannot be read. Any other folder that cannot be read becomes a problem.
        """
        if folder not in self._listed:
            try:
                self._listed[folder] = self._list(folder)
            except OSError as error:
                if folder == self.root:
                    raise
                reason = error.strerror or error
                self.add_problem(folder.name, f"{folder}: cannot be read ({reason}); check the folder and its permissions.")
                self._listed[folder] = [], []
        return self._listed[folder]

    def _list(self, folder: Path) -> tuple[list[Path], list[Path]]:
        if zip_of(folder) is not None:
            self._list_zip(folder)
            return self._listed.get(folder, ([], []))
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
        results = _recorded_results(folder) if RECORD in names else frozenset()
        images, folders, self._foreign[folder] = [], [], []
        lower_names = {name.lower() for name in names}
        for name in names:
            path = folder / name
            if name.startswith("._") or name == "__MACOSX":
                self.ignore("files of macOS (._…)", path)
            elif name.startswith("."):
                self.ignore("hidden files", path)
            elif name in results:
                self.ignore("results of predict", path)
            elif files.is_folder(path):
                if files.is_file(path / RECORD):
                    self.ignore("folders with results of predict", path)
                else:
                    self._add_folder(path, images, folders)
            elif is_image(name):
                images.append(path)
            elif is_second_file(name, lower_names):
                continue  # it belongs to the scan whose header is next to it
            elif name.lower().endswith(ZIP):
                self._add_zip(path, images, folders)
            elif kind := foreign_format(path):
                self._foreign[folder].append((path, kind))
            elif path not in self.read and name not in ("dataset.json", "splits_final.json"):
                self._ignore_by_ending(path)
        return images, folders

    def _add_folder(self, path: Path, images: list[Path], folders: list[Path]) -> None:
        """Adds a folder to the images if it is a DICOM series, and otherwise to the folders. Links to a folder above are ignored."""
        if path.is_symlink() and files.real_path(path) in (above := files.real_path(path.parent), *above.parents):
            self.ignore("links to a folder above", path)
            return
        kind = dicom_kind(path)
        if kind == "localizer":
            self.warnings.append(f"{path} is a localizer and is not used.")
        elif kind == "series":
            images.append(path)
        elif kind == "files":
            self._listed[path] = self.multi_frame_files(path), []
            folders.append(path)
        else:
            folders.append(path)

    def multi_frame_files(self, folder: Path) -> list[Path]:
        """Returns the DICOM files in a folder, each of which is a scan."""
        return sorted(file for file in folder.iterdir() if file.name[0] != "." and is_dicom_file(file))

    def _add_zip(self, path: Path, images: list[Path], folders: list[Path]) -> None:
        """Adds a zip to the images if it holds one DICOM series, to the folders if it holds several, and otherwise warns."""
        try:
            scans = self._list_zip(path)
        except InputError as error:
            self.add_problem(stem(path.name), str(error))
            return
        if scans == [path]:
            images.append(path)
        elif scans:
            folders.append(path)
        else:
            self._ignore_by_ending(path)

    def _list_zip(self, path: Path) -> list[Path]:
        """Lists the folders of a zip, and returns its DICOM scans. Raises InputError if the zip is damaged."""
        scans, localizers = zipped_folders(path)
        self.warnings += [f"{folder} is a localizer and is not used." for folder in localizers]
        if scans == [path]:
            return scans
        inner: dict[Path, tuple[set[Path], set[Path]]] = {}
        for scan in scans:
            inner.setdefault(scan.parent, (set(), set()))[0].add(scan)
            for folder in scan.parents:
                if folder == path:
                    break
                inner.setdefault(folder.parent, (set(), set()))[1].add(folder)
        self._listed |= {folder: (sorted(found), sorted(below)) for folder, (found, below) in inner.items()}
        return scans

    def _ignore_by_ending(self, path: Path) -> None:
        if path.name.lower().endswith(ARCHIVES):
            self.warnings.append(f"{path} is an archive and is not read: unpack it if it holds scans.")
        elif path.is_symlink() and not files.exists(path):
            self.warnings.append(f"{path} is a link to {os.readlink(path)}, which does not exist; restore it or remove the link.")
        else:
            self.ignore(path.suffix or path.name, path)

    def foreign(self, folder: Path) -> list[tuple[Path, str]]:
        """Returns (file, kind) of scans in unsupported formats that have no image of the same name next to them."""
        images, _ = self.list_folder(folder)
        stems = {stem(image.name) for image in images}
        return [(path, kind) for path, kind in self._foreign.get(folder, ()) if path.name.partition(".")[0] not in stems]

    def add_foreign(self, folder: Path) -> None:
        """Records the scans of `folder` that cannot be used as problems; all DICOM files together are one problem."""
        dicom = [path for path, kind in self.foreign(folder) if kind == "a DICOM file"]
        if dicom:
            dicom_files = (
                f"{len(dicom)} DICOM files, such as {dicom[0].name}" if len(dicom) > 1 else f"the DICOM file {dicom[0].name}"
            )
            self.add_problem(
                folder.absolute().name,
                f"{folder}: holds {dicom_files} next to other images or folders; move each series to a folder of its own.",
            )
        stems: dict[str, tuple[Path, str]] = {}
        for path, kind in self.foreign(folder):
            if kind != "a DICOM file":
                stems.setdefault(re.sub(r"\.nii.*$", "", path.name.rpartition(".")[0]) or path.name, (path, kind))
        for name, (path, kind) in stems.items():
            self.add_problem(name, f"{path}: is {kind}, {EXPECTED}; complete its download or convert it.")

    def add_problem(self, name: str, problem: str) -> None:
        self.problems.append(Case(name, (), problem=problem, split="test"))

    def ignore(self, kind: str, *paths: Path) -> None:
        self._ignored.setdefault(kind, []).extend(paths)

    def holds_images(self, folder: Path, depth: int = 4) -> bool:
        """Returns whether a folder, or one at most `depth` - 1 levels below it, has an image."""
        images, folders = self.list_folder(folder)
        return bool(images) or (depth > 1 and any(self.holds_images(below, depth - 1) for below in folders))

    def skip(self, folders: Iterable[Path]) -> None:
        """Records folders that are not searched because scans are next to them: as a warning if they hold images, otherwise as ignored."""
        for folder in folders:
            if self.holds_images(folder):
                self.unread.append(folder)
            else:
                self.ignore("folders without images", folder)

    @property
    def all_warnings(self) -> tuple[str, ...]:
        """A sentence for every kind of scan that is not used and for every guess."""
        texts = list(self.warnings)
        if unread := list(dict.fromkeys(self.unread)):
            names = name_list(os.path.relpath(folder, self.root) for folder in unread)
            texts.append(
                f"{self.root}: images in {names} are not used, because scans are next to them or they are nested "
                "too deeply; give that folder itself."
            )
        if self.without_channel:
            names = name_list(os.path.relpath(path, self.root) for path in self.without_channel)
            texts.append(
                f"{len(self.without_channel)} images are not used, because their names do not state their channel: {names}."
            )
        if self.other_labels:
            used, others = self.other_labels[0]
            cases = f"{len(self.other_labels)} cases have" if len(self.other_labels) > 1 else "one case has"
            texts.append(
                f"{cases} several label maps: {used} is used, and not {name_list(others)}; remove those that are not to be learned."
            )
        return tuple(dict.fromkeys(texts))

    @property
    def ignored(self) -> str | None:
        """One sentence on the entries that are not scans, by their kinds; None if there are none."""
        kinds: dict[str, list[Path]] = {}
        for kind, paths in self._ignored.items():
            kinds.setdefault(kind, []).extend(dict.fromkeys(paths))
        count = sum(map(len, kinds.values()))
        if not count:
            return None
        texts = [
            paths[0].name if len(paths) == 1 else f"{len(paths)} {kind} ({name_list(path.name for path in paths[:2])}, …)"
            for kind, paths in sorted(kinds.items(), key=lambda item: -len(item[1]))
        ]
        noun = "entry that is not a scan was" if count == 1 else "entries that are not scans were"
        more = f" and {len(texts) - MAX_KINDS} more kinds" * (len(texts) > MAX_KINDS)
        return f"{count} {noun} ignored: {', '.join(texts[:MAX_KINDS])}{more}."


def _recorded_results(folder: Path) -> frozenset[str]:
    """Returns the names of the files that `predict` wrote into a folder, according to its record there."""
    remedy = (
        "without it, results of predict cannot be distinguished from scans: move it away, or move the scans to another folder"
    )
    try:
        cases = read_record(folder / RECORD, remedy)["cases"]
    except FileNotFoundError:  # it was removed in the meantime
        return frozenset()
    return frozenset(
        output["path"]
        for entry in cases.values()
        for output in (*entry.get("outputs", {}).values(), *entry.get("older", {}).values())
    )
