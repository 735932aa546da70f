"""Which label is the enhancing tumour in BraTS label maps: 4 up to 2022, 3 from 2023.

Only tasks that have one of the two numbers and not the other (`Task.et_label`) need an answer. It is taken from the first of these that
gives one: what `predict` recorded of its own label map, the labels in the data set's dataset.json, file names of one of the two eras, and
last the labels that occur. Labels that occur answer only where all maps of the data set agree, because in BraTS 2024 the label 4 beside 3
is the resection cavity.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from swinunetr_jax.data import brats
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.nifti import Volume, read_labels
from swinunetr_jax.errors import InputError
from swinunetr_jax.evaluation.pairs import Reference, References, label_values
from swinunetr_jax.task import Task

ET_LABELS = set(brats.ET_LABELS)
Entry = Mapping[str, Any]  # of one case in predict.json


class EtLabels:
    """Brings the predictions of one evaluation to the enhancing tumour's label in their references.

    Args:
        task: what the labels mean.
        references: what the data set says of its labels.
        pairs: (prediction, reference, entry in predict.json or {}) of every case.
    """

    def __init__(self, task: Task, references: References, pairs: Sequence[tuple[Path, Reference, Entry]]):
        self.task, self.pairs, self.ignore = task, pairs, references.ignore
        self.stated, self.labels_stated = None, set()
        if references.stated and references.task is not None:
            outputs = references.task.outputs
            self.labels_stated = {value for output in outputs for value in references.task.labels_of(output)}
            self.stated = next(
                (output.value for output in outputs if output.name == "ET" and output.value in brats.ET_LABELS), None
            )
        if self.ignore in brats.ET_LABELS:
            self.stated = brats.other_et_label(self.ignore)

    def align(self, pred: Volume, ref: Volume, reference: Reference, entry: Entry) -> tuple[Volume, Task, list[str]]:
        """(prediction in the reference's labels, task in the reference's labels, sentences about what was assumed).

        Raises:
            InputError: it is not certain which label is the enhancing tumour, or the two maps contradict each other.
        """
        if self.task.et_label is None:
            return pred, self.task, []
        known = self._by_data_set(reference, entry)
        theirs = known or self._occurring(ref, self.in_references, "references")
        ours = self._recorded(entry) or known or self._occurring(pred, self.in_predictions, "predictions")
        notes = []
        if known is None and theirs:
            notes.append(
                f"nothing says whether 3 or 4 is enhancing tumour; taken as {theirs}, which alone occurs in the references"
            )
        theirs = theirs or ours or self.task.et_label
        ours = ours or theirs
        present = label_values(pred.array)
        other = brats.other_et_label(theirs)
        if ours == theirs:
            if other in present - label_values(ref.array) - self.labels_stated and theirs not in present:
                raise InputError(
                    f"{pred.path}: has label {other} and no {theirs}, but in this data set enhancing tumour is {theirs}; relabel."
                )
        elif ours in present:
            if theirs in present:
                raise InputError(
                    f"{pred.path}: has labels 3 and 4, and enhancing tumour is {ours} in it and {theirs} in the reference, so that its "
                    f"label {theirs} has no meaning there; relabel."
                )
            notes.append(f"the enhancing tumour is label {ours} in the prediction and {theirs} in the reference")
            moved = np.where(pred.array == ours, np.array(theirs, pred.array.dtype), pred.array)
            pred = replace(pred, array=moved)
        return pred, self.task.with_et_label(theirs), notes

    def _by_data_set(self, reference: Reference, entry: Entry) -> int | None:
        inputs = tuple(Path(file["path"]) for file in entry.get("inputs", ()))
        return self.stated or Case("", reference.images or inputs).et_label

    def _recorded(self, entry: Entry) -> int | None:
        """What `predict` wrote the enhancing tumour as."""
        return entry.get("et_label")

    @cached_property
    def in_references(self) -> set[int]:
        """Which of 3 and 4 occur in references whose era nothing else says."""
        return self._used(reference.path for _, reference, entry in self.pairs if self._by_data_set(reference, entry) is None)

    @cached_property
    def in_predictions(self) -> set[int]:
        """Which of 3 and 4 occur in predictions whose era nothing else says."""
        return self._used(
            prediction
            for prediction, reference, entry in self.pairs
            if self._recorded(entry) is None and self._by_data_set(reference, entry) is None
        )

    def _occurring(self, volume: Volume, among_all: set[int], which: str) -> int | None:
        if not ET_LABELS & label_values(volume.array):
            return None
        if len(among_all) == 2:
            here = "" if label_values(volume.array) >= ET_LABELS else f" occur among the {which}"
            raise InputError(
                f"{volume.path}: labels 3 and 4{here or ' occur in it'}, and nothing says which is enhancing tumour; put a dataset.json "
                "that names the labels beside the folder of references, or keep one of the two labels."
            )
        return next(iter(among_all), None)

    def _used(self, paths: Iterable[Path]) -> set[int]:
        """Which of 3 and 4 occur in these label maps; files that cannot be read are reported when their case is scored."""
        found: set[int] = set()
        for path in paths:
            with contextlib.suppress(InputError):
                found |= ET_LABELS & label_values(read_labels(path).array)
        return found
