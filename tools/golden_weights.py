"""Random weights and inputs that the seed determines byte for byte, with any version of NumPy on any machine.

The reference outputs in tests/goldens are therefore stored without weights: MONAI has these weights when the outputs are computed, and our
network has them when the outputs are compared. Only uniform numbers of the frozen `RandomState` stream and exact arithmetic are used,
since logarithms and square roots of arrays may differ in the last bit between platforms.

Every tensor differs from its initial value, also in norms and bias tables, so that a missing tensor changes the output. Kernels preserve
the variance of their inputs, so that every part of the network contributes to the output.
"""

import hashlib
import math
import zlib
from collections.abc import Mapping

import numpy as np

COMPUTED = "relative_position_index"  # a buffer that both libraries compute themselves


def signed(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Returns uniform numbers in [-1, 1), float64, which depend on the seed and the name only, not on the order of calls."""
    return 2 * np.random.RandomState([seed, zlib.crc32(name.encode())]).random_sample(shape) - 1


def tensor(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Returns the tensor of this name in MONAI's state dict."""
    *_, owner, leaf = name.split(".")
    if leaf == "num_batches_tracked":
        return np.array(3, np.int64)
    noise = signed(name, shape, seed)
    if leaf == "running_var":
        value = 1.25 + 0.75 * noise
    elif leaf == "std_param":
        value = 0.3 + 0.28 * noise  # some are below the lower limit
    elif (owner.startswith("norm") or owner.endswith("_norm")) and leaf == "weight":
        value = 1 + 0.5 * noise
    elif leaf == "relative_position_bias_table":
        value = 0.5 * noise
    elif ".positional_embedding." in name and leaf == "weight":
        value = 12 * noise
    elif owner == "out_linear" and leaf == "weight":
        value = 0.05 * noise
    elif leaf in ("bias", "running_mean"):
        value = 0.25 * noise
    else:
        # the taps of a transposed convolution [in, out, *k] do not overlap: each output is a sum over the inputs only
        fan_in = shape[0] if owner == "conv" and ".transp_conv." in name else math.prod(shape[1:])
        value = math.sqrt(3 / fan_in) * noise
    return value.astype(np.float32)


def state(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Returns all tensors of a state dict except the index tables."""
    return {name: tensor(name, tuple(shape), seed) for name, shape in shapes.items() if not name.endswith(COMPUTED)}


def volume(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Returns an input [b, *grid, c] of mean 0 and standard deviation 1."""
    return (math.sqrt(3) * signed("input", shape, seed)).astype(np.float32)


def digest(tensors: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 of names and bytes."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        hasher.update(name.encode() + np.ascontiguousarray(tensors[name]).tobytes())
    return hasher.hexdigest()


def sample(array: np.ndarray, count: int) -> np.ndarray:
    """Returns up to `count` evenly spaced values of an array in C order, including the first and the last one."""
    flat = array.reshape(-1)
    if flat.size <= count:
        return flat.astype(np.float32)
    return flat[np.arange(count, dtype=np.int64) * (flat.size - 1) // (count - 1)].astype(np.float32)


def statistics(array: np.ndarray) -> np.ndarray:
    """Returns mean, standard deviation and largest magnitude, float64."""
    return np.array([array.mean(dtype=np.float64), array.std(dtype=np.float64), np.abs(array).max()], np.float64)
