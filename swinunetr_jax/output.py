"""One output channel of a network: its name and the labels that it stands for."""

from dataclasses import dataclass
from typing import Any

from swinunetr_jax.errors import InputError
from swinunetr_jax.fields import is_int, set_tuple


@dataclass(frozen=True, kw_only=True)
class Output:
    """One output channel.

    Attributes:
        name: its name.
        value: the label that is written into a label map for this output.
        members: the labels that a region consists of; empty for a class.
        code: what a DICOM-SEG states for this label, as the value, the scheme and the meaning of a code, such as ("10200004", "SCT",
            "Liver"). It may be followed by those of its category, which is an anatomical structure by default. If it is empty, the code is
            found by the name.
    """

    name: str
    value: int
    members: tuple[int, ...] = ()
    code: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"`name` of an output must be text, got {self.name!r}.")
        set_tuple(self, "members", "label values", is_label)
        set_tuple(self, "code", "texts", lambda value: isinstance(value, str) and value.strip() != "")
        if len(self.code) not in (0, 3, 6):
            raise InputError(
                f"`code` of {self.name} must hold the value, the scheme and the meaning of a code, optionally followed by those of its "
                f"category, got {len(self.code)} texts."
            )
        for text, longest in zip(self.code, (64, 16, 64) * 2):
            if len(text) > longest or "\\" in text or not text.isprintable():
                raise InputError(
                    f"`code` of {self.name} holds {text[:80]!r}, expected at most {longest} printable characters without a backslash, as "
                    "DICOM requires."
                )
        if not is_label(self.value):
            raise InputError(
                f"`value` of {self.name} must be an integer in 0 … 255, the range of uint8 label maps, got {self.value!r}."
            )
        object.__setattr__(self, "value", int(self.value))


def is_label(value: Any) -> bool:
    """Returns whether a value can be stored in a label map of this project, which is uint8."""
    return is_int(value) and 0 <= value <= 255
