"""The augmentation in a run.

The tests cover the crops that the host hands over, the augmentation program that runs before the training step, and what
depends on the data.
"""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.refusals import refused
from helpers.training_cases import BRATS, prepare, write_case

from swinunetr_jax import Task
from swinunetr_jax.augment import Augmentation, GaussianBlur, Mirror, Rotation, Run, Scaling, nnunet_augmentation
from swinunetr_jax.data.augment.class_share import ClassShare
from swinunetr_jax.data.augment.crops import CropByClass, CropByLabel, ForegroundCrop, RandomCrop, SourceCrop
from swinunetr_jax.data.augment.intensity import MeasureNonzero, NormalizeNonzero, ScaleWindow
from swinunetr_jax.data.augment.transforms import brats_recipe
from swinunetr_jax.data.pipeline import TrainingData
from swinunetr_jax.data.prepare.cache import PreparedCase
from swinunetr_jax.runtime.sharding import device_mesh
from swinunetr_jax.runtime.strategies import JitStrategy
from swinunetr_jax.training import Devices, Recipe
from swinunetr_jax.training.augmentation import device_augmentation, normalized, sample_augmentation, source_crop, thin_axis
from swinunetr_jax.training.data import Cases, batches
from swinunetr_jax.training.recipes.brats21 import RECIPE as BRATS21

ROOT = Path(__file__).parents[1]
SIZE, SAMPLES = (16, 8, 8), 8
# A few transforms suffice to see whether a sample's result depends on the number of samples.
TRANSFORMS = (Rotation(probability=0.7), Scaling(probability=0.7), GaussianBlur(0.7), Mirror())
TASK = Task.classes(3, roi=(32, 32, 32))
RECIPE = Recipe(kind="labels", augment=Augmentation(TRANSFORMS), epochs=100)


# ---- on the host


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[PreparedCase]:
    folder = tmp_path_factory.mktemp("cases")
    written = [write_case(folder / "data", name, seed) for seed, name in enumerate("ab")]
    return prepare(written, folder / "cache", dtype="float16")


def take(cases, count=3, start=0, **options):
    """Returns raw batches of crops of 12x8x8 around crops of 8x4x4."""
    crop = SourceCrop(RandomCrop((8, 4, 4), ForegroundCrop()), (12, 8, 8))
    data = TrainingData(cases, [crop], batch=2, seed=3, raw=True, **options)
    data.set_state({"step": start})
    try:
        return [{name: np.array(value) for name, value in next(data).items()} for _ in range(count)]
    finally:
        data.close()


def test_the_host_hands_over_float16_and_the_statistics(cases):
    for batch in take(cases):
        assert batch["image"].shape == (2, 12, 8, 8, 2) and batch["image"].dtype == np.float16
        assert batch["label"].shape == (2, 12, 8, 8) and batch["label"].dtype == np.uint8
        assert batch["statistics"].shape == (2, 3, 2) and batch["statistics"].dtype == np.float32
        assert set(np.unique(batch["image"])) - {0} <= set(np.unique([case.image for case in cases]))


def test_crops_do_not_depend_on_workers_or_interruptions(cases):
    uninterrupted = take(cases)
    for repeated in (take(cases, workers=1), uninterrupted[:1] + take(cases, 2, start=1)):
        for expected, batch in zip(uninterrupted, repeated, strict=True):
            assert all(np.array_equal(batch[name], expected[name]) for name in expected)


def test_processes_together_have_the_crops_and_the_numbers_of_one_process(cases):
    shares = [take(cases, process=process, processes=2) for process in range(2)]
    for step, expected in enumerate(take(cases)):
        for name in expected:
            np.testing.assert_array_equal(expected[name], np.concatenate([share[step][name] for share in shares]))
        assert expected["sample"].tolist() == [2 * step, 2 * step + 1] and expected["sample"].dtype == np.int32


def test_the_centre_of_a_source_is_the_crop():
    rng = np.random.default_rng(0)
    image = rng.gamma(3, 40, (20, 18, 16, 2)).astype(np.float32)
    label = (rng.random(image.shape[:3]) < 0.1).astype(np.uint8)
    example = {"image": image, "label": label}
    for crop in (RandomCrop((8, 7, 24)), CropByLabel((8, 7, 24), above=0.0)):
        source = SourceCrop(crop, (12, 13, 32))
        small, large = crop(example, np.random.default_rng(5)), source(example, np.random.default_rng(5))
        for name in ("image", "label"):
            assert large[name].shape[:3] == (12, 13, 32)
            np.testing.assert_array_equal(large[name][2:10, 3:10, 4:28], small[name])


def test_intensities_are_normalised_as_on_the_host(cases):
    example = cases[0].example()
    batch = take(cases, 1)[0]
    sample = {"image": np.asarray(example["image"]), "statistics": batch["statistics"][list(batch["case"]).index(0)]}
    theirs = NormalizeNonzero(measured=True)(MeasureNonzero()(example))["image"]
    np.testing.assert_allclose(normalized(sample, BRATS), theirs, atol=1e-6)
    windowed = ScaleWindow(-100, 500)(example)["image"]
    task = Task.classes(2, intensity="window", window=(-100, 500))
    np.testing.assert_allclose(normalized(sample, task), windowed, atol=1e-6)
    already_normalized = {"image": theirs}  # the recipe's own transforms have normalised it
    np.testing.assert_array_equal(normalized(already_normalized, BRATS), theirs)


def test_the_recipe_of_the_paper_has_no_augmentation_on_the_device(cases):
    task = replace(BRATS, roi=(128, 128, 128))
    affines = [case.affine for case in cases]
    assert sample_augmentation(BRATS21, task, affines, passes=300) is None
    assert device_augmentation(BRATS21, task, None, JitStrategy(device_mesh(1)))({"image": 3}) == {"image": 3}
    roi = (32, 32, 64)
    small = replace(BRATS, roi=roi)
    data = batches(replace(BRATS21, workers=0, roi=roi), Cases(small, 2, tuple(cases), (), (0, 1, 2)))
    wanted = TrainingData(cases, brats_recipe(roi), batch=1, seed=0)
    for _ in range(3):
        batch, expected = next(data), next(wanted)
        assert set(batch) == {"image", "label", "case", "sample"} and all(
            np.array_equal(batch[name], expected[name]) for name in batch
        )
    data.close(), wanted.close()


# ---- what depends on the data


def test_an_axis_along_which_labels_name_sides_is_not_mirrored(capsys):
    sided = Task.from_labels({"background": 0, "kidney_left": 1, "kidney_right": 2}, None, roi=(32, 32, 32))
    sample = sample_augmentation(RECIPE, sided, [np.eye(4)], passes=100)
    assert sample.transforms[-1].axes == (1, 2) and sample.labels == (0, 1, 2)
    printed = capsys.readouterr().out
    assert "samples are not mirrored along axis 0 (left-right: kidney_left, kidney_right)" in printed
    assert "Mirror(axes=…) in the recipe chooses other axes" in printed and "--augment" not in printed
    chosen = replace(RECIPE, augment=Augmentation((Mirror(axes=(0,)),)))
    assert sample_augmentation(chosen, sided, [np.eye(4)], passes=1).transforms[0].axes == (0,)
    assert "as Mirror(axes=…) in the recipe asks" in capsys.readouterr().err
    assert sample_augmentation(RECIPE, TASK, [np.eye(4)], passes=1).transforms[-1].axes == ()
    assert "Mirror(axes=(0, 1, 2)) in the recipe mirrors them nevertheless" in capsys.readouterr().out


def test_samples_with_a_thin_axis_rotate_only_in_the_plane(capsys):
    thick = [np.diag([1.0, 1, 5, 1])] * 3
    sample = sample_augmentation(RECIPE, TASK, thick, passes=100)
    rotation, scaling = sample.transforms[:2]
    assert (rotation.axes, rotation.degrees, scaling.axes) == ((2,), 180, (0, 1)) and sample.source_size == (40, 40, 32)
    assert (
        "only the plane of the other two axes is changed by Rotation, Scaling" in (printed := capsys.readouterr().out)
        and "axis 2" in printed
    )
    with refused("samples cannot be rotated about axis 0"):
        sample_augmentation(replace(RECIPE, augment=Augmentation((Rotation(axes=(0,)),))), TASK, thick, passes=100)
    assert thin_axis((128, 128, 32), [np.eye(4)]) == 2 and thin_axis((96, 96, 32), [np.eye(4)]) is None
    assert thin_axis((32, 32, 32), [np.eye(4), *thick]) == 2 and thin_axis((32, 32, 32), [np.eye(4)]) is None
    assert sample_augmentation(RECIPE, TASK, [np.eye(4)], passes=100).transforms[0].axes == (0, 1, 2)


def test_crops_are_in_the_foreground_or_around_labels():
    sample = sample_augmentation(RECIPE, TASK, [np.eye(4)], passes=100)
    assert source_crop(TASK, sample) == SourceCrop(RandomCrop((32, 32, 32), ForegroundCrop()), (40, 40, 40))
    by_class = ClassShare(0.33, 2)
    assert source_crop(TASK, sample, by_class).crop == CropByClass(source_crop(TASK, sample).crop, by_class)
    ct = Task.classes(2, intensity="window", window=(-175.0, 250.0), roi=(32, 32, 32))
    source = source_crop(ct, sample_augmentation(RECIPE, ct, [np.eye(4)], passes=100))
    assert isinstance(source.crop, CropByLabel) and source.crop.fill == -175
    assert sample.masked and not sample_augmentation(RECIPE, ct, [np.eye(4)], passes=100).masked


def test_the_devices_of_a_volume_must_share_the_source_evenly():
    shared = replace(RECIPE, devices=Devices(spatial_shards=16))
    with refused("16 devices cannot share the 40 voxels of a crop before its augmentation evenly"):
        sample_augmentation(shared, TASK, [np.eye(4)], passes=100)
    with refused("with `devices.pmap` each device has only its own samples"):
        replace(RECIPE, devices=Devices(pmap=True)).check()
    RECIPE.check()


# ---- on several devices


@pytest.mark.long
def test_samples_are_the_same_bits_on_any_number_of_devices():
    # The options by which other tests compile faster change how operations are fused, and with it the last bits.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["changed"] and len(set(result["digests"].values())) == 1, result["digests"]


def on_devices() -> dict:
    """Returns digests of an augmented batch for several numbers of devices, and for the same samples one at a time."""
    recipe = replace(RECIPE, batch=SAMPLES, seed=5)
    sample = recipe.augment.for_run(Run(), SIZE, (0, 1, 2), masked=True)
    rng = np.random.default_rng(0)
    image = rng.gamma(3, 40, (SAMPLES, *sample.source_size, 1)).astype(np.float16)
    label = rng.integers(0, 3, image.shape[:4]).astype(np.uint8)
    statistics = np.tile(np.array([120, 0.01, 0], np.float32)[:, None], (SAMPLES, 1, 1))
    numbers = np.arange(100, 100 + SAMPLES, dtype=np.int32)
    batch = {"image": image, "label": label, "statistics": statistics, "sample": numbers}
    digests, results = {}, {}
    for data, spatial, part in ((1, 1, SAMPLES), (2, 1, SAMPLES), (8, 1, SAMPLES), (2, 2, SAMPLES), (1, 1, 1)):
        strategy = JitStrategy(device_mesh(part, spatial, jax.devices()[: data * spatial]))
        run = device_augmentation(recipe, TASK, sample, strategy)
        parts = [
            run(strategy.shard_batch({name: array[first : first + part] for name, array in batch.items()}))
            for first in range(0, SAMPLES, part)
        ]
        name = f"{data}x{spatial}, batches of {part}"
        results = {key: np.concatenate([np.asarray(one[key]) for one in parts]) for key in ("image", "label", "sample")}
        assert results["image"].dtype == np.float32 and results["image"].shape == (SAMPLES, *SIZE, 1)
        digests[name] = hashlib.sha256(b"".join(array.tobytes() for array in results.values())).hexdigest()
    return {"digests": digests, "changed": len({array.tobytes() for array in results["image"]}) == SAMPLES}


def test_the_default_augmentation_is_that_of_nnunet():
    names = " ".join(type(transform).__name__ for transform in nnunet_augmentation().transforms)
    assert names == "Rotation Scaling GaussianNoise GaussianBlur Brightness Contrast LowResolution Gamma Gamma Mirror"
    probabilities = [transform.probability for transform in nnunet_augmentation().transforms]
    assert probabilities == [0.2, 0.2, 0.1, 0.2, 0.15, 0.15, 0.25, 0.1, 0.3, 0.5]


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    print(json.dumps(on_devices()))
