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


def same(ours, theirs, atol=1e-5):
    """Asserts that our array, [x, y, z, c] or [x, y, z], equals that of MONAI, [c, x, y, z]."""
    theirs = np.moveaxis(np.asarray(theirs), 0, -1)
    np.testing.assert_allclose(ours, theirs[..., 0] if ours.ndim == 3 else theirs, rtol=1e-5, atol=atol)


def first(array):
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
    given = example()
    image = np.asarray(given["image"].astype(dtype), order=order)[:, ::-1]
    theirs = monai.NormalizeIntensity(nonzero=True, channel_wise=True)(first(image.astype(np.float32)))
    ours = NormalizeNonzero()({**given, "image": image})
    assert ours["image"].dtype == np.float32 and ours["label"] is given["label"]
    same(ours["image"], theirs)


def test_statistics_that_were_measured_before_the_crop_are_used():
    given = example()
    whole = NormalizeNonzero()(given)["image"]
    measured = MeasureNonzero()(given)
    part = {**measured, "image": measured["image"][3:8]}
    np.testing.assert_array_equal(NormalizeNonzero(measured=True)(part)["image"], whole[3:8])
    kept = {**given, "statistics": (np.zeros(2), np.ones(2))}
    assert MeasureNonzero()(kept) is kept


def test_window_as_monai(monai):
    given = example()
    theirs = monai.ScaleIntensityRange(20, 200, 0, 1, clip=True)(first(given["image"]))
    same(ScaleWindow(20, 200)(given)["image"], theirs)
    assert ScaleWindow(-10, 10)({"image": line(-20, -10, 0, 10, 20)})["image"].ravel().tolist() == [0, 0, 0.5, 1, 1]


@pytest.mark.parametrize("seed", range(4))
def test_scale_and_shift_as_monai(monai, seed):
    given = example()
    for ours, theirs, name in (
        (ScaleIntensity(0.3, 0.5), monai.RandScaleIntensity(0.3, prob=0.5), "factor"),
        (ShiftIntensity(0.3, 0.5), monai.RandShiftIntensity(0.3, prob=0.5), "_offset"),
    ):
        theirs.set_random_state(seed)
        want = theirs(first(given["image"]))
        drawn = getattr(theirs, name) if theirs._do_transform else 0.0
        same(ours.apply(given, drawn)["image"], want)


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
    given = example()
    ours = RandomFlip().apply(given, flips)
    for key in ("image", "label"):
        want = first(given[key])
        for axis, flip in enumerate(flips):
            theirs = monai.RandFlip(prob=float(flip), spatial_axis=axis)
            want = np.asarray(theirs(want))
        same(ours[key], want, atol=0)


def test_flips_are_drawn_independently_for_each_axis():
    generator = rng()
    drawn = np.array([RandomFlip(0.25, (0, 2)).draw(generator, {}) for _ in range(4000)])
    assert drawn.shape == (4000, 2) and np.abs(drawn.mean(0) - 0.25).max() < 0.03
    assert abs(drawn.all(1).mean() - 0.0625) < 0.02
    flipped = RandomFlip(axes=(2,)).apply(example(), (True,))
    np.testing.assert_array_equal(flipped["label"], example()["label"][:, :, ::-1])


@pytest.mark.parametrize("seed", range(4))
def test_quarter_turns_as_monai(monai, seed):
    given = example()
    theirs = monai.RandRotate90(prob=0.7, max_k=3, spatial_axes=(0, 1))
    theirs.set_random_state(seed)
    want = theirs(first(given["image"]))
    ours = RandomRotate90().apply(given, theirs._rand_k if theirs._do_transform else 0)
    same(ours["image"], want, atol=0)
    assert ours["label"].shape == ours["image"].shape[:3]


def test_draws_of_quarter_turns():
    generator = rng()
    drawn = [RandomRotate90(0.5, max_k=2).draw(generator, {}) for _ in range(4000)]
    assert set(drawn) == {0, 1, 2}
    assert abs(drawn.count(0) / 4000 - 0.5) < 0.03 and abs(drawn.count(1) / 4000 - 0.25) < 0.03


# crops


def test_regions():
    array = np.arange(5)
    cube = np.broadcast_to(array[:, None, None], (5, 1, 1))
    assert read_region(cube, ((1, 0, 0), (3, 1, 1))).ravel().tolist() == [1, 2, 3]
    assert np.shares_memory(read_region(cube, ((1, 0, 0), (3, 1, 1))), cube)
    assert read_region(cube, ((-2, 0, 0), (4, 1, 1)), 9).ravel().tolist() == [9, 9, 0, 1]
    assert read_region(cube, ((3, 0, 0), (4, 1, 1)), 9).ravel().tolist() == [3, 4, 9, 9]
    assert read_region(cube, ((-1, 0, 0), (7, 1, 1)), 9).ravel().tolist() == [9, 0, 1, 2, 3, 4, 9]
    assert read_region(cube, ((6, 0, 0), (2, 1, 1)), 9).ravel().tolist() == [9, 9]
    assert read_region(cube, ((-4, 0, 0), (2, 1, 1)), 9).ravel().tolist() == [9, 9]


@pytest.mark.parametrize("divisible", [(1, 1, 1), (4, 4, 4), (5, 3, 16), (32, 32, 32)])
def test_foreground_as_monai(monai, divisible):
    given = example()
    given["image"][0, 0, 0] = -1  # below the threshold
    theirs = monai.CropForegroundd(keys=("image", "label"), source_key="image", k_divisible=divisible, allow_smaller=False)(
        {key: first(given[key]) for key in given}
    )
    ours = ForegroundCrop(divisible)(given)
    same(ours["image"], theirs["image"], atol=0)
    same(ours["label"], theirs["label"], atol=0)


def test_a_foreground_that_was_measured_already_is_not_measured_again():
    box = ((1, 4), (0, 2), (3, 8))
    given = {**example(), "foreground": {0.0: box}}
    assert ForegroundCrop((4, 1, 1)).region(given) == ((1, 0, 3), (4, 2, 5))
    assert ForegroundCrop((3, 1, 1), above=1.0).region(given) != ((1, 0, 3), (3, 2, 5))  # another threshold
    assert "foreground" not in ForegroundCrop()(given)


@pytest.mark.parametrize("size", [(6, 5, 4), (13, 10, 9), (20, 5, 9), (20, 21, 22), (14, 11, 12)])
@pytest.mark.parametrize("seed", range(3))
def test_random_crop_as_monai(monai, size, seed):
    given = example(frame=0)
    theirs = monai.RandSpatialCropd(("image", "label"), size, random_size=False)
    theirs.set_random_state(seed)
    want = theirs({key: first(given[key]) for key in given})
    start = tuple(part.start for part in theirs.cropper._slices)
    want = monai.SpatialPadd(("image", "label"), size)(want)
    ours = RandomCrop(size).apply(given, start)
    assert ours["label"].shape == size
    same(ours["image"], want["image"], atol=0)
    same(ours["label"], want["label"], atol=0)


def test_a_crop_of_the_foreground_is_the_foreground_cropped():
    given = example()
    inside = ForegroundCrop((8, 8, 8))
    whole = inside(given)
    both, alone = RandomCrop((8, 8, 8), inside), RandomCrop((8, 8, 8))
    for seed in range(20):
        start = both.draw(rng(seed), given)
        assert start == alone.draw(rng(seed), whole)
        one, other = both.apply(given, start), alone.apply(whole, start)
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


def test_every_position_is_drawn():
    generator = rng()
    drawn = [RandomCrop((12, 10, 20)).draw(generator, example()) for _ in range(200)]
    assert set(drawn) == {(0, 0, 0), (1, 0, 0)}


@pytest.mark.parametrize("size", [(6, 5, 4), (3, 3, 3), (13, 10, 9), (20, 5, 4), (20, 21, 22)])
@pytest.mark.parametrize("seed", range(3))
def test_crops_by_label_as_monai(monai, size, seed):
    given = example()
    theirs = monai.RandCropByPosNegLabeld(
        ("image", "label"), "label", size, pos=1, neg=1, num_samples=3, image_key="image", allow_smaller=True
    )
    theirs.set_random_state(seed)
    want = theirs({key: first(given[key]) for key in given})
    ours = CropByLabel(size, above=0.0)
    for centre, part in zip(theirs.cropper.centers, want, strict=True):
        part = monai.SpatialPadd(("image", "label"), size)(part)
        got = ours.apply(given, centre)
        same(got["image"], part["image"], atol=0)
        same(got["label"], part["label"], atol=0)


@pytest.mark.parametrize("rounds", [16, 0], ids=["guessed", "listed"])
def test_the_centre_of_a_crop_by_label(monkeypatch, rounds):
    monkeypatch.setattr("swinunetr_jax.data.augment.crops.ROUNDS", rounds)
    given = example()
    generator = rng()
    drawn = [CropByLabel((1, 1, 1), 3, 1, above=0.0).draw(generator, given) for _ in range(3000)]
    labels = np.array([given["label"][c] for c in drawn])
    assert abs((labels > 0).mean() - 0.75) < 0.03
    assert all((given["image"][c] > 0).any() for c in drawn)
    # each labelled voxel is drawn about equally often
    labelled = [c for c in drawn if given["label"][c]]
    times = np.array([labelled.count(tuple(c)) for c in np.argwhere(given["label"])])
    assert times.min() > 0.6 * times.mean() and times.max() < 1.5 * times.mean()
    value = int(given["label"].max())
    annotated = [CropByLabel((1, 1, 1), 1, 0, ignore=value).draw(generator, given) for _ in range(300)]
    assert all(0 < given["label"][c] < value for c in annotated)
    # without a threshold all voxels are equally likely
    outside = [CropByLabel((1, 1, 1), 0, 1).draw(generator, given) for _ in range(500)]
    assert not any(given["label"][c] for c in outside) and not all((given["image"][c] > 0).any() for c in outside)


def test_a_volume_without_voxels_of_one_kind():
    given = example()
    given["label"][:] = 0
    assert CropByLabel((4, 4, 4), 1, 0).draw(rng(), given)
    given["label"][:] = 1
    assert CropByLabel((4, 4, 4), 0, 1).draw(rng(), given)
    given["label"][:], given["image"][:] = 0, 0
    with refused("no voxel is labelled or above 0.0"):
        CropByLabel((4, 4, 4), above=0.0).draw(rng(), given)


# recipes


def apply(recipe, given, seed=0):
    generator = rng(seed)
    for transform in recipe:
        given = transform(given, generator)
    return given


@pytest.mark.parametrize("after", [True, False])
def test_brats_recipe(after):
    given = example((40, 37, 33), channels=4)
    before = {key: value.copy() for key, value in given.items()}
    got = apply(brats_recipe((16, 16, 32), after), given)
    assert got["image"].shape == (16, 16, 32, 4) and got["image"].dtype == np.float32
    assert got["label"].shape == (16, 16, 32) and got["label"].dtype == np.uint8
    for key in before:
        np.testing.assert_array_equal(given[key], before[key])
    again = apply(brats_recipe((16, 16, 32), after), given)
    np.testing.assert_array_equal(got["image"], again["image"])
    assert not np.array_equal(got["image"], apply(brats_recipe((16, 16, 32), after), given, seed=1)["image"])


def test_brats_without_normalising_after_the_crop_equals_a_volume_normalised_first():
    given = example((40, 37, 33), channels=4)
    given["foreground"] = {0.0: foreground(given["image"])}  # a normalised image has another foreground
    roi = (16, 16, 32)
    one = apply(brats_recipe(roi, False)[:3], given)
    other = apply(brats_recipe(roi)[:1], NormalizeNonzero()(given))
    np.testing.assert_array_equal(one["image"], other["image"])
    np.testing.assert_array_equal(one["label"], other["label"])
    recipe = apply(brats_recipe(roi)[:2], given)["image"]
    assert not np.allclose(recipe, one["image"])
    assert np.abs([channel[channel != 0].mean() for channel in np.moveaxis(recipe, -1, 0)]).max() < 1e-6


def test_ct_recipe_windows_after_the_crop_with_the_same_result_as_before_it():
    shape, roi = (40, 30, 25), (16, 16, 32)
    image = np.random.default_rng(0).normal(0, 150, (*shape, 1)).astype(np.float32)
    image[:5] = -1000
    label = np.zeros(shape, np.uint8)
    label[20:25, 10:15, 10:15] = 7
    given = {"image": image, "label": label}
    windowed = ScaleWindow(-175, 250)(given)
    first_crop = CropByLabel(roi, above=0.0, inside=ForegroundCrop())
    for seed in range(5):
        got = apply(ct_recipe(roi)[:2], given, seed)
        want = first_crop(windowed, rng(seed))
        np.testing.assert_array_equal(got["image"], want["image"])
        np.testing.assert_array_equal(got["label"], want["label"])
    assert apply(ct_recipe(roi, rotate=1.0), given)["image"].shape == (*roi, 1)
    assert not any(isinstance(transform, RandomRotate90) for transform in ct_recipe((32, 16, 16)))
