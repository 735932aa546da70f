"""The kinds of faults that a data set can have, and the records that report them.

kind            severity  meaning
incomplete      error     a channel is missing or occurs twice, or a listed file does not exist
unreadable      error     a scan is not valid: truncated, damaged, a web page, or too large according to its header
not-finite      error     voxels are NaN or Inf
constant        error     a channel has the same value everywhere
channel-count   error     there are more or fewer channels than names, or than in the other cases
duplicate       warning   two channels of a case, or two cases, have the same voxels
grid            error     images, or an image and the label, are on different grids
missing-label   error     a training case has no label (a warning if no list says which cases are for training)
label-shape     error     a label map has channels
label-values    error     labels are not integers from 0 to 255
unknown-label   error     a value is not one of the data set's labels
et-label        error     BraTS: the enhancing tumour has the label of other years, 3 or 4
empty-label     warning   the label map is only background
orientation     warning   axes point in other directions than in most cases
spacing         warning   voxels have another size than in most cases
left-out        warning   scans are not used, or how they are used is a guess
"""

from dataclasses import dataclass
from pathlib import Path

from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.errors import InputError


@dataclass(frozen=True)
class Finding:
    """One fault. `case` is None for a fault of the data set as a whole, and `path` is None for a fault of no single file."""

    case: str | None
    severity: str  # 'error' or 'warning'
    kind: str
    path: Path | None
    message: str


@dataclass(frozen=True)
class Channel:
    """A channel: its file, the range of its finite voxels (None if it has none), the share of non-zero voxels, and a digest."""

    name: str
    path: Path
    low: float | None
    high: float | None
    nonzero: float
    digest: str


@dataclass(frozen=True)
class CaseReport:
    """The facts of a case as far as its files can be read. `spacing` is in mm; `volumes_ml` maps each label, also 0, to its volume."""

    case: Case
    shape: tuple[int, ...] | None
    spacing: tuple[float, ...] | None
    orientation: str | None
    channels: tuple[Channel, ...]
    volumes_ml: dict[int, float] | None
    findings: tuple[Finding, ...]


class Findings:
    """The findings of one case, in the order in which they are added."""

    def __init__(self, case: Case):
        self.case = case.name
        self.all: list[Finding] = []

    def add(self, kind: str, path: Path | None, message: str, severity: str = "error") -> None:
        self.all.append(Finding(self.case, severity, kind, path, message))

    def add_error(self, kind: str, path: Path, error: InputError) -> None:
        self.add(kind, path, str(error).removeprefix(f"{path}: "))
