"""Pairs predictions with references by the scans that `predict` recorded, otherwise by name. Uncertain pairs are refused."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from swinunetr_jax.data.formats import scan_status
from swinunetr_jax.errors import InputError
from swinunetr_jax.evaluation.pairs import Reference, References

Inputs = list[tuple[str, int | None]]  # resolved path and size in bytes of each scan that a prediction was computed from


@dataclass(frozen=True)
class Pairs:
    """Predictions by name, and references, each by the name of its prediction if it has one.

    `refused` maps a case to the reason why it cannot be scored.
    """

    predictions: dict[str, Path]
    references: References
    refused: dict[str, str] = field(default_factory=dict)


def pair_cases(
    predictions: Mapping[str, Path], references: References, record: Mapping[str, Any], *, same: bool = False
) -> Pairs:
    """Pairs each prediction with the reference of the scans that it was computed from.

    If predict.json names a scan of the data set, the reference of that scan is used. All other predictions are paired by equal
    names, unless the scans in predict.json contradict that.

    Args:
        predictions: label maps by name.
        references: the result of `find_references`.
        record: the result of `read_record`.
        same: whether the user gave the files of one prediction and one reference, which are a pair even if their names differ.
    """
    if same and len(predictions) == len(references.cases) == 1:
        return Pairs(dict(predictions), replace(references, cases=dict(zip(predictions, references.cases.values()))))
    inputs = {name: _inputs(path, name, record) for name, path in predictions.items()}
    owners: dict[str, list[str]] = {}  # scan → references that have it
    for name, reference in references.cases.items():
        for image in reference.images:
            owners.setdefault(os.path.realpath(image), []).append(name)
    refused: dict[str, str] = {}
    by_scan: dict[str, list[str]] = {}  # reference → predictions computed from its scans
    for name, scans in inputs.items():
        matches = sorted({owner for path, _ in scans for owner in owners.get(path, ())})
        if len(matches) == 1:
            by_scan.setdefault(matches[0], []).append(name)
        elif matches:
            refused[name] = (
                f"{predictions[name]}: was computed from scans of several cases ({', '.join(matches)}); predict them separately."
            )
    pairs: dict[str, str] = {}  # prediction → reference
    for reference, names in by_scan.items():
        if len(names) == 1 or reference in names:
            pairs[reference if reference in names else names[0]] = reference
        for name in names:
            if name not in pairs:
                others = ", ".join(str(predictions[other]) for other in names if other != name)
                refused[name] = f"{predictions[name]}: is a prediction of the same scan as {others}; keep the one to be scored."
    paired = set(pairs.values())
    for name, reference in references.cases.items():
        if name in predictions and name not in pairs and name not in refused and name not in paired:
            if contradiction := _contradiction(name, inputs[name], reference):
                refused[name] = f"{predictions[name]}: {contradiction}"
            else:
                pairs[name] = name
    cases = {prediction: references.cases[reference] for prediction, reference in pairs.items()}
    for name, reason in references.refused.items():
        if name in predictions and name not in pairs:
            refused.setdefault(name, reason)
    unpaired = {name: case for name, case in references.cases.items() if name not in pairs.values() and name not in refused}
    unpaired_by_name = {name if name not in cases else f"{name} (reference)": case for name, case in unpaired.items()}
    order = [name for name in predictions if name in cases]
    usable_predictions = {name: path for name, path in predictions.items() if name not in refused}
    return Pairs(usable_predictions, replace(references, cases={name: cases[name] for name in order} | unpaired_by_name), refused)


def _inputs(prediction: Path, name: str, record: Mapping[str, Any]) -> Inputs:
    """Returns the scans that a label map was computed from according to predict.json."""
    entries = record.get("cases", {})
    by_file = (entry for entry in entries.values() if entry.get("outputs", {}).get("labels", {}).get("path") == prediction.name)
    entry = next(by_file, entries.get(name, {}))
    return [(os.path.realpath(scan["path"]), scan.get("bytes")) for scan in entry.get("inputs", ())]


def _contradiction(name: str, scans: Inputs, reference: Reference) -> str | None:
    """Returns a sentence if a prediction and a reference of the same name belong to different scans, otherwise None.

    A name with a number may identify a patient and is trusted, because the reference may belong to a converted copy of the scan, whose file
    has another size. Any other name is trusted only if the sizes of the scans' files agree.
    """
    if not scans or not reference.images or re.search(r"\d", name):
        return None
    sizes = _sizes(reference.images)
    if sorted(size for _, size in scans if size is not None) == sizes:
        return None
    return (
        f"predict.json states that it was computed from {scans[0][0]}, but the reference of this name belongs to another scan, "
        f"{reference.images[0]}; give the data set that was predicted."
    )


def _sizes(paths: Sequence[Path]) -> list[int]:
    """Returns the sizes of the files in bytes, sorted, or [] if one cannot be read."""
    try:
        return sorted(scan_status(path).bytes for path in paths)
    except (OSError, ValueError, InputError):
        return []
