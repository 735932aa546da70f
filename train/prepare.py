"""Prepares a data set once, into a folder or a bucket, for trainings that then need no scans."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from swinunetr_jax import InputError, files
from swinunetr_jax.buckets.bucket import wait_longer
from swinunetr_jax.buckets.scratch import own_folder
from swinunetr_jax.console import Progress, literal, name_list, say
from swinunetr_jax.console import size as byte_count
from swinunetr_jax.data.discovery.cases import Case, Dataset
from swinunetr_jax.data.discovery.folds import SPLITS, find_splits
from swinunetr_jax.data.prepare.write_case import CaseWriter
from swinunetr_jax.data.prepared.manifest import FORMAT, Manifest, StoredCase, read_manifest, samples_of, write_manifest
from swinunetr_jax.data.prepared.place import Place
from swinunetr_jax.data.prepared.write import PlaceError, WrittenCases, prepare_cases
from swinunetr_jax.training.cache import with_hint
from swinunetr_jax.training.data import task_fields, unused_notes
from swinunetr_jax.training.prepared import check_options, is_prepared, stored_options
from swinunetr_jax.training.recipe import Recipe
from swinunetr_jax.training.sources import source_of


def prepare(recipe: Recipe, path: Path) -> None:
    """Prepares all cases with which a recipe could train or validate, and prints what it does.

    Args:
        recipe: the recipe, with the data set.
        path: the folder or the address. Cases of this data set that it holds already are kept.

    Raises:
        InputError: the data set cannot be used, or the place holds something else or cannot be written.
    """
    recipe = replace(recipe, fold=None)  # so that the data set's own validation list is kept
    recipe.check()
    if is_prepared(recipe.data):
        raise InputError(
            f"{recipe.data} holds prepared cases already, expected scans: give the data set that they were prepared from."
        )
    place = Place(path)
    if place.bucket is None:
        files.remove_stale_temporaries(place.folder)
    if path.name.startswith("images"):
        raise InputError(f"{place} begins with images, as folders of scans do: give a place with another name.")
    earlier = read_manifest(place)
    if place.bucket is not None:  # a bucket that cannot be used is reported before any work is done
        wait_longer()
        place.names()
    if earlier is not None:
        check_options(earlier, recipe, str(place), "command")
    with _run_folder(recipe) as run:
        _prepare(recipe, place, run, earlier)


def _prepare(recipe: Recipe, place: Place, run: Path, earlier: Manifest | None) -> None:
    source = source_of(recipe)
    dataset = source.dataset(recipe, run)
    notes = [] if source.is_synthetic else unused_notes(dataset)
    for note in notes:
        say(literal(note))
    cases = [case for case in dataset.cases if case.can_train and case.split != "test"]
    parts = {case.name: source.samples([case], recipe) for case in cases}
    samples = [sample for part in parts.values() for sample in part]
    if not any(case.images for case in samples):
        raise InputError(f"{dataset.root}: no case can be used for training; `swinunetr validate {dataset.root}` says why.")
    if earlier is not None and not {case["name"] for case in earlier["cases"]} & parts.keys():
        names = name_list(case["name"] for case in earlier["cases"])
        raise InputError(f"{place} holds the cases of another data set ({names}): give another place.")
    channels, count = source.channels(dataset, samples, recipe)
    task = replace(source.task(dataset, samples, task_fields(recipe, channels, source.ct_window)), roi=None)
    try:
        with Progress("preparing cases", "case") as progress:
            written = prepare_cases(samples, CaseWriter(task, count, recipe.cache_dtype), place, dataset.root, progress)
    except PlaceError:
        raise
    except InputError as error:
        raise with_hint(error, recipe, samples, dataset.root) from error
    manifest: Manifest = {
        "format": FORMAT,
        "options": stored_options(recipe),
        "task": task.to_dict(),
        "channels": list(channels),
        "in_channels": count,
        "layout": dataset.layout,
        "labels": dataset.labels,
        "regions_class_order": None if dataset.regions_class_order is None else list(dataset.regions_class_order),
        "et_label": dataset.et_label,
        "notes": notes,
        "splits": _store_splits(dataset, place),
        "cases": [_stored(case, parts[case.name], written) for case in cases],
    }
    write_manifest(place, manifest)
    size = sum(sum(sample["files"].values()) for sample in samples_of(manifest))
    before = len(samples) - written.new
    there = f", {before} of which {'was' if before == 1 else 'were'} there already" if before else ""
    say(f"{len(samples)} prepared cases{there}, {byte_count(size)} → {literal(place)}")


def _stored(case: Case, parts: tuple[Case, ...], written: WrittenCases) -> StoredCase:
    """Returns the description of a case of the data set."""
    return {
        "name": case.name,
        "channels": list(case.channels) if case.channels else None,
        "split": case.split,
        "fold": case.fold,
        "needs_label": case.needs_label,
        "samples": [written.samples[part.name] for part in parts],
    }


def _store_splits(dataset: Dataset, place: Place) -> str | None:
    """Copies the data set's splits_final.json into the place, if there is one, and returns its digest."""
    path = find_splits(dataset.root, lambda text: say(literal(text)))
    if path is None:
        place.remove(SPLITS)
        return None
    place.write(SPLITS, path.read_bytes())
    return files.digest_of_file(path)


@contextlib.contextmanager
def _run_folder(recipe: Recipe) -> Iterator[Path]:
    """Yields a temporary folder for the scans that a recipe makes itself, or an unused path if the recipe has `data`."""
    if recipe.data is not None:
        yield Path()
        return
    with tempfile.TemporaryDirectory(dir=own_folder("scans")) as folder:
        yield Path(folder)
