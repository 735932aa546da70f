"""A DICOM series of a small scan, with a patient, as the source of segmentations."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from swinunetr_jax.data.nifti import Volume

PATIENT = {"PatientName": "Müller^Jörg", "PatientID": "17-42", "PatientBirthDate": "19700203", "PatientSex": "M"}
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write_series(folder: Path, array: np.ndarray, affine: np.ndarray) -> Volume:
    """Writes int16 [x, y, z] as a series whose files are not in the order of their planes, and returns it as a volume."""
    folder.mkdir(parents=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    lps, spacing = LPS @ affine, np.linalg.norm(affine[:3, :3], axis=0)
    paths = []
    for z in range(array.shape[2]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, generate_uid()
        plane = Dataset()
        plane.file_meta, plane.SpecificCharacterSet = meta, "ISO_IR 100"
        plane.SOPClassUID, plane.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        plane.StudyInstanceUID, plane.SeriesInstanceUID, plane.FrameOfReferenceUID = study, series, frame
        plane.Modality, plane.SeriesNumber, plane.InstanceNumber = "MR", 3, z + 1
        for name, value in PATIENT.items():
            setattr(plane, name, value)
        plane.Columns, plane.Rows = array.shape[:2]
        plane.ImagePositionPatient = (lps @ [0, 0, z, 1])[:3].round(6).tolist()
        plane.ImageOrientationPatient = (lps[:3, :2] / spacing[:2]).T.round(8).ravel().tolist()
        plane.PixelSpacing, plane.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        plane.BitsAllocated = plane.BitsStored = 16
        plane.HighBit, plane.PixelRepresentation, plane.SamplesPerPixel = 15, 1, 1
        plane.PhotometricInterpretation = "MONOCHROME2"
        plane.PixelData = np.ascontiguousarray(array[..., z].T, np.int16).tobytes()
        path = folder / f"{(z * 7) % 100:02d}.dcm"
        plane.save_as(path, enforce_file_format=True)
        paths.append(path)
    header = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), affine).header
    return Volume(array.astype(np.float32), affine, header, folder, tuple(paths))


def masks_by_hand(path: Path) -> dict[int, dict[tuple[float, ...], np.ndarray]]:
    """Returns the masks [row, column] of a DICOM-SEG by segment number and position of the frame, read without highdicom."""
    dataset = pydicom.dcmread(path)
    frames = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
    frames = frames[: dataset.NumberOfFrames * dataset.Rows * dataset.Columns].reshape(-1, dataset.Rows, dataset.Columns)
    masks: dict[int, dict[tuple[float, ...], np.ndarray]] = {}
    for group, frame in zip(dataset.PerFrameFunctionalGroupsSequence, frames):
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        position = tuple(map(float, group.PlanePositionSequence[0].ImagePositionPatient))
        masks.setdefault(number, {})[position] = frame
    return masks
