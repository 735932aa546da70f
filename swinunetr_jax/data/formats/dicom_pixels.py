"""The stored values of DICOM images, decoded by GDCM in SimpleITK.

GDCM applies the scale factors of some kinds of images and not of others, and of the first frame to all frames. It therefore gets a file
that holds the pixels alone, without scale factors, and the caller applies those of each image.
"""

import os
from pathlib import Path

import numpy as np

from swinunetr_jax.data.formats.dicom_files import DicomFiles
from swinunetr_jax.data.formats.dicom_header import PIXEL_TAGS, Header
from swinunetr_jax.data.formats.libraries import library
from swinunetr_jax.errors import InputError

_PIXELS = (*PIXEL_TAGS, "PixelData")
_SINGLE, _BYTES, _WORDS = (f"1.2.840.10008.5.1.4.1.1.7{end}" for end in ("", ".2", ".3"))  # secondary captures
_NATIVE = ("", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
# The transfer syntaxes that GDCM decodes: JPEG, JPEG-LS, JPEG 2000 and RLE.
_DECODED = (*(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91)), "1.2.840.10008.1.2.5")


def stored_values(opened: DicomFiles, header: Header, folder: Path) -> np.ndarray:
    """Returns the stored values of all images in a file, [frames, rows, columns].

    Args:
        opened: where the file is.
        header: its header.
        folder: a temporary folder.

    Raises:
        InputError: the file is truncated or damaged, or is compressed in a way that GDCM does not decode.
    """
    pydicom, sitk = library("pydicom", opened.path), library("SimpleITK", opened.path)
    file, image = header.file, header.image
    if header.syntax not in (*_NATIVE, *_DECODED):
        name = pydicom.uid.UID(header.syntax).name
        raise InputError(
            f"{file}: is compressed ({name}), for which there is no decoder here; decompress it, for example with dcmdjpeg."
        )
    count = int(image.get("NumberOfFrames") or 1)
    expected = count * int(image.Rows) * int(image.Columns) * (int(image.BitsAllocated) // 8)
    bare_path = folder / "pixels.dcm"
    try:
        with opened.open(file) as stream:
            dataset = pydicom.dcmread(stream, specific_tags=list(_PIXELS))
        data = dataset.PixelData
        if header.syntax in _NATIVE and len(data) < expected:
            raise EOFError(f"{len(data)} of {expected} bytes")
        bare = pydicom.Dataset()
        for name in _PIXELS:
            if name in dataset:
                bare[name] = dataset[name]
        bare.PhotometricInterpretation = "MONOCHROME2"  # GDCM inverts MONOCHROME1, which only says how a screen shows the values
        bare.file_meta = pydicom.dataset.FileMetaDataset()
        bare.file_meta.TransferSyntaxUID = header.syntax or _NATIVE[1]
        bare.SOPClassUID = _SINGLE if count == 1 else _BYTES if image.BitsAllocated == 8 else _WORDS
        bare.SOPInstanceUID = bare.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
        bare.file_meta.MediaStorageSOPClassUID = bare.SOPClassUID
        bare.save_as(bare_path, enforce_file_format=True)
        array = sitk.GetArrayFromImage(sitk.ReadImage(os.fspath(bare_path), imageIO="GDCMImageIO"))
    except InputError:
        raise
    except Exception as error:  # pydicom and SimpleITK raise many kinds of errors for damaged files
        detail = f" ({error})" if isinstance(error, EOFError) else ""
        raise InputError(
            f"{file}: the pixels cannot be decoded{detail}; the file is truncated or damaged, so get it again."
        ) from error
    finally:
        bare_path.unlink(missing_ok=True)
    if array.size != count * image.Rows * image.Columns:
        raise InputError(f"{file}: {array.shape} pixels were decoded, but the header states {expected} bytes; get it again.")
    return array.reshape(count, image.Rows, image.Columns)
