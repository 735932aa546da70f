"""Segments one scan with one call: files, or images in memory."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swinunetr_jax import console
from swinunetr_jax.data.discovery.cases import Case
from swinunetr_jax.data.discovery.formats import case_from_files, find_cases
from swinunetr_jax.data.formats import read_volume
from swinunetr_jax.data.nifti import Volume, volume_in_memory
from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.open_networks import assumed_task, open_networks
from swinunetr_jax.inference.predict import Segmenter
from swinunetr_jax.inference.prepare import prepare_volumes
from swinunetr_jax.inference.segment_case import segment_case
from swinunetr_jax.inference.segmentation import Segmentation
from swinunetr_jax.presets import find_preset
from swinunetr_jax.task import Task
from swinunetr_jax.weights.load import Checkpoint

Paths = str | os.PathLike | Sequence[str | os.PathLike]


def open_segmenter(
    model: Paths,
    *,
    preset: str | None = None,
    task: Task | None = None,
    postprocess: bool = True,
    dtype: str = "float32",
    **options: Any,
) -> Segmenter:
    """Opens the networks of `swinunetr predict -m`, for segmenting several scans.

    Args:
        model: a checkpoint: a training run, a packed model, a checkpoint folder, a MONAI .pt or bundle or a safetensors file, also in a
            bucket or on the Hugging Face hub. Several of them, or a run of all folds, are averaged as an ensemble.
        preset: the published network that the file holds, "brats21" or "btcv", which gives the order of patch merging and the task.
        task: the task of the networks, if the files do not state it. Otherwise it is guessed from the numbers of channels and outputs, and
            a line says so.
        postprocess: whether the post-processing that a cross-validation has chosen for its networks is applied.
        dtype: the type of the computation, "float32" or "bfloat16".
        options: the options of `Segmenter`, such as `overlap`, `crop` or `mirror`.

    Raises:
        InputError: a file cannot be read, the networks do not fit the task, or an option is wrong.
    """
    known = None if preset is None else find_preset(preset)
    task = known.task if known is not None and task is None else task
    fields: dict[str, Any] = {} if known is None else {"downsample": known.downsample}
    models = [model] if isinstance(model, (str, os.PathLike)) else list(model)

    def task_of(checkpoint: Checkpoint, path: Path) -> Task:
        chosen = task or checkpoint.task or assumed_task(checkpoint, path, "give `task` to change it")
        chosen.check(checkpoint.config)
        return chosen

    networks = open_networks([Path(path) for path in models], task_of, postprocess=postprocess, dtype=dtype, **fields)
    return Segmenter(
        [checkpoint.model() for checkpoint in networks.checkpoints],
        networks.task,
        configs=[checkpoint.config for checkpoint in networks.checkpoints],
        postprocess=networks.postprocess,
        **options,
    )


def segment(
    images: Any,
    model: Paths | Segmenter,
    *,
    affine: np.ndarray | None = None,
    probabilities: bool = False,
    progress: bool = False,
    **options: Any,
) -> Segmentation:
    """Segments one scan, like `swinunetr predict`: the label map has the scan's own grid and the same bytes.

    ```python
    result = swinunetr_jax.segment("scan.nii.gz", "runs/first")
    print(result.volumes_ml)
    result.save("labels.nii.gz")
    ```

    Args:
        images: the scan: the path of a file or of a case folder; a nibabel or a SimpleITK image; or an array [x, y, z] or [x, y, z, c]
            with `affine`. Several channels are a list of these in the network's order, or a dict by the names of the channels.
        model: the arguments of `open_segmenter`, or what it returns. The networks are compiled for each call that opens them, so open them
            once for several scans.
        affine: the affine of arrays, [4, 4]: it maps indices to mm, with x to the right, y to the front and z upwards.
        probabilities: also return the probability of each output.
        progress: show the finished windows and the remaining time.
        options: those of `open_segmenter`, if `model` is a path.

    Raises:
        InputError: the scan has a fault, is not exactly one, or an option is wrong.
    """
    if isinstance(model, Segmenter):
        if options:
            raise InputError(
                f"{', '.join(options)}: give the options to `open_segmenter`, which has opened the networks already."
            )
        segmenter = model
    else:
        segmenter = open_segmenter(model, **options)
    case, volumes, et_label = _case(images, segmenter.task, affine)
    with console.Progress(console.literal(case.name), unit="window", silent=not progress) as bar:
        prepared = (
            segmenter.prepare(case) if volumes is None else prepare_volumes(case, volumes, segmenter.task, segmenter.in_channels)
        )
        return segment_case(
            segmenter,
            case,
            prepared,
            probabilities=probabilities,
            et_label=et_label,
            postprocess=segmenter.postprocess,
            progress=bar,
        )


def _case(images: Any, task: Task, affine: np.ndarray | None) -> tuple[Case, list[Volume] | None, int | None]:
    """Returns the case, its images if any of them is in memory, and the label of the enhancing tumour that its data set states."""
    if affine is not None and _are_paths(images):
        raise InputError("`affine` is for an array, but the images are files, which state their own: leave it out.")
    if _is_path(images):
        dataset = find_cases(images, channels=task.channels or None)
        if len(dataset.cases) != 1:
            raise InputError(
                f"{images} holds {len(dataset.cases)} cases, and `segment` takes one: give a single case, or use `swinunetr predict`."
            )
        return dataset.cases[0], None, dataset.stated_et_label
    names, parts = None, [images]
    if isinstance(images, Mapping):
        names, parts = tuple(map(str, images)), list(images.values())
    elif isinstance(images, (list, tuple)):
        parts = list(images)
    if not parts:
        raise InputError("`images` is empty: give at least one image.")
    if all(map(_is_path, parts)) and names is None:
        return case_from_files(tuple(map(Path, parts))), None, None
    labels = names or tuple("the image" if len(parts) == 1 else f"image {number}" for number in range(1, len(parts) + 1))
    volumes = [
        read_volume(part) if _is_path(part) else volume_in_memory(part, label, affine) for part, label in zip(parts, labels)
    ]
    return Case("scan", tuple(volume.path for volume in volumes), channels=names), volumes, None


def _is_path(image: Any) -> bool:
    return isinstance(image, (str, os.PathLike))


def _are_paths(images: Any) -> bool:
    return all(map(_is_path, images if isinstance(images, (list, tuple)) else [images]))
