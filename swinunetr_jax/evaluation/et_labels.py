"""Finds the enhancing tumour's label in BraTS label maps: 4 up to 2022, 3 since 2023.

A search is necessary only for tasks that use one of the two numbers and not the other (`Task.et_label`). The label comes from the first of
these sources that states it: the record of `predict` for its own label map, the labels in the data set's dataset.json, file names as in
BraTS, and finally the labels that occur in the maps. The last source is used only if one of the two labels does not occur in the data set,
because in BraTS 2024 both occur, and 4 is the resection cavity.
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
from swinunetr_jax.data.formats import read_labels
from swinunetr_jax.data.nifti import Volume
from swinunetr_jax.errors import InputError
from swinunetr_jax.evaluation.pairs import Reference, References, label_values
from swinunetr_jax.task import Task

ET_LABELS = set(brats.ET_LABELS)
Entry = Mapping[str, Any]  # the entry of one case in predict.json


class EtLabels:
    """Changes the enhancing tumour's label in the predictions of one evaluation to that in their references.

    Args:
        task: the meaning of the labels.
        references: the references, with what the data set states about its labels.
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
        """Returns (prediction in the reference's labels, task in the reference's labels, sentences on assumptions).

        Raises:
            InputError: the label of the enhancing tumour is not certain, or the two maps contradict each other.
        """
        if self.task.et_label is None:
            return pred, self.task, []
        stated_label = self._by_data_set(reference, entry)
        ref_label = stated_label or self._occurring(ref, self.in_references, "references")
        pred_label = self._recorded(entry) or stated_label or self._occurring(pred, self.in_predictions, "predictions")
        notes = []
        if stated_label is None and ref_label:
            notes.append(
                f"no source states whether 3 or 4 is the enhancing tumour; {ref_label} is assumed, the only one in the references"
            )
        ref_label = ref_label or pred_label or self.task.et_label
        pred_label = pred_label or ref_label
        present = label_values(pred.array)
        other = brats.other_et_label(ref_label)
        if pred_label == ref_label:
            if other in present - label_values(ref.array) - self.labels_stated and ref_label not in present:
                raise InputError(
                    f"{pred.path}: has label {other} and no {ref_label}, but in this data set the enhancing tumour is "
                    f"{ref_label}; relabel it."
                )
        elif pred_label in present:
            if ref_label in present:
                raise InputError(
                    f"{pred.path}: has labels 3 and 4, and the enhancing tumour is {pred_label} in it and {ref_label} in the "
                    f"reference, so that its label {ref_label} has no meaning there; relabel it."
                )
            notes.append(f"the enhancing tumour is label {pred_label} in the prediction and {ref_label} in the reference")
            relabelled = np.where(pred.array == pred_label, np.array(ref_label, pred.array.dtype), pred.array)
            pred = replace(pred, array=relabelled)
        return pred, self.task.with_et_label(ref_label), notes

    def _by_data_set(self, reference: Reference, entry: Entry) -> int | None:
        """Returns the label that a dataset.json states or the file names imply, otherwise None."""
        inputs = tuple(Path(file["path"]) for file in entry.get("inputs", ()))
        return self.stated or Case("", reference.images or inputs).et_label

    def _recorded(self, entry: Entry) -> int | None:
        """Returns the label that `predict` gave the enhancing tumour, or None if it is not recorded."""
        return entry.get("et_label")

    @cached_property
    def in_references(self) -> set[int]:
        """The subset of {3, 4} that occurs in references for which no other source states the label."""
        return self._used(reference.path for _, reference, entry in self.pairs if self._by_data_set(reference, entry) is None)

    @cached_property
    def in_predictions(self) -> set[int]:
        """The subset of {3, 4} that occurs in predictions for which no other source states the label."""
        return self._used(
            prediction
            for prediction, reference, entry in self.pairs
            if self._recorded(entry) is None and self._by_data_set(reference, entry) is None
        )

    def _occurring(self, volume: Volume, among_all: set[int], which: str) -> int | None:
        """Returns 3 or 4, whichever occurs in the maps, or None if `volume` has neither. Raises InputError if both occur."""
        if not ET_LABELS & label_values(volume.array):
            return None
        if len(among_all) == 2:
            where = "in it" if label_values(volume.array) >= ET_LABELS else f"among the {which}"
            raise InputError(
                f"{volume.path}: labels 3 and 4 occur {where}, and no source states which is the enhancing tumour; put a dataset.json "
                "that names the labels next to the folder of references, or keep one of the two labels."
            )
        return next(iter(among_all), None)

    def _used(self, paths: Iterable[Path]) -> set[int]:
        """Returns the subset of {3, 4} that occurs in these label maps.

        Files that cannot be read are skipped here, and reported when their case is scored.
        """
        labels: set[int] = set()
        for path in paths:
            with contextlib.suppress(InputError):
                labels |= ET_LABELS & label_values(read_labels(path, may_be_part=True).array)
        return labels
