"""Which prediction is of which reference: by the scans that `predict` recorded, else by name, and not at all where that is not certain."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from swinunetr_jax.evaluation.pairs import Reference, References

Inputs = list[tuple[str, int | None]]  # resolved path and size in bytes of each scan that a prediction was made from


@dataclass(frozen=True)
class Pairs:
    """Predictions, and references under the names of their predictions; `refused` says why a case cannot be scored."""

    predictions: dict[str, Path]
    references: References
    refused: dict[str, str] = field(default_factory=dict)


def pair_cases(
    predictions: Mapping[str, Path], references: References, record: Mapping[str, Any], *, same: bool = False
) -> Pairs:
    """Pairs each prediction with the reference of the scans it was made from.

    Where predict.json names a scan of the data set, that decides. Everything else goes by equal names, unless what predict.json
    says of the scans is against it.

    Args:
        predictions: label maps by name.
        references: of `find_references`.
        record: of `read_record`.
        same: the user named one prediction and one reference, which belong together whatever they are called.
    """
    if same and len(predictions) == len(references.cases) == 1:
        return Pairs(dict(predictions), replace(references, cases=dict(zip(predictions, references.cases.values()))))
    inputs = {name: _inputs(path, name, record) for name, path in predictions.items()}
    homes: dict[str, list[str]] = {}  # scan → references that have it
    for name, reference in references.cases.items():
        for image in reference.images:
            homes.setdefault(os.path.realpath(image), []).append(name)
    refused: dict[str, str] = {}
    by_scan: dict[str, list[str]] = {}  # reference → predictions made from its scans
    for name, scans in inputs.items():
        found = sorted({home for path, _ in scans for home in homes.get(path, ())})
        if len(found) == 1:
            by_scan.setdefault(found[0], []).append(name)
        elif found:
            refused[name] = (
                f"{predictions[name]}: was made from scans of several cases ({', '.join(found)}); predict them one by one."
            )
    pairs: dict[str, str] = {}  # prediction → reference
    for reference, names in by_scan.items():
        if len(names) == 1 or reference in names:
            pairs[reference if reference in names else names[0]] = reference
        for name in names:
            if name not in pairs:
                others = ", ".join(str(predictions[other]) for other in names if other != name)
                refused[name] = f"{predictions[name]}: is of the same scan as {others}; keep the one that is to be scored."
    taken = set(pairs.values())
    for name, reference in references.cases.items():
        if name in predictions and name not in pairs and name not in refused and name not in taken:
            if against := _against(name, inputs[name], reference):
                refused[name] = f"{predictions[name]}: {against}"
            else:
                pairs[name] = name
    cases = {prediction: references.cases[reference] for prediction, reference in pairs.items()}
    for name, reason in references.refused.items():
        if name in predictions and name not in pairs:
            refused.setdefault(name, reason)
    left = {name: case for name, case in references.cases.items() if name not in pairs.values() and name not in refused}
    clear = {name if name not in cases else f"{name} (reference)": case for name, case in left.items()}
    order = [name for name in predictions if name in cases]
    kept = {name: path for name, path in predictions.items() if name not in refused}
    return Pairs(kept, replace(references, cases={name: cases[name] for name in order} | clear), refused)


def _inputs(prediction: Path, name: str, record: Mapping[str, Any]) -> Inputs:
    """The scans that predict.json says a label map was made from."""
    entries = record.get("cases", {})
    by_file = (entry for entry in entries.values() if entry.get("outputs", {}).get("labels", {}).get("path") == prediction.name)
    entry = next(by_file, entries.get(name, {}))
    return [(os.path.realpath(scan["path"]), scan.get("bytes")) for scan in entry.get("inputs", ())]


def _against(name: str, scans: Inputs, reference: Reference) -> str | None:
    """Why equal names are not enough: the name holds no number, as patients have, and the scans are known to differ.

    A name with a number may be paired with a converted copy of the scan, which has another size.
    """
    if not scans or not reference.images or re.search(r"\d", name):
        return None
    sizes = _sizes(reference.images)
    if sorted(size for _, size in scans if size is not None) == sizes:
        return None
    return (
        f"predict.json says that it was made from {scans[0][0]}, and the reference of this name has the scan {reference.images[0]}, which "
        "differs from it; give the data set that was predicted."
    )


def _sizes(paths: Sequence[Path]) -> list[int]:
    try:
        return sorted(os.path.getsize(path) for path in paths)
    except OSError:
        return []
