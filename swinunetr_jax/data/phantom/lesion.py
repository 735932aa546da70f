"""A glioma as formulas, in the coordinates of anatomy.py: a necrotic centre, a rim around it, and oedema along white matter."""

from dataclasses import dataclass

import numpy as np

from swinunetr_jax.data.phantom.shapes import Place, Points, Waves, overlay, soft

LESIONS = ("necrosis", "rim", "oedema")

# Positions in white matter, the same on both sides (x or -x), and the radius of the largest core that fits there, mm.
_SITES: tuple[tuple[Place, float], ...] = (
    ((28, 30, 24), 19.0),
    ((30, 8, 36), 18.0),
    ((31, -42, 36), 19.0),
    ((42, -18, -10), 14.0),
    ((28, -66, 16), 17.0),
    ((34, -22, 22), 18.0),
    ((24, 42, 8), 17.0),
)
_SMALLEST = 8.0  # radius of a core
_SECOND = 0.2  # the probability of a second, small lesion
_INVADED = {"wm": 1.0, "stem": 0.8, "gm": 0.4, "nuclei": 0.3}  # the share of a tissue that oedema replaces


@dataclass(frozen=True, eq=False)
class Focus:
    """One lesion; lengths in mm."""

    centre: Place
    core: float  # radius
    rim: float  # thickness
    extent: float  # of oedema beyond the core
    stretch: Place  # factors
    shape: Waves
    uneven: Waves
    rough: Waves

    @classmethod
    def make(cls, rng: np.random.Generator, site: Place, largest: float, *, small: bool) -> "Focus":
        core = rng.uniform(_SMALLEST, 10.0) if small else rng.uniform(_SMALLEST + 1, largest)
        x, y, z = (float(coordinate + shift) for coordinate, shift in zip(site, rng.uniform(-5, 5, 3)))
        return cls(
            centre=(x, y, z),
            core=core,
            rim=rng.uniform(0.18, 0.28) * core + 1.0,
            extent=rng.uniform(6, 10) if small else rng.uniform(9, 20),
            stretch=tuple(np.exp(rng.normal(0, 0.12, 3)).tolist()),
            shape=Waves.make(rng, 2.6 * core, 14),
            uneven=Waves.make(rng, 1.5 * core, 14),
            rough=Waves.make(rng, 9.0, 16),
        )

    def push(self, points: Points, freedom: np.ndarray) -> Points:
        """Returns where the tissue at these points was before the lesion displaced it.

        Args:
            points: positions in the head with the lesion.
            freedom: from 0, where tissue cannot move, to 1, where it can.
        """
        offsets = [coordinate - centre for coordinate, centre in zip(points, self.centre)]
        pull = 0.33 * freedom * np.exp(-sum(offset * offset for offset in offsets) / (2 * (1.5 * self.core) ** 2))
        return tuple(coordinate - pull * offset for coordinate, offset in zip(points, offsets))

    def grow(self, tissues: dict[str, np.ndarray], points: Points, width: float) -> None:
        """Adds the lesion to the fractions of `tissues` in place; edges are `width` mm wide."""
        offsets = [coordinate - centre for coordinate, centre in zip(points, self.centre)]
        radius = np.sqrt(sum((offset / factor) ** 2 for offset, factor in zip(offsets, self.stretch)))
        near = np.flatnonzero(radius < 2 * (self.core + self.extent))
        radius, offsets, near_points = (
            radius[near],
            [offset[near] for offset in offsets],
            [coordinate[near] for coordinate in points],
        )
        uneven, rough = self.uneven(near_points), self.rough(near_points)
        core = radius - self.core * (1 + 0.16 * self.shape(near_points)) + 0.7 * rough
        # The rim is uneven, but never so thick that it fills the core, nor so thin that it is invisible.
        necrosis = core + np.clip(self.rim * (1 + 0.45 * uneven + 0.15 * rough), 0.5 * self.rim, 0.5 * self.core)
        # Long waves give the shape as a whole, and shorter ones its protrusions.
        edge = (
            radius - self.core - self.extent * (0.85 + 0.33 * self.shape([0.45 * offset for offset in offsets]) + 0.22 * uneven)
        )
        local = {name: values[near] for name, values in tissues.items()}
        room = sum(share * local[name] for name, share in _INVADED.items())
        for name, amount in (
            ("oedema", soft(edge, 4.0) * np.clip(1.5 * room - 0.25, 0, 1)),
            ("rim", soft(core, width)),
            ("necrosis", soft(necrosis, width)),
        ):
            overlay(local, name, amount)
        for name, values in local.items():
            tissues[name][near] = values


def foci(rng: np.random.Generator) -> tuple[Focus, ...]:
    """Returns one lesion, or two on the same side."""
    side, count = rng.choice((-1.0, 1.0)), 1 + (rng.uniform() < _SECOND)
    chosen = [_SITES[i] for i in rng.permutation(len(_SITES))[:count]]
    return tuple(Focus.make(rng, (side * x, y, z), largest, small=n > 0) for n, ((x, y, z), largest) in enumerate(chosen))
