"""The recipe of short runs on a small phantom, and a signal that stops a run at a chosen step."""

import signal
from pathlib import Path

from swinunetr_jax.training import Network, Optim, Phantom, Recipe, Validation
from swinunetr_jax.training.log import Log

STEPS = 4


def recipe(data: Path, out: Path, **changes) -> Recipe:
    fields = {
        "kind": "phantom",
        "data": data,
        "cache": data.with_name(data.name + "-cache"),
        "out": out,
        "steps": STEPS,
        "folds": 2,
        "roi": (32, 32, 64),
        "channels": ("FLAIR", "T1ce", "T1", "T2"),
        "orientation": "LPS",
        "phantom": Phantom(cases=4, size=(48, 48, 32)),
        "network": Network(feature_size=12, depths=(1, 1, 1, 1)),
        "optim": Optim(lr=1e-3, ema=0.9),
        "validation": Validation(every=2, overlap=0.0),
    }
    return Recipe(**fields | changes)


def stop_after(monkeypatch, number: int, which: signal.Signals = signal.SIGTERM) -> None:
    """Sends the signal while the values of step `number` are logged, after the next step has been dispatched."""
    original = Log.step

    def log_step(self, step, values):
        original(self, step, values)
        if step == number:
            signal.raise_signal(which)

    monkeypatch.setattr(Log, "step", log_step)
