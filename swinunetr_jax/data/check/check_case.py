"""Checks one case: every file is read to its end and separately, so that all faults are found and not only the first one."""

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from swinunetr_jax.data.check.check_labels import check_values, read_counts
from swinunetr_jax.data.check.findings import CaseReport, Channel, Findings
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.channels import match_channels
from swinunetr_jax.data.discovery.entries import link_fault
from swinunetr_jax.data.formats import read_volume
from swinunetr_jax.data.nifti import Volume, on_grid_of
from swinunetr_jax.errors import InputError


def check_case(case: Case, *, channels: Sequence[str] | None = None, labels: Collection[int] | None = None) -> CaseReport:
    """Reads every file of a case and reports everything that is wrong. A faulty file raises no exception.

    Only one file at a time is held in memory.

    Args:
        case: the case to check.
        channels: the channels that a network takes; by default those that the case itself names.
        labels: the values that may occur besides 0; by default those of BraTS if the files are named as in BraTS, otherwise any.
    """
    findings = Findings(case)
    if case.problem:
        faulty_path = next((path for path in (*case.images, case.label) if path), None)
        named_paths = [
            path for path in (faulty_path, faulty_path and faulty_path.parent) if path and case.problem.startswith(f"{path}: ")
        ]
        faulty_path = named_paths[0] if named_paths else faulty_path and faulty_path.parent
        findings.add("incomplete", faulty_path, case.problem.removeprefix(f"{faulty_path}: "))
    grids: list[Volume] = []
    channels_found: list[Channel] = []
    for index, path in enumerate(case.images):
        if case.problem and link_fault(path):  # `case.problem` reports the missing file
            continue
        try:
            volume = read_volume(path, require_finite=False)
        except InputError as error:
            findings.add_error("unreadable", path, error)
            continue
        for note in volume.notes:
            findings.add("left-out", path, f"{note}.", "warning")
        if case.plane is not None and volume.array.ndim > 3:
            volume = replace(volume, array=volume.array[..., case.plane])
        grids.append(volume.without_voxels())
        channels_found += _channels(volume, _names(case, index, volume), findings)
    if len(grids) == len(case.images) and not case.problem:
        _check_count(case, channels_found, channels, findings)
    _check_duplicates(channels_found, findings)

    counts = None
    if case.label is None or not os.path.lexists(case.label):
        if case.label or (case.split == "training" and case.needs_label):
            findings.add(
                "missing-label", case.label, "a training case needs a label map, but it has none; add it or leave the case out."
            )
    elif (label_map := read_counts(case.label, findings)) is not None:
        grid, counts = label_map
        grids.append(grid)
        check_values(case, counts, labels, findings)
    reference = _check_grids(grids, findings)
    if reference is None:
        return CaseReport(case, None, None, None, tuple(channels_found), None, tuple(findings.all))
    voxel_ml = float(abs(np.linalg.det(reference.affine[:3, :3]))) / 1000
    volumes = None if counts is None else {value: count * voxel_ml for value, count in counts.items()}
    spacing = tuple(round(size, 4) for size in reference.spacing)
    shape = tuple(reference.array.shape)
    return CaseReport(case, shape, spacing, reference.orientation, tuple(channels_found), volumes, tuple(findings.all))


def _names(case: Case, index: int, volume: Volume) -> list[str]:
    """Returns the names of the channels in the case's file number `index`."""
    count = 1 if volume.array.ndim == 3 else volume.array.shape[3]
    names = case.channels or ()
    if len(case.images) == 1 and len(names) == count:
        return list(names)
    if len(case.images) == len(names) > 1 and count == 1:
        return [names[index]]
    return [f"number {index + offset + 1}" for offset in range(count)]


def _channels(volume: Volume, names: list[str], findings: Findings) -> list[Channel]:
    """Returns the channels of a file and adds findings about their values."""
    planes = volume.array[..., None] if volume.array.ndim == 3 else volume.array
    channels = []
    for position, name in enumerate(names):
        plane = planes[..., position]
        prefix = f"channel {name}: " if len(names) > 1 else ""
        low, high = float(plane.min()), float(plane.max())
        if not np.isfinite([low, high]).all():  # a NaN anywhere makes both NaN
            bad = ~np.isfinite(plane)
            first = tuple(int(i) for i in np.unravel_index(np.argmax(bad), bad.shape))
            findings.add(
                "not-finite",
                volume.path,
                f"{prefix}{int(bad.sum())} of {bad.size} voxels are NaN or Inf, the first at {first}; replace them with 0.",
            )
            finite = plane[~bad]
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
        if low is not None and low == high:
            findings.add("constant", volume.path, f"{prefix}all voxels are {low:g}, expected an image; replace the file.")
        share = np.count_nonzero(plane) / plane.size
        # Transposed, the array has the memory order of the file, so that it is not copied.
        digest = hashlib.blake2b(np.ascontiguousarray(plane.T).data, digest_size=16).hexdigest()
        channels.append(Channel(name, volume.path, low, high, round(share, 4), digest))
    return channels


def _check_count(case: Case, present: list[Channel], wanted: Sequence[str] | None, findings: Findings) -> None:
    """Compares the channels with the case's names and with those wanted: by name if the case has names, otherwise by number."""
    path = case.images[0] if len(case.images) == 1 else None
    names = case.channels or ()
    if names and len(names) != len(present):
        findings.add(
            "channel-count", path, f"{len(present)} channels, expected {len(names)}: {', '.join(names)}; complete or rename them."
        )
    elif names and wanted:
        try:
            match_channels(names, wanted)
        except InputError as error:
            findings.add("channel-count", path, str(error))
    elif wanted and len(wanted) != len(present):
        findings.add(
            "channel-count", path, f"{len(present)} channels, expected {len(wanted)}: {', '.join(wanted)}; give these channels."
        )


def _check_duplicates(channels: list[Channel], findings: Findings) -> None:
    seen: dict[str, Channel] = {}
    for channel in channels:
        first = seen.setdefault(channel.digest, channel)
        if first is not channel and channel.low != channel.high:
            text = f"channel {channel.name} has the same voxels as channel {first.name} ({first.path.name}); replace one of the files."
            findings.add("duplicate", channel.path, text, "warning")


def _check_grids(grids: list[Volume], findings: Findings) -> Volume | None:
    """Returns the grid of most files, and adds a finding for every file on another grid."""
    # In messages, paths are shortened to the name of the file, with that of its folder where the folders differ.
    if len({grid.path.parent for grid in grids}) == 1:
        shown = [replace(grid, path=Path(grid.path.name)) for grid in grids]
    else:
        shown = [replace(grid, path=Path(grid.path.parent.name, grid.path.name)) for grid in grids]
    groups: list[list[int]] = []
    for i in range(len(grids)):
        group = next((group for group in groups if _grid_fault(shown[group[0]], shown[i]) is None), None)
        if group is None:
            groups.append([i])
        else:
            group.append(i)
    if not groups:
        return None
    largest = max(groups, key=len)  # if several are equally large, the one with the first image
    for i in sorted(i for group in groups if group is not largest for i in group):
        if fault := _grid_fault(shown[largest[0]], shown[i]):
            findings.add("grid", grids[i].path, fault)
    return grids[largest[0]]


def _grid_fault(first: Volume, second: Volume) -> str | None:
    """Returns a sentence on how the grids of two volumes differ, or None if they are equal."""
    try:
        on_grid_of(second, first)
    except InputError as error:
        return str(error)
    return None
