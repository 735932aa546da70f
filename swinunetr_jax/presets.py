"""What published Swin UNETRs need and their files do not state: the order of patch merging, and the task with the preparation of scans.

The sources are the scripts with which the authors trained and tested them, see `swinunetr weights`.
"""

from dataclasses import dataclass

from swinunetr_jax.errors import InputError
from swinunetr_jax.task import Task


@dataclass(frozen=True)
class Preset:
    """The properties of a published network.

    Attributes:
        name: the name of the preset.
        downsample: the order of patch merging.
        task: channels, outputs, orientation, voxel size, intensities and window.
        sources: the files that state them.
    """

    name: str
    downsample: str
    task: Task
    sources: tuple[str, ...]


_ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic veins",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)
_CODE = "https://github.com/Project-MONAI/research-contributions/blob/{}/SwinUNETR/{}"  # the commit and the file
_TUTORIAL = (
    "https://github.com/Project-MONAI/tutorials/blob/0e05dd4d13e0b4848b56e5e4a8123727ce8adc8c/3d_segmentation/"
    "swin_unetr_brats21_segmentation_3d.ipynb"
)
PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "brats21",
            downsample="legacy",
            # The scripts do not change the orientation of the scans, and those of BraTS are stored as LPS. They normalise non-zero voxels.
            task=Task.brats(roi=(128, 128, 128)),
            sources=(
                _CODE.format("07c7070545603dd3df313cfb0558226761241f1f", "BRATS21/README.md"),
                _CODE.format("21ed8e57c7256834d4fbaf19579ca25ad3d135ee", "BRATS21/test.py"),
                _CODE.format("1243ef5ac5f63c5412c9f01e789497aa64691f0a", "BRATS21/utils/data_utils.py"),
                _TUTORIAL,  # the order of the channels, in the cell of the test set
            ),
        ),
        Preset(
            "btcv",
            downsample="legacy",
            task=Task.classes(
                14,
                ("background", *_ORGANS),
                orientation="RAS",
                spacing=(1.5, 1.5, 2.0),
                intensity="window",
                window=(-175.0, 250.0),
                roi=(96, 96, 96),
            ),
            sources=(
                _CODE.format("07c7070545603dd3df313cfb0558226761241f1f", "BTCV/README.md"),
                _CODE.format("1b750864cb0f72a8baecb8e6adf15413988b71be", "BTCV/main.py"),
                _CODE.format("21ed8e57c7256834d4fbaf19579ca25ad3d135ee", "BTCV/utils/data_utils.py"),
            ),
        ),
    )
}


def find_preset(name: str) -> Preset:
    """Returns the preset of a name. Raises InputError if there is none."""
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}, expected one of {', '.join(PRESETS)}: see `swinunetr weights`.")
    return PRESETS[name]
