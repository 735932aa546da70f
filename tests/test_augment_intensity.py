"""Intensity transforms on the device, compared with numpy and scipy for the same drawn parameters, and their distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.refusals import refused
from scipy import ndimage

from swinunetr_jax.augment import Brightness, Contrast, Gamma, GaussianBlur, GaussianNoise, LowResolution, Run
from swinunetr_jax.augment.intensity import _low_resolution_matrix

SHAPE, CHANNELS = (14, 12, 9), 3
TRANSFORMS = (
    GaussianNoise(1.0),
    GaussianBlur(1.0),
    Brightness(1.0),
    Contrast(1.0),
    LowResolution(1.0),
    LowResolution(1.0, axes=(0, 1)),
    Gamma(1.0, inverted=True),
    Gamma(1.0),
)


def noise(image, parameters):
    return image + float(parameters.sigma) * np.asarray(jax.random.normal(parameters.key, (*SHAPE, 1)))


def blurred(image, sigmas):
    for channel in range(CHANNELS):
        for axis, sigma in enumerate(np.asarray(sigmas[channel], float)):
            if sigma > 0:
                offsets = np.arange(-round(3 * sigma - 0.25), round(3 * sigma - 0.25) + 1)
                weights = np.exp(-0.5 * (offsets / sigma) ** 2)
                image[..., channel] = ndimage.correlate1d(image[..., channel], weights / weights.sum(), axis, mode="mirror")
    return image


def contrast(image, factors):
    mean, low, high = image.mean((0, 1, 2)), image.min((0, 1, 2)), image.max((0, 1, 2))
    return np.clip((image - mean) * np.asarray(factors, float) + mean, low, high)


def low_resolution(image, factors, axes=(0, 1, 2)):
    for channel, factor in enumerate(np.asarray(factors)):
        volume = image[..., channel]
        for axis in axes if factor != 1 else ():
            size = volume.shape[axis]
            count = round(float(factor * np.float32(size)))
            reduced = volume.take(np.floor((np.arange(count) + 0.5) * size / count).astype(int), axis)
            positions = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
            below = np.floor(positions).astype(int)
            fraction = np.expand_dims(positions - below, tuple(other for other in range(3) if other != axis))
            volume = reduced.take(below, axis) * (1 - fraction) + reduced.take(np.minimum(below + 1, count - 1), axis) * fraction
        image[..., channel] = volume
    return image


def gamma(image, exponents, sign=1):
    for channel, exponent in enumerate(np.asarray(exponents, float)):
        signed = sign * image[..., channel]
        width = np.ptp(signed)
        changed = ((signed - signed.min()) / width) ** exponent * width + signed.min()
        image[..., channel] = sign * ((changed - changed.mean()) / changed.std() * signed.std() + signed.mean())
    return image


REFERENCES = (
    noise,
    blurred,
    lambda image, factors: image * np.asarray(factors),
    contrast,
    low_resolution,
    lambda image, factors: low_resolution(image, factors, (0, 1)),
    lambda image, exponents: gamma(image, exponents, -1),
    gamma,
)

NAMES = [f"{type(transform).__name__} {number}" for number, transform in enumerate(TRANSFORMS)]


@pytest.mark.parametrize(("transform", "reference"), list(zip(TRANSFORMS, REFERENCES)), ids=NAMES)
def test_a_transform_equals_the_reference(transform, reference):
    image = np.random.default_rng(0).normal(1, 2, (*SHAPE, CHANNELS)).astype(np.float32)
    for seed in range(2):
        parameters = transform.draw(jax.random.key(seed), CHANNELS)
        ours = np.asarray(jax.jit(transform.apply)(image, parameters))
        assert ours.dtype == np.float32 and not np.array_equal(ours, image)
        np.testing.assert_allclose(ours, reference(image.astype(np.float64), parameters), rtol=1e-5, atol=1e-5)


def test_the_reduced_resolution_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    rng, matrix = np.random.default_rng(0), jax.jit(_low_resolution_matrix, static_argnums=1)
    for size in (9, 32, 64):
        volume = torch.from_numpy(rng.normal(size=(1, 1, size)).astype(np.float32))
        for factor in (0.5, 0.55, 0.6, 0.75, 0.9, 0.99):
            count = round(size * factor)
            reduced = torch.nn.functional.interpolate(volume, count, mode="nearest-exact")
            theirs = torch.nn.functional.interpolate(reduced, size, mode="linear")[0, 0].numpy()
            ours = np.asarray(matrix(jnp.float32(factor), size)) @ volume[0, 0].numpy()
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_constant_channel_stays_constant():
    image = jnp.full((*SHAPE, CHANNELS), 3.0)
    for transform in (Contrast(1.0), Gamma(1.0), Gamma(1.0, inverted=True), GaussianBlur(1.0, 1.0), LowResolution(1.0, 1.0)):
        changed = transform.apply(image, transform.draw(jax.random.key(0), CHANNELS))
        np.testing.assert_allclose(changed, image, rtol=1e-5)


# ---- distributions


def drawn(transform, count=4000):
    keys = jax.random.split(jax.random.key(0), count)
    parameters = jax.vmap(lambda key: transform.draw(key, CHANNELS))(keys)
    return jax.tree.map(
        lambda value: value if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else np.asarray(value), parameters
    )


def assert_share(values, expected):
    """Asserts that the fraction of true values is the expected one within five standard deviations."""
    values = np.asarray(values)
    assert abs(values.mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / values.size)


def assert_uniform(values, low, high):
    """Asserts that values are uniform in a range."""
    assert low <= values.min() < low + 0.1 * (high - low) and high - 0.1 * (high - low) < values.max() <= high + 1e-6
    assert abs(values.mean() - (low + high) / 2) < 5 * (high - low) / np.sqrt(12 * values.size)


def test_noise_is_drawn_for_a_tenth_of_the_samples():
    sigma = drawn(GaussianNoise()).sigma
    assert_share(sigma > 0, 0.1)
    assert_uniform(sigma[sigma > 0], 0, 0.1)


def test_blur_is_drawn_for_channels_and_axes():
    sigmas = drawn(GaussianBlur())
    samples = (sigmas > 0).any((1, 2))
    assert_share(samples, 0.2 * (1 - 0.5**CHANNELS))
    channels = (sigmas > 0).any(2)
    assert_share(channels, 0.1)
    assert (sigmas[channels] > 0).all()
    assert_uniform(sigmas[channels], 0.5, 1.0)
    assert np.abs(np.corrcoef(sigmas[channels].T) - np.eye(3)).max() < 0.2


def test_the_resolution_is_drawn_for_channels():
    factors = drawn(LowResolution())
    assert_share((factors != 1).any(1), 0.25 * (1 - 0.5**CHANNELS))
    assert_uniform(factors[factors != 1], 0.5, 1.0)


@pytest.mark.parametrize(
    ("transform", "probability", "limits"),
    [
        (Brightness(), 0.15, (0.75, 1.25)),
        (Contrast(), 0.15, (0.75, 1.25)),
        (Gamma(), 0.3, (0.7, 1.5)),
        (Gamma(0.1, inverted=True), 0.1, (0.7, 1.5)),
    ],
)
def test_factors_are_half_below_and_half_above_one(transform, probability, limits):
    factors = drawn(transform)
    chosen = factors[(factors != 1).any(1)]
    assert_share((factors != 1).any(1), probability)
    assert_share(chosen < 1, 0.5)
    assert_uniform(chosen[chosen < 1], limits[0], 1)
    assert_uniform(chosen[chosen > 1], 1, limits[1])
    assert np.abs(np.corrcoef(chosen.T) - np.eye(CHANNELS)).max() < 0.3  # channels are independent


def test_a_range_on_one_side_of_one_is_uniform():
    assert_uniform(drawn(Brightness(1.0, (1.2, 1.6))), 1.2, 1.6)


def test_the_resolution_along_a_thin_axis_is_not_reduced():
    assert LowResolution().for_run(Run(thin=2)).axes == (0, 1)
    assert LowResolution(axes=(2,)).for_run(Run(thin=2)).axes == (2,)


def test_values_that_no_transform_can_have_are_refused():
    with refused("`probability` of Gamma must be a probability from 0 to 1, got -1"):
        Gamma(-1)
    with refused("`sigma` of GaussianBlur must be two numbers of at least 0, the smaller one first, got (1, 0.5)"):
        GaussianBlur(sigma=(1, 0.5))
