"""The files that `tools.fuzz` damages: intact files of each kind, a function that reads them, and another reader to compare with."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import safetensors.torch
import torch

from swinunetr_jax import SwinUNETRConfig, Task, files
from swinunetr_jax.data.discovery.cases import Case, Dataset
from swinunetr_jax.data.discovery.formats import find_cases
from swinunetr_jax.data.discovery.prediction_record import RecordFile, read_record
from swinunetr_jax.data.nifti import read_geometry, read_labels, read_volume
from swinunetr_jax.data.prepare import cache_entry
from swinunetr_jax.data.prepare.cache import prepare_training_cases
from swinunetr_jax.errors import InputError
from swinunetr_jax.postprocess import POSTPROCESS, Postprocess, Step, read_postprocess, write_postprocess
from swinunetr_jax.training import Recipe
from swinunetr_jax.training.description import DESCRIPTION, Description, read_description, read_recipe
from swinunetr_jax.training.log import LOG, ROWS, read_rows
from swinunetr_jax.weights.checkpoint import StoredCheckpoint, read_checkpoint, write_checkpoint
from swinunetr_jax.weights.params import shapes
from swinunetr_jax.weights.safetensors_file import read_safetensors
from swinunetr_jax.weights.torch_file import read_torch_file
from tools.fuzz_comparison import differences, of_type
from tools.mutations import Mutation, edit_json, edit_log, edit_nifti, edit_safetensors, repack_gzip, repack_zip

TASK = Task.classes(2, names=("background", "tumour"))

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # nibabel reports what it repairs while it reads


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        kind: its name.
        files: the intact files, of which one at a time is damaged.
        mutations: the functions that damage a file.
        read: reads all files with the project's reader.
        fault: returns what is wrong with a value that `read` returned, or None.
    """

    kind: str
    files: Sequence[Path]
    mutations: Sequence[Mutation]
    read: Callable[[], Any]
    fault: Callable[[Any], str | None]


def pt(folder: Path) -> Target:
    path = folder / "weights.pt"
    torch.save({"epoch": 3, "state_dict": _tensors(), "names": ["a", ("b", None)]}, path)

    def fault(tree: dict) -> str | None:
        try:
            theirs = torch.load(path, weights_only=True)
        except Exception:
            # Our reader may accept some files that torch refuses: they contain code or are damaged outside the numbers.
            return None
        return differences(tree, theirs)

    return Target("pt", [path], [repack_zip, repack_zip], lambda: read_torch_file(path), fault)


def safetensors_file(folder: Path) -> Target:
    path = folder / "weights.safetensors"
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in _tensors().items()}, path, {"format": "pt"})

    def fault(tensors: Mapping[str, np.ndarray]) -> str | None:
        try:
            theirs = safetensors.torch.load_file(path)
        except Exception as error:
            return f"the library safetensors refuses the file ({error})"
        return differences(dict(sorted(tensors.items())), dict(sorted(theirs.items())))  # the format does not order tensors

    return Target("safetensors", [path], [edit_safetensors], lambda: read_safetensors(path), fault)


def checkpoint(folder: Path) -> Target:
    path = folder / "checkpoint"
    config = SwinUNETRConfig(in_channels=1, out_channels=2, feature_size=12, depths=(1, 1, 1, 1))
    rng = np.random.default_rng(0)
    params = {name: rng.random(leaf.shape).astype(leaf.dtype) for name, leaf in shapes(config).items()}
    write_checkpoint(path, config, params, TASK)
    intact = read_checkpoint(path)

    def fault(stored: StoredCheckpoint) -> str | None:
        same = stored.config == intact.config and stored.task == intact.task and stored.params.keys() == intact.params.keys()
        same = same and all(np.array_equal(stored.params[name], params[name]) for name in params)
        return None if same else "the checkpoint is not what was saved"

    paths = sorted(file for file in path.rglob("*") if file.is_file())
    return Target("checkpoint", paths, [_edit_if_json], lambda: read_checkpoint(path), fault)


def nifti(kind: str, image: type[nib.Nifti1Image]) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        array = (np.random.default_rng(0).random((5, 6, 7)) * 4).astype(np.int16)
        affine = np.diag([-1.0, -2.0, 3.0, 1.0])
        paths = [folder / "a.nii", folder / "a.nii.gz"]
        for path in paths:
            nib.save(image(array, affine), path)

        def read() -> list[Any]:
            """Reads both files, of which one is damaged. Reading the intact one as well takes little time."""
            volumes, refused = [], None
            for path in paths:
                try:
                    shape, _, orientation = read_geometry(path)
                    volume = read_volume(path, require_finite=False)
                    labels = _or_refused(read_labels, path)
                except InputError as error:
                    refused = error
                    continue
                volumes.append((path, shape, orientation, volume, labels))
            if refused is not None:
                raise refused
            return volumes

        def fault(volumes: list[Any]) -> str | None:
            for path, shape, orientation, volume, labels in volumes:
                try:
                    theirs: Any = nib.load(path, mmap=False)  # nibabel declares the type of any image file
                    stored, affine = np.asanyarray(theirs.dataobj), theirs.affine
                except Exception:  # nibabel refuses it
                    continue
                with np.errstate(all="ignore"):
                    stored = stored.reshape(volume.array.shape).astype(np.float32)
                if not np.array_equal(volume.array, stored, equal_nan=True):
                    return f"{path.name}: its voxels differ from those of nibabel"
                if not np.array_equal(volume.affine, affine):
                    return f"{path.name}: its affine differs from that of nibabel"
                if shape != volume.array.shape or orientation != "".join(nib.aff2axcodes(affine)):
                    return f"{path.name}: its geometry differs from that of nibabel"
                if labels is not None and np.abs(labels.array - stored).max() > 1e-3:
                    return f"{path.name}: its labels differ from those of nibabel"
            return None

        return Target(kind, paths, [edit_nifti, edit_nifti, _repack_if_gzip], read, fault)

    return make


def predictions(folder: Path) -> Target:
    path = folder / "predict.json"
    inputs = [{"path": "/data/a.nii.gz", "bytes": 10, "modified_ns": 1}]
    case = {
        "key": "0" * 64,
        "inputs": inputs,
        "outputs": {"labels": {"path": "a.nii.gz", "bytes": 5}},
        "et_label": 4,
        "windows": 3,
    }
    case |= {"seconds": 1.5, "volumes_ml": {"WT": 3.25}, "notes": ["a note"]}
    record = {"swinunetr_jax": "1", "devices": ["cpu"], "settings": {"overlap": 0.5}, "cases": {"a": case, "b": {"error": "no"}}}
    files.write_json(path, record)
    return Target("predict.json", [path], [edit_json, edit_json], lambda: read_record(path), of_type(RecordFile))


def cache(folder: Path) -> Target:
    image, label = np.zeros((9, 8, 7), np.float32), np.zeros((9, 8, 7), np.uint8)
    image[2:7, 1:6, 2:5], label[3, 3, 3] = np.random.default_rng(0).random((5, 5, 3)), 1
    paths = [folder / "a.nii.gz", folder / "a_seg.nii.gz"]
    for array, path in ((image, paths[0]), (label, paths[1])):
        nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    task = TASK
    case = Case("a", (paths[0],), None, paths[1])
    (prepared,) = prepare_training_cases([case], task, folder / "cache", in_channels=1)
    intact = json.loads(prepared.path.read_text())

    def read() -> Any:
        entry = cache_entry.read_entry(prepared.path, np.dtype(np.float32), 1, {0, 1})
        assert entry is not None  # the file exists
        return cache_entry.check_arrays(prepared.path, entry, np.dtype(np.float32), 1)

    def fault(entry: Any) -> str | None:
        return None if json.loads(json.dumps(entry)) == intact else "the entry is not what was prepared"

    return Target(
        "cache",
        [prepared.path, prepared.image_path, prepared.label_path, prepared.class_voxels.path],
        [_edit_if_json],
        read,
        fault,
    )


def run(folder: Path) -> Target:
    path = folder / DESCRIPTION
    part = {"after_step": 0, "versions": {"jax": "1"}, "device": "cpu"}
    description = {
        "recipe": Recipe(kind="phantom").to_dict(),
        "cases": {"train": ["a"], "validation": ["b"]},
        "parts": [part],
        "steps": 10,
    }
    config, task = SwinUNETRConfig(in_channels=1, out_channels=2), TASK
    files.write_json(path, description | {"task": task.to_dict(), "network": config.to_dict(), "convention": "nan"})

    def read() -> Any:
        if not isinstance(read_recipe(folder), Recipe):
            raise TypeError("the recipe is not a Recipe")
        return read_description(folder, Description)

    return Target("run.json", [path], [edit_json, edit_json], read, of_type(Description))


def log(folder: Path) -> Target:
    path = folder / LOG
    step = {"kind": "step", "step": 1, "loss": 0.5, "grad_norm": 1.0, "lr": 1e-4, "wait": 0.0, "seconds": 0.1}
    validation = {"kind": "validation", "step": 1, "score": None, "dice": {"a": 0.5}, "cases": {"c": {"a": 0.5}}, "took": 1.0}
    path.write_text("".join(json.dumps(row) + "\n" for row in (step, validation, step | {"step": 2})))

    def fault(rows: list[dict[str, Any]]) -> str | None:
        return next(filter(None, (of_type(ROWS[row["kind"]])(row) for row in rows)), None)

    return Target("log.jsonl", [path], [edit_log, edit_log], lambda: read_rows(folder), fault)


def dataset(folder: Path) -> Target:
    path = folder / "dataset.json"
    pairs = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in "ab"]
    for name, cases in (("imagesTr", "ab"), ("labelsTr", "ab"), ("imagesTs", "c")):
        (folder / name).mkdir()
        for case in cases:
            nib.save(nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4)), folder / name / f"{case}.nii.gz")
    info = {
        "name": "n",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "tumour"},
        "numTraining": 2,
        "training": pairs,
    }
    files.write_json(path, info | {"numTest": 1, "test": ["./imagesTs/c.nii.gz"]})

    def fault(data: Dataset) -> str | None:
        for case in data.cases:
            inside = all(image.resolve().is_relative_to(folder.resolve()) for image in (*case.images, case.label or folder))
            if not inside or not (case.name or case.problem):
                return f"case {case.name!r} has files outside the data set, or no name"
        return of_type(dict[str, int | list[int]] | None)(data.labels)

    return Target("dataset.json", [path], [edit_json, edit_json], lambda: find_cases(folder), fault)


def postprocess(folder: Path) -> Target:
    path = folder / POSTPROCESS
    step, dice = Step(operation="largest_component", output="tumour"), {"tumour": 0.5}
    write_postprocess(path, Postprocess(TASK, (step,), 3, dice, dice, ("a sentence",)))
    intact = read_postprocess(path)

    def fault(chosen: Postprocess) -> str | None:
        return None if chosen == intact else "the choice is not what was written"

    return Target("postprocess.json", [path], [edit_json, edit_json], lambda: read_postprocess(path), fault)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "pt": pt,
    "safetensors": safetensors_file,
    "checkpoint": checkpoint,
    "nifti1": nifti("nifti1", nib.Nifti1Image),
    "nifti2": nifti("nifti2", nib.Nifti2Image),
    "predict.json": predictions,
    "cache": cache,
    "run.json": run,
    "postprocess.json": postprocess,
    "log.jsonl": log,
    "dataset.json": dataset,
}


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.rand((6, 8), generator=generator)
    special = {"count": torch.tensor(3), "empty": torch.zeros((0, 2)), "flags": torch.tensor([True, False])}
    return special | {"a": base, "b": base.t(), "half": base.half(), "short": base.bfloat16(), "long": (base * 9).long()}


def _or_refused(read: Callable[[Path], Any], path: Path) -> Any:
    try:
        return read(path)
    except InputError:
        return None


def _edit_if_json(rng: Any, data: bytes) -> bytes:
    return edit_json(rng, data) if data.lstrip().startswith(b"{") else data[: rng.randrange(len(data) + 1)]


def _repack_if_gzip(rng: Any, data: bytes) -> bytes:
    return repack_gzip(rng, data) if data.startswith(b"\x1f\x8b") else edit_nifti(rng, data)
