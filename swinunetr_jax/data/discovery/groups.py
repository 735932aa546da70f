"""Files of a folder to cases: images by channel, and the label that belongs to them, all by what their names say."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from swinunetr_jax.data.discovery.cases import Case, carried_name
from swinunetr_jax.data.discovery.channels import label_rank, split_name, stem
from swinunetr_jax.data.discovery.entries import Survey
from swinunetr_jax.data.discovery.lists import by_stem, twice

_OTHER_NAME = 100  # more than any rank of a label's word


def group_files(root: Path, folder: Path, images: Sequence[Path], told: Mapping[str, str], survey: Survey) -> list[Case]:
    """The cases of one folder, by what stands before the channel in the files' names, with all the channels there are.

    Args:
        root: of the data set; the folders below it are part of a case's name where the files do not say it.
        told: channels beside the known ones, by their keys.
        survey: is told of files that do not become part of a case.
    """
    channels: dict[str, list[tuple[str, Path]]] = {}
    labels: dict[str, list[tuple[int, Path]]] = {}
    silent: list[Path] = []
    for file in images:
        prefix, role, word = split_name(stem(file.name), told)
        if role == "channel":
            channels.setdefault(prefix, []).append((word, file))
        elif role == "label":
            labels.setdefault(prefix, []).append((label_rank(word), file))
        elif role == "neither":
            survey.ignore("brain masks", file)
        else:
            silent.append(file)
    cases = _channel_cases(channels, silent, survey) if channels else _silent_cases(silent)
    labels = _by_case(labels, [case.name for case in cases], told)
    cases = [_with_label(case, labels.pop(case.name, []), folder, survey) for case in cases]
    for prefix, ranked in labels.items():  # labels without an image
        cases.append(Case(prefix, (), () if channels or not silent else None, min(ranked)[1]))
    cases = [
        replace(case, problem=f"{folder}: case {case.name} has a label map but no image; complete it.")
        if not case.images and case.channels is None
        else case
        for case in cases
    ]
    return [replace(case, name=carried_name(case.name, folder, root)) for case in cases]


def own_name(folder: Path, file: Path) -> str:
    """A file's name without its folder's in front."""
    return stem(file.name).removeprefix(folder.absolute().name).lstrip("-_. ") or stem(file.name)


def attach_labels(cases: Sequence[Case]) -> list[Case]:
    """Labels that lie in a folder of their own, as in derivatives of BIDS, go to the case of the same name that has no label."""
    alone = {case.name: case for case in cases if not case.images and case.label and case.name.startswith("sub-")}
    named: dict[str, list[Case]] = {}
    for case in cases:
        if case.images:
            named.setdefault(case.name, []).append(case)
    fitting = {name for name, same in named.items() if name in alone and len(same) == 1 and same[0].label is None}
    return [
        replace(case, label=alone[case.name].label) if case.name in fitting else case
        for case in cases
        if not (case.name in fitting and not case.images)
    ]


def _channel_cases(channels: Mapping[str, list[tuple[str, Path]]], silent: Sequence[Path], survey: Survey) -> list[Case]:
    cases = [Case(prefix, tuple(f for _, f in found), tuple(w for w, _ in found)) for prefix, found in channels.items()]
    if not silent:
        return cases
    if len(cases) == 1:  # a folder of one case may hold more than its channels
        survey.nameless += silent
        return cases
    text = "the name does not say which channel it is, as others here do; rename it or move it"
    return [*cases, *(Case(stem(file.name), (file,), problem=f"{file}: {text}.") for file in silent)]


def _silent_cases(silent: Sequence[Path]) -> list[Case]:
    """A case for each name that says nothing of its content."""
    return [
        Case(name, tuple(same[:1]), problem=twice(name, same) if len(same) > 1 else None)
        for name, same in by_stem(silent).items()
    ]


def _by_case(
    labels: Mapping[str, list[tuple[int, Path]]], names: Sequence[str], told: Mapping[str, str]
) -> dict[str, list[tuple[int, Path]]]:
    """Labels by the case they belong to; those of no case stay under their own prefix."""
    if len(names) == 1:
        # A folder with one case may call its label anything: BraTS20_Training_355 has W39_1998.09.19_Segm.
        # What is named as the case goes before all others, such as P1_lesion before P1_T1_seg.
        ranked = [
            (rank + _OTHER_NAME * (prefix != names[0]), path) for prefix, entries in labels.items() for rank, path in entries
        ]
        return {names[0]: ranked} if labels else {}
    found: dict[str, list[tuple[int, Path]]] = {}
    for prefix, ranked in labels.items():
        before, role, _ = split_name(prefix, told)  # P1_T1_seg is drawn on P1_T1, and belongs to P1
        home = before if prefix not in names and role == "channel" and before in names else prefix
        found.setdefault(home, []).extend(ranked)
    return found


def _with_label(case: Case, ranked: Sequence[tuple[int, Path]], folder: Path, survey: Survey) -> Case:
    """The likeliest label; that others are not used is said, and several that are equally likely are a problem."""
    if not ranked:
        return case
    best = min(ranked)[0]
    likeliest = sorted(path for rank, path in ranked if rank == best)
    if len(likeliest) > 1:
        names = ", ".join(path.name for path in likeliest)
        problem = f"{folder}: case {case.name or folder.name} has several label maps ({names}); keep one of them."
        return replace(case, problem=case.problem or problem)
    others = [path.name for _, path in sorted(ranked) if path != likeliest[0]]
    if others:
        survey.other_labels.append((likeliest[0], others))
    return replace(case, label=likeliest[0])
