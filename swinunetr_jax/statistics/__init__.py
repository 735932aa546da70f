"""Numbers of a label map: volumes, components, boxes and intensities of each label, as JSON for a case and as CSV for a folder."""

from swinunetr_jax.statistics.label_statistics import Intensities, LabelStatistics, label_statistics
from swinunetr_jax.statistics.plausible import implausible
from swinunetr_jax.statistics.tables import CaseStatistics, check_table_free, write_case, write_table

__all__ = [
    "CaseStatistics",
    "Intensities",
    "LabelStatistics",
    "check_table_free",
    "implausible",
    "label_statistics",
    "write_case",
    "write_table",
]
