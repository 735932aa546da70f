"""Imports of `train.X`, the trainer's name before it could be installed, return the module `swinunetr_jax.training.X` with a warning."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

OLD, NEW = "train", "swinunetr_jax.training"
_COMMAND = f"{OLD}.__main__"  # `python -m train` is not deprecated


class _Finder(MetaPathFinder, Loader):
    """Finds the modules of the old package under their new name."""

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not fullname.startswith(f"{OLD}.") or fullname == _COMMAND:
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = NEW + spec.name.removeprefix(OLD)
        warnings.warn(
            f"{spec.name} is now {new}; the old name will be removed in the next version.", DeprecationWarning, stacklevel=2
        )
        return import_module(new)

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing, because the module has been executed under its new name."""


def redirect_imports() -> None:
    """Installs the finder, after which imports of the old name work."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
