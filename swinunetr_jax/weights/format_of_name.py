"""The formats in which weights are written, and the one that the ending of a name stands for."""

import os
from pathlib import Path

from swinunetr_jax.errors import InputError
from swinunetr_jax.weights.run_contents import holds_checkpoint

FORMATS = ("orbax", "monai", "safetensors")
_FORMAT_OF_ENDING = {".pt": "monai", ".pth": "monai", ".safetensors": "safetensors"}


def format_of(path: str | os.PathLike) -> str:
    """Returns the format for the ending of a name: "monai" for .pt and .pth, "safetensors" for .safetensors, "orbax" for no ending.

    Raises:
        InputError: the name has another ending, such as .onnx, whose format cannot be written.
    """
    ending = Path(path).suffix
    if ending.lower() in _FORMAT_OF_ENDING:
        return _FORMAT_OF_ENDING[ending.lower()]
    if not ending[1:].isdigit() and ending and not holds_checkpoint(path):  # digits are part of a version, as in "model_1.5"
        raise InputError(
            f"{path} has the ending {ending}, whose format cannot be written, expected .pt, .pth, .safetensors or, for a checkpoint "
            'folder, no ending: change the name, or state the format with --to (in Python `to`), such as "orbax" for a folder.'
        )
    return "orbax"
