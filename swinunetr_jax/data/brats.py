"""The properties of the BraTS data sets: MRI sequences, grid, file names, labels and regions.

The enhancing tumour has the label 4 in data up to 2022 and the label 3 in data since 2023. In BraTS 2024 both labels occur: 3 is the
enhancing tumour and 4 the resection cavity. Everything that depends on the year is therefore keyed by the enhancing tumour's label, 4 or 3.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

CHANNELS = ("FLAIR", "T1ce", "T1", "T2")  # in the order of the published Swin UNETR weights
GRID = (240, 240, 155)  # voxels of 1 mm
ET_LABELS = (3, 4)
CAVITY_LABEL = 4  # the resection cavity of BraTS 2024


@dataclass(frozen=True)
class Naming:
    """The names of a case's files.

    `case` is the format string of a case's name, which takes the case's number. A file's name is the case's name followed by the ending
    in `channels` or `label`.
    """

    years: str
    case: str
    channels: dict[str, str]
    label: str


NAMING = {
    4: Naming("up to 2022", "BraTS2021_{:05d}", {"FLAIR": "_flair", "T1": "_t1", "T1ce": "_t1ce", "T2": "_t2"}, "_seg"),
    3: Naming("since 2023", "BraTS-GLI-{:05d}-000", {"FLAIR": "-t2f", "T1": "-t1n", "T1ce": "-t1c", "T2": "-t2w"}, "-seg"),
}

# The first group is the patient: BraTS-GLI-02062-100 is the patient 02062 at time 100, Brats18_CBICA_AAB_1 the first scan of AAB.
PATIENT_PATTERNS = (
    re.compile(r"(.*BraTS-[A-Za-z]+-\d+)-\d{3}", re.IGNORECASE),
    re.compile(r"(.*Brats1[78]_\w+_\w+)_\d+", re.IGNORECASE),
    re.compile(r"(.*BraTS20\d*(?:_(?:Training|Validation|Testing))?_\d+)", re.IGNORECASE),
)


def regions(et_label: int) -> dict[str, tuple[int, ...]]:
    """Returns the labels of the overlapping regions: tumour core, whole tumour and enhancing tumour."""
    return {"TC": (1, et_label), "WT": (1, 2, et_label), "ET": (et_label,)}


def label_names(et_label: int) -> dict[int, str]:
    """Returns what each label of a label map is, by its value. The labels do not overlap, unlike the regions."""
    return {1: "necrotic core", 2: "oedema", et_label: "enhancing tumour"}


def other_et_label(label: int) -> int:
    """Returns 3 for 4 and 4 for 3."""
    return 7 - label


def et_label_of_names(names: Sequence[str]) -> int | None:
    """Returns the enhancing tumour's label if the images of one case are named as in BraTS, otherwise None.

    Args:
        names: file names of the images, without .nii.gz.
    """
    for label, naming in NAMING.items():
        endings = tuple(naming.channels.values())
        if not all(name.endswith(endings) for name in names):
            continue
        if any(name.endswith(naming.channels["T1ce"]) or name.lower().startswith("brats") for name in names):
            return label
    return None
