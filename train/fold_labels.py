"""RUN/foldK/labels/CASE.npz: label maps of the validation cases by the best network of a fold, from which the post-processing is chosen.

Each file holds the label map, uint8 [x, y, z] on the grid of `ScanGrid`, and the digest of the network, so that a label map of an older
network is computed again. Several processes share this work, and all of them write.
"""

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from swinunetr_jax import Task, console, files
from swinunetr_jax.buckets.run_objects import BEST
from swinunetr_jax.data.prepare.cache import PreparedCase
from swinunetr_jax.training import processes, watchdog
from swinunetr_jax.training.config import Validation
from swinunetr_jax.training.log import DICE
from swinunetr_jax.training.objective import Objective
from swinunetr_jax.training.start import Run
from swinunetr_jax.training.step import make_objective
from swinunetr_jax.training.stop import Stop, Stopped
from swinunetr_jax.training.validation import ScanGrid, segment_case, segmenter
from swinunetr_jax.weights.checkpoint import DESCRIPTION, is_checkpoint, read_checkpoint
from swinunetr_jax.weights.params import build

FOLDER = "labels"


@dataclass(frozen=True)
class FoldLabels:
    """The validation cases of a fold, and the folder of their label maps by its best network."""

    folder: Path
    cases: Sequence[PreparedCase]
    task: Task
    options: Validation

    def path(self, case: PreparedCase) -> Path:
        return self.folder / f"{case.name}.npz"


@watchdog.phase(watchdog.VALIDATION)
def write_fold_labels(run: Run, stop: Stop) -> FoldLabels | None:
    """Segments the validation cases of a finished run with its best network, as a validation does, unless this was done before.

    Returns None if the run has no best network, or an objective whose score is not the Dice of `validation.validate`.

    Raises:
        Stopped: a signal has stopped one of the processes.
    """
    objective = make_objective(run.training)
    best = run.folder / BEST
    if objective.metric != DICE or type(objective).validate is not Objective.validate or not is_checkpoint(best):
        return None
    run.store.fetch(BEST)
    run.store.fetch(FOLDER)
    fold = FoldLabels(run.folder / FOLDER, run.cases.validation, run.cases.task, run.recipe.validation)
    digest = files.digest_of_file(best / DESCRIPTION)
    missing = [case for case in fold.cases if read_labels(fold.path(case), digest) is None]
    processes.barrier("label maps of earlier starts are found")
    share = missing[jax.process_index() :: jax.process_count()]
    stopped = bool(stop)
    if share and not stopped:
        files.make_folder(fold.folder)
        network = read_checkpoint(best, run.recipe.custom_network).params
        predict = segmenter(
            run.training.config,
            build(run.training.config, network),
            fold.task,
            fold.options,
            run.recipe.devices.spatial_shards,
        )
        for number, case in enumerate(share, 1):
            title = f"[{number}/{len(share)}] {console.literal(case.name)}, for the choice of the post-processing"
            with console.Progress(title, unit="window", silent=not processes.is_leader()) as progress:
                labels = segment_case(predict, case, fold.task, watchdog.beating(progress))
            _write_labels(fold.path(case), labels, digest)
            if stopped := bool(stop):
                break
        run.store.sync(FOLDER)
    if processes.gather(np.array(stopped)).any():
        raise Stopped(stop.number or 15)
    if processes.is_leader():  # it chooses the post-processing from the label maps of all processes
        run.store.fetch(FOLDER)
    return fold


def read_labels(path: Path, digest: str | None = None) -> np.ndarray | None:
    """Returns a label map, or None if the file is missing or damaged, or was not computed by the network with this digest."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            labels = stored["labels"]
            if labels.dtype != np.uint8 or labels.ndim != 3 or digest not in (None, str(stored["network"])):
                return None
            return labels
    # NotImplementedError: the damaged bytes state a compression that zipfile does not know
    except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        return None


def _write_labels(path: Path, labels: np.ndarray, digest: str) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, labels=labels, network=np.array(digest))
    files.write_bytes(path, content.getvalue())


def reference_of(case: PreparedCase, task: Task) -> np.ndarray:
    """Returns the reference of a case on the grid of its label map."""
    return ScanGrid.of(case, task).reference(case)
