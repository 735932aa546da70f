"""Inputs of losses, and the comparison of a loss with one of PyTorch or MONAI."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest


def sample(grid: tuple[int, ...], channels: int, batch: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Returns logits and overlapping targets, float64. The last channel of the targets is empty in the first case."""
    rng = np.random.default_rng(len(grid) + channels)
    logits = rng.normal(size=(batch, *grid, channels)) * 3
    targets = (rng.random(logits.shape) < 0.3).astype(np.float64)
    targets[0, ..., -1] = 0
    return logits, targets


def class_map(grid: tuple[int, ...], channels: int, batch: int = 2) -> np.ndarray:
    """Returns a map of channel numbers; the last channel is absent everywhere."""
    labels = np.random.default_rng(channels).integers(0, channels, (batch, *grid))
    labels[labels == channels - 1] = 0
    return labels


def compare(
    ours: Callable[..., jax.Array],
    theirs: Callable,
    logits: np.ndarray,
    targets: np.ndarray,
    tolerance: tuple[float, float] = (1e-6, 1e-5),
) -> None:
    """Asserts that two losses have the same value and gradient. `targets` has channels last, or holds channel numbers."""
    torch = pytest.importorskip("torch")
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(ours(x, jnp.asarray(targets))))(jnp.asarray(logits))
    x = torch.tensor(np.moveaxis(logits, -1, 1).copy(), requires_grad=True)
    torch_targets = np.moveaxis(targets, -1, 1) if targets.ndim == logits.ndim else targets[:, None]
    expected = theirs(x, torch.tensor(torch_targets.copy())).sum()
    expected.backward()
    assert value == pytest.approx(expected.item(), rel=tolerance[0], abs=tolerance[0])
    expected_gradient = np.moveaxis(x.grad.numpy(), 1, -1)
    np.testing.assert_allclose(gradient, expected_gradient, atol=tolerance[1] * np.abs(expected_gradient).max(), rtol=0)
