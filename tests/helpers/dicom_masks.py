"""The masks of a DICOM-SEG, read without highdicom."""

from pathlib import Path

import numpy as np
import pydicom


def masks_by_hand(path: Path) -> dict[int, dict[tuple[float, ...], np.ndarray]]:
    """Returns the masks [row, column] of a DICOM-SEG by segment number and position of the frame."""
    dataset = pydicom.dcmread(path)
    frames = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
    frames = frames[: dataset.NumberOfFrames * dataset.Rows * dataset.Columns].reshape(-1, dataset.Rows, dataset.Columns)
    masks: dict[int, dict[tuple[float, ...], np.ndarray]] = {}
    for group, frame in zip(dataset.PerFrameFunctionalGroupsSequence, frames):
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        position = tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient))
        masks.setdefault(number, {})[position] = frame
    return masks
