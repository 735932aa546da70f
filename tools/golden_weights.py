"""Weights and inputs made from a seed by NumPy alone: the same bytes with any version of NumPy on any machine.

Stored reference outputs (tests/goldens) need no stored weights that way: MONAI is filled with these tensors where the outputs are made
and ours where they are compared. Only uniform numbers of the frozen `RandomState` stream and exact arithmetic are used, since
logarithms and square roots of arrays may differ in the last bit between platforms.

Every tensor is away from its initial value, norms and bias tables included, so that none can be left out unnoticed; kernels keep the
variance of what passes through them, so that every part of the network matters in the output.
"""

import hashlib
import math
import zlib
from collections.abc import Mapping

import numpy as np

COMPUTED = "relative_position_index"  # the one buffer that is not a weight: each side computes its own


def signed(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Uniform in -1 … 1, float64, from the seed and the name alone: the order of calls does not matter."""
    return 2 * np.random.RandomState([seed, zlib.crc32(name.encode())]).random_sample(shape) - 1


def tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """One tensor of MONAI's state dict, by its name there."""
    *_, owner, leaf = name.split(".")
    if leaf == "num_batches_tracked":
        return np.array(3, np.int64)
    noise = signed(name, shape, seed)
    if leaf == "running_var":
        value = 1.25 + 0.75 * noise
    elif owner.startswith("norm") and leaf == "weight":
        value = 1 + 0.5 * noise
    elif leaf == "relative_position_bias_table":
        value = 0.5 * noise
    elif leaf in ("bias", "running_mean"):
        value = 0.25 * noise
    else:
        # a transposed convolution's [in, out, *k] has no overlapping taps: each output sums over the inputs alone
        fan_in = shape[0] if owner == "conv" and ".transp_conv." in name else math.prod(shape[1:])
        value = math.sqrt(3 / fan_in) * noise
    return value.astype(np.float32)


def state(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Tensors for a whole state dict, without the index tables."""
    return {name: tensor(name, tuple(shape), seed) for name, shape in shapes.items() if not name.endswith(COMPUTED)}


def volume(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """An input [b, *grid, c], channels last, of mean 0 and deviation 1."""
    return (math.sqrt(3) * signed("input", shape, seed)).astype(np.float32)


def digest(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names and bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode() + np.ascontiguousarray(tensors[name]).tobytes())
    return total.hexdigest()


def sample(array: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` values at even distances over an array in C order, the first and the last among them."""
    flat = array.reshape(-1)
    if flat.size <= count:
        return flat.astype(np.float32)
    return flat[np.arange(count, dtype=np.int64) * (flat.size - 1) // (count - 1)].astype(np.float32)


def statistics(array: np.ndarray) -> np.ndarray:
    """Mean, standard deviation and largest magnitude, float64."""
    return np.array([array.mean(dtype=np.float64), array.std(dtype=np.float64), np.abs(array).max()], np.float64)
