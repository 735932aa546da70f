"""Trackers for tests: one that records what it receives, and one that fails."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Recorder:
    """A tracker that records what it receives, in the order of the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def start(self, config: Mapping[str, Any], folder: Path, identifier: str | None) -> str | None:
        self.calls.append(("start", dict(config), folder, identifier))
        return identifier or "first"

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.calls.append(("log", dict(values), step))

    def log_file(self, path: Path, step: int) -> None:
        assert path.is_file()
        self.calls.append(("log_file", path.name, step))

    def finish(self) -> None:
        self.calls.append(("finish",))


class Failing(Recorder):
    """A tracker that raises an exception at the second step that it receives."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        super().log(values, step)
        if step == 2:
            raise ConnectionError("no network\nand more lines")
