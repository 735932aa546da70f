"""Chooses a post-processing by the Dice of cases that no network was trained on, one operation after the other.

1. Only the largest component of the whole foreground is kept if this raises the mean Dice and lowers the Dice of no output.
2. For each output in turn, only its largest component is kept if this raises its Dice and lowers the Dice of no output.
3. A region inside another region gets the label of the region around it if it has fewer voxels than a threshold. The threshold with the
   highest Dice of the region is chosen, if it raises this Dice and lowers the Dice of no output. For BraTS this is the enhancing tumour.

Outputs that occur in no reference are not considered, because nothing shows whether a change improves them.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from swinunetr_jax import InputError, Task
from swinunetr_jax.data.boxes import bounding_box, slices
from swinunetr_jax.postprocess import Postprocess, Step, apply, fallback
from swinunetr_jax.training.fold_labels import FoldLabels, read_labels, reference_of
from swinunetr_jax.training.validation import case_dice

COUNTS = (10, 50, 100, 200, 500, 1000)  # numbers of voxels to try, in addition to 0; source: the winners of BraTS
ROUNDING = 1e-9  # differences of means below this are not changes

Means = dict[str, float]


@dataclass(frozen=True)
class Pair:
    """The label map of a case and its reference within the box of their labels, compressed, because all cases are held in memory."""

    shape: tuple[int, ...]
    labels: bytes
    reference: bytes

    @classmethod
    def of(cls, labels: np.ndarray, reference: np.ndarray) -> "Pair":
        """Returns the pair of two label maps, uint8 [x, y, z]."""
        box = bounding_box((labels != 0) | (reference != 0)) or ((0, 1), (0, 1), (0, 1))
        cropped = [np.ascontiguousarray(array[slices(box)], np.uint8) for array in (labels, reference)]
        return cls(cropped[0].shape, *(zlib.compress(array.tobytes(), 1) for array in cropped))

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the label map and the reference, uint8 [x, y, z]."""
        labels, reference = (
            np.frombuffer(zlib.decompress(data), np.uint8).reshape(self.shape) for data in (self.labels, self.reference)
        )
        return labels, reference


def pairs_of(folds: Iterable[FoldLabels]) -> list[Pair]:
    """Returns the pairs of all validation cases of all folds. Raises InputError if a label map cannot be read."""
    pairs = []
    for fold in folds:
        for case in fold.cases:
            labels = read_labels(fold.path(case))
            if labels is None:
                raise InputError(f"{fold.path(case)} is damaged or missing: delete it, and continue the run with --resume.")
            pairs.append(Pair.of(labels, reference_of(case, fold.task)))
    return pairs


def choose_postprocess(pairs: Sequence[Pair], task: Task) -> Postprocess:
    """Returns the post-processing with a sentence on each operation that was tried.

    Args:
        pairs: label maps and references of the cases of all folds, each by a network that was not trained on the case.
        task: the meaning of the labels.
    """
    search = _Search(pairs, task)
    outputs = [output for output in task.outputs if output.value]
    foreground = {value for output in outputs for value in task.labels_of(output)}
    if task.kind == "classes" and all(output.value for output in task.outputs):
        return Postprocess(task, decisions=("no post-processing is tried, because no class is the background",))
    if absent := [output.name for output in outputs if output.name not in search.present]:
        search.decisions.append(
            f"no out-of-fold reference contains {', '.join(absent)}, so that post-processing is chosen only by the other outputs"
        )
    if not search.present:
        return Postprocess(task, cases=len(pairs), decisions=tuple(search.decisions))
    search.try_steps([Step(operation="largest_component")], None)
    for output in outputs:
        if output.name in search.present and set(task.labels_of(output)) != foreground:
            search.try_steps([Step(operation="largest_component", output=output.name)], output.name)
    for output in outputs:
        labels = set(task.labels_of(output))
        holds_another = any(set(task.labels_of(other)) < labels for other in outputs)
        if output.name in search.present and fallback(task, output) and not holds_another:
            counts = [Step(operation="smallest_volume", output=output.name, voxels=count) for count in COUNTS]
            search.try_steps(counts, output.name)
    return Postprocess(task, tuple(search.steps), len(pairs), search.before, search.now, tuple(search.decisions))


@dataclass
class _Search:
    """The steps chosen so far, the mean Dice of each output after them, and a sentence on each step that was tried."""

    pairs: Sequence[Pair]
    task: Task
    steps: list[Step] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        values = {int(value) for pair in self.pairs for value in np.unique(pair.arrays()[1])}
        self.present = {o.name for o in self.task.outputs if o.value and values & set(self.task.labels_of(o))}
        self.before = self.now = self._means([])

    def try_steps(self, steps: Sequence[Step], output: str | None) -> None:
        """Adds the step with the highest Dice of `output` (None: the mean Dice) if it raises this Dice and lowers that of no output."""
        tried = [(step, self._means([*self.steps, step])) for step in steps]
        allowed = [(step, means) for step, means in tried if not self._falling(means)]
        step, means = max(allowed or tried, key=lambda candidate: self._score(candidate[1], output))
        before, after = self._score(self.now, output), self._score(means, output)
        changes = ", ".join(f"{name} {self.now[name]:.4f} → {value:.4f}" for name, value in means.items() if name in self.present)
        description = str(step)
        if len(steps) > 1:
            description += f", the best of {', '.join(str(candidate.voxels) for candidate in steps)}"
        falling = self._falling(means)
        chosen = after > before + ROUNDING and not falling
        result = (
            "chosen"
            if chosen
            else f"not chosen, because {', '.join(falling)} would fall"
            if falling
            else f"not chosen, because the {'mean Dice' if output is None else f'Dice of {output}'} does not rise"
        )
        self.decisions.append(f"{description}: mean Dice of {len(self.pairs)} out-of-fold cases {changes}: {result}")
        if chosen:
            self.steps.append(step)
            self.now = means

    def _means(self, steps: Sequence[Step]) -> Means:
        """Returns the mean Dice of each output over the cases after these steps, in the convention of validations."""
        cases = []
        for pair in self.pairs:
            labels, reference = pair.arrays()
            cases.append(case_dice(apply(steps, labels, self.task), reference, self.task))
        return {name: float(np.mean([case[name] for case in cases])) for name in cases[0]} if cases else {}

    def _score(self, means: Means, output: str | None) -> float:
        return float(np.mean([means[name] for name in means if name in self.present])) if output is None else means[output]

    def _falling(self, means: Means) -> list[str]:
        return [name for name in means if name in self.present and means[name] < self.now[name] - ROUNDING]
