"""The results of transforms equal those computed by hand, and those of MONAI for the same input and the same random numbers."""

import numpy as np
import pytest
from helpers.refusals import refused

from swinunetr_jax.data.augment.crops import CropByLabel, ForegroundCrop, RandomCrop, read_region
from swinunetr_jax.data.augment.intensity import MeasureNonzero, NormalizeNonzero, ScaleIntensity, ScaleWindow, ShiftIntensity
from swinunetr_jax.data.augment.transforms import RandomFlip, RandomRotate90, brats_recipe, ct_recipe
from swinunetr_jax.data.prepare.example import foreground
from swinunetr_jax.data.prepare.intensity import nonzero_statistics, zscore_nonzero

SHAPE = (13, 10, 9)


def example(shape=SHAPE, channels=2, seed=0, frame=2):
    """Returns an image of noise in a frame of zeros, and a label map with a small labelled box."""
    rng = np.random.default_rng(seed)
    image = np.zeros((*shape, channels), np.float32)
    inner = (slice(frame, -frame or None),) * 3
    image[inner] = rng.gamma(3.0, 40.0, image[inner].shape)
    label = np.zeros(shape, np.uint8)
    label[4:7, 3:6, 4:6] = rng.integers(0, 4, (3, 3, 2))
    return {"image": image, "label": label}


def rng(seed=0):
    return np.random.default_rng(seed)


def line(*values):
    return np.array(values, np.float32).reshape(-1, 1, 1, 1)


def assert_equals_monai(ours, theirs, atol=1e-5):
    """Asserts that our array, [x, y, z, c] or [x, y, z], equals that of MONAI, [c, x, y, z]."""
    theirs = np.moveaxis(np.asarray(theirs), 0, -1)
    np.testing.assert_allclose(ours, theirs[..., 0] if ours.ndim == 3 else theirs, rtol=1e-5, atol=atol)


def channels_first(array):
    """Returns the array with channels first, as MONAI takes it."""
    return np.moveaxis(array, -1, 0).copy() if array.ndim == 4 else array[None].copy()


@pytest.fixture
def monai():
    return pytest.importorskip("monai.transforms")


# intensities


def test_statistics_are_of_the_voxels_that_are_not_zero():
    mean, deviation = nonzero_statistics(line(0, 1, 3, 0))
    assert mean.tolist() == [2] and deviation.tolist() == [1]
    assert zscore_nonzero(line(0, 1, 3, 0)).ravel().tolist() == [0, -1, 1, 0]
    assert zscore_nonzero(line(0, 5, 5)).ravel().tolist() == [0, 0, 0]  # a deviation of 0 counts as 1
    assert zscore_nonzero(line(0, 0)).ravel().tolist() == [0, 0]
    large = zscore_nonzero(line(1e6, 1e6 + 1, 1e6 + 2))
    np.testing.assert_allclose(large.ravel(), np.array([-1, 0, 1]) * np.sqrt(1.5), atol=1e-6)


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_normalize_as_monai(monai, order, dtype):
    sample = example()
    image = np.asarray(sample["image"].astype(dtype), order=order)[:, ::-1]
    theirs = monai.NormalizeIntensity(nonzero=True, channel_wise=True)(channels_first(image.astype(np.float32)))
    ours = NormalizeNonzero()({**sample, "image": image})
    assert ours["image"].dtype == np.float32 and ours["label"] is sample["label"]
    assert_equals_monai(ours["image"], theirs)


def test_statistics_that_were_measured_before_the_crop_are_used():
    sample = example()
    normalized = NormalizeNonzero()(sample)["image"]
    measured = MeasureNonzero()(sample)
    part = {**measured, "image": measured["image"][3:8]}
    np.testing.assert_array_equal(NormalizeNonzero(measured=True)(part)["image"], normalized[3:8])
    with_statistics = {**sample, "statistics": (np.zeros(2), np.ones(2))}
    assert MeasureNonzero()(with_statistics) is with_statistics


def test_window_as_monai(monai):
    sample = example()
    theirs = monai.ScaleIntensityRange(20, 200, 0, 1, clip=True)(channels_first(sample["image"]))
    assert_equals_monai(ScaleWindow(20, 200)(sample)["image"], theirs)
    assert ScaleWindow(-10, 10)({"image": line(-20, -10, 0, 10, 20)})["image"].ravel().tolist() == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize("seed", range(4))
def test_scale_and_shift_as_monai(monai, seed):
    sample = example()
    for ours, theirs, name in (
        (ScaleIntensity(0.3, 0.5), monai.RandScaleIntensity(0.3, prob=0.5), "factor"),
        (ShiftIntensity(0.3, 0.5), monai.RandShiftIntensity(0.3, prob=0.5), "_offset"),
    ):
        theirs.set_random_state(seed)
        expected = theirs(channels_first(sample["image"]))
        drawn = getattr(theirs, name) if theirs._do_transform else 0.0
        assert_equals_monai(ours.apply(sample, drawn)["image"], expected)


@pytest.mark.parametrize(("transform", "width"), [(ScaleIntensity(0.1, 0.25), 0.1), (ShiftIntensity(0.2, 0.25), 0.2)])
def test_draws_of_intensity(transform, width):
    generator = rng()
    drawn = np.array([transform.draw(generator, {}) for _ in range(4000)])
    assert abs((drawn != 0).mean() - 0.25) < 0.03
    assert np.abs(drawn).max() <= width and abs(drawn.mean()) < 0.01
    assert abs(drawn[drawn != 0].std() - width / np.sqrt(3)) < 0.005


# flips and rotations


@pytest.mark.parametrize("flips", [(False, False, False), (True, False, False), (False, True, True), (True, True, True)])
def test_flips_as_monai(monai, flips):
    sample = example()
    ours = RandomFlip().apply(sample, flips)
    for key in ("image", "label"):
        expected = channels_first(sample[key])
        for axis, flip in enumerate(flips):
            theirs = monai.RandFlip(prob=float(flip), spatial_axis=axis)
            expected = np.asarray(theirs(expected))
        assert_equals_monai(ours[key], expected, atol=0)


def test_flips_are_drawn_independently_for_each_axis():
    generator = rng()
    drawn = np.array([RandomFlip(0.25, (0, 2)).draw(generator, {}) for _ in range(4000)])
    assert drawn.shape == (4000, 2) and np.abs(drawn.mean(0) - 0.25).max() < 0.03
    assert abs(drawn.all(1).mean() - 0.0625) < 0.02
    flipped = RandomFlip(axes=(2,)).apply(example(), (True,))
    np.testing.assert_array_equal(flipped["label"], example()["label"][:, :, ::-1])


@pytest.mark.parametrize("seed", range(4))
def test_quarter_turns_as_monai(monai, seed):
    sample = example()
    theirs = monai.RandRotate90(prob=0.7, max_k=3, spatial_axes=(0, 1))
    theirs.set_random_state(seed)
    expected = theirs(channels_first(sample["image"]))
    ours = RandomRotate90().apply(sample, theirs._rand_k if theirs._do_transform else 0)
    assert_equals_monai(ours["image"], expected, atol=0)
    assert ours["label"].shape == ours["image"].shape[:3]


def test_draws_of_quarter_turns():
    generator = rng()
    drawn = [RandomRotate90(0.5, max_k=2).draw(generator, {}) for _ in range(4000)]
    assert set(drawn) == {0, 1, 2}
    assert abs(drawn.count(0) / 4000 - 0.5) < 0.03 and abs(drawn.count(1) / 4000 - 0.25) < 0.03


# crops


def test_regions():
    array = np.arange(5)
    column = np.broadcast_to(array[:, None, None], (5, 1, 1))
    assert read_region(column, ((1, 0, 0), (3, 1, 1))).ravel().tolist() == [1, 2, 3]
    assert np.shares_memory(read_region(column, ((1, 0, 0), (3, 1, 1))), column)
    assert read_region(column, ((-2, 0, 0), (4, 1, 1)), 9).ravel().tolist() == [9, 9, 0, 1]
    assert read_region(column, ((3, 0, 0), (4, 1, 1)), 9).ravel().tolist() == [3, 4, 9, 9]
    assert read_region(column, ((-1, 0, 0), (7, 1, 1)), 9).ravel().tolist() == [9, 0, 1, 2, 3, 4, 9]
    assert read_region(column, ((6, 0, 0), (2, 1, 1)), 9).ravel().tolist() == [9, 9]
    assert read_region(column, ((-4, 0, 0), (2, 1, 1)), 9).ravel().tolist() == [9, 9]


@pytest.mark.parametrize("divisible", [(1, 1, 1), (4, 4, 4), (5, 3, 16), (32, 32, 32)])
def test_foreground_as_monai(monai, divisible):
    sample = example()
    sample["image"][0, 0, 0] = -1  # below the threshold
    theirs = monai.CropForegroundd(keys=("image", "label"), source_key="image", k_divisible=divisible, allow_smaller=False)(
        {key: channels_first(sample[key]) for key in sample}
    )
    ours = ForegroundCrop(divisible)(sample)
    assert_equals_monai(ours["image"], theirs["image"], atol=0)
    assert_equals_monai(ours["label"], theirs["label"], atol=0)


def test_a_foreground_that_was_measured_already_is_not_measured_again():
    box = ((1, 4), (0, 2), (3, 8))
    sample = {**example(), "foreground": {0.0: box}}
    assert ForegroundCrop((4, 1, 1)).region(sample) == ((1, 0, 3), (4, 2, 5))
    assert ForegroundCrop((3, 1, 1), above=1.0).region(sample) != ((1, 0, 3), (3, 2, 5))  # another threshold
    assert "foreground" not in ForegroundCrop()(sample)


@pytest.mark.parametrize("size", [(6, 5, 4), (13, 10, 9), (20, 5, 9), (20, 21, 22), (14, 11, 12)])
@pytest.mark.parametrize("seed", range(3))
def test_random_crop_as_monai(monai, size, seed):
    sample = example(frame=0)
    theirs = monai.RandSpatialCropd(("image", "label"), size, random_size=False)
    theirs.set_random_state(seed)
    expected = theirs({key: channels_first(sample[key]) for key in sample})
    start = tuple(part.start for part in theirs.cropper._slices)
    expected = monai.SpatialPadd(("image", "label"), size)(expected)
    ours = RandomCrop(size).apply(sample, start)
    assert ours["label"].shape == size
    assert_equals_monai(ours["image"], expected["image"], atol=0)
    assert_equals_monai(ours["label"], expected["label"], atol=0)


def test_a_crop_of_the_foreground_is_the_foreground_cropped():
    sample = example()
    foreground_crop = ForegroundCrop((8, 8, 8))
    foreground_sample = foreground_crop(sample)
    crop_of_foreground, crop = RandomCrop((8, 8, 8), foreground_crop), RandomCrop((8, 8, 8))
    for seed in range(20):
        start = crop_of_foreground.draw(rng(seed), sample)
        assert start == crop.draw(rng(seed), foreground_sample)
        got, expected = crop_of_foreground.apply(sample, start), crop.apply(foreground_sample, start)
        np.testing.assert_array_equal(got["image"], expected["image"])
        np.testing.assert_array_equal(got["label"], expected["label"])


def test_every_position_is_drawn():
    generator = rng()
    drawn = [RandomCrop((12, 10, 20)).draw(generator, example()) for _ in range(200)]
    assert set(drawn) == {(0, 0, 0), (1, 0, 0)}


@pytest.mark.parametrize("size", [(6, 5, 4), (3, 3, 3), (13, 10, 9), (20, 5, 4), (20, 21, 22)])
@pytest.mark.parametrize("seed", range(3))
def test_crops_by_label_as_monai(monai, size, seed):
    sample = example()
    theirs = monai.RandCropByPosNegLabeld(
        ("image", "label"), "label", size, pos=1, neg=1, num_samples=3, image_key="image", allow_smaller=True
    )
    theirs.set_random_state(seed)
    expected = theirs({key: channels_first(sample[key]) for key in sample})
    ours = CropByLabel(size, above=0.0)
    for centre, part in zip(theirs.cropper.centers, expected, strict=True):
        part = monai.SpatialPadd(("image", "label"), size)(part)
        got = ours.apply(sample, centre)
        assert_equals_monai(got["image"], part["image"], atol=0)
        assert_equals_monai(got["label"], part["label"], atol=0)


@pytest.mark.parametrize("rounds", [16, 0], ids=["guessed", "listed"])
def test_the_centre_of_a_crop_by_label(monkeypatch, rounds):
    monkeypatch.setattr("swinunetr_jax.data.augment.crops.ROUNDS", rounds)
    sample = example()
    generator = rng()
    drawn = [CropByLabel((1, 1, 1), 3, 1, above=0.0).draw(generator, sample) for _ in range(3000)]
    labels = np.array([sample["label"][c] for c in drawn])
    assert abs((labels > 0).mean() - 0.75) < 0.03
    assert all((sample["image"][c] > 0).any() for c in drawn)
    # each labelled voxel is drawn about equally often
    labelled = [c for c in drawn if sample["label"][c]]
    counts = np.array([labelled.count(tuple(c)) for c in np.argwhere(sample["label"])])
    assert counts.min() > 0.6 * counts.mean() and counts.max() < 1.5 * counts.mean()
    value = int(sample["label"].max())
    annotated = [CropByLabel((1, 1, 1), 1, 0, ignore=value).draw(generator, sample) for _ in range(300)]
    assert all(0 < sample["label"][c] < value for c in annotated)
    # without a threshold all voxels are equally likely
    outside = [CropByLabel((1, 1, 1), 0, 1).draw(generator, sample) for _ in range(500)]
    assert not any(sample["label"][c] for c in outside) and not all((sample["image"][c] > 0).any() for c in outside)


def test_a_volume_without_voxels_of_one_kind():
    sample = example()
    sample["label"][:] = 0
    assert CropByLabel((4, 4, 4), 1, 0).draw(rng(), sample)
    sample["label"][:] = 1
    assert CropByLabel((4, 4, 4), 0, 1).draw(rng(), sample)
    sample["label"][:], sample["image"][:] = 0, 0
    with refused("no voxel is labelled or above 0.0"):
        CropByLabel((4, 4, 4), above=0.0).draw(rng(), sample)


# recipes


def apply(recipe, sample, seed=0):
    generator = rng(seed)
    for transform in recipe:
        sample = transform(sample, generator)
    return sample


@pytest.mark.parametrize("after", [True, False])
def test_brats_recipe(after):
    sample = example((40, 37, 33), channels=4)
    before = {key: value.copy() for key, value in sample.items()}
    got = apply(brats_recipe((16, 16, 32), after), sample)
    assert got["image"].shape == (16, 16, 32, 4) and got["image"].dtype == np.float32
    assert got["label"].shape == (16, 16, 32) and got["label"].dtype == np.uint8
    for key in before:
        np.testing.assert_array_equal(sample[key], before[key])
    again = apply(brats_recipe((16, 16, 32), after), sample)
    np.testing.assert_array_equal(got["image"], again["image"])
    assert not np.array_equal(got["image"], apply(brats_recipe((16, 16, 32), after), sample, seed=1)["image"])


def test_brats_without_normalising_after_the_crop_equals_a_volume_normalised_first():
    sample = example((40, 37, 33), channels=4)
    sample["foreground"] = {0.0: foreground(sample["image"])}  # a normalised image has another foreground
    roi = (16, 16, 32)
    got = apply(brats_recipe(roi, False)[:3], sample)
    expected = apply(brats_recipe(roi)[:1], NormalizeNonzero()(sample))
    np.testing.assert_array_equal(got["image"], expected["image"])
    np.testing.assert_array_equal(got["label"], expected["label"])
    normalized_after_crop = apply(brats_recipe(roi)[:2], sample)["image"]
    assert not np.allclose(normalized_after_crop, got["image"])
    assert np.abs([channel[channel != 0].mean() for channel in np.moveaxis(normalized_after_crop, -1, 0)]).max() < 1e-6


def test_ct_recipe_windows_after_the_crop_with_the_same_result_as_before_it():
    shape, roi = (40, 30, 25), (16, 16, 32)
    image = np.random.default_rng(0).normal(0, 150, (*shape, 1)).astype(np.float32)
    image[:5] = -1000
    label = np.zeros(shape, np.uint8)
    label[20:25, 10:15, 10:15] = 7
    sample = {"image": image, "label": label}
    windowed = ScaleWindow(-175, 250)(sample)
    first_crop = CropByLabel(roi, above=0.0, inside=ForegroundCrop())
    for seed in range(5):
        got = apply(ct_recipe(roi)[:2], sample, seed)
        expected = first_crop(windowed, rng(seed))
        np.testing.assert_array_equal(got["image"], expected["image"])
        np.testing.assert_array_equal(got["label"], expected["label"])
    assert apply(ct_recipe(roi, rotate=1.0), sample)["image"].shape == (*roi, 1)
    assert not any(isinstance(transform, RandomRotate90) for transform in ct_recipe((32, 16, 16)))
