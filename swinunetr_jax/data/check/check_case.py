"""One case examined: every file is read to its end and on its own, and all that is wrong is told, not the first thing.

kind            severity  what is meant
incomplete      error     a channel is missing or there twice, a listed file does not exist
unreadable      error     a file that is no sound NIfTI image: truncated, damaged, a web page, too large by its own header
not-finite      error     NaN or Inf voxels
constant        error     a channel with one value everywhere
channel-count   error     more or fewer channels than names, or than in the other cases
duplicate       warning   two channels of a case, or two cases, with the same voxels
grid            error     images, or image and label, on different grids
missing-label   error     a training case without its label (a warning where no list says what is for training)
label-shape     error     a label map with channels
label-values    error     labels that are no whole numbers from 0 to 255
unknown-label   error     a value that is not one of the data set's
et-label        error     BraTS: the enhancing tumour under the other era's number, 3 or 4
empty-label     warning   nothing but background
orientation     warning   axes that point elsewhere than in most cases
spacing         warning   voxels of another size than in most cases
"""

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from swinunetr_jax.data import brats
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.channels import match_channels
from swinunetr_jax.data.discovery.dataset_json import MAX_LABEL
from swinunetr_jax.data.nifti import Volume, check_same_grid, read_geometry, read_labels, read_volume
from swinunetr_jax.data.nifti.volume import LABEL_TOLERANCE
from swinunetr_jax.errors import InputError
from swinunetr_jax.files import is_file

_CAVITY = f", or give --label-values 0 1 2 3 4 where {brats.CAVITY_LABEL} is the resection cavity, as in BraTS 2024"


@dataclass(frozen=True)
class Finding:
    """One fault: `case` is None where the data set as a whole is meant, `path` None where no single file is."""

    case: str | None
    severity: str  # 'error' or 'warning'
    kind: str
    path: Path | None
    message: str


@dataclass(frozen=True)
class Channel:
    """A channel's file, range (of finite voxels, None if there are none), share of non-zero voxels, and a digest of its voxels."""

    name: str
    path: Path
    low: float | None
    high: float | None
    nonzero: float
    digest: str


@dataclass(frozen=True)
class CaseReport:
    """Facts of a case as far as its files can be read. `spacing` is in mm, `volumes_ml` maps the labels present, 0 included."""

    case: Case
    shape: tuple[int, ...] | None
    spacing: tuple[float, ...] | None
    orientation: str | None
    channels: tuple[Channel, ...]
    volumes_ml: dict[int, float] | None
    findings: tuple[Finding, ...]


def check_case(case: Case, *, channels: Sequence[str] | None = None, labels: Collection[int] | None = None) -> CaseReport:
    """Reads every file of `case` and reports all that is wrong; nothing is raised for a faulty file.

    Memory: one file at a time.

    Args:
        channels: names of the channels that a network takes; by default those that the case itself has names for.
        labels: values that may occur beside 0; by default those of BraTS where the files are named as BraTS's, else any.
    """
    faults = _Faults(case)
    if case.problem:
        place = next((path for path in (*case.images, case.label) if path), None)
        places = [path for path in (place, place and place.parent) if path and case.problem.startswith(f"{path}: ")]
        place = places[0] if places else place and place.parent
        faults.add("incomplete", place, case.problem.removeprefix(f"{place}: "))
    grids: list[Volume] = []
    found: list[Channel] = []
    for index, path in enumerate(case.images):
        if case.problem and not is_file(path):  # the problem says so
            continue
        try:
            volume = read_volume(path, require_finite=False)
        except InputError as error:
            faults.add_error("unreadable", path, error)
            continue
        grids.append(_grid(volume))
        found += _channels(volume, _names(case, index, volume), faults)
    if len(grids) == len(case.images) and not case.problem:
        _check_count(case, found, channels, faults)
    _check_duplicates(found, faults)

    counts = None
    if case.label is None or not os.path.lexists(case.label):
        if case.label or case.split == "training":
            faults.add(
                "missing-label", case.label, "a training case needs a label map, and there is none; add it or leave it out."
            )
    elif (read := _read_counts(case.label, faults)) is not None:
        grid, counts = read
        grids.append(grid)
        _check_values(case, counts, labels, faults)
    reference = _check_grids(grids, faults)
    if reference is None:
        return CaseReport(case, None, None, None, tuple(found), None, tuple(faults.found))
    voxel_ml = float(abs(np.linalg.det(reference.affine[:3, :3]))) / 1000
    volumes = None if counts is None else {value: count * voxel_ml for value, count in counts.items()}
    spacing = tuple(round(s, 4) for s in reference.spacing)
    shape = tuple(reference.array.shape)
    return CaseReport(case, shape, spacing, reference.orientation, tuple(found), volumes, tuple(faults.found))


class _Faults:
    """Collects the findings of one case."""

    def __init__(self, case: Case):
        self.case, self.found = case.name, []

    def add(self, kind: str, path: Path | None, message: str, severity: str = "error") -> None:
        self.found.append(Finding(self.case, severity, kind, path, message))

    def add_error(self, kind: str, path: Path, error: InputError) -> None:
        self.add(kind, path, str(error).removeprefix(f"{path}: "))


# Images


def _grid(volume: Volume) -> Volume:
    """Where a volume lies, without its voxels."""
    return replace(volume, array=np.broadcast_to(np.uint8(0), volume.array.shape[:3]))


def _names(case: Case, index: int, volume: Volume) -> list[str]:
    """Names of the channels in the case's file number `index`."""
    count = 1 if volume.array.ndim == 3 else volume.array.shape[3]
    names = case.channels or ()
    if len(case.images) == 1 and len(names) == count:
        return list(names)
    if len(case.images) == len(names) > 1 and count == 1:
        return [names[index]]
    return [f"number {index + c + 1}" for c in range(count)]


def _channels(volume: Volume, names: list[str], faults: _Faults) -> list[Channel]:
    planes = volume.array[..., None] if volume.array.ndim == 3 else volume.array
    found = []
    for c, name in enumerate(names):
        plane = planes[..., c]
        told = f"channel {name}: " if len(names) > 1 else ""
        low, high = float(plane.min()), float(plane.max())
        if not np.isfinite([low, high]).all():  # a NaN anywhere makes both NaN
            bad = ~np.isfinite(plane)
            first = tuple(int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
            faults.add(
                "not-finite",
                volume.path,
                f"{told}{int(bad.sum())} of {bad.size} voxels are NaN or Inf, the first at {first}; replace them by 0.",
            )
            finite = plane[~bad]
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
        if low is not None and low == high:
            faults.add("constant", volume.path, f"{told}{low:g} everywhere, expected an image; give the real one.")
        share = np.count_nonzero(plane) / plane.size
        digest = hashlib.blake2b(np.ascontiguousarray(plane.T), digest_size=16).hexdigest()  # of the file's own order: no copy
        found.append(Channel(name, volume.path, low, high, round(share, 4), digest))
    return found


def _check_count(case: Case, found: list[Channel], wanted: Sequence[str] | None, faults: _Faults) -> None:
    """As many channels as names, and all that are wanted: by name where the case has names, else by their number."""
    path = case.images[0] if len(case.images) == 1 else None
    names = case.channels or ()
    if names and len(names) != len(found):
        faults.add(
            "channel-count", path, f"{len(found)} channels, expected {len(names)}: {', '.join(names)}; complete or rename."
        )
    elif names and wanted:
        try:
            match_channels(names, wanted)
        except InputError as error:
            faults.add("channel-count", path, str(error))
    elif wanted and len(wanted) != len(found):
        faults.add("channel-count", path, f"{len(found)} channels, expected {len(wanted)}: {', '.join(wanted)}; give those.")


def _check_duplicates(found: list[Channel], faults: _Faults) -> None:
    seen: dict[str, Channel] = {}
    for channel in found:
        first = seen.setdefault(channel.digest, channel)
        if first is not channel and channel.low != channel.high:
            text = f"channel {channel.name} has the same voxels as channel {first.name} ({first.path.name}); give the real one."
            faults.add("duplicate", channel.path, text, "warning")


def _check_grids(grids: list[Volume], faults: _Faults) -> Volume | None:
    """The grid that most files lie on; a finding for every file that lies elsewhere."""
    if len({grid.path.parent for grid in grids}) == 1:
        short = [replace(grid, path=Path(grid.path.name)) for grid in grids]
    else:
        short = [replace(grid, path=Path(grid.path.parent.name, grid.path.name)) for grid in grids]
    groups: list[list[int]] = []
    for i in range(len(grids)):
        home = next((g for g in groups if _apart(short[g[0]], short[i]) is None), None)
        if home is None:
            groups.append([i])
        else:
            home.append(i)
    if not groups:
        return None
    most = max(groups, key=len)  # the first of equals, which holds the first image
    for i in sorted(i for group in groups if group is not most for i in group):
        faults.add("grid", grids[i].path, _apart(short[most[0]], short[i]))
    return grids[most[0]]


def _apart(one: Volume, other: Volume) -> str | None:
    try:
        check_same_grid([one, other])
    except InputError as error:
        return str(error)
    return None


# Labels


def _read_counts(path: Path, faults: _Faults) -> tuple[Volume, dict[int, int]] | None:
    """(grid, voxels of each whole value) of a label map; None if it cannot be read as one."""
    try:
        volume = read_labels(path)
        return _grid(volume), _count(volume.array)
    except InputError as error:
        refusal = error  # of the first fault alone: look for all
    before = len(faults.found)
    try:
        if len(read_geometry(path)[0]) > 3:
            faults.add_error("label-shape", path, refusal)
            return None
        volume = read_volume(path, require_finite=False)
    except InputError as error:
        faults.add_error("unreadable", path, error)
        return None
    finite = np.isfinite(volume.array)
    if bad := int((~finite).sum()):
        faults.add("not-finite", path, f"{bad} of {finite.size} voxels are NaN or Inf; replace them by a label.")
    values = volume.array[finite].astype(np.float64)
    whole = np.abs(values - np.rint(values)) <= LABEL_TOLERANCE
    if bad := int((~whole).sum()):
        example = values[~whole][0]
        text = f"{bad} of {finite.size} voxels are no whole numbers, such as {example:g}; resample labels by nearest neighbour."
        faults.add("label-values", path, text)
    values = np.rint(values[whole])
    inside = (values >= 0) & (values < 2**31)
    if bad := int((~inside).sum()):
        text = f"{bad} of {finite.size} voxels are outside 0 … 2147483647, such as {values[~inside][0]:.0f}; renumber the labels."
        faults.add("label-values", path, text)
    if len(faults.found) == before:
        faults.add_error("unreadable", path, refusal)
    return _grid(volume), _count(values[inside].astype(np.int64))


def _count(array: np.ndarray) -> dict[int, int]:
    if array.dtype == np.uint8:  # several times faster than sorting
        counts = np.bincount(array.ravel(order="K"))
        return {int(v): int(counts[v]) for v in np.flatnonzero(counts)}
    values, counts = np.unique(array, return_counts=True)
    return {int(v): int(n) for v, n in zip(values, counts)}


def _check_values(case: Case, counts: dict[int, int], labels: Collection[int] | None, faults: _Faults) -> None:
    if not counts.keys() - {0} and not any(finding.path == case.label for finding in faults.found):
        faults.add("empty-label", case.label, "the label map is empty: nothing but background.", "warning")
    et_label = case.et_label if labels is None else None
    known = {0, *labels} if labels is not None else None if et_label is None else {0, *brats.regions(et_label)["WT"]}
    unknown = sorted(counts.keys() - known) if known is not None else []
    cavity = _CAVITY if et_label == 3 and brats.CAVITY_LABEL in unknown else ""
    if et_label and unknown == [brats.other_et_label(et_label)] and et_label not in counts:
        text = (
            f"the enhancing tumour is label {unknown[0]}, but in files named as in BraTS {brats.NAMING[et_label].years} it is {et_label}; "
            f"renumber it to {et_label}{cavity}."
        )
        faults.add("et-label", case.label, text)
    elif unknown:  # which a label above 255 may be, too
        told = ", ".join(f"{v} ({counts[v]} voxels)" for v in unknown[:8]) + f" and {len(unknown) - 8} more" * (len(unknown) > 8)
        text = f"label {told} is not one of {', '.join(map(str, sorted(known)))}; renumber it{cavity}."
        faults.add("unknown-label", case.label, text)
    large = [value for value in counts if value > MAX_LABEL and value not in unknown]
    if large:
        text = f"label {large[0]} ({counts[large[0]]} voxels) is above {MAX_LABEL}, the largest that is learned; renumber the labels."
        faults.add("label-values", case.label, text)
