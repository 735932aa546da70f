"""`swinunetr view`."""

from __future__ import annotations

import time
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from swinunetr_jax import console, files
from swinunetr_jax.errors import InputError

if TYPE_CHECKING:
    from swinunetr_jax.viewer import LabelMap


@dataclass
class View:
    """Show a scan and its label maps in a browser: write one HTML file that needs no server and no network."""

    scan: Annotated[Positional[Path], arg(metavar="SCAN", help_behavior_hint="")]
    """A scan, also one with several channels, or the folder of one case, whose label map is shown as the reference."""
    segmentations: Annotated[Positional[tuple[Path, ...]], arg(metavar="SEG", help_behavior_hint="")] = ()
    """Label maps on the grid of the scan. The differences between the first and the others are shown, too."""
    output: Annotated[Path | None, arg(aliases=["-o"], metavar="FILE", help_behavior_hint="")] = None
    """The page to write, by default CASE.html in the current folder."""
    channels: Annotated[tuple[Path, ...], arg(metavar="FILE ...", help_behavior_hint="")] = ()
    """Further channels of the scan, one file each."""
    names: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="")] = ()
    """The names of the label maps in the page, such as prediction reference; by default those of their files."""
    task: Annotated[str | None, arg(metavar="TASK", help_behavior_hint="")] = None
    """The names of the labels: brats, or a file that states them (a predict.json, run.json or dataset.json); by default the predict.json
    next to the first label map, or else the names in that label map if it is a DICOM-SEG, or else the data set of the scan, or else the
    values."""
    open: bool = False
    """Open the page in the browser."""
    overwrite: bool = False
    """Replace an existing page."""

    def run(self) -> int:
        from swinunetr_jax.data.nifti import on_grid_of
        from swinunetr_jax.viewer import LabelMap, viewer_contents, write_page
        from swinunetr_jax.viewer.contents import MAX_DIFFERENCES
        from swinunetr_jax.viewer.sources import read_case, read_label_maps, task_of_labels

        started = time.perf_counter()
        scan = read_case(self.scan, self.channels)
        maps, volumes = read_label_maps(self.segmentations, self.names, scan.reference)
        maps = [LabelMap(shown.name, on_grid_of(volume, scan.volume).array) for shown, volume in zip(maps, volumes)]
        task = task_of_labels(self.task, self.segmentations, scan, volumes[0].names if volumes else {})
        path = self.output or Path(f"{scan.name}.html")
        if path.suffix.lower() not in (".html", ".htm"):
            raise InputError(f"{path}: the ending is not supported, expected .html.")
        if not self.overwrite and files.exists(path):
            raise InputError(f"{path} exists already: choose another name with --output, or give --overwrite.")
        contents = viewer_contents(scan.channels, scan.volume.affine, maps, title=scan.name, task=task)
        write_page(path, contents)
        if left_out := maps[1 + MAX_DIFFERENCES :]:
            names = ", ".join(label_map.name for label_map in left_out)
            console.say(f"note: at most {MAX_DIFFERENCES} differences are shown, and not those to {console.literal(names)}")
        for note in (*scan.notes, *(note for volume in volumes for note in volume.notes)):
            console.say(f"note: {console.literal(note)}")
        size = console.size(path.stat().st_size)
        console.say(
            f"{_summary(len(scan.channels), maps)} → {console.literal(path)} ({size}, {time.perf_counter() - started:.1f} s)"
        )
        if self.open:
            webbrowser.open(path.resolve().as_uri())
        return 0


def _summary(channels: int, maps: list[LabelMap]) -> str:
    names = console.literal(", ".join(label_map.name for label_map in maps))
    return f"{channels} channel{'s' * (channels != 1)}, {f'label maps {names}' if maps else 'no label map'}"
