"""Formulas for the phantom's head and lesions, in mm: smooth noise, signed distances (negative inside), soft edges.

Points are three float32 arrays x, y, z that broadcast. Everything is a function of the position, so that every grid samples the same body.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Points = Sequence[np.ndarray]
Place = tuple[float, float, float]

_CHUNK = 1 << 15  # points whose waves fit in the processor's cache, which makes the computation three times as fast


@dataclass(frozen=True, eq=False)
class Waves:
    """Noise of mean 0, standard deviation 1 and one wavelength: a sum of plane waves, with a value and a gradient everywhere."""

    k: np.ndarray  # [waves, 3], 1/mm
    phase: np.ndarray  # [waves]

    @classmethod
    def make(cls, rng: np.random.Generator, wavelength: float, count: int, spread: float = 0.3) -> "Waves":
        """Returns `count` waves in random directions whose wavelengths deviate from `wavelength` mm by at most the fraction `spread`."""
        k = rng.normal(size=(count, 3))
        k *= (2 * np.pi / wavelength * (1 + spread * rng.uniform(-1, 1, count)) / np.linalg.norm(k, axis=1))[:, None]
        return cls(k.astype(np.float32), rng.uniform(0, 2 * np.pi, count).astype(np.float32))

    @property
    def amplitude(self) -> float:
        """The amplitude of each wave."""
        return math.sqrt(2 / len(self.k))

    def __call__(self, points: Points) -> np.ndarray:
        return self.mixed(points, np.ones((len(self.k), 1)))[0]

    def mixed(self, points: Points, amplitudes: np.ndarray) -> list[np.ndarray]:
        """Returns a field for each column of `amplitudes` [waves, fields], from the same waves."""
        x, y, z = points
        fields = [np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), np.float32) for _ in range(amplitudes.shape[1])]
        for k, phase, row in zip(self.k, self.phase, self.amplitude * amplitudes):
            wave = np.sin((k[0] * x + phase) + k[1] * y + k[2] * z)
            for field, amplitude in zip(fields, row):
                field += np.float32(amplitude) * wave
        return fields

    def with_gradient(self, points: Points) -> tuple[np.ndarray, np.ndarray]:
        """Returns values [n] and gradients [3, n] in 1/mm at n flat points."""
        size = points[0].size
        value, gradient = np.empty(size, np.float32), np.empty((3, size), np.float32)
        for start in range(0, size, _CHUNK):
            chunk = slice(start, start + _CHUNK)
            angle = self.k @ np.stack([coordinate[chunk] for coordinate in points]) + self.phase[:, None]
            value[chunk] = np.sin(angle).sum(0)
            gradient[:, chunk] = self.k.T @ np.cos(angle)
        return self.amplitude * value, self.amplitude * gradient


def ellipse(points: Points, centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """Returns the distance to an ellipse or ellipsoid with these radii, exact on its surface."""
    ratio = slope = 0
    for coordinate, middle, radius in zip(points, centre, radii):
        square = ((coordinate - middle) / radius) ** 2
        ratio, slope = ratio + square, slope + square / radius**2
    ratio = np.sqrt(ratio)
    return ratio * (ratio - 1) / np.maximum(np.sqrt(slope), 1e-6)


def tilted(points: Points, centre: Place, degrees: float) -> Points:
    """Returns the points relative to `centre`, rotated about x so that the front of a shape moves down."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y, z = (coordinate - origin for coordinate, origin in zip(points, centre))
    return x, cosine * y - sine * z, sine * y + cosine * z


def tube(points: Points, *knots: tuple[float, float, float, float]) -> np.ndarray:
    """Returns the distance to a chain of round rods through the knots (x, y, z, radius)."""
    out = np.full((), np.inf, np.float32)
    for (*start, first_radius), (*end, last_radius) in itertools.pairwise(knots):
        offset = [coordinate - origin for coordinate, origin in zip(points, start)]
        rod = [last - first for first, last in zip(start, end)]
        fraction = np.clip(sum(distance * step for distance, step in zip(offset, rod)) / sum(step * step for step in rod), 0, 1)
        out = np.minimum(
            out,
            np.sqrt(sum((distance - fraction * step) ** 2 for distance, step in zip(offset, rod)))
            - (first_radius + fraction * (last_radius - first_radius)),
        )
    return out


def union(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """Returns the smaller distance, with the edge where both shapes meet rounded over `blend` mm."""
    overlap = np.maximum(blend - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap * overlap / (4 * blend)


def soft(distance: np.ndarray, width: float) -> np.ndarray:
    """Returns the part of a voxel that is inside, which falls from 1 to 0 over `width` mm around the surface."""
    inside = np.clip(0.5 - distance / width, 0, 1)
    return inside * inside * (3 - 2 * inside)


def overlay(tissues: dict[str, np.ndarray], name: str, amount: np.ndarray) -> None:
    """Replaces the share `amount` (0 … 1) of all tissues by one tissue, in place. The sum of the fractions does not change."""
    for other in tissues:
        tissues[other] *= 1 - amount
    tissues[name] += amount
