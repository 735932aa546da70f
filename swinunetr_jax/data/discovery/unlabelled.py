"""Cases without label maps, for pre-training: every scan of a data set, and each of its channels as a case of its own."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from swinunetr_jax.data.discovery.cases import Case, Dataset
from swinunetr_jax.data.discovery.entries import link_fault
from swinunetr_jax.data.discovery.folds import NEVER
from swinunetr_jax.data.formats import read_geometry
from swinunetr_jax.data.formats.names import stem
from swinunetr_jax.errors import InputError

_LISTED = ("monai-datalist", "decathlon", "nnunet")  # layouts that state which cases are for testing


def without_labels(dataset: Dataset, *, keep_validation: bool = False) -> tuple[Dataset, str | None]:
    """Returns a data set whose scans are all training cases that need no label map, and a sentence on those that are left out.

    The test cases of a list are left out, because a score on scans that a network has been pre-trained on is not independent of them.

    Args:
        dataset: the data set. Its label maps are not used.
        keep_validation: whether the cases of a validation list remain validation cases.
    """
    has_training = any(case.split == "training" for case in dataset.cases)
    excluded = [case for case in dataset.cases if dataset.layout in _LISTED and has_training and case.split == "test"]
    names = {case.name for case in excluded}
    never = NEVER if any(case.fold is not None for case in dataset.cases) else None  # the others are in every training set

    def used(case: Case) -> Case:
        if not case.images:  # training with labels does not use these entries either, and reports them
            return replace(case, split="test")
        keeps = keep_validation and case.split == "validation"
        fold = never if case.fold is None and not keeps else case.fold
        return replace(case, label=None, needs_label=False, split="validation" if keeps else "training", fold=fold)

    cases = tuple(used(case) for case in dataset.cases if case.name not in names)
    count = sum(bool(case.images) for case in excluded)
    note = (
        f"{count} test {'scan' if count == 1 else 'scans'} of the data set's list {'is' if count == 1 else 'are'} not used, so that scores "
        "on them stay independent of pre-training; give their folder as --data to use them."
    )
    return replace(dataset, cases=cases), note if count else None


def one_channel_cases(cases: Iterable[Case]) -> tuple[Case, ...]:
    """Returns each channel of the cases as a case of its own. Its name is that of the case, followed by the channel if there are several.

    A case that lacks channels has those that exist.
    """
    return tuple(part for case in cases for part in _channels(case))


def _channels(case: Case) -> Iterator[Case]:
    images = list(case.images)
    if not images:
        yield case
        return
    if len(images) > 1:
        for image, name in zip(images, _distinct(case.channels, [stem(image.name) for image in images])):
            yield replace(
                case, name=f"{case.name}_{name}", images=(image,), channels=_named(case, name), problem=_problem(case, image)
            )
        return
    planes = _planes(images[0])
    if planes == 1:
        yield replace(case, problem=_problem(case, images[0]))
        return
    names = case.channels if case.channels and len(case.channels) == planes else None
    for index, name in enumerate(_distinct(names, [str(index) for index in range(planes)])):
        yield replace(case, name=f"{case.name}_{name}", channels=_named(case, name) if names else None, plane=index)


def _problem(case: Case, image: Path) -> str | None:
    """Returns the problem of one channel of a case. A case that only lacks other channels has none."""
    return link_fault(image) if case.is_incomplete else case.problem


def _planes(image: Path) -> int:
    """Returns the number of channels in a file, or 1 if it cannot be read, which preparing the case reports."""
    try:
        shape = read_geometry(image)[0]
    except InputError:
        return 1
    return shape[3] if len(shape) > 3 else 1


def _distinct(names: Sequence[str] | None, otherwise: list[str]) -> Sequence[str]:
    return names if names and len(set(names)) == len(names) == len(otherwise) else otherwise


def _named(case: Case, name: str) -> tuple[str, ...] | None:
    return (name,) if case.channels and name in case.channels else None
