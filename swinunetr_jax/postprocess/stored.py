"""RUN/postprocess.json: the post-processing that a cross-validation has chosen, which `predict` applies to label maps of its networks."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from swinunetr_jax import files
from swinunetr_jax.errors import InputError
from swinunetr_jax.postprocess.operations import Step
from swinunetr_jax.task import Task

POSTPROCESS = "postprocess.json"
FORMAT = 1
REMEDY = "restore it, or give --no-postprocess"


@dataclass(frozen=True)
class Postprocess:
    """The operations that a cross-validation has chosen, and the scores for which they were chosen.

    Attributes:
        task: the task whose labels the operations change.
        steps: the operations in their order; empty if none has raised the Dice.
        cases: the number of cases outside of the training sets.
        before: the mean Dice of each output over these cases, without post-processing.
        after: the same with all steps.
        decisions: a sentence on each operation that was tried.
    """

    task: Task
    steps: tuple[Step, ...] = ()
    cases: int = 0
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None
    decisions: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", then ".join(map(str, self.steps)) or "none"


class _File(TypedDict):
    """The content of postprocess.json; `digest` is that of all other fields."""

    format: int
    task: dict[str, Any]
    steps: list[Step]
    cases: int
    before: dict[str, float] | None
    after: dict[str, float] | None
    decisions: list[str]
    digest: str


def write_postprocess(path: str | os.PathLike, chosen: Postprocess) -> None:
    """Writes postprocess.json atomically. Raises OSError, which names the file."""
    values = {
        "format": FORMAT,
        "task": chosen.task.to_dict(),
        "steps": [asdict(step) for step in chosen.steps],
        "cases": chosen.cases,
        "before": chosen.before,
        "after": chosen.after,
        "decisions": list(chosen.decisions),
    }
    files.write_json(path, values | {"digest": files.digest_of_json(values)})


def read_postprocess(path: str | os.PathLike) -> Postprocess:
    """Returns the content of a postprocess.json.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: the file is damaged, or has a newer format.
    """
    path = Path(path)
    files.check_stamp(files.read_json(path, dict[str, Any], REMEDY), str(path), FORMAT, REMEDY)
    values = files.read_json(path, _File, REMEDY)
    try:
        task = Task.from_dict(values["task"])
    except InputError as error:
        raise InputError(f"{path} describes no task ({str(error).rstrip('.')}): {REMEDY}.") from error
    names = {output.name for output in task.outputs if output.value}
    for step in values["steps"]:
        if not (step.output in names or (step.output is None and step.operation == "largest_component")):
            raise InputError(f"{path} has a step for the output {step.output!r}, which its task does not have: {REMEDY}.")
    return Postprocess(
        task, tuple(values["steps"]), values["cases"], values["before"], values["after"], tuple(values["decisions"])
    )


def check_task(path: str | os.PathLike, chosen: Postprocess, task: Task) -> None:
    """Raises InputError unless a post-processing was chosen for the labels of a task.

    The label of the enhancing tumour may differ: it is 4 up to BraTS 2022 and 3 since 2023.
    """
    if _labels(chosen.task) != _labels(task):
        raise InputError(
            f"{path} was chosen for other labels ({_described(chosen.task)}) than those that are predicted ({_described(task)}): leave "
            "out the options that change the labels, or give --no-postprocess."
        )


def _labels(task: Task) -> tuple[Any, ...]:
    comparable = task if task.et_label is None else task.with_et_label(4)
    return comparable.kind, comparable.outputs, comparable.paint


def _described(task: Task) -> str:
    outputs = [f"{output.name} {' '.join(map(str, task.labels_of(output)))}" for output in task.outputs]
    return ", ".join(outputs[:6]) + (f" and {len(outputs) - 6} more" if len(outputs) > 6 else "")
