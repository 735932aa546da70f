"""Scans in all supported formats: NIfTI, DICOM, NRRD, MetaImage and Analyze.

Every format is read as a `Volume` with the axes (x, y, z) in the order in which the file stores its voxels; for DICOM these are the
columns, the rows, and the slices along their normal, see dicom_stack.py.
"""

from swinunetr_jax.data.formats.names import EXPECTED, is_image, stem
from swinunetr_jax.data.formats.read import read_geometry, read_labels, read_volume
from swinunetr_jax.data.formats.read_dicom import read_dicom_header
from swinunetr_jax.data.formats.scan_files import scan_files, scan_status

__all__ = [
    "EXPECTED",
    "is_image",
    "read_dicom_header",
    "read_geometry",
    "read_labels",
    "read_volume",
    "scan_files",
    "scan_status",
    "stem",
]
