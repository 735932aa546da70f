"""NIfTI files: reading with strict checks, grids and orientations, and writing on the grid of another volume."""

from swinunetr_jax.data.nifti.memory import volume_in_memory
from swinunetr_jax.data.nifti.reorient import InverseReorient, on_grid_of, reorient
from swinunetr_jax.data.nifti.volume import Volume, check_same_grid, read_geometry, read_labels, read_volume
from swinunetr_jax.data.nifti.write import write_volume

__all__ = [
    "InverseReorient",
    "Volume",
    "check_same_grid",
    "on_grid_of",
    "read_geometry",
    "read_labels",
    "read_volume",
    "reorient",
    "volume_in_memory",
    "write_volume",
]
