"""What a viewer page holds: the channels of a scan, label maps with names, colours and volumes, and differences between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task
from swinunetr_jax.viewer.encode import MAX_HALVINGS, Quantized, nifti_base64, quantized
from swinunetr_jax.viz.labels import label_colours, label_names, volumes_ml
from swinunetr_jax.viz.overlay import grey_range

MAX_LABELS = 255
MAX_SIDE = 2048  # voxels along an axis of a 3-D texture that every WebGL2 implementation of a desktop computer takes
FINE_BYTES = 20 << 20  # base64 text above which intensities are rounded to larger steps
MAX_BYTES = 256 << 20  # base64 text that browsers still open
MAX_DIFFERENCES = 3
HOUNSFIELD = (-160.0, 240.0)  # the window of soft tissue, for scans that look like CT
DIFFERENCE_COLOURS = ("#D55E00", "#56B4E9", "#F0E442")


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A label map to show: its name, and its labels, integers [x, y, z] on the grid of the scan."""

    name: str
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Contents:
    """A page's description as JSON values, and its arrays as base64 text by identifier."""

    description: dict[str, Any]
    arrays: dict[str, str] = field(repr=False)


def viewer_contents(
    channels: Mapping[str, np.ndarray],
    affine: np.ndarray,
    label_maps: Sequence[LabelMap] = (),
    *,
    title: str,
    task: Task | None = None,
) -> Contents:
    """Returns the contents of a page.

    If there are several label maps, the differences between the first and the others are shown, too.

    Args:
        channels: the images [x, y, z] of the scan by name, at least one.
        affine: the affine of their grid, [4, 4].
        label_maps: the label maps on the same grid.
        title: the title of the page.
        task: the task whose labels these are, which names them and may state a window of intensities.

    Raises:
        InputError: the shapes differ, a label map holds more than 255 labels, or the page would be too large for browsers.
    """
    shape = next(iter(channels.values())).shape
    for name, array in (*channels.items(), *((label_map.name, label_map.labels) for label_map in label_maps)):
        if array.shape != shape or array.ndim != 3:
            raise InputError(f"{name} has the shape {array.shape}, expected that of the scan, {shape}: give images on one grid.")
    if max(shape) > MAX_SIDE:
        raise InputError(
            f"{title} has {max(shape)} voxels along an axis, but browsers show at most {MAX_SIDE}: crop or resample the scan."
        )
    values = _present(label_maps)
    named = label_names(task) if task else {}
    colours = label_colours({*named, *values})
    codes = {value: code for code, value in enumerate(values, 1)}
    window = task.window if task else None
    images, encoded = _encoded(channels, affine)
    arrays = {f"channel-{number}": text for number, text in enumerate(encoded)}
    channel_facts = [_channel_facts(name, image, images[name], window) for name, image in channels.items()]
    map_facts = [_map_facts(label_map, affine, task, named, colours, codes) for label_map in label_maps]
    coded = [_coded(label_map.labels, codes) for label_map in label_maps]
    others = label_maps[1 : 1 + MAX_DIFFERENCES]
    for other in others:
        facts, difference = _difference(label_maps[0], other, affine)
        facts["name"] = "difference" if len(others) == 1 else f"difference to {other.name}"
        map_facts.append(facts)
        coded.append(difference)
    arrays |= {f"map-{number}": nifti_base64(codes, affine) for number, codes in enumerate(coded)}
    size = sum(map(len, arrays.values()))
    if size > MAX_BYTES:
        raise InputError(
            f"the page of {title} would have {size >> 20} MB, but browsers open at most {MAX_BYTES >> 20} MB: crop or resample the scan, "
            "or show fewer channels."
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    grid = f"{' × '.join(map(str, shape))} voxels of {' × '.join(f'{size:.3g}' for size in spacing)} mm"
    start = _start(label_maps, shape)
    description = {
        "title": title,
        "grid": grid,
        "shape": list(shape),
        "start": start,
        "channels": channel_facts,
        "maps": map_facts,
    }
    return Contents(description, arrays)


def _encoded(channels: Mapping[str, np.ndarray], affine: np.ndarray) -> tuple[dict[str, Quantized], list[str]]:
    """Returns the channels as integers and as base64 text, in the smallest steps with which the page is not large."""
    voxels, halvings = sum(image.size for image in channels.values()), 0
    while True:
        images = {name: quantized(image, halvings) for name, image in channels.items()}
        with ThreadPoolExecutor() as pool:  # zlib releases the interpreter's lock
            texts = list(pool.map(lambda image: nifti_base64(image.integers, affine, image.slope, image.offset), images.values()))
        excess = sum(map(len, texts)) - FINE_BYTES
        if excess <= 0 or halvings == MAX_HALVINGS:
            return images, texts
        bits = excess / (voxels / 6)  # base64 stores one bit per voxel in a sixth of a byte
        halvings = min(halvings + max(int(bits), 1), MAX_HALVINGS)


def _present(label_maps: Sequence[LabelMap]) -> list[int]:
    """Returns the label values that occur, except 0. Raises InputError if there are more than 255."""
    values: set[int] = set()
    for label_map in label_maps:
        found = np.unique(label_map.labels)
        if len(found) > MAX_LABELS + 1:
            raise InputError(
                f"{label_map.name} has {len(found)} different values, expected a label map with at most {MAX_LABELS} labels; is it a scan?"
            )
        values |= {int(value) for value in found if value}
    if len(values) > MAX_LABELS:
        raise InputError(f"the label maps have {len(values)} labels together, expected at most {MAX_LABELS}: show fewer of them.")
    return sorted(values)


def _coded(labels: np.ndarray, codes: Mapping[int, int]) -> np.ndarray:
    """Returns labels as the numbers that the page gives them, uint8. Values above 255 fit, too."""
    values = np.array([0, *codes])
    numbers = np.array([0, *codes.values()], np.uint8)
    return numbers[np.searchsorted(values, labels)]


def _channel_facts(name: str, image: np.ndarray, stored: Quantized, window: tuple[float, float] | None) -> dict[str, Any]:
    low, high = float(image.min()), float(image.max())
    shown = window or (HOUNSFIELD if low < -500 and high > 500 else grey_range(image))
    return {
        "name": name,
        "range": [low, high],
        "shown": [float(limit) for limit in shown],
        "step": 0 if stored.is_exact else stored.slope,
        "clipped": stored.is_clipped,
    }


def _map_facts(
    label_map: LabelMap,
    affine: np.ndarray,
    task: Task | None,
    names: Mapping[int, str],
    colours: Mapping[int, str],
    codes: Mapping[int, int],
) -> dict[str, Any]:
    volumes = volumes_ml(label_map.labels, affine)
    labels = [
        {
            "code": codes.get(value, 0),
            "value": value,
            "name": names.get(value, f"label {value}"),
            "colour": colours[value],
            "ml": round(volumes.get(value, 0.0), 3),
        }
        for value in sorted({*names, *volumes})
        if value in volumes or names[value] != "ignored"
    ]
    regions = []
    if task is not None and task.kind == "regions" and len(task.outputs) > 1:
        for output in task.outputs:
            members = task.labels_of(output)
            ml = sum(volumes.get(value, 0.0) for value in members)
            regions.append({"name": output.name, "values": list(members), "ml": round(ml, 3)})
    return {"name": label_map.name, "labels": labels, "regions": regions}


def _difference(first: LabelMap, other: LabelMap, affine: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """Returns the description of the difference of two label maps, and the difference as codes 1 to 3, uint8 [x, y, z]."""
    a, b = first.labels, other.labels
    codes = np.zeros(a.shape, np.uint8)
    codes[(a > 0) & (b == 0)] = 1
    codes[(a == 0) & (b > 0)] = 2
    codes[(a > 0) & (b > 0) & (a != b)] = 3
    volumes = volumes_ml(codes, affine)
    texts = (f"only in {first.name}", f"only in {other.name}", "in both, with another label")
    labels = [
        {"code": code, "value": None, "name": text, "colour": colour, "ml": round(volumes.get(code, 0.0), 3)}
        for code, (text, colour) in enumerate(zip(texts, DIFFERENCE_COLOURS), 1)
    ]
    return {"name": "difference", "labels": labels, "regions": []}, codes


def _start(label_maps: Sequence[LabelMap], shape: tuple[int, ...]) -> list[int]:
    """Returns the voxel at which the page opens: where the slices of the first label map hold the most labels, else the middle."""
    labelled = label_maps[0].labels > 0 if label_maps else None
    if labelled is None or not labelled.any():
        return [size // 2 for size in shape]
    counts = [labelled.sum(tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    return [int(count.argmax()) for count in counts]
