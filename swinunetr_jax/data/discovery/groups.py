"""Groups the files of a folder into cases by their names: the images of each channel, and the label that belongs to them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from swinunetr_jax.data.discovery.cases import Case, name_with_folders
from swinunetr_jax.data.discovery.channels import label_rank, split_name
from swinunetr_jax.data.discovery.entries import Survey
from swinunetr_jax.data.discovery.lists import by_stem, same_name_problem
from swinunetr_jax.data.formats.names import stem

_OTHER_PREFIX = 100  # added to the rank of a label with another prefix than its case; larger than any `label_rank`


def group_files(root: Path, folder: Path, images: Sequence[Path], known: Mapping[str, str], survey: Survey) -> list[Case]:
    """Returns the cases of one folder, named by the part of the files' names before the channel.

    Args:
        root: the data set's folder; the folders below it become part of a case's name if the files do not name the case.
        known: channels beyond the usual ones, as {channel_key: name}.
        survey: records the files that do not become part of a case.
    """
    channels: dict[str, list[tuple[str, Path]]] = {}
    labels: dict[str, list[tuple[int, Path]]] = {}
    without_role: list[Path] = []  # their names state no content
    for file in images:
        prefix, role, word = split_name(stem(file.name), known)
        if role == "channel":
            channels.setdefault(prefix, []).append((word, file))
        elif role == "label":
            labels.setdefault(prefix, []).append((label_rank(word), file))
        elif role == "neither":
            survey.ignore("brain masks", file)
        else:
            without_role.append(file)
    cases = _channel_cases(channels, without_role, survey) if channels else _one_case_per_file(without_role)
    labels = _by_case(labels, [case.name for case in cases], known)
    cases = [_with_label(case, labels.pop(case.name, []), folder, survey) for case in cases]
    for prefix, ranked in labels.items():  # labels without an image
        cases.append(Case(prefix, (), () if channels or not without_role else None, min(ranked)[1]))
    cases = [
        replace(case, problem=f"{folder}: case {case.name} has a label map but no image; complete it.")
        if not case.images and case.channels is None
        else case
        for case in cases
    ]
    return [replace(case, name=name_with_folders(case.name, folder, root)) for case in cases]


def own_name(folder: Path, file: Path) -> str:
    """Returns a file's name without the name of its folder at the start."""
    return stem(file.name).removeprefix(folder.absolute().name).lstrip("-_. ") or stem(file.name)


def attach_labels(cases: Sequence[Case]) -> list[Case]:
    """Returns the cases after labels from other folders, such as BIDS derivatives, have been added to the cases of the same name.

    A label is added only if exactly one case of its name has images, and this case has no label.
    """
    labels = {case.name: case for case in cases if not case.images and case.label and case.name.startswith("sub-")}
    named: dict[str, list[Case]] = {}
    for case in cases:
        if case.images:
            named.setdefault(case.name, []).append(case)
    fitting = {name for name, same in named.items() if name in labels and len(same) == 1 and same[0].label is None}
    return [
        replace(case, label=labels[case.name].label) if case.name in fitting else case
        for case in cases
        if not (case.name in fitting and not case.images)
    ]


def _channel_cases(channels: Mapping[str, list[tuple[str, Path]]], without_role: Sequence[Path], survey: Survey) -> list[Case]:
    cases = [
        Case(prefix, tuple(file for _, file in entries), tuple(word for word, _ in entries))
        for prefix, entries in channels.items()
    ]
    if not without_role:
        return cases
    if len(cases) == 1:  # the folder of one case may hold other images too
        survey.without_channel += without_role
        return cases
    text = "the name does not state the channel, unlike others in this folder; rename it or move it"
    return [*cases, *(Case(stem(file.name), (file,), problem=f"{file}: {text}.") for file in without_role)]


def _one_case_per_file(images: Sequence[Path]) -> list[Case]:
    """Returns a case for each file whose name does not state its content."""
    return [
        Case(name, tuple(same[:1]), problem=same_name_problem(name, same) if len(same) > 1 else None)
        for name, same in by_stem(images).items()
    ]


def _by_case(
    labels: Mapping[str, list[tuple[int, Path]]], names: Sequence[str], known: Mapping[str, str]
) -> dict[str, list[tuple[int, Path]]]:
    """Returns the labels of each case by its name; labels that belong to no case are returned under their own prefix."""
    if len(names) == 1:
        # In the folder of one case the label may have any name: BraTS20_Training_355 has W39_1998.09.19_Segm.
        # A label that is named after the case takes precedence, such as P1_lesion over P1_T1_seg.
        ranked = [
            (rank + _OTHER_PREFIX * (prefix != names[0]), path) for prefix, entries in labels.items() for rank, path in entries
        ]
        return {names[0]: ranked} if labels else {}
    by_case: dict[str, list[tuple[int, Path]]] = {}
    for prefix, ranked in labels.items():
        before, role, _ = split_name(prefix, known)  # P1_T1_seg belongs to P1 and was drawn on P1_T1
        case_name = before if prefix not in names and role == "channel" and before in names else prefix
        by_case.setdefault(case_name, []).extend(ranked)
    return by_case


def _with_label(case: Case, ranked: Sequence[tuple[int, Path]], folder: Path, survey: Survey) -> Case:
    """Returns the case with its most likely label. Several equally likely labels are a problem; unused ones are recorded."""
    if not ranked:
        return case
    best = min(ranked)[0]
    candidates = sorted(path for rank, path in ranked if rank == best)
    if len(candidates) > 1:
        names = ", ".join(path.name for path in candidates)
        problem = f"{folder}: case {case.name or folder.name} has several label maps ({names}); keep one of them."
        return replace(case, problem=case.problem or problem)
    others = [path.name for _, path in sorted(ranked) if path != candidates[0]]
    if others:
        survey.other_labels.append((candidates[0], others))
    return replace(case, label=candidates[0])
