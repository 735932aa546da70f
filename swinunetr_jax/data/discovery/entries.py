"""What is in a folder, entry by entry: images, folders, what cannot be read, and what is plainly no scan, counted by kind.

Nothing is filtered out silently: what is not an image or a folder is either a problem, which is named, or it is counted.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from swinunetr_jax import files
from swinunetr_jax.console import name_list
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.channels import stem
from swinunetr_jax.data.discovery.prediction_record import RECORD, read_record

MOST_KINDS = 5  # in one sentence

_FORMATS = {
    "a DICOM file": (".dcm", ".ima"),
    "a MetaImage file": (".mha", ".mhd"),
    "an NRRD file": (".nrrd", ".nhdr"),
    "a FreeSurfer file": (".mgz", ".mgh"),
    "an Analyze file": (".hdr", ".img"),
    "a MINC file": (".mnc",),
    "a compressed file": (".bz2", ".xz", ".zst"),
}
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar")
_SIDE_CARS = (
    ".json",
    ".txt",
    ".md5",
    ".sha256",
    ".csv",
    ".tsv",
    ".png",
    ".jpg",
    ".xml",
    ".yaml",
    ".yml",
    ".bval",
    ".bvec",
    ".log",
)


def is_image(name: str) -> bool:
    """Whether a file's name ends in .nii or .nii.gz."""
    return name.lower().endswith((".nii", ".nii.gz"))


def foreign_format(path: Path) -> str | None:
    """What a file probably is that holds a scan and is not read, such as 'a DICOM file'; None for anything else."""
    name = path.name.lower()
    if name.endswith(_SIDE_CARS) or is_image(name):
        return None
    if ".nii" in name:
        return "a file with .nii in its name"
    for kind, endings in _FORMATS.items():
        if name.endswith(endings) and not name.endswith(_ARCHIVES):
            return kind
    if "." not in name and _is_dicom(path):
        return "a DICOM file"
    return None


def link_fault(path: Path) -> str | None:
    """Why a path with an image's name is not a file, as a sentence; None for a regular file."""
    if files.is_file(path):
        return None
    if path.is_symlink():
        return f"{path}: is a link to {os.readlink(path)}, which is not an existing file; restore the file or remove the link."
    if not os.path.lexists(path):
        return f"{path}: does not exist; restore the file or correct the path."
    return f"{path}: is not a regular file, expected a NIfTI image; remove it."


class Survey:
    """Looks into folders once each, and keeps count of every entry that does not become part of a case.

    `read` are files that are no scans and are used, such as the list of cases.
    """

    def __init__(self, root: Path, read: Iterable[Path] = ()):
        self.root, self.read = root, set(read)
        self.problems: list[Case] = []
        self.warnings: list[str] = []
        self.unread: list[Path] = []  # folders with images that are not searched, since scans are beside them
        self.nameless: list[Path] = []  # images of a case whose names do not say which channel they are
        self.other_labels: list[tuple[Path, list[str]]] = []  # the label of a case, and the names of others that are not used
        self._ignored: dict[str, list[Path]] = {}
        self._looked: dict[Path, tuple[list[Path], list[Path]]] = {}
        self._foreign: dict[Path, list[tuple[Path, str]]] = {}

    def look(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """(images, folders) in `folder`, sorted by name. A link that leads nowhere counts as an image, if it has an image's name.

        Raises:
            OSError: the root itself cannot be read; any other folder becomes a problem.
        """
        if folder not in self._looked:
            try:
                self._looked[folder] = self._look(folder)
            except OSError as error:
                if folder == self.root:
                    raise
                reason = error.strerror or error
                self.add_problem(folder.name, f"{folder}: cannot be read ({reason}); check the folder and its permissions.")
                self._looked[folder] = [], []
        return self._looked[folder]

    def _look(self, folder: Path) -> tuple[list[Path], list[Path]]:
        with os.scandir(folder) as found:
            names = sorted(entry.name for entry in found)
        results = _recorded_results(folder) if RECORD in names else frozenset()
        images, folders, self._foreign[folder] = [], [], []
        for name in names:
            path = folder / name
            if name.startswith("._") or name == "__MACOSX":
                self.ignore("of macOS (._…)", path)
            elif name.startswith("."):
                self.ignore("hidden", path)
            elif name in results:
                self.ignore("results of predict", path)
            elif files.is_folder(path):
                if files.is_file(path / RECORD):
                    self.ignore("folders with results of predict", path)
                else:
                    folders.append(path)
            elif is_image(name):
                images.append(path)
            elif kind := foreign_format(path):
                self._foreign[folder].append((path, kind))
            elif path not in self.read and name not in ("dataset.json", "splits_final.json"):
                self._ignore_by_ending(path)
        return images, folders

    def _ignore_by_ending(self, path: Path) -> None:
        if path.name.lower().endswith(_ARCHIVES):
            self.warnings.append(f"{path} is an archive and is not read: unpack it if it holds scans.")
        elif path.is_symlink() and not files.exists(path):
            self.warnings.append(f"{path} is a link to {os.readlink(path)}, which does not exist; restore it or remove the link.")
        else:
            self.ignore(path.suffix or path.name, path)

    def foreign(self, folder: Path) -> list[tuple[Path, str]]:
        """(file, kind) of scans in formats that are not read, but for those beside a NIfTI image of the same name."""
        images, _ = self.look(folder)
        stems = {stem(image.name) for image in images}
        return [(path, kind) for path, kind in self._foreign.get(folder, ()) if path.name.partition(".")[0] not in stems]

    def add_foreign(self, folder: Path) -> None:
        """Each scan of `folder` that is not read becomes a problem; hundreds of files of one scan (DICOM) are one."""
        dicom = [path for path, kind in self.foreign(folder) if kind == "a DICOM file"]
        if dicom:
            number = f"{len(dicom)} DICOM files, such as {dicom[0].name}" if len(dicom) > 1 else f"the DICOM file {dicom[0].name}"
            self.add_problem(folder.absolute().name, f"{folder}: holds {number}, which are not read; convert them to NIfTI.")
        stems: dict[str, tuple[Path, str]] = {}
        for path, kind in self.foreign(folder):
            if kind != "a DICOM file":
                stems.setdefault(re.sub(r"\.nii.*$", "", path.name.rpartition(".")[0]) or path.name, (path, kind))
        for name, (path, kind) in stems.items():
            self.add_problem(name, f"{path}: is {kind}, expected .nii or .nii.gz; finish its download or convert it to NIfTI.")

    def add_problem(self, name: str, problem: str) -> None:
        self.problems.append(Case(name, (), problem=problem, split="test"))

    def ignore(self, kind: str, *paths: Path) -> None:
        self._ignored.setdefault(kind, []).extend(paths)

    def holds_images(self, folder: Path, depth: int = 4) -> bool:
        """Whether a folder or one below it has an image."""
        images, folders = self.look(folder)
        return bool(images) or (depth > 1 and any(self.holds_images(below, depth - 1) for below in folders))

    def skip(self, folders: Iterable[Path]) -> None:
        """Folders beside scans are not searched: those with images are a warning, the others are counted."""
        for folder in folders:
            if self.holds_images(folder):
                self.unread.append(folder)
            else:
                self.ignore("folders without images", folder)

    @property
    def all_warnings(self) -> tuple[str, ...]:
        """One sentence for each thing that was left out or taken on a guess."""
        texts = list(self.warnings)
        if unread := list(dict.fromkeys(self.unread)):
            names = name_list(os.path.relpath(folder, self.root) for folder in unread)
            texts.append(
                f"{self.root}: images in {names} are not used, since scans are beside them or they are too deep; give the folder itself."
            )
        if self.nameless:
            names = name_list(os.path.relpath(path, self.root) for path in self.nameless)
            texts.append(
                f"{len(self.nameless)} images are not used, since their names do not say which channel they are: {names}."
            )
        if self.other_labels:
            taken, others = self.other_labels[0]
            number = f"{len(self.other_labels)} cases have" if len(self.other_labels) > 1 else "one case has"
            texts.append(
                f"{number} several label maps: {taken} is taken, and not {name_list(others)}; remove what is not to be learned."
            )
        return tuple(dict.fromkeys(texts))

    @property
    def ignored(self) -> str | None:
        """One sentence on entries that are no scans, with their kinds; None if there are none."""
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
        noun = "entry that is no scan was" if count == 1 else "entries that are no scans were"
        more = f" and {len(texts) - MOST_KINDS} more kinds" * (len(texts) > MOST_KINDS)
        return f"{count} {noun} ignored: {', '.join(texts[:MOST_KINDS])}{more}."


def _recorded_results(folder: Path) -> frozenset[str]:
    """Names of the files that `predict` wrote into a folder, by its record there."""
    remedy = "without it, results of predict cannot be told from scans, so move it away or the scans to a folder of their own"
    try:
        cases = read_record(folder / RECORD, remedy)["cases"]
    except FileNotFoundError:  # it was removed in the meantime
        return frozenset()
    return frozenset(
        output["path"]
        for entry in cases.values()
        for output in (*entry.get("outputs", {}).values(), *entry.get("older", {}).values())
    )


def _is_dicom(path: Path) -> bool:
    try:
        if not files.is_file(path):
            return False
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
