"""Writes a packed model: one zip archive that `predict -m` takes on any machine, and that executes nothing.

    manifest.json       format, names of the networks, SHA-256 of every other member
    MODEL_CARD.md       data, licence, intended use, limits; what nobody has stated is named
    config.json         the configuration of the network
    task.json           channels, outputs, orientation, voxel size, intensities
    postprocess.json    if a cross-validation has chosen post-processing
    scores.json         if the run has recorded scores
    model.safetensors   the weights that `predict` uses, with the configuration and the task; fold0/model.safetensors, … for all folds

The members are not compressed, have a fixed date and order, and equal models result in equal bytes.
"""

import hashlib
import os
import stat
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from swinunetr_jax import files
from swinunetr_jax.buckets import is_address, path_or_address
from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.data.scan_range import merged
from swinunetr_jax.errors import InputError
from swinunetr_jax.packages.model_card import Card, Facts, card_text, read_card
from swinunetr_jax.packages.monai_bundle import write_bundle
from swinunetr_jax.packages.run_scores import SCORES, Scores, run_scores
from swinunetr_jax.postprocess import POSTPROCESS, Step, read_postprocess
from swinunetr_jax.task import Task
from swinunetr_jax.version import __version__
from swinunetr_jax.weights.load import Checkpoint, save_params
from swinunetr_jax.weights.local_copy import optional_copy
from swinunetr_jax.weights.params import count_bytes, count_parameters
from swinunetr_jax.weights.run_folder import PACKED_WEIGHTS, cross_validation_of
from swinunetr_jax.weights.upload import new_file
from swinunetr_jax.weights.weight_file import atomic_file
from swinunetr_jax.weights.zip_folder import CARD, FORMAT, MANIFEST, find_zip

CONFIG, TASK = "config.json", "task.json"
_DATE = (1980, 1, 1, 0, 0, 0)  # the first one that a zip archive can state
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Networks:
    """The networks of a package.

    Attributes:
        checkpoints: their checkpoints by the names of their folders, "" for a single one.
        tasks: their tasks, which differ only in the ranges of the scans that each was trained on.
    """

    checkpoints: dict[str, Checkpoint]
    tasks: dict[str, Task]

    @property
    def task(self) -> Task:
        """The common task, with a range that contains those of all networks, as in a prediction."""
        first, *_ = self.tasks.values()
        ranges = [task.scans for task in self.tasks.values() if task.scans is not None]
        return replace(first, scans=merged(ranges)) if ranges else first

    @property
    def config(self) -> SwinUNETRConfig:
        config = next(iter(self.checkpoints.values())).config
        assert isinstance(config, SwinUNETRConfig)  # `collect` refuses others
        return config


def collect(paths: Sequence[Path], checkpoints: Sequence[Checkpoint], tasks: Sequence[Task]) -> Networks:
    """Returns the networks of a package.

    Raises:
        InputError: a network is not a Swin UNETR, only segments images, or the networks have different tasks or configurations.
    """
    for path, checkpoint, task in zip(paths, checkpoints, tasks):
        if not isinstance(checkpoint.config, SwinUNETRConfig):
            raise InputError(
                f"{path} holds the network {checkpoint.config.name}, and a package holds no network but this project's Swin UNETR, because "
                "a package must not need code of others: pass the folder on together with the recipe instead."
            )
        if checkpoint.report.initialized:
            raise InputError(f"{path} is not a whole network: pack one that was trained to segment.")
        if task.kind == "images":
            raise InputError(f"{path} was pre-trained without labels and cannot segment: train it with labels, then pack it.")
        if (checkpoint.config, task) != (checkpoints[0].config, tasks[0]):
            raise InputError(f"{path} has another task or configuration than {paths[0]}: pack networks of one task.")
    names = [""] if len(paths) == 1 else [path.name for path in paths]
    return Networks(dict(zip(names, checkpoints)), dict(zip(names, tasks)))


def pack(source: Path, networks: Networks, target: str | os.PathLike, card: Card, *, overwrite: bool = False) -> Path:
    """Writes a packed model, and returns its path or address.

    Args:
        source: the run, cross-validation or weight file that the networks are from, with its records.
        networks: the result of `collect`.
        target: the archive, whose name ends with .zip, or its address in a bucket.
        card: the user's statements.
        overwrite: whether to replace an existing file.

    Raises:
        InputError: the file exists or cannot be written, has another ending, or a record of the run is damaged.
    """
    target = path_or_address(target)
    if target.suffix != ".zip":
        raise InputError(f"{target} must have a name that ends with .zip, such as model.zip: change it.")
    config, task = networks.config, networks.task
    weights = {f"{name}/{PACKED_WEIGHTS}".lstrip("/"): name for name in networks.checkpoints}
    with (
        new_file(target, count_bytes(config) * len(weights), overwrite=overwrite) as file,
        tempfile.TemporaryDirectory(prefix="swinunetr-") as folder,
    ):
        root, steps = Path(folder), _write_postprocess(source, Path(folder))
        scores = run_scores(source)
        for file_name, name in weights.items():
            (root / file_name).parent.mkdir(exist_ok=True)
            params = networks.checkpoints[name].params
            save_params(root / file_name, config, params, task=networks.tasks[name], to="safetensors")
        files.write_json(root / CONFIG, config.to_dict())
        files.write_json(root / TASK, task.to_dict())
        if scores is not None:
            files.write_json(root / SCORES, scores)
        facts = _facts(networks, {name: files.digest_of_file(root / name) for name in weights}, scores, steps)
        files.write_text(root / CARD, card_text(card, facts))
        names = sorted(file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file())
        values = {
            "format": FORMAT,
            "networks": list(weights),
            "members": {name: files.digest_of_file(root / name) for name in names},
        }
        files.write_json(root / MANIFEST, values | {"digest": files.digest_of_json(values)})
        _write_zip(file, root, [MANIFEST, *sorted(names, key=lambda name: (name in weights, name))])
    return target


def packed_card(source: Path) -> Card:
    """Returns the statements in the card of a packed model, also for one of its folds, or an empty card for anything else."""
    inside = None if is_address(source) else find_zip(source)
    if inside is None or inside[0].manifest is None or CARD not in inside[0].members:
        return Card()
    return read_card(inside[0].read(CARD).decode("utf-8", "replace"))


def pack_bundle(source: Path, networks: Networks, target: str | os.PathLike, card: Card) -> Path:
    """Writes the folder of a MONAI bundle, and returns its path. `source`, `networks` and `card` are those of `pack`.

    Raises:
        InputError: there are several networks, or the folder exists or cannot be written.
    """
    if len(networks.checkpoints) > 1:
        names = ", ".join(networks.checkpoints)
        raise InputError(
            f"{source} holds {len(networks.checkpoints)} networks, and a MONAI bundle holds one: give one of {names}."
        )
    (checkpoint,) = networks.checkpoints.values()
    scores = run_scores(source)

    def readme(digests: Mapping[str, str]) -> str:
        return card_text(card, _facts(networks, digests, scores, ()))

    return write_bundle(target, networks.config, checkpoint.params, networks.task, card, readme, scores)


def _facts(networks: Networks, digests: Mapping[str, str], scores: Scores | None, steps: Sequence[Step]) -> Facts:
    """Returns what the files say about the networks; `digests` are those of the weight files by name."""
    return Facts(
        networks.config,
        networks.task,
        parameters=count_parameters(next(iter(networks.checkpoints.values())).params),
        weights=digests,
        postprocess=", then ".join(map(str, steps)),
        scores=scores,
        version=__version__,
    )


def _write_postprocess(source: Path, root: Path) -> tuple[Step, ...]:
    """Copies the chosen post-processing, if there is one, and returns its steps."""
    run = cross_validation_of(source)
    if run is None:
        return ()
    with optional_copy(run / POSTPROCESS) as file:
        if file is None:
            return ()
        steps = read_postprocess(file).steps
        files.write_bytes(root / POSTPROCESS, file.read_bytes())
    return steps


def _write_zip(target: Path, root: Path, names: Sequence[str]) -> None:
    """Writes files into an archive without compression, with a fixed date and fixed permissions."""
    with atomic_file(target) as stream, zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            member = zipfile.ZipInfo(name, _DATE)
            member.create_system = 3  # Unix, on every system
            member.external_attr = (stat.S_IFREG | 0o644) << 16
            member.file_size = (root / name).stat().st_size
            with open(root / name, "rb") as source, archive.open(member, "w") as copy:
                while chunk := source.read(_CHUNK):
                    copy.write(chunk)


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of an archive, which a sender may publish next to it."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
