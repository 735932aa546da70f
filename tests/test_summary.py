"""The summary of a network: parameters and FLOPs by part."""

import pytest
import torch
from monai.networks.nets import SwinUNETR as MonaiSwinUNETR
from torch.utils.flop_counter import FlopCounterMode

from swinunetr_jax import InputError, SwinUNETR, SwinUNETRConfig

PUBLISHED = [  # parameters of MONAI's networks
    (SwinUNETRConfig.brats21(), 62_191_941),
    (SwinUNETRConfig.btcv(), 62_187_296),
    (SwinUNETRConfig.brats21(use_v2=True), 72_767_301),
    (SwinUNETRConfig(in_channels=1, out_channels=2, spatial_dims=2), 6_302_228),
]


@pytest.mark.parametrize(("config", "parameters"), PUBLISHED)
def test_parameters_are_those_that_were_published(config, parameters):
    assert SwinUNETR.summary_of(config).parameters == parameters


def test_the_forward_pass_of_the_network_for_brats():
    summary = SwinUNETR.summary_of(SwinUNETRConfig.brats21(), (96, 96, 96))
    assert round(summary.flops / 1e12, 2) == 0.64
    shares = {part.name: part.flops / summary.flops for part in summary.parts}
    assert round(shares["encoder1"] + shares["decoder1"], 2) == 0.72
    assert round(sum(share for name, share in shares.items() if name.startswith("swin")), 2) == 0.08
    by_name = {part.name: part for part in summary.parts}
    assert round(by_name["encoder10"].parameters / summary.parameters, 2) == 0.51
    assert by_name["swin.stages.1"].output == (12, 12, 12, 192)
    assert by_name["out"].output == (96, 96, 96, 3)


SETTINGS = [
    ({"spatial_dims": 3, "depths": (2, 1, 1, 1)}, (64, 32, 64)),  # windows are clipped along some axes and padded along others
    ({"spatial_dims": 3, "use_v2": True, "window_size": 4, "depths": (1, 2, 1, 1)}, (32, 64, 32)),
    ({"spatial_dims": 2, "mlp_ratio": 2.0}, (64, 96)),
]


@pytest.mark.parametrize(("options", "shape"), SETTINGS)
def test_flops_are_those_that_torch_counts(options, shape):
    arguments = {"in_channels": 2, "out_channels": 3, "feature_size": 12, **options}
    network = MonaiSwinUNETR(**arguments).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 2, *shape))
    assert SwinUNETR.summary_of(SwinUNETRConfig(**arguments), shape).flops == counter.get_total_flops()


def test_the_table():
    lines = str(SwinUNETR.summary_of(SwinUNETRConfig(in_channels=1, out_channels=2, spatial_dims=2), (64, 64))).splitlines()
    assert lines[0].split() == ["part", "output", "parameters", "GFLOP"]
    assert lines[1].split() == ["swin.patch_embed", "32", "×", "32", "×", "24", "120", "0.0", "%", "0.00", "0.0", "%"]
    assert lines[-1].split()[:3] == ["all", "6,302,228", "100.0"]


def test_hyena_stages_count_their_transforms():
    config = SwinUNETRConfig(in_channels=1, out_channels=2, spatial_dims=2, use_hyena=True, hyena_stages="HAAA")
    windows, hyena = (
        SwinUNETR.summary_of(c, (64, 64)).parts for c in (config.replace(use_hyena=False, hyena_stages=None), config)
    )
    assert windows[2:] == hyena[2:]
    # for each of 2 blocks, 24 channels and 32 × 32 points: projections, short convolution, transforms, kernel network and MLP; then merging
    points, channels, taps = 32 * 32, 24, 31 * 31
    products = points * channels * 4 * channels + points * 9 * 3 * channels + taps * 32 * (2 * 32 + channels) + 62 * 32
    products += 2 * points * channels * 4 * channels
    transforms = 3 * channels * 25_600  # 2.5 n log2 n
    assert hyena[1].flops == 2 * (2 * products + transforms) + 2 * 256 * 96 * 48


def test_a_shape_that_the_network_cannot_take():
    with pytest.raises(InputError, match="multiple of 32"):
        SwinUNETR.summary_of(SwinUNETRConfig.brats21(), (96, 96, 100))
