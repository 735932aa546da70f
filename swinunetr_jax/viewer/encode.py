"""Scans and label maps as base64 text: gzip-compressed NIfTI with 8 or 16 bits per voxel, for a page.

Intensities are exact if they are integers that fit and the page does not become too large. Otherwise they are rounded to steps, and the
page states the size of a step.
"""

import base64
import gzip
from dataclasses import dataclass

import nibabel as nib
import numpy as np

LEVELS = 4096  # steps between the darkest and the brightest voxels; a screen shows 256 of them at once
MAX_HALVINGS = 4  # of the number of levels, down to 256
EXTREMES = (0.05, 99.95)  # per cent of the voxels that are not 0
COMPRESSION = 5  # of gzip


@dataclass(frozen=True)
class Quantized:
    """Intensities as integers: the intensity is `slope` · integer + `offset`, up to half of `slope` unless `is_exact`.

    `is_clipped` is true if a few voxels are darker or brighter than the integers can state.
    """

    integers: np.ndarray
    slope: float
    offset: float
    is_exact: bool
    is_clipped: bool


def quantized(image: np.ndarray, halvings: int = 0) -> Quantized:
    """Returns an image [x, y, z] with 16 bits per voxel, or 8 bits if they suffice.

    Args:
        image: the intensities.
        halvings: how often the number of levels is halved, at most `MAX_HALVINGS`. With each of them a compressed page has about one bit
            less per voxel.
    """
    low, high = float(image.min()), float(image.max())
    if not high > low:
        return Quantized(np.zeros(image.shape, np.uint8), 1.0, low, True, False)
    integral = np.array_equal(image, np.rint(image))
    if integral and high - low <= 255:
        return Quantized((image - low).astype(np.uint8), 1.0, low, True, False)
    exact = Quantized(image.astype(np.int16), 1.0, 0.0, True, False) if integral and low >= -(2**15) and high < 2**15 else None
    if exact is not None and halvings == 0:
        return exact
    darkest, brightest = np.percentile(image[image != 0], EXTREMES)
    darkest = min(float(darkest), 0.0) if low <= 0 else float(darkest)
    shown = max(float(brightest) - darkest, float(np.finfo(np.float32).tiny))
    slope = shown / ((LEVELS >> halvings) - 1)
    if exact is not None:
        step = 2**halvings
        if slope <= 1 and halvings == MAX_HALVINGS:  # a screen shows fewer levels than there are integers
            return exact
        if halvings < MAX_HALVINGS:
            steps = np.rint(image / np.float32(step)).astype(np.int16)
            return Quantized(steps, float(step), 0.0, False, False) if step <= shown / 255 else quantized(image, MAX_HALVINGS)
    kind = np.iinfo(np.uint8 if halvings == MAX_HALVINGS else np.int16)
    # 0, which is the background of most scans, is one of the steps.
    is_far = max(-low, high) / slope > kind.max  # from 0
    offset = np.floor(darkest / slope) * slope if halvings == MAX_HALVINGS or is_far else 0.0
    integers = np.rint((image - np.float32(offset)) / np.float32(slope))
    is_clipped = bool(integers.min() < kind.min or integers.max() > kind.max)
    return Quantized(np.clip(integers, kind.min, kind.max).astype(kind.dtype), slope, float(offset), False, is_clipped)


def nifti_base64(array: np.ndarray, affine: np.ndarray, slope: float = 1.0, offset: float = 0.0) -> str:
    """Returns integers [x, y, z] as base64 of a gzip-compressed NIfTI file, which holds nothing else of the scan's header."""
    header = nib.Nifti1Header()
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="unknown", strip_shears=True)
    header.set_slope_inter(slope, offset)
    header.set_data_offset(header.single_vox_offset)
    raw = header.binaryblock + bytes(4) + array.tobytes("F")
    return base64.b64encode(gzip.compress(raw, COMPRESSION, mtime=0)).decode("ascii")
