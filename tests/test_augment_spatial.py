"""Rotation, scaling and mirroring on the device, compared with scipy for the same drawn parameters."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.refusals import refused
from scipy import ndimage

from swinunetr_jax.augment import Augmentation, Mirror, Rotation, Run, SampleAugmentation, Scaling, nnunet_augmentation
from swinunetr_jax.data.nifti import read_labels

SIZE, DRAWS = (32, 32, 32), 3
EVERY_TIME = (Rotation(probability=1.0), Scaling(probability=1.0), Mirror())


def for_run(*transforms, size=SIZE, labels=(0, 1, 2), masked=False, margin=1.25, **run) -> SampleAugmentation:
    return Augmentation(transforms, margin).for_run(Run(**run), size, labels, masked)


@cache
def program(augmentation):
    return jax.jit(augmentation.apply)


def draw(augmentation, seed):
    """Returns the drawn parameters, and the product of their matrices."""
    parameters = augmentation.draw(jax.random.key(seed), 1)
    matrix = np.eye(3)
    for transform, values in zip(augmentation.transforms, parameters):
        matrix = matrix @ np.asarray(transform.matrix(values), np.float64)
    return parameters, matrix


def reference(volume, matrix, size, order):
    """Returns the volume resampled by scipy with the matrix, which maps the centre of the output to the centre of the volume.

    Voxels outside the volume count as 0.
    """
    centre, source = (np.array(size) - 1) / 2, (np.array(volume.shape) - 1) / 2
    return ndimage.affine_transform(volume, matrix, source - matrix @ centre, tuple(size), order=order, mode="grid-constant")


def reference_labels(label, matrix, size):
    """Returns the label whose mask, interpolated linearly, is largest at each voxel."""
    values = np.unique(np.append(label, 0))
    masks = [reference((label == value).astype(np.float64), matrix, size, 1) for value in values[values > 0]]
    return values[np.argmax([1 - sum(masks), *masks], axis=0)]


def noise(shape, seed=0):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return ((smooth - smooth.mean()) / smooth.std()).astype(np.float32)


def image_error(augmentation, draws):
    """Returns for each draw the root mean square difference from splines of order 5 in the inner half of the volume."""
    volume = noise(augmentation.source_size)
    label = np.zeros(volume.shape, np.uint8)
    inner = tuple(slice(n // 4, n - n // 4) for n in augmentation.size)
    errors = []
    for seed in range(draws):
        parameters, matrix = draw(augmentation, seed)
        ours = np.asarray(program(augmentation)(volume[..., None], label, parameters)[0][..., 0])
        errors.append(np.sqrt(np.square(ours - reference(volume, matrix, augmentation.size, 5))[inner].mean()))
    return errors


def test_images_are_those_of_splines_of_order_5():
    assert np.mean(image_error(for_run(*EVERY_TIME), DRAWS)) < 0.03


@pytest.mark.long
def test_images_of_many_draws_are_those_of_splines_of_order_5():
    assert np.mean(image_error(for_run(*EVERY_TIME), 200)) < 0.03


def test_rotations_in_the_plane_by_up_to_180_degrees_are_those_of_splines_of_order_5():
    augmentation = for_run(*EVERY_TIME, size=(32, 24, 16), thin=2)
    assert augmentation.source_size == (40, 40, 16)
    angles = [float(draw(augmentation, seed)[0][0][2]) for seed in range(6)]
    assert max(np.abs(angles)) > np.pi / 2  # axes are exchanged
    assert np.mean(image_error(augmentation, 6)) < 0.03


def dice(mask, other_mask):
    return 2 * (mask & other_mask).sum() / (mask.sum() + other_mask.sum())


def label_dice(shared_data, draws):
    """Returns the Dice of each label that has more than 100 voxels.

    The label maps are of the hippocampus, each resampled with different parameters.
    """
    paths = sorted((shared_data / "Task04_Hippocampus" / "labelsTr").glob("hippo*.nii.gz"))[:draws]
    augmentation = for_run(*EVERY_TIME, size=(32, 48, 32))
    scores = []
    for seed, path in enumerate(paths):
        label = np.zeros(augmentation.source_size, np.uint8)
        array = read_labels(path).array
        start = [max((n - m) // 2, 0) for n, m in zip(label.shape, array.shape)]
        part = array[tuple(slice(n) for n in label.shape)]
        label[tuple(slice(s, s + n) for s, n in zip(start, part.shape))] = part
        parameters, matrix = draw(augmentation, seed)
        image = np.zeros((*label.shape, 1), np.float32)
        ours = np.asarray(program(augmentation)(image, label, parameters)[1])
        theirs = reference_labels(label, matrix, augmentation.size)
        scores += [dice(ours == value, theirs == value) for value in (1, 2) if (theirs == value).sum() > 100]
    return scores


def test_labels_are_those_of_interpolated_masks(shared_data):
    assert np.mean(label_dice(shared_data, 12)) > 0.98


@pytest.mark.long
def test_labels_of_many_draws_are_those_of_interpolated_masks(shared_data):
    assert np.mean(label_dice(shared_data, 200)) > 0.98


def test_many_labels_are_resampled_in_chunks():
    values = (0, 3, 5, 7, 11, 13, 200)
    augmentation = for_run(*EVERY_TIME, labels=values)
    cells = np.indices(augmentation.source_size) // 10
    label = np.array(values, np.uint8)[(cells[0] + 2 * cells[1] + 3 * cells[2]) % len(values)]
    parameters, matrix = draw(augmentation, 0)
    ours = np.asarray(program(augmentation)(np.zeros((*label.shape, 1), np.float32), label, parameters)[1])
    theirs = reference_labels(label, matrix, SIZE)
    assert set(np.unique(ours)) <= set(values)
    assert min(dice(ours == value, theirs == value) for value in values if (theirs == value).sum() > 100) > 0.9
    assert (ours == theirs).mean() > 0.95


def test_parameters_that_change_nothing_leave_a_sample_as_it_is():
    """All transforms are present, but except for the mirroring their parameters change nothing.

    The result is the centre of the source, mirrored as the parameters state.
    """
    augmentation = nnunet_augmentation().for_run(Run(), SIZE, (0, 1, 2), masked=True)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(*augmentation.source_size, 2)).astype(np.float32)
    image[:9] = 0
    label = rng.integers(0, 3, image.shape[:3]).astype(np.uint8)
    parameters = [jnp.zeros(3), 1.0, None, jnp.zeros((2, 3)), *[jnp.ones(2)] * 5, None]
    parameters[2] = augmentation.transforms[2].draw(jax.random.key(0), 2)._replace(sigma=jnp.zeros(()))
    run = jax.jit(augmentation.apply)
    for flips in ((False, False, False), (True, False, True)):
        parameters[-1] = jnp.array(flips)
        got = run(image, label, parameters)
        axes = tuple(axis for axis in range(3) if flips[axis])
        for ours, original in zip(got, (image, label)):
            np.testing.assert_array_equal(ours, np.flip(original[4:36, 4:36, 4:36], axes))
            assert ours.dtype == original.dtype


def test_voxels_outside_of_the_patient_stay_zero():
    augmentation = for_run(*EVERY_TIME, masked=True, labels=(0, 1))
    image = np.full((*augmentation.source_size, 1), 2.0, np.float32)
    image[:20] = 0
    label = (image[..., 0] != 0).astype(np.uint8)
    parameters, matrix = draw(augmentation, 1)
    moved, labels = map(np.asarray, program(augmentation)(image, label, parameters))
    inside = reference(label.astype(float), matrix, SIZE, 1) > 0.5
    assert (moved[..., 0] != 0)[inside].mean() > 0.99 and (moved[..., 0] == 0)[~inside].mean() > 0.99
    assert dice(labels == 1, moved[..., 0] != 0) > 0.99


# ---- parameters


def drawn(transform, count=4000, channels=2):
    return jax.tree.map(
        np.asarray, jax.vmap(lambda key: transform.draw(key, channels))(jax.random.split(jax.random.key(0), count))
    )


def assert_share(values, expected):
    """Asserts that the fraction of true values is the expected one within five standard deviations."""
    values = np.asarray(values)
    assert abs(values.mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / values.size)


def test_the_distributions_of_angles_factors_and_reversals():
    angles = np.degrees(drawn(Rotation().for_run(Run())))
    rotated = angles.any(axis=1)
    assert_share(rotated, 0.2)
    assert angles[rotated].all() and np.abs(angles).max() <= 30.0001 and np.abs(angles).max(axis=0).min() > 28
    assert abs(angles[rotated].std() - 60 / np.sqrt(12)) < 1
    in_plane = np.degrees(drawn(Rotation().for_run(Run(thin=1))))
    assert not in_plane[:, [0, 2]].any() and 170 < np.abs(in_plane[:, 1]).max() <= 180.001
    factors = drawn(Scaling())
    assert_share(factors != 1, 0.2)
    scaled = factors[factors != 1]
    assert 0.7 <= scaled.min() < 0.72 and 1.38 < scaled.max() <= 1.4 and abs(scaled.mean() - 1.05) < 0.04
    flips = drawn(Mirror(axes=(0, 2)))
    assert not flips[:, 1].any()
    assert_share(flips[:, [0, 2]], 0.5)
    assert_share(flips[:, 0] & flips[:, 2], 0.25)


def test_the_matrix_is_that_of_the_angles():
    rotated = np.asarray(Rotation(axes=(2,), degrees=90).matrix(jnp.array([0, 0, np.pi / 2])))
    np.testing.assert_allclose(rotated, [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-6)
    rotation = np.asarray(Rotation().matrix(jnp.array([0.3, -0.2, 0.5])))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
    np.testing.assert_array_equal(Scaling(axes=(0, 1)).matrix(jnp.float32(1.25)), np.diag([1.25, 1.25, 1]))
    np.testing.assert_array_equal(Mirror().matrix(jnp.array([True, False, True])), np.diag([-1.0, 1, -1]))


def test_the_size_of_the_source():
    assert for_run(*EVERY_TIME, size=(64, 96, 128)).source_size == (80, 120, 160)
    assert for_run(*EVERY_TIME, size=(32, 33, 16), margin=1.1).source_size == (40, 41, 24)
    assert for_run(Mirror(), size=(32, 33, 16)).source_size == (32, 33, 16)
    assert for_run(Scaling(axes=(2,)), size=(32, 32, 16)).source_size == (40, 32, 24)
    assert for_run(*EVERY_TIME, size=(128, 64, 16), thin=2).source_size == (160, 160, 16)


def test_a_transform_that_is_removed_does_not_change_the_parameters_of_the_others():
    all_transforms, reordered = for_run(*EVERY_TIME), for_run(EVERY_TIME[2], EVERY_TIME[0])
    rotation, _, mirror = all_transforms.draw(jax.random.key(3), 1)
    np.testing.assert_array_equal(reordered.draw(jax.random.key(3), 1)[0], mirror)
    np.testing.assert_array_equal(reordered.draw(jax.random.key(3), 1)[1], rotation)


def test_rotations_that_are_not_possible_are_refused():
    with refused("samples cannot be rotated about axis 0", "only about axis 2; give Rotation(axes=(2,))"):
        for_run(Rotation(axes=(0, 2)), thin=2)
    with refused("`degrees` of Rotation must be at least 0 and at most 30 for these axes, got 45"):
        for_run(Rotation(degrees=45))
    with refused("`axes` of Rotation must name axes 0, 1 and 2, each once, got (0, 3)"):
        Rotation(axes=(0, 3))
    with refused("`probability` of Scaling must be a probability from 0 to 1, got 2"):
        Scaling(probability=2)
    with refused("`factor` of Scaling must be two numbers of at least 0, the smaller one first, got (2, 1)"):
        Scaling(factor=(2, 1))
    with refused("has several rotations"):
        Augmentation((Rotation(), Rotation()))
    with refused("must be spatial or intensity transforms, such as Rotation(), got 3"):
        Augmentation((3,))
    with refused("takes crops of 40×40×40 voxels"):
        for_run(*EVERY_TIME)(
            jnp.zeros((1, 32, 32, 32, 1)), jnp.zeros((1, 32, 32, 32), jnp.uint8), jax.random.split(jax.random.key(0), 1)
        )
