"""`swinunetr evaluate`."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from swinunetr_jax import console, files
from swinunetr_jax.console import literal
from swinunetr_jax.errors import InputError

Ranking = Literal[
    "gli", "mets", "ped", "MenRT", "MenPre", "GoAT"
]  # as in evaluation.challenge, which this file imports only in `run`

if TYPE_CHECKING:
    from swinunetr_jax.evaluation.challenge import ChallengeScores
    from swinunetr_jax.evaluation.evaluate import Evaluation
    from swinunetr_jax.task import Task

EXIT_INCOMPLETE, EXIT_INTERRUPTED = 1, 130
MAX_NAMES = 20  # one note lists at most this number of cases
# The metrics that are printed for each case; the files hold all of them.
COLUMNS = {
    "dice_brats": "Dice (BraTS)",
    "hd95_brats": "HD95 mm (BraTS)",
    "hd95_monai": "HD95 mm (MONAI)",
    "surface_dice": "surface Dice",
    "volume_ml": "ml",
    "reference_ml": "ml (reference)",
}
CHALLENGE_COLUMNS = {
    "brats2026_global_dsc": "Dice (2026)",
    "brats2026_global_hd95": "HD95 voxels (2026)",
    "brats2026_lesionwise_dsc_mean": "lesion Dice (2026)",
    "brats2026_all_instance_f1": "F1 (2026)",
}
LESION_COLUMNS = {
    "lesion_dice": "lesion Dice",
    "lesion_hd95": "lesion HD95 mm",
    "lesions": "lesions",
    "missed": "missed",
    "false_positives": "false positives",
}


@dataclass
class Evaluate:
    """Score label maps against references by Dice, HD95, surface Dice and volumes, each under a named convention."""

    predictions: Annotated[Positional[Path], arg(metavar="PRED")]
    """A folder of label maps as predict writes them (CASE.nii.gz, CASE.seg.nrrd or the DICOM-SEG CASE.dcm), or one label map."""
    references: Annotated[Positional[Path], arg(metavar="REF")]
    """A folder of label maps, one label map, or a data set in any known layout with its labels."""
    task: Literal["brats", "classes"] | None = None
    """The meaning of the labels, if neither predict.json nor the data set states it, or to replace what they state."""
    tolerance: float = 1.0
    """The tolerance of the surface Dice in mm."""
    lesion_wise: bool = False
    """Also score each lesion separately, as BraTS has done for glioma since 2023."""
    scorer: Literal["brats2026"] | None = None
    """Also score with the program of this challenge, which is installed in an environment of its own."""
    scorer_environment: Path | None = None
    """The virtual environment with the challenge's program, by default the one whose commands are on PATH."""
    scorer_ranking: Ranking = "gli"
    """The ranking of the challenge, which determines the regions and the label values."""
    base: Path | None = None
    """The folder that the paths of a dataset.json or datalist are relative to, by default the folder of that file."""
    out: Path | None = None
    """The folder for scores.csv and scores.json, by default that of the predictions."""

    def run(self) -> int:
        from swinunetr_jax.data.check.problems import problem_lines
        from swinunetr_jax.evaluation.challenge import Challenge
        from swinunetr_jax.evaluation.evaluate import evaluate, write_scores
        from swinunetr_jax.evaluation.pairing import pair_cases
        from swinunetr_jax.evaluation.pairs import choose_task, find_predictions, find_references, read_record

        if not 0 <= self.tolerance < math.inf:
            raise InputError(f"--tolerance is {self.tolerance}, expected a number of mm of at least 0.")
        if self.scorer is None and (self.scorer_environment is not None or self.scorer_ranking != "gli"):
            raise InputError("--scorer-environment and --scorer-ranking have no effect without --scorer brats2026: give it too.")
        challenge = None if self.scorer is None else Challenge(self.scorer_ranking, self.scorer_environment)
        label_maps, data_set = find_predictions(self.predictions), find_references(self.references, base=self.base)
        record = read_record(self.predictions)
        two_files = files.is_file(self.predictions) and files.is_file(self.references)
        pairs = pair_cases(label_maps.cases, data_set, record, same=two_files)
        predictions, references, refused = pairs.predictions, pairs.references, {**label_maps.refused, **pairs.refused}
        for text in references.warnings:
            console.say(literal(text))
        task = choose_task(self.task, record, data_set)
        out = self.out or (self.predictions if files.is_folder(self.predictions) else self.predictions.parent)
        if files.exists(out) and not (files.is_folder(out) and os.access(out, os.W_OK)):
            raise InputError(f"{out}: cannot be written; give a folder with write access by --out.")
        meanings = (f"{literal(o.name)} = {'|'.join(map(str, task.labels_of(o)))}" for o in task.outputs)
        console.say(f"{task.kind}: {', '.join(meanings)}")
        if references.ignore is not None:
            console.say(f"voxels that have the label {references.ignore} (ignore) in the references do not affect the scores")

        def progress(done: int, total: int, name: str) -> None:
            console.say(f"[{done + 1}/{total}] {literal(name)}", sys.stderr)

        try:
            with challenge or contextlib.nullcontext():
                evaluation = evaluate(
                    predictions,
                    references,
                    task,
                    record=record,
                    refused=refused,
                    tolerance_mm=self.tolerance,
                    lesion_wise=self.lesion_wise,
                    challenge=challenge,
                    progress=progress,
                )
        except KeyboardInterrupt:
            console.say("interrupted, no scores were written", sys.stderr)
            return EXIT_INTERRUPTED
        paths = write_scores(evaluation, out, predictions=str(self.predictions), references=str(self.references))
        console.say("\n".join(cases_table(evaluation)))
        console.say("\n".join(means_table(evaluation)))
        for note, names in _by_text(evaluation.notes).items():
            console.say(f"{console.name_list(map(literal, names), MAX_NAMES)}: note: {literal(note)}")
        if evaluation.challenge is not None:
            console.say(literal(challenge_sentence(evaluation.challenge, task)))
        console.say(literal(f"→ {', '.join(map(str, paths))}"))
        for line in problem_lines(list(evaluation.failed.items()), "FAILED"):
            console.say(literal(line), sys.stderr)
        if evaluation.challenge is not None:
            for line in problem_lines(list(evaluation.challenge.failed.items()), "NOT SCORED by the program of BraTS 2026"):
                console.say(literal(line), sys.stderr)
        for kind, names in (("prediction", evaluation.missing_predictions), ("reference", evaluation.missing_references)):
            if names:
                console.say(
                    f"{len(names)} case{'s' * (len(names) != 1)} without a {kind}: {', '.join(map(literal, names))}", sys.stderr
                )
        return 0 if evaluation.complete else EXIT_INCOMPLETE


def _by_text(notes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Returns the cases of each sentence, so that a sentence about many cases is printed once."""
    cases_by_sentence: dict[str, list[str]] = {}
    for name, sentences in notes.items():
        for sentence in sentences:
            cases_by_sentence.setdefault(sentence, []).append(name)
    return cases_by_sentence


def cases_table(evaluation: Evaluation) -> list[str]:
    """Returns a line for each case and output."""
    metrics = next((list(values) for case in evaluation.scores.values() for values in case.values()), [])
    columns = {m: title for m, title in (COLUMNS | LESION_COLUMNS | CHALLENGE_COLUMNS).items() if m in metrics}
    head = [
        "case",
        "output",
        *(f"{t} ({evaluation.tolerance_mm:g} mm)" if m == "surface_dice" else t for m, t in columns.items()),
    ]
    rows = [
        [literal(name), literal(output), *(_number(m, values[m]) for m in columns)]
        for name, case in evaluation.scores.items()
        for output, values in case.items()
    ]
    return _aligned([head, *rows])


def challenge_sentence(scores: ChallengeScores, task: Task) -> str:
    """Returns the sentence on the program's versions and on its regions that are not outputs of the task."""
    outputs = {output.name.lower() for output in task.outputs}
    others = sorted({region for case in scores.cases.values() for region in case} - outputs)
    text = f"BraTS 2026: ranking {scores.ranking}, {scores.program}"
    return text + (f"; the scores of its regions {', '.join(others)} are only in scores.json" if others else "")


def means_table(evaluation: Evaluation) -> list[str]:
    """Returns a line for each metric with its means, its convention, and the number of undefined scores (NaN).

    The last mean of each line is over all outputs.
    """
    means = evaluation.means()
    outputs = list(next(iter(means.values()), {}))
    rows = []
    for metric, row in means.items():
        left_out = ", ".join(f"{mean.left_out} {literal(name)}" for name, mean in row.items() if mean.left_out and name != "mean")
        convention = f"{evaluation.convention(metric)}{f' [left out: {left_out}]' * bool(left_out)}"
        rows.append([metric, *(_number(metric, row[name].value) for name in outputs), convention])
    count = len(evaluation.scores)
    return [
        "",
        f"means over {count} case{'s' * (count != 1)}",
        *_aligned([["", *map(literal, outputs), ""], *rows], text_last=True),
    ]


def _number(metric: str, value: float) -> str:
    if math.isnan(value):
        return "none"
    fractions = ("dice", "dsc", "nsd", "prec", "rec", "f1")
    return (
        f"{value:.4f}"
        if any(fraction in metric.split("_") for fraction in fractions)
        else f"{value:.2f}"
        if isinstance(value, float)
        else str(value)
    )


def _aligned(rows: list[list[str]], text_last: bool = False) -> list[str]:
    """Returns lines with columns as wide as their longest cell: text is left-aligned, numbers are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    left_aligned = {0, 1 if not text_last else -1, len(widths) - 1 if text_last else -1}
    lines = []
    for row in rows:
        cells = [
            text.ljust(width) if i in left_aligned else text.rjust(width) for i, (text, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
