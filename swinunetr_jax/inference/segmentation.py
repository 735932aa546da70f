"""The result of a segmentation: label map, probabilities and volumes on the scan's own grid, which can be saved and shown."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from swinunetr_jax import console, files
from swinunetr_jax.data.nifti import Volume, write_volume
from swinunetr_jax.errors import InputError
from swinunetr_jax.inference.label_files import LABEL_ENDINGS, generic_note, write_labels
from swinunetr_jax.inference.passes import Uncertainty
from swinunetr_jax.statistics import LabelStatistics, label_statistics
from swinunetr_jax.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from swinunetr_jax.viewer import Contents, Frame


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The result for a case. All arrays have the scan's own grid.

    Attributes:
        labels: the label map, uint8 [x, y, z].
        probabilities: float32 [x, y, z, c], or None if they were not requested.
        scan: the image of the first channel, whose grid the results have.
        task: the meaning of the labels.
        windows: the number of windows.
        notes: sentences for the user.
        uncertainty: that of the members, if it was requested.
        background_windows: the number of windows that held nothing but background, whose common result was computed once.
        channels: the images [x, y, z] by name in the network's order, as they were read.
        warnings: sentences on what is implausible about the scan or the result.
    """

    labels: np.ndarray
    probabilities: np.ndarray | None
    scan: Volume
    task: Task
    windows: int
    notes: tuple[str, ...]
    uncertainty: Uncertainty | None = None
    background_windows: int = 0
    channels: dict[str, np.ndarray] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def affine(self) -> np.ndarray:
        """The affine of the label map, [4, 4]: it maps indices to mm, with x to the right, y to the front and z upwards."""
        return self.scan.affine

    @property
    def volumes_ml(self) -> dict[str, float]:
        """The volume in ml of each output except the background in the label map, computed as in `evaluate`."""
        voxel_ml = abs(np.linalg.det(self.affine[:3, :3])) / 1000
        counts = np.bincount(self.labels.ravel("K"), minlength=256)
        return {
            output.name: round(float(sum(counts[value] for value in self.task.labels_of(output)) * voxel_ml), 3)
            for output in self.task.outputs
            if output.value
        }

    def statistics(self) -> tuple[LabelStatistics, ...]:
        """Returns the volume, components, bounding box and intensities of each output except the background."""
        return label_statistics(self.labels, self.affine, self.task, self.channels)

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Writes the label map in the format of the ending, and returns the path.

        NIfTI (.nii, .nii.gz) has the scan's affine and header codes, NRRD (.nrrd; .seg.nrrd for 3D Slicer) also names and colours, and
        DICOM-SEG (.dcm) also codes, the patient and references to the DICOM files that the scan was read from.

        Args:
            path: the file.
            overwrite: replace an existing file.

        Raises:
            InputError: the file exists, has another ending, is the scan itself, or cannot be written; DICOM-SEG is requested for a scan in
                another format; or the library of the format is missing.
        """
        path = write_labels(_new_file(path, overwrite, LABEL_ENDINGS), self.labels, self.scan, self.task)
        if path.name.lower().endswith(".dcm") and (note := generic_note(self.task)):
            console.say(f"note: {console.literal(note)}")
        return path

    def save_probabilities(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Writes the probabilities as a 4-D NIfTI file, with the arguments and errors of `save`."""
        if self.probabilities is None:
            raise InputError("the probabilities were not requested: segment with `probabilities=True`.")
        return write_volume(_new_file(path, overwrite), self.probabilities, self.scan, np.float32)

    def save_picture(self, path: str | os.PathLike, title: str = "", *, overwrite: bool = False) -> Path:
        """Writes three slices with and without the labels as PNG, with the errors of `save`."""
        from swinunetr_jax.viz.preview import write_preview

        path = _new_file(path, overwrite, (".png",))
        image = self.scan.array if self.scan.array.ndim == 3 else self.scan.array[..., 0]
        write_preview(path, image, self.labels, self.scan, self.task, title)
        return path

    def show(self, title: str = "") -> Figure:
        """Returns the picture of `save_picture` as a figure of matplotlib, which a notebook displays as the value of a cell."""
        from swinunetr_jax.viz.figures import literal_text
        from swinunetr_jax.viz.preview import preview_figure

        image = self.scan.array if self.scan.array.ndim == 3 else self.scan.array[..., 0]
        with literal_text():
            figure = preview_figure(image, self.labels, self.affine, self.task, title)
            figure.canvas.draw()  # the layout and the text are settled while text is literal
        return figure

    def viewer_page(self, title: str) -> Contents:
        """Returns the contents of the page that shows the scan and the label map in a browser.

        Raises:
            InputError: the scan is too large for browsers.
        """
        from swinunetr_jax.viewer import LabelMap, viewer_contents

        return viewer_contents(self.channels, self.affine, [LabelMap("prediction", self.labels)], title=title, task=self.task)

    def save_viewer(self, path: str | os.PathLike, title: str = "scan", *, overwrite: bool = False) -> Path:
        """Writes the page of `viewer_page` as one HTML file, with the errors of `save`."""
        from swinunetr_jax.viewer import write_page

        return write_page(_new_file(path, overwrite, (".html", ".htm")), self.viewer_page(title))

    def show_viewer(self, title: str = "scan") -> Frame:
        """Returns the page of `viewer_page`, which a notebook displays in a frame as the value of a cell."""
        from swinunetr_jax.viewer import Frame

        return Frame(self.viewer_page(title))

    def __repr__(self) -> str:
        volumes = ", ".join(f"{name} {ml:.1f} ml" for name, ml in self.volumes_ml.items())
        return f"Segmentation({'×'.join(map(str, self.labels.shape))} voxels: {volumes})"


def _new_file(path: str | os.PathLike, overwrite: bool, endings: tuple[str, ...] = (".nii", ".nii.gz")) -> Path:
    path = Path(path)
    if not path.name.lower().endswith(endings):
        raise InputError(f"{path}: the ending is not supported, expected {' or '.join(endings)}.")
    if not overwrite and files.exists(path):
        raise InputError(f"{path} exists already: choose another name, or overwrite it.")
    return path
