"""The published weights of Swin UNETR: where they are, and what is known about them.

An address, a licence or a checksum is here only if it was read in the file that `source` names. What that file does not state is None.
"""

from dataclasses import dataclass

_RELEASE = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1"
_CODE = "https://github.com/Project-MONAI/research-contributions/blob"
_RESEARCH = f"{_CODE}/07c7070545603dd3df313cfb0558226761241f1f/SwinUNETR"
_PRETRAIN = f"{_CODE}/57c3c8331c07a9e2bd2f2d19a830dabc21715766/SwinUNETR/Pretrain/README.md"
_ZOO = (
    "https://github.com/Project-MONAI/model-zoo/blob/34338a0a9a72d48d1686f7e55f3de008333e72f9/models/swin_unetr_btcv_segmentation"
)


@dataclass(frozen=True)
class Published:
    """A file with published weights.

    Attributes:
        name: a short name.
        about: what it is, with the score that the source states.
        address: where it can be downloaded.
        source: the file that states the address and the other facts.
        licence: the licence of the weights, None if the source states none.
        checksum: the algorithm and the digest, None if the source states none.
        preset: the preset with which `predict` takes it, None for an encoder alone.
    """

    name: str
    about: str
    address: str
    source: str
    licence: str | None = None
    checksum: str | None = None
    preset: str | None = None

    @property
    def use(self) -> str:
        """The command that uses the file."""
        file = self.address.rpartition("/")[2]
        if self.preset is not None:
            return f"swinunetr predict -i SCANS -o RESULTS -m {file} --preset {self.preset}"
        return f"swinunetr train msd --data DATA --init.checkpoint {file} --init.encoder-only --init.downsample legacy"


def _brats(fold: int, dice: str) -> Published:
    file = f"fold{fold}_f48_ep300_4gpu_dice0_{dice.replace('.', '')}.zip"
    about = f"BraTS 2021, fold {fold}: 48 features, 4 channels, 3 regions; mean Dice {dice}"
    return Published(f"brats21-fold{fold}", about, f"{_RELEASE}/{file}", f"{_RESEARCH}/BRATS21/README.md", preset="brats21")


def _btcv(name: str, file: str, features: int, dice: str) -> Published:
    about = f"BTCV, 13 abdominal organs in CT: {features} features, 1 channel, 14 classes; Dice {dice} with an overlap of 0.5"
    return Published(f"btcv-{name}", about, f"{_RELEASE}/{file}", f"{_RESEARCH}/BTCV/README.md", preset="btcv")


PUBLISHED = (
    _brats(0, "88.54"),
    _brats(1, "90.59"),
    _brats(2, "89.81"),
    _brats(3, "89.24"),
    _brats(4, "90.35"),
    _btcv("base", "swin_unetr.base_5000ep_f48_lr2e-4_pretrained.pt", 48, "81.86"),
    _btcv("small", "swin_unetr.small_5000ep_f24_lr2e-4_pretrained.pt", 24, "79.34"),
    _btcv("tiny", "swin_unetr.tiny_5000ep_f12_lr2e-4_pretrained.pt", 12, "70.35"),
    Published(
        "btcv-zoo",
        "BTCV, of MONAI's model zoo (bundle version 0.5.6): 48 features, 1 channel, 14 classes; mean Dice 0.82",
        "https://developer.download.nvidia.com/assets/Clara/monai/tutorials/model_zoo/model_swin_unetr_btcv_segmentation_v1.pt",
        f"{_ZOO}/large_files.yml",
        licence="Apache-2.0, by the bundle's docs/README.md",
        checksum="MD5 50dd67a01b28a1d5487fd9ac27e682fb",
        preset="btcv",
    ),
    Published(
        "ssl",
        "Swin encoder, pre-trained without labels on about 5,050 CT scans: 48 features, 1 channel",
        f"{_RELEASE}/model_swinvit.pt",
        _PRETRAIN,
    ),
    Published(
        "ssl-whole",
        "Swin UNETR, pre-trained without labels, as MONAI's filter_swinunetr takes it: 48 features, 1 channel",
        f"{_RELEASE}/ssl_pretrained_weights.pth",
        "MONAI 1.6.1, docstring of monai.networks.nets.swin_unetr.filter_swinunetr",
    ),
)
