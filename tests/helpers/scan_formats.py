"""Writes one scan, int16 [x, y, z] with an orthogonal affine in RAS, in every format that can be read. DICOM is written by pydicom."""

import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage

NAME, ID, BIRTH = "Zebedee^Quentin", "PID-770315", "19770315"  # personal data that no result may hold
SCAN = np.random.default_rng(0).integers(-500, 2000, (11, 9, 7), dtype=np.int16)
AFFINE = np.array([[-0.9, 0, 0, 50], [0, 1.1, 0, -30], [0, 0, 3, 10], [0, 0, 0, 1.0]])  # LAS, left-handed
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def write(kind: str, folder: Path, array: np.ndarray = SCAN, affine: np.ndarray = AFFINE) -> Path:
    """Writes a scan in a format, and returns its path."""
    if kind == "series":
        return write_series(folder / "series", array, affine)
    if kind == "enhanced":
        return write_enhanced(folder / "enhanced.dcm", array, affine)
    if kind == "zip":
        return write_zip(folder / "scan.zip", write_series(folder / "series", array, affine))
    if kind == "hdr":
        return write_pair(folder / "scan.hdr", array, affine)
    if kind == "nii.gz":
        return write_nifti(folder / "scan.nii.gz", array, affine)
    return write_itk(folder / f"scan.{kind}", array, affine, compressed=kind in ("mha", "nrrd"))


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def write_pair(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Pair(array, affine), path)
    return path


def write_itk(path: Path, array: np.ndarray, affine: np.ndarray, compressed: bool = False) -> Path:
    """Writes a file whose ending is .nrrd, .nhdr, .mha or .mhd."""
    image = sitk.GetImageFromArray(np.moveaxis(array, (0, 1, 2), (2, 1, 0)), isVector=array.ndim == 4)
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path), compressed)
    return path


def dataset(array: np.ndarray, affine: np.ndarray, index: int, **changes) -> Dataset:
    """Returns the slice z = `index` as a classic MR image. `changes` are attributes; None removes one."""
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = _common(array[:, :, index], ID)
    image.SOPClassUID = CTImageStorage if changes.get("Modality") == "CT" else MRImageStorage
    image.SOPInstanceUID = f"1.2.3.4.{index + 1}"
    image.InstanceNumber = index + 1
    image.ImageType = ["ORIGINAL", "PRIMARY"]
    image.PixelSpacing = [_text(spacing[1]), _text(spacing[0])]
    image.SliceThickness = _text(spacing[2])
    image.ImageOrientationPatient = [_text(v) for axis in (0, 1) for v in lps[:3, axis] / spacing[axis]]
    image.ImagePositionPatient = [_text(v) for v in lps[:3, 3] + index * lps[:3, 2]]
    for name, value in changes.items():
        if value is None:
            delattr(image, name)
        else:
            setattr(image, name, value)
    image.file_meta.MediaStorageSOPClassUID, image.file_meta.MediaStorageSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    return image


def write_series(folder: Path, array: np.ndarray, affine: np.ndarray, **changes) -> Path:
    """Writes a classic series. The names of the files are not in the order of the slices."""
    folder.mkdir(parents=True, exist_ok=True)
    count = array.shape[2]
    for index in range(count):
        dataset(array, affine, index, **changes).save_as(folder / f"IM{(index * 7 + 3) % 1000:04d}.dcm", enforce_file_format=True)
    assert len(list(folder.iterdir())) == count
    return folder


def write_enhanced(path: Path, array: np.ndarray, affine: np.ndarray, scales: list[tuple[float, float]] | None = None) -> Path:
    """Writes a multi-frame file, whose frames are in reverse order. `scales` holds the slope and intercept of each slice."""
    lps = LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    order = list(reversed(range(array.shape[2])))
    image = _common(array[:, :, order], ID)
    image.SOPClassUID, image.SOPInstanceUID = EnhancedMRImageStorage, "1.2.3.5.1"
    image.NumberOfFrames = len(order)
    image.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [_text(spacing[1]), _text(spacing[0])], _text(spacing[2])
    measures.SpacingBetweenSlices = _text(spacing[2])
    orientation.ImageOrientationPatient = [_text(v) for axis in (0, 1) for v in lps[:3, axis] / spacing[axis]]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    image.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for position, index in enumerate(order):
        frame, place, content = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [_text(v) for v in lps[:3, 3] + index * lps[:3, 2]]
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", position + 1, [1, position + 1]
        frame.PlanePositionSequence, frame.FrameContentSequence = [place], [content]
        if scales is not None:
            values = Dataset()
            values.RescaleSlope, values.RescaleIntercept, values.RescaleType = *map(_text, scales[index]), "US"
            frame.PixelValueTransformationSequence = [values]
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = frames
    image.file_meta.MediaStorageSOPClassUID, image.file_meta.MediaStorageSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    image.save_as(path, enforce_file_format=True)
    return path


def write_zip(path: Path, folder: Path) -> Path:
    """Writes the files below a folder, whose own name is part of their paths."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder.parent))
    return path


def compress_by_gdcm(image: Dataset, pixels: np.ndarray, compressor: str, scratch: Path) -> None:
    """Replaces the pixels [x, y] of a dataset by those that GDCM has compressed, "JPEG" (lossless) or "JPEG2000"."""
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.SetFileName(str(scratch))
    writer.Execute(sitk.GetImageFromArray(pixels.T))
    compressed = dcmread(scratch)
    image.PixelData, image.file_meta.TransferSyntaxUID = compressed.PixelData, compressed.file_meta.TransferSyntaxUID
    image["PixelData"].is_undefined_length = True
    for name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(image, name, compressed[name].value)


def _common(pixels: np.ndarray, patient: str) -> Dataset:
    """Returns a dataset with the pixels [x, y] or [x, y, frames], int16, and personal data."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.PatientName, image.PatientID, image.PatientBirthDate = NAME, patient, BIRTH
    image.Modality, image.Manufacturer, image.SeriesNumber = "MR", "none", 1
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.9"
    image.Columns, image.Rows = pixels.shape[:2]
    image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 1
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelData = np.moveaxis(pixels, (0, 1), (-1, -2)).astype("<i2").tobytes()
    return image


def _text(value: float) -> str:
    """Returns a decimal string of at most 16 characters."""
    return f"{value:.10f}"[:16]
