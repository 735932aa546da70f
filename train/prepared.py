"""A data set that `swinunetr prepare` has prepared, as the source of a run's cases instead of scans."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from swinunetr_jax import InputError, Task, files
from swinunetr_jax.buckets import address_of, is_address
from swinunetr_jax.console import Progress, literal, say
from swinunetr_jax.data.discovery.cases import Case, Dataset
from swinunetr_jax.data.discovery.folds import SPLITS
from swinunetr_jax.data.discovery.unlabelled import without_labels
from swinunetr_jax.data.prepare.prepared_case import PreparedCase
from swinunetr_jax.data.prepare.write_case import CaseWriter
from swinunetr_jax.data.prepared.copy import fetch, read_samples
from swinunetr_jax.data.prepared.manifest import MANIFEST, Manifest, Sample, read_manifest, samples_of
from swinunetr_jax.data.prepared.place import Place
from swinunetr_jax.training import processes, watchdog
from swinunetr_jax.training.options import Options
from swinunetr_jax.training.places import phantom_of, share_of_machine

# The options that decide what is stored. In a run they must have the values with which the data set was prepared.
STORED = ("kind", "channels", "orientation", "spacing", "window", "cache_dtype")


class _ScanSource(Protocol):
    """The properties of a source of scans that one of prepared cases needs, too."""

    @property
    def is_synthetic(self) -> bool: ...

    @property
    def ct_window(self) -> tuple[float, float]: ...


class PreparedSource:
    """A prepared data set.

    Args:
        path: its folder or address.
        kind: the source of scans that the option `kind` chooses.
    """

    def __init__(self, path: Path, kind: _ScanSource):
        self.path, self.is_synthetic, self.ct_window = path, kind.is_synthetic, kind.ct_window

    @cached_property
    def place(self) -> Place:
        return Place(self.path)

    @cached_property
    def manifest(self) -> Manifest:
        """The description of the data set. Raises InputError if there is none."""
        manifest = read_manifest(self.place)
        if manifest is None:
            raise InputError(
                f"{self.place} holds no prepared data, because it has no {MANIFEST}: `swinunetr prepare DATA {self.place}` prepares a data "
                "set, and ends by writing this file."
            )
        return manifest

    @property
    def exists(self) -> bool:
        """True if the folder or the address holds a prepared data set."""
        return read_manifest(self.place) is not None

    def dataset(self, options: Options, run: Path) -> Dataset:
        manifest = self.manifest
        processes.check_same(manifest.get("digest"), f"data in {self.place}")
        check_options(manifest, options, str(self.place))
        if options.cache is not None and processes.is_leader():
            say("--cache is not used, because the cases are prepared already")
        self._fetch_splits()
        order = manifest["regions_class_order"]
        dataset = Dataset(
            manifest["layout"],
            self.place.folder,
            tuple(map(self._case, manifest["cases"])),
            tuple(manifest["channels"]) or None,
            manifest["labels"],
            None if order is None else tuple(order),
            warnings=tuple(manifest["notes"]),
        )
        return without_labels(dataset, keep_validation=options.fold is None)[0] if options.kind == "scans" else dataset

    def samples(self, cases: Sequence[Case], options: Options) -> tuple[Case, ...]:
        stored = {case["name"]: case["samples"] for case in self.manifest["cases"]}
        return tuple(
            replace(case, name=sample["name"], channels=_tuple(sample["channels"]), plane=sample["plane"])
            for case in cases
            for sample in stored[case.name]
        )

    def channels(self, dataset: Dataset, cases: Sequence[Case], options: Options) -> tuple[tuple[str, ...], int]:
        return tuple(self.manifest["channels"]), self.manifest["in_channels"]

    def task(self, dataset: Dataset, cases: Sequence[Case], fields: Mapping[str, Any]) -> Task:
        return replace(self._task, roi=fields["roi"])

    def prepared(self, cases: Sequence[Case]) -> list[PreparedCase]:
        """Returns prepared cases, after copying those that this machine lacks from the bucket. The processes of a machine share this work.

        Raises:
            InputError: a case is missing or damaged in the data set, or there is no space for the copy.
        """
        place, stored = self.place, {sample["name"]: sample for sample in samples_of(self.manifest)}
        chosen: list[Sample] = [stored[case.name] for case in cases]
        title = "verifying prepared cases" if place.bucket is None else f"copying or verifying {place}"
        files.make_folder(place.folder)
        with Progress(title, "case", silent=not processes.is_leader()) as progress:
            fetch(place, share_of_machine(chosen, place.folder), watchdog.beating(progress))
        processes.barrier("prepared cases are copied")
        writer = CaseWriter(self._task, self.manifest["in_channels"], self.manifest["options"]["cache_dtype"])
        return read_samples(place, chosen, writer)

    @property
    def _task(self) -> Task:
        return Task.from_dict(self.manifest["task"])

    def _case(self, stored: Any) -> Case:
        """Returns a case of the data set. Its paths name no files; they only state that it has scans, and whether it has a label map."""
        path = self.place.folder / stored["name"]
        return Case(
            stored["name"],
            (path,),
            _tuple(stored["channels"]),
            path if stored["needs_label"] else None,
            stored["fold"],
            stored["split"],
            needs_label=stored["needs_label"],
        )

    def _fetch_splits(self) -> None:
        """Copies splits_final.json of the data set from the bucket, or removes that of an earlier data set at the same address."""
        if self.place.bucket is None:
            return
        if self.manifest["splits"] is None:
            (self.place.folder / SPLITS).unlink(missing_ok=True)
        else:
            try:
                files.write_bytes(files.make_folder(self.place.folder) / SPLITS, self.place.read(SPLITS))
            except FileNotFoundError as error:
                raise InputError(f"{self.place}/{SPLITS} does not exist any more: run `swinunetr prepare` again.") from error


def is_prepared(path: Path | None) -> bool:
    """Returns whether a path is a folder that holds a prepared data set, or an address, at which only such a data set can be."""
    return path is not None and (is_address(path) or files.is_file(path / MANIFEST))


def check_options(manifest: Manifest, options: Options, place: str, who: str = "training") -> None:
    """Raises InputError if a training, or another command, has other options than those that a data set was prepared with."""
    stored, now = manifest["options"], stored_options(options)
    # If they are not given, the window is that of a CT, and the channels are those of the data set.
    used = {
        "window": manifest["task"]["window"],
        "channels": manifest["channels"],
    }
    if stored["kind"] == "scans":
        used.pop("channels")
    differing = [name for name in now if name in stored and now[name] not in (stored[name], used.get(name, stored[name]))]
    if options.base is not None and who == "training":
        raise InputError(f"{place} holds prepared cases, and --base is the folder of scans: leave it out.")
    if options.kind == "phantom" and "phantom.cases" not in stored:
        raise InputError(
            f"{place} holds other data, and this recipe makes its own data: use the recipe `msd` or `brats21` to train on yours."
        )
    if "kind" in differing:
        raise InputError(
            f"{place} was prepared for a recipe of the kind `{stored['kind']}`, and this one is of the kind `{now['kind']}`: train with "
            "another recipe, or prepare the data set into another place with `swinunetr prepare --recipe`."
        )
    if differing:
        before, after = (
            " ".join(map(literal, option_words({name: values[name] for name in differing}))) for values in (stored, now)
        )
        raise InputError(
            f"{place} was prepared with {before}, and this {who} has {after}: give the options that it was prepared with, or prepare "
            f"the data set into another place with those of this {who}."
        )


def stored_options(options: Options) -> dict[str, Any]:
    """Returns the options that decide what is stored, as JSON values. The synthetic heads have the kind of BraTS."""
    values = options.to_dict()
    stored = {name: values[name] for name in STORED}
    if options.kind != "phantom":
        return stored
    return stored | {"kind": "brats"} | {f"phantom.{name}": value for name, value in values["phantom"].items()}


def option_words(values: Mapping[str, Any]) -> list[str]:
    """Returns options as words of a command line."""
    words = []
    for name, value in values.items():
        parts = [
            f"{part:g}" if isinstance(part, float) else str(part) for part in (value if isinstance(value, list) else [value])
        ]
        words += [f"--{name.replace('_', '-')}", *(parts or ["(those of the data set)"])]
    return words


def has_no_scans(options: Options, run: Path) -> bool:
    """Returns whether a run has no folder with scans that other commands can read."""
    return is_prepared(options.data) or address_of(phantom_of(options, run)) is not None


def _tuple(values: list[str] | None) -> tuple[str, ...] | None:
    return tuple(values) if values else None
