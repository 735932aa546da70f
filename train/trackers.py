"""Experiment trackers: Weights & Biases, MLflow, TensorBoard, trackio, or an object of a recipe.

A tracker receives the numbers of a run after they were written to RUN/log.jsonl, and only in the first process. A tracker that raises an
exception is reported in one sentence and receives nothing more; the run does not change. The libraries are imported when a run starts them.
"""

import importlib.util
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from swinunetr_jax import InputError, files
from swinunetr_jax.console import literal

TrackerName = Literal["wandb", "mlflow", "tensorboard", "trackio"]
PROJECT = "swinunetr"  # the project or experiment, unless an environment variable names another one
IDENTIFIERS = "trackers.json"  # in the run's folder: the name of each tracker, and the identifier of its run
_MODULES = {"tensorboard": "tensorboardX"}  # modules that have another name than the tracker


class Tracker(Protocol):
    """The methods that an object needs to track a run."""

    def start(self, config: Mapping[str, Any], folder: Path, identifier: str | None) -> str | None:
        """Starts or continues a run of the tracker.

        Args:
            config: the options of the training run by dotted name, such as optim.lr.
            folder: the folder of the training run.
            identifier: what this function returned when the training run was started, or None if it is a new one.

        Returns:
            The identifier by which the run is continued, or None if the tracker needs none.
        """
        ...

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Receives numbers by name, such as step/loss or dice/tumour core. A resumed run may repeat steps, with the same numbers."""
        ...

    def log_file(self, path: Path, step: int) -> None:
        """Receives a picture or another file that the training run has written."""
        ...

    def finish(self) -> None:
        """Ends the tracker's run, also if the training run was stopped."""
        ...


class Trackers:
    """The trackers of a run. None of the methods raises an exception.

    Args:
        trackers: the trackers by name.
        say: prints a sentence.
    """

    def __init__(self, trackers: Mapping[str, Tracker], say: Callable[[str], None]):
        self._trackers, self._say = dict(trackers), say

    def start(self, config: Mapping[str, Any], folder: Path) -> None:
        """Starts all trackers, or continues those whose identifiers the folder holds."""
        known = _read_identifiers(folder)
        identifiers = dict(known)

        def start_tracker(name: str, tracker: Tracker) -> None:
            identifier = tracker.start(config, folder, known.get(name))
            if identifier is not None:
                identifiers[name] = identifier

        self._each(start_tracker)
        if identifiers != known:
            try:
                files.write_json(folder / IDENTIFIERS, identifiers)
            except OSError as error:
                self._say(
                    f"warning: {folder / IDENTIFIERS} was not written ({files.reason(error)}): a resumed run starts new tracker runs"
                )

    def log(self, row: Mapping[str, Any]) -> None:
        """Sends the numbers of a row of the log."""
        if self._trackers:
            values = numbers(row)
            self._each(lambda _, tracker: tracker.log(values, row["step"]))

    def log_file(self, path: Path, step: int) -> None:
        """Sends a file."""
        self._each(lambda _, tracker: tracker.log_file(path, step))

    def finish(self) -> None:
        """Ends the runs of all trackers."""
        self._each(lambda _, tracker: tracker.finish())
        self._trackers.clear()

    def _each(self, call: Callable[[str, Tracker], None]) -> None:
        """Calls a function with each tracker, and removes the trackers that fail."""
        for name, tracker in list(self._trackers.items()):
            try:
                call(name, tracker)
            except Exception as error:
                del self._trackers[name]
                reason = literal(str(error).strip().partition("\n")[0][:200].rstrip(".")) or type(error).__name__
                self._say(f"warning: the tracker {literal(name)} failed ({reason}) and receives nothing more; the run continues")


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a row of the log by name: `step/loss`, `validation/score`, and those of groups, such as `dice/…`."""
    values = {f"{row['kind']}/{name}": value for name, value in row.items() if isinstance(value, float)}
    for group in ("dice", "metrics", "numbers", "spent"):
        values |= {f"{group}/{literal(name)}": value for name, value in row.get(group, {}).items()}
    return values


def make_trackers(names: Sequence[TrackerName], own: Sequence[Tracker]) -> dict[str, Tracker]:
    """Returns trackers by name: those of the option `--tracker`, and those of the recipe, which have the names of their classes.

    TensorBoard is one of them whenever tensorboardX is installed, as in earlier versions.
    """
    chosen = {name: _CLASSES[name] for name in names}
    if is_installed("tensorboard"):
        chosen.setdefault("tensorboard", TensorBoard)
    trackers: dict[str, Tracker] = {name: kind() for name, kind in chosen.items()}
    for tracker in own:
        name, number = type(tracker).__name__, 1
        while name in trackers:
            number += 1
            name = f"{type(tracker).__name__}-{number}"
        trackers[name] = tracker
    return trackers


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raises InputError if the package of a tracker is not installed."""
    for name in names:
        if not is_installed(name):
            raise InputError(
                f"--tracker {name} needs the package {_MODULES.get(name, name)}, which is not installed: install it with "
                f"`pip install 'swinunetr-jax[{name}]'`."
            )


def is_installed(name: TrackerName) -> bool:
    """Returns whether a tracker can be imported. A folder `wandb` without code, which that library writes, is not a package."""
    spec = importlib.util.find_spec(_MODULES.get(name, name))
    return spec is not None and spec.origin is not None


def _read_identifiers(folder: Path) -> dict[str, str]:
    """Returns the identifiers in a run's folder; a damaged file counts as none, because trackers never stop a run."""
    try:
        return files.read_json(folder / IDENTIFIERS, dict[str, str], "it is ignored")
    except (InputError, OSError):
        return {}


class WandB:
    """Weights & Biases. Its environment variables, such as WANDB_MODE=offline and WANDB_PROJECT, have their usual effects."""

    def start(self, config: Mapping[str, Any], folder: Path, identifier: str | None) -> str | None:
        import wandb  # pyright: ignore[reportMissingImports] - an optional dependency

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._image = wandb.Image
        self._run = wandb.init(
            project=project, name=folder.name, dir=str(folder), config=dict(config), id=identifier, resume="allow"
        )
        # The step is logged as a metric, because wandb drops numbers of steps before its last one, which a resumed run repeats.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        return self._run.id

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def log_file(self, path: Path, step: int) -> None:
        if path.suffix == ".png":
            self._run.log({path.stem: self._image(str(path)), "step": step})
        else:
            self._run.save(str(path), base_path=str(path.parent), policy="now")

    def finish(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME have their usual effects."""

    def start(self, config: Mapping[str, Any], folder: Path, identifier: str | None) -> str | None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports] - an optional dependency
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

        self._client, self._metric = MlflowClient(), Metric
        if identifier is not None:
            self._client.update_run(identifier, status="RUNNING")
            self._run = identifier
            return identifier
        experiment_name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(experiment_name)
        experiment_id = self._client.create_experiment(experiment_name) if experiment is None else experiment.experiment_id
        self._run = self._client.create_run(experiment_id, run_name=folder.name).info.run_id
        params = [Param(name, str(value)[:500]) for name, value in config.items()]
        for first in range(0, len(params), 100):  # the largest number of parameters in one request
            self._client.log_batch(self._run, params=params[first : first + 100])
        return self._run

    def log(self, values: Mapping[str, float], step: int) -> None:
        now = time.time_ns() // 1_000_000
        # MLflow refuses other characters in names.
        metrics = [self._metric(re.sub(r"[^\w\-. :/]", "_", name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def log_file(self, path: Path, step: int) -> None:
        self._client.log_artifact(self._run, str(path))

    def finish(self) -> None:
        self._client.set_terminated(self._run)


class TensorBoard:
    """TensorBoard, by tensorboardX, whose files are in RUN/tensorboard."""

    def start(self, config: Mapping[str, Any], folder: Path, identifier: str | None) -> str | None:
        from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports] - an optional dependency

        self._writer = SummaryWriter(str(folder / "tensorboard"))
        if identifier is None:
            self._writer.add_text("options", "\n".join(f"    {name}: {value}" for name, value in config.items()), 0)
        return "tensorboard"

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_file(self, path: Path, step: int) -> None:
        from matplotlib.image import imread

        if path.suffix == ".png":
            self._writer.add_image(path.stem, imread(path)[..., :3], step, dataformats="HWC")

    def finish(self) -> None:
        self._writer.close()


class Trackio:
    """trackio. TRACKIO_PROJECT names the project."""

    def start(self, config: Mapping[str, Any], folder: Path, identifier: str | None) -> str | None:
        import trackio  # pyright: ignore[reportMissingImports] - an optional dependency

        name = identifier or f"{folder.name}-{secrets.token_hex(4)}"  # trackio identifies a run by its name
        self._image = trackio.Image
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=name, config=dict(config), resume="allow"
        )
        return name

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def log_file(self, path: Path, step: int) -> None:
        if path.suffix == ".png":
            self._run.log({path.stem: self._image(str(path))}, step=step)

    def finish(self) -> None:
        self._run.finish()


_CLASSES: dict[TrackerName, Callable[[], Tracker]] = {
    "wandb": WandB,
    "mlflow": MLflow,
    "tensorboard": TensorBoard,
    "trackio": Trackio,
}
