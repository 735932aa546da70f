"""The cases that a command reads, and the folder that it writes into."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from swinunetr_jax import console
from swinunetr_jax.errors import InputError
from swinunetr_jax.files import is_folder
from swinunetr_jax.task import Task

if TYPE_CHECKING:
    from swinunetr_jax.data.discovery.cases import Case

FILE_ENDINGS = (".nii", ".gz", ".hdr", ".img", ".mha", ".mhd", ".nrrd", ".dcm", ".npy", ".npz", ".png", ".json", ".csv", ".zip")


def input_cases(paths: Sequence[Path], task: Task, base: Path | None) -> tuple[tuple[Case, ...], int | None]:
    """Returns the cases of --input, and the enhancing tumour's label if the data set's dataset.json states it. Prints what is ignored.

    Args:
        paths: a data set, a case folder or a datalist, or the files of one case.
        task: the task of the network, which names its channels.
        base: the folder that the paths of a datalist are relative to.

    Raises:
        InputError: no case is found, or all of many cases have the same fault.
    """
    from swinunetr_jax.data.check.problems import ONE_BY_ONE, problem_groups
    from swinunetr_jax.data.discovery.formats import case_from_files, find_cases

    if len(paths) != 1:
        if base is not None:
            raise InputError("--base is for a dataset.json or datalist, but single files were given; leave it out.")
        return (case_from_files(tuple(paths)),), None
    dataset = find_cases(paths[0], channels=task.channels or None, base=base)
    for text in (dataset.ignored, *dataset.warnings):
        if text:
            console.say(console.literal(text))
    cases = dataset.cases
    groups = problem_groups([(case.name, case.problem or "") for case in cases])
    if len(cases) > ONE_BY_ONE and len(groups) == 1 and cases[0].problem:
        raise InputError(f"all {len(cases)} cases have the same fault, such as {cases[0].name}: {cases[0].problem}")
    return cases, dataset.stated_et_label


def check_output(out: Path, instead: str = "a folder") -> None:
    """Raises InputError if --output names a file. `instead` says what to give."""
    if out.name.lower().endswith(FILE_ENDINGS) and not is_folder(out):
        raise InputError(f"--output {console.literal(out)} names a file, but results are written into a folder: give {instead}.")


def is_one_file(out: Path) -> bool:
    """Returns whether --output names a label map instead of a folder."""
    from swinunetr_jax.inference.label_files import LABEL_ENDINGS

    return out.name.lower().endswith(LABEL_ENDINGS) and not is_folder(out)


def check_no_input_is_replaced(cases: Sequence[Case], out: Path, names: Sequence[str]) -> None:
    """Raises InputError if a result would have the name of a scan or a label, which --overwrite would replace.

    Args:
        cases: the cases.
        out: the folder of the results.
        names: the names of the results of a case, in which "{}" stands for the name of the case.
    """
    for case in cases:
        for path in case.images:
            if is_folder(path) and os.path.realpath(path) == os.path.realpath(out):
                raise InputError(
                    f"--output {console.literal(out)} is the folder of the DICOM files of {console.literal(case.name)}, in which a result "
                    "would be taken for a part of the scan; choose another --output."
                )
    used = {os.path.realpath(path): path for case in cases for path in (*case.images, case.label) if path}
    for case in cases:
        for name in names:
            path = out / name.replace("{}", case.name)
            if os.path.realpath(path) in used:
                raise InputError(
                    f"{path} is a scan or a label of the input, and the result of {case.name} would replace it; choose another --output."
                )
