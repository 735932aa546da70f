"""Compares the speed of the augmentation on the device with other augmentations, on a CPU, and compiles it for TPUs and an H200.

    python -m tools.augment_benchmark                                 # --against batchgeneratorsv2 after `pip install batchgeneratorsv2`
    python -m tools.augment_benchmark --turns 0 --target v5e h200      # needs the compilers that `tools.aot_report` names

The table states the CPU seconds of the process per sample: the median over turns, in which the contenders alternate, and in brackets the
fastest and the slowest turn. Each sample draws its own random parameters, and the figure of a turn is the mean over its samples.

brats_recipe       the transforms of this recipe: crop, normalisation, brightness, mirroring; no rotation
crop               only the crop with the margin, which is the host's part of an augmentation on the device
crop and device    the same crop, and then the program of `nnunet_augmentation`, which runs on the CPU here
monai              MONAI's transforms with the probabilities and ranges of nnU-Net, from the same crop; images are rotated with
                   trilinear interpolation, and labels take the nearest voxel
batchgeneratorsv2  the transforms of nnU-Net's trainer, from the same crop; without the normalisation, which nnU-Net does beforehand

With --target the compiler's figures are printed for one sample to which every transform is applied. An average sample takes less time.
"""

import importlib
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from swinunetr_jax import console
from swinunetr_jax.augment import Run, SampleAugmentation, nnunet_augmentation
from swinunetr_jax.data.augment.crops import ForegroundCrop, RandomCrop, SourceCrop
from swinunetr_jax.data.augment.transforms import brats_recipe
from swinunetr_jax.data.prepare.example import foreground
from swinunetr_jax.data.prepare.intensity import nonzero_statistics
from tools import aot_report, gpu_program
from tools.tpu_estimate import CYCLES_PER_SECOND, estimate

LABELS = (0, 1, 2, 4)


@dataclass
class Options:
    """The programs to measure, and how often."""

    sizes: tuple[tuple[int, int], ...] = ((1, 64), (4, 128))
    """Channels and edge length of the crops."""
    turns: int = 5
    samples: int = 20
    """The number of samples in a turn."""
    against: tuple[Literal["monai", "batchgeneratorsv2"], ...] = ("monai",)
    """Other projects to compare with."""
    target: tuple[Literal["v5e", "v6e", "h200"], ...] = ()
    """Machines to compile for."""


def augmentation(size: int) -> SampleAugmentation:
    return nnunet_augmentation().for_run(Run(), (size, size, size), LABELS, masked=True)


def example(channels: int, size: int) -> dict[str, Any]:
    """Returns a case of noise within a border of zeros. Its axes are 1.5 times as long as those of the crop."""
    edge = size * 3 // 2
    rng = np.random.default_rng(0)
    image = np.zeros((edge, edge, edge, channels), np.float16)
    image[4:-4, 4:-4, 4:-4] = rng.gamma(3, 40, (edge - 8, edge - 8, edge - 8, channels))
    label = rng.choice(np.array(LABELS, np.uint8), image.shape[:3], p=(0.9, 0.05, 0.03, 0.02))
    return {"image": image, "label": label, "statistics": nonzero_statistics(image), "foreground": {0.0: foreground(image, 0.0)}}


def source_crop(size: int) -> SourceCrop:
    return SourceCrop(RandomCrop((size, size, size), ForegroundCrop()), augmentation(size).source_size)


def brats(case: dict[str, Any], size: int) -> Callable[[int], Any]:
    transforms = brats_recipe((size, size, size))

    def run(number: int) -> Any:
        sample, rng = case, np.random.default_rng(number)
        for transform in transforms:
            sample = transform(sample, rng)
        return np.ascontiguousarray(sample["image"]), np.ascontiguousarray(sample["label"])

    return run


def crop_only(case: dict[str, Any], size: int) -> Callable[[int], Any]:
    crop = source_crop(size)

    def run(number: int) -> Any:
        source = crop(case, np.random.default_rng(number))
        finite = np.isfinite(source["image"].sum(dtype=np.float32))  # `TrainingData` tests this, and copies samples to a batch
        return source["image"].copy(), source["label"].copy(), finite

    return run


def device(case: dict[str, Any], size: int) -> Callable[[int], Any]:
    augmenter, crop = augmentation(size), source_crop(size)
    mean, deviation = (jnp.asarray(values, jnp.float32) for values in case["statistics"])

    @jax.jit
    def augment(image: jax.Array, label: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
        normalized = jnp.where(image == 0, 0.0, (image.astype(jnp.float32) - mean) / deviation)
        return augmenter.sample(normalized, label, jax.random.fold_in(jax.random.key(0), number))

    def run(number: int) -> Any:
        source = crop(case, np.random.default_rng(number))
        return jax.block_until_ready(augment(source["image"], source["label"], number))

    return run


def monai(case: dict[str, Any], size: int) -> Callable[[int], Any]:
    import torch

    transforms: Any = importlib.import_module("monai.transforms")  # the module does not declare the names that it exports

    torch.set_num_threads(1)
    crop = source_crop(size)
    keys, angle = ("image", "label"), np.pi / 6
    mean, deviation = case["statistics"]
    transform = transforms.Compose(
        [
            transforms.NormalizeIntensityd("image", subtrahend=mean, divisor=deviation, nonzero=True, channel_wise=True),
            transforms.RandAffined(keys, prob=0.2, rotate_range=(angle,) * 3, mode=("bilinear", "nearest"), padding_mode="zeros"),
            transforms.RandAffined(
                keys, prob=0.2, scale_range=((-0.3, 0.4),) * 3, mode=("bilinear", "nearest"), padding_mode="zeros"
            ),
            transforms.CenterSpatialCropd(keys, (size,) * 3),
            transforms.RandGaussianNoised("image", prob=0.1, std=0.1),
            transforms.RandGaussianSmoothd("image", prob=0.2, sigma_x=(0.5, 1), sigma_y=(0.5, 1), sigma_z=(0.5, 1)),
            transforms.RandScaleIntensityd("image", prob=0.15, factors=0.25, channel_wise=True),
            transforms.RandScaleIntensityFixedMeand("image", prob=0.15, factors=0.25, preserve_range=True),
            transforms.RandSimulateLowResolutiond("image", prob=0.25, zoom_range=(0.5, 1)),
            transforms.RandAdjustContrastd("image", prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
            transforms.RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            *(transforms.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)),
        ]
    )

    def run(number: int) -> Any:
        source = crop(case, np.random.default_rng(number))
        transform.set_random_state(number)
        image = np.ascontiguousarray(np.moveaxis(source["image"], -1, 0), np.float32)
        return transform({"image": image, "label": source["label"][None].astype(np.float32)})

    return run


def batchgenerators(case: dict[str, Any], size: int) -> Callable[[int], Any]:
    import torch

    def load(name: str, module: str) -> Any:
        return getattr(importlib.import_module(f"batchgeneratorsv2.transforms.{module}"), name)

    spatial, sometimes = load("SpatialTransform", "spatial.spatial"), load("RandomTransform", "utils.random")
    factors = load("BGContrast", "intensity.contrast")
    noise, blur = load("GaussianNoiseTransform", "intensity.gaussian_noise"), load("GaussianBlurTransform", "noise.gaussian_blur")
    brightness = load("MultiplicativeBrightnessTransform", "intensity.brightness")
    contrast, gamma = load("ContrastTransform", "intensity.contrast"), load("GammaTransform", "intensity.gamma")
    low_resolution, mirror = (
        load("SimulateLowResolutionTransform", "spatial.low_resolution"),
        load("MirrorTransform", "spatial.mirroring"),
    )
    torch.set_num_threads(1)
    crop, angle = source_crop(size), np.pi / 6
    spatial_transform = spatial(
        (size,) * 3,
        patch_center_dist_from_border=0,
        random_crop=False,
        p_rotation=0.2,
        rotation=(-angle, angle),
        p_scaling=0.2,
        scaling=(0.7, 1.4),
        p_synchronize_scaling_across_axes=1,
    )
    per_channel: dict[str, Any] = {"synchronize_channels": False, "p_per_channel": 1}
    lower_resolution = low_resolution(
        (0.5, 1), synchronize_channels=False, synchronize_axes=True, ignore_axes=(), p_per_channel=0.5
    )
    transforms = [
        spatial_transform,
        sometimes(noise((0, 0.1), p_per_channel=1, synchronize_channels=True), 0.1),
        sometimes(blur((0.5, 1.0), synchronize_channels=False, synchronize_axes=False, p_per_channel=0.5, benchmark=True), 0.2),
        sometimes(brightness(factors((0.75, 1.25)), **per_channel), 0.15),
        sometimes(contrast(factors((0.75, 1.25)), preserve_range=True, **per_channel), 0.15),
        sometimes(lower_resolution, 0.25),
        sometimes(gamma(factors((0.7, 1.5)), p_invert_image=1, p_retain_stats=1, **per_channel), 0.1),
        sometimes(gamma(factors((0.7, 1.5)), p_invert_image=0, p_retain_stats=1, **per_channel), 0.3),
        mirror((0, 1, 2)),
    ]

    def run(number: int) -> Any:
        source = crop(case, np.random.default_rng(number))
        np.random.seed(number)  # the transforms draw from the global generators
        torch.manual_seed(number)
        image = np.ascontiguousarray(np.moveaxis(source["image"], -1, 0), np.float32)
        sample = {"image": torch.from_numpy(image), "segmentation": torch.from_numpy(source["label"][None].astype(np.int16))}
        for transform in transforms:
            sample = transform(**sample)
        return sample

    return run


CONTENDERS = {"brats_recipe": brats, "crop": crop_only, "crop and device": device}
OTHERS = {"monai": monai, "batchgeneratorsv2": batchgenerators}


def contenders(options: Options) -> dict[str, Callable[[dict[str, Any], int], Callable[[int], Any]]]:
    """Returns the contenders by name: functions that build the function to measure."""
    return CONTENDERS | {name: OTHERS[name] for name in options.against}


def measure(channels: int, size: int, options: Options) -> dict[str, list[float]]:
    """Returns the CPU seconds of a sample for each turn, by contender."""
    case = example(channels, size)
    runs = {name: build(case, size) for name, build in contenders(options).items()}
    for run in runs.values():
        run(0)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.turns):
        for name, run in runs.items():
            started = time.process_time()
            for number in range(options.samples):  # the same seeds in each turn, so that only the machine's speed varies
                run(number)
            seconds[name].append((time.process_time() - started) / options.samples)
    return seconds


def compiled(target: str, channels: int, size: int) -> dict[str, Any]:
    """Returns the compiler's figures for the program of one sample on a target."""
    augmenter = augmentation(size)
    placement = jax.sharding.SingleDeviceSharding(aot_report.device(target))
    image = jax.ShapeDtypeStruct((*augmenter.source_size, channels), jnp.float32, sharding=placement)
    label = jax.ShapeDtypeStruct(augmenter.source_size, jnp.uint8, sharding=placement)
    number = jax.ShapeDtypeStruct((), jnp.uint32, sharding=placement)

    def run(image: jax.Array, label: jax.Array, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        return augmenter.sample(image, label, jax.random.fold_in(jax.random.key(0), number))

    program = jax.jit(run).lower(image, label, number).compile(aot_report.COMPILER_OPTIONS.get(target))
    text, cost, memory = program.as_text(), program.cost_analysis() or {}, program.memory_analysis()
    assert text is not None and memory is not None  # compiled programs have both
    figures = {
        "TFLOP": f"{cost.get('flops', 0) / 1e12:.4f}",
        "GB accessed": f"{cost.get('bytes accessed', 0) / 1e9:.2f}",
        "temporaries MB": f"{memory.temp_size_in_bytes / 1e6:.0f}",
    }
    if target in aot_report.TPU:
        time_estimate = estimate(text)
        figures["schedule ms"] = f"{time_estimate.cycles / CYCLES_PER_SECOND[target] * 1e3:.2f}"
        figures["without estimate"] = str(time_estimate.without_estimate)
    else:
        figures["kernels"] = str(gpu_program.read(text)["kernels"])
    return figures


def main(options: Options) -> None:
    if options.turns:
        names = contenders(options)
        print(f"| CPU seconds a sample | {' | '.join(names)} |\n{'| --- ' * (1 + len(names))}|")
        for channels, size in options.sizes:
            seconds = measure(channels, size, options)
            cells = [f"{statistics.median(turns):.3f} ({min(turns):.3f}–{max(turns):.3f})" for turns in seconds.values()]
            print(f"| {channels} × {size}³ | {' | '.join(cells)} |", flush=True)
    for target in options.target:
        for channels, size in options.sizes:
            figures = compiled(target, channels, size)
            print(
                f"{target}, {channels} × {size}³: " + ", ".join(f"{name} {value}" for name, value in figures.items()), flush=True
            )


if __name__ == "__main__":
    console.configure_streams()
    main(tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__))
