"""Codes of what a label is: SNOMED CT (SCT) and the NCI Thesaurus (NCIt), as the tables of DICOM part 16 name them (CID 7150, 7151, 7159).

A label has the code that the task states (`Output.code`), and otherwise one by its name. A name that is not in the tables has the code of
"Tissue", which says nothing more.
"""

import re
from dataclasses import dataclass

from swinunetr_jax.output import Output
from swinunetr_jax.task import Task


@dataclass(frozen=True)
class Concept:
    """A code: its value, the scheme that defines it, and its meaning in words."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class SegmentCode:
    """The category and the type of a segment, and where necessary its side or part. `generic` if the name is not in the tables."""

    category: Concept
    kind: Concept
    modifier: Concept | None = None
    generic: bool = False


ANATOMY = Concept("91723000", "SCT", "Anatomical Structure")
ABNORMAL = Concept("49755003", "SCT", "Morphologically Abnormal Structure")
TISSUE = Concept("85756007", "SCT", "Tissue")
GENERIC = SegmentCode(TISSUE, TISSUE, generic=True)
MODIFIERS = {
    "left": Concept("7771000", "SCT", "Left"),
    "right": Concept("24028007", "SCT", "Right"),
    "anterior": Concept("255549009", "SCT", "Anterior"),
    "posterior": Concept("255551008", "SCT", "Posterior"),
}
_EDEMA = ("79654002", "SCT", "Edema")
_ENHANCING = ("C113842", "NCIt", "Enhancing Lesion")
_NECROSIS = ("6574001", "SCT", "Necrosis")
_LESIONS = {
    "edema": _EDEMA,
    "oedema": _EDEMA,
    "snfh": _EDEMA,  # surrounding non-enhancing FLAIR hyperintensity, BraTS since 2023
    "necrosis": _NECROSIS,
    "necrotic core": _NECROSIS,
    "netc": _NECROSIS,  # non-enhancing tumour core, BraTS since 2023
    "ncr": _NECROSIS,
    "et": _ENHANCING,
    "enhancing tumor": _ENHANCING,
    "enhancing tumour": _ENHANCING,
    "enhancing lesion": _ENHANCING,
    "non enhancing tumor": ("C81175", "NCIt", "Non-Enhancing Lesion"),
    "non enhancing tumour": ("C81175", "NCIt", "Non-Enhancing Lesion"),
    "tumor": ("108369006", "SCT", "Neoplasm"),
    "tumour": ("108369006", "SCT", "Neoplasm"),
    "cancer": ("108369006", "SCT", "Neoplasm"),
    "lesion": ("52988006", "SCT", "Lesion"),
}
_STRUCTURES = {
    "spleen": ("78961009", "SCT", "Spleen"),
    "kidney": ("64033007", "SCT", "Kidney"),
    "gallbladder": ("28231008", "SCT", "Gallbladder"),
    "esophagus": ("32849002", "SCT", "Esophagus"),
    "oesophagus": ("32849002", "SCT", "Esophagus"),
    "liver": ("10200004", "SCT", "Liver"),
    "stomach": ("69695003", "SCT", "Stomach"),
    "aorta": ("15825003", "SCT", "Aorta"),
    "inferior vena cava": ("64131007", "SCT", "Inferior vena cava"),
    "ivc": ("64131007", "SCT", "Inferior vena cava"),
    "postcava": ("64131007", "SCT", "Inferior vena cava"),
    "portal vein": ("32764006", "SCT", "Portal vein"),
    "portal vein and splenic vein": ("32764006", "SCT", "Portal vein"),
    "splenic vein": ("35819009", "SCT", "Splenic vein"),
    "pancreas": ("15776009", "SCT", "Pancreas"),
    "adrenal gland": ("23451007", "SCT", "Adrenal gland"),
    "duodenum": ("38848004", "SCT", "Duodenum"),
    "bladder": ("89837001", "SCT", "Bladder"),
    "lung": ("39607008", "SCT", "Lung"),
    "urinary bladder": ("89837001", "SCT", "Bladder"),
    "colon": ("71854001", "SCT", "Colon"),
    "small bowel": ("30315005", "SCT", "Small intestine"),
    "small intestine": ("30315005", "SCT", "Small intestine"),
    "rectum": ("34402009", "SCT", "Rectum"),
    "prostate": ("41216001", "SCT", "Prostate"),
    "pz": ("279706003", "SCT", "Peripheral zone of the prostate"),
    "tz": ("399384005", "SCT", "Transition zone of the prostate"),
    "brain": ("12738006", "SCT", "Brain"),
    "spinal cord": ("2748008", "SCT", "Spinal cord"),
    "thyroid": ("69748006", "SCT", "Thyroid"),
    "thyroid gland": ("69748006", "SCT", "Thyroid"),
    "trachea": ("44567001", "SCT", "Trachea"),
    "heart": ("80891009", "SCT", "Heart"),
    "left atrium": ("82471001", "SCT", "Left atrium"),
    "right atrium": ("73829009", "SCT", "Right atrium"),
    "left ventricle": ("87878005", "SCT", "Left ventricle"),
    "right ventricle": ("53085002", "SCT", "Right ventricle"),
    "hippocampus": ("5366008", "SCT", "Hippocampus"),
}
_SHORT = {"rkid": "right kidney", "lkid": "left kidney", "rad": "right adrenal gland", "lad": "left adrenal gland"}


def codes_of(task: Task) -> dict[int, SegmentCode]:
    """Returns the code of each value of a task's label maps except the background.

    The regions of BraTS are coded by what their values are: the rest of the core as necrosis, and the rest of the whole tumour as edema.
    The parts "anterior" and "posterior", if they are all that a task has, are those of the hippocampus, as in the Medical Segmentation
    Decathlon.
    """
    outputs = [output for output in task.outputs if output.value]
    names = {output.name.lower() for output in outputs}
    regions = {"tc": "necrosis", "wt": "edema", "et": "et"} if task.kind == "regions" and names == {"tc", "wt", "et"} else {}
    prefix = "hippocampus " if names == {"anterior", "posterior"} else ""
    return {
        output.value: _stated(output) if output.code else _code(regions.get(output.name.lower(), prefix + output.name))
        for output in outputs
    }


def _stated(output: Output) -> SegmentCode:
    """Returns the code that a task states for an output."""
    return SegmentCode(Concept(*output.code[3:]) if output.code[3:] else ANATOMY, Concept(*output.code[:3]))


def _code(name: str) -> SegmentCode:
    """Returns the code of a name in any spelling, such as "left kidney", "kidney_left" and "Kidney (L)"."""
    found: list[str] = re.findall(r"[^\W_]+", _SHORT.get(name.lower(), name.lower()))
    words = ["left" if word == "l" else "right" if word == "r" else word for word in found]
    if (whole := " ".join(words)) in _STRUCTURES:  # the name of a structure itself may contain a side, such as "left atrium"
        return SegmentCode(ANATOMY, Concept(*_STRUCTURES[whole]))
    modifiers = [MODIFIERS[word] for word in words if word in MODIFIERS]
    rest = " ".join(word for word in words if word not in MODIFIERS)
    if len(modifiers) <= 1:
        for key in (rest, rest.removesuffix("s")):
            for table, category in ((_STRUCTURES, ANATOMY), (_LESIONS, ABNORMAL)):
                if key in table:
                    return SegmentCode(category, Concept(*table[key]), modifiers[0] if modifiers else None)
    return GENERIC
