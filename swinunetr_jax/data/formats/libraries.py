"""The libraries of the extra `formats`, which are imported only where a format needs them."""

import importlib
import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

from swinunetr_jax.errors import InputError

WRITERS = {".nrrd": ("NRRD", "SimpleITK"), ".dcm": ("DICOM-SEG", "highdicom")}


def check_library(library: str, purpose: str) -> None:
    """Raises InputError if a library is not installed. `purpose` says what needs it, such as "writing NRRD"."""
    if importlib.util.find_spec(library) is None:
        raise InputError(f'{purpose} needs {library}, which is not installed: pip install "swinunetr-jax[formats]".')


def check_writer(name: str) -> None:
    """Raises InputError if the library that writes a file of this name is not installed. NIfTI needs none."""
    for ending, (kind, library) in WRITERS.items():
        if name.lower().endswith(ending):
            check_library(library, f"writing {kind}")


def library(name: str, path: Path) -> ModuleType:
    """Returns a module of the extra `formats`.

    Args:
        name: the module, "SimpleITK" or "pydicom".
        path: the scan that needs it, for the message.

    Raises:
        InputError: the library is not installed.
    """
    if name == "pydicom":
        # Messages about values that pydicom does not expect may quote a header, which can hold personal data.
        warnings.filterwarnings("ignore", module="pydicom")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f'{path}: reading this format needs {name}; run `pip install "swinunetr-jax[formats]"`.') from error


def short(text: object, limit: int = 120) -> str:
    """Returns the text of an error or a name from a file in one line, cut to a length that a message can have."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else f"{line[:limit]}…"
