"""Many cases, one after the other: skips what is done, goes on past a bad case, and records every step in one report file.

OUT/CASE.nii.gz                  the label map
OUT/CASE_probabilities.nii.gz    where asked for
OUT/CASE.png                     the preview, where asked for
OUT/predict.json                 versions, weights' digest, settings; per case inputs, outputs, seconds, volumes or the error
"""

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from swinunetr_jax.data.cases import Case, brats_era
from swinunetr_jax.data.nifti import write_volume
from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.predict import Segmentation, Segmenter
from swinunetr_jax.report import write_preview
from swinunetr_jax.version import __version__

REPORT = "predict.json"
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "nibabel")


def predict_cases(
    segmenter: Segmenter,
    cases: Sequence[Case],
    out: str | os.PathLike,
    *,
    identity: dict[str, Any],
    probabilities: bool = False,
    preview: bool = False,
    overwrite: bool = False,
) -> list[str]:
    """Segments every case into the folder `out` and returns the names of those that failed.

    Args:
        identity: what makes results what they are (weights' digests, settings). A case is skipped where the report says that the
            same identity made its outputs from the same inputs, and they are still there unchanged.
        probabilities: write each output's probability too.
        preview: write a picture of each case.
        overwrite: do everything again, and replace files that no report knows.

    Raises:
        InputError: `out` cannot be written.
    """
    out = Path(out)
    record = _Record(out, identity | {"probabilities": probabilities, "preview": preview})
    failed = []
    for number, case in enumerate(cases, 1):
        head = f"[{number}/{len(cases)}] {case.name}"
        if not overwrite and record.is_done(case):
            print(f"{head}: done already, skipped")
            continue
        started = time.perf_counter()
        try:
            outputs = _outputs(out, case, probabilities, preview)
            record.check_free(case, outputs, overwrite)
            result = _segment(segmenter, case, head, probabilities)
            for note in result.notes:
                print(f"{head}: note: {note}")
            record.announce(case, outputs)
            entry = _write(result, case, outputs, segmenter)
        except InputError as error:
            stale = record.outputs(case)
            stays = f" (an older result stays: {', '.join(o['path'] for o in stale.values())})" if stale else ""
            print(f"{head}: FAILED: {error}{stays}", file=sys.stderr)
            failed.append(case.name)
            record.add(case.name, {"inputs": _inputs(case), "outputs": stale, "error": str(error)})
            continue
        entry["seconds"] = round(time.perf_counter() - started, 2)
        record.add(case.name, entry)
        volumes = ", ".join(f"{name} {ml:.1f} ml" for name, ml in entry["volumes_ml"].items())
        print(f"{head}: {entry['windows']} windows, {entry['seconds']:.1f} s, {volumes} → {outputs['labels']}")
    return failed


def _segment(segmenter: Segmenter, case: Case, head: str, probabilities: bool) -> Segmentation:
    terminal = sys.stderr.isatty()
    with tqdm(desc=head, unit="window", leave=False, disable=not terminal) as bar:
        told = [0.0]

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            share = done / total
            if not terminal and share >= told[0] + 0.25 and done < total:  # a few plain lines where there is no terminal
                told[0] = share
                print(f"{head}: {done} of {total} windows", flush=True)

        return segmenter.segment(case, probabilities=probabilities, et_label=brats_era(case), progress=progress)


def _outputs(out: Path, case: Case, probabilities: bool, preview: bool) -> dict[str, Path]:
    paths = {"labels": out / f"{case.name}.nii.gz"}
    if probabilities:
        paths["probabilities"] = out / f"{case.name}_probabilities.nii.gz"
    if preview:
        paths["preview"] = out / f"{case.name}.png"
    return paths


def _write(result: Segmentation, case: Case, outputs: dict[str, Path], segmenter: Segmenter) -> dict[str, Any]:
    task = segmenter.task
    era = brats_era(case)
    task = task if era is None else task.with_et_label(era)
    try:
        if result.probabilities is not None:
            write_volume(outputs["probabilities"], result.probabilities, result.scan, np.float32)
        if "preview" in outputs:
            image = result.scan.array if result.scan.array.ndim == 3 else result.scan.array[..., 0]
            write_preview(outputs["preview"], image, result.labels, result.scan, task, case.name)
        write_volume(outputs["labels"], result.labels, result.scan)  # last: its presence means the case is complete
    except BaseException:
        for kind in outputs.keys() - {"labels"}:  # nothing new without its label map
            outputs[kind].unlink(missing_ok=True)
        raise
    voxel_ml = abs(np.linalg.det(result.scan.affine[:3, :3])) / 1000
    counts = np.bincount(result.labels.ravel(), minlength=256)
    members = {o.name: o.members or (o.value,) for o in task.outputs if o.value}
    return {
        "inputs": _inputs(case),
        "outputs": {kind: {"path": path.name, "bytes": path.stat().st_size} for kind, path in outputs.items()},
        "windows": result.windows,
        "volumes_ml": {name: round(float(sum(counts[v] for v in values) * voxel_ml), 3) for name, values in members.items()},
        "notes": list(result.notes),
    }


def _inputs(case: Case) -> list[dict[str, Any]]:
    files = []
    for path in case.images:
        try:
            status = path.stat()
            files.append({"path": str(path.resolve()), "bytes": status.st_size, "modified_ns": status.st_mtime_ns})
        except OSError:
            files.append({"path": str(path), "bytes": None, "modified_ns": None})
    return files


class _Record:
    """The report file, read at the start and rewritten in one step after every case."""

    def __init__(self, out: Path, identity: dict[str, Any]):
        self.out, self.path = out, out / REPORT
        try:
            out.mkdir(parents=True, exist_ok=True)
            probe = out / f".{REPORT}.{os.getpid()}.tmp"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise InputError(f"{out} cannot be written ({error.strerror or error}): give a folder with write access.") from error
        self.key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.cases = self._read()
        self.head = {
            "swinunetr_jax": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
            "devices": [device.device_kind for device in jax.devices()],
            "settings": identity,
        }

    def _read(self) -> dict[str, Any]:
        try:
            cases = json.loads(self.path.read_text())["cases"]
            return {name: entry for name, entry in cases.items() if isinstance(entry, dict)}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            print(f"{self.path} cannot be read, nothing is taken to be done", file=sys.stderr)
            return {}

    def is_done(self, case: Case) -> bool:
        entry = self.cases.get(case.name)
        if not entry or "error" in entry or entry.get("key") != self.key or entry["inputs"] != _inputs(case):
            return False
        return all(self._unchanged(output) for output in entry["outputs"].values())

    def outputs(self, case: Case) -> dict[str, Any]:
        """What a run recorded here wrote for this case and is still there."""
        written = self.cases.get(case.name, {}).get("outputs", {})
        return {kind: output for kind, output in written.items() if (self.out / output["path"]).exists()}

    def check_free(self, case: Case, outputs: dict[str, Path], overwrite: bool) -> None:
        """A file that no report knows is somebody else's."""
        known = {output["path"] for output in self.outputs(case).values()}
        foreign = [path for path in outputs.values() if path.exists() and path.name not in known]
        if foreign and not overwrite:
            raise InputError(
                f"{foreign[0]} exists and no run recorded here wrote it; choose another folder, or give --overwrite."
            )

    def announce(self, case: Case, outputs: dict[str, Path]) -> None:
        """What is about to be written: a run that is killed meanwhile finds its own files, complete or not, and makes them again."""
        coming = {kind: {"path": path.name, "bytes": None} for kind, path in outputs.items()}
        self.add(case.name, {"inputs": _inputs(case), "outputs": self.outputs(case) | coming})

    def add(self, name: str, entry: dict[str, Any]) -> None:
        self.cases[name] = entry | {"key": self.key}
        temporary = self.path.with_name(f".{REPORT}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(self.head | {"cases": self.cases}, indent=1))
            os.replace(temporary, self.path)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror or error}).") from error
        finally:
            temporary.unlink(missing_ok=True)

    def _unchanged(self, output: dict[str, Any]) -> bool:
        path = self.out / output["path"]
        return path.is_file() and path.stat().st_size == output["bytes"]
