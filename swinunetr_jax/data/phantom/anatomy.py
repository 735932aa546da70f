"""A healthy head as formulas that give the tissue at each point.

Coordinates are in mm as in MNI space, except that x points to the left; y points to the front and z up, and the anterior commissure is
near the origin. The numbers were measured in that atlas. The cortex is folded along the surfaces where noise of one wavelength is zero,
because these curve and branch like sulci.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from swinunetr_jax.data.phantom.shapes import Points, Waves, ellipse, overlay, soft, tilted, tube, union

TISSUES = ("csf", "gm", "wm", "nuclei", "stem", "vessel")
CEREBRUM, CEREBELLUM, STEM = range(3)

GYRUS = 20.0  # mm, the width of two neighbouring gyri
CORTEX = 2.9  # mm, its thickness
SULCUS = 29.0  # mm, its depth
_FISSURE = 13.0  # mm, the depth of the cerebellum's fissures
_INDEPENDENT = 500.0  # mm, a shift after which noise is independent


@dataclass(frozen=True, eq=False)
class Head:
    """The properties that differ between healthy people."""

    size: np.ndarray  # [3], factors of the size along x, y and z
    warp: Waves
    bend: np.ndarray  # [waves, 3], amplitudes of the displacement by `warp`, mm
    folds: Waves
    branches: Waves
    slow: Waves
    twist: np.ndarray  # [waves, 4], amplitudes of a field by `slow`, and of a displacement along x, y and z in mm
    fine: Waves
    folia: Waves
    ventricles: float  # a factor of their width
    sulci: float  # a factor of their width

    @classmethod
    def make(cls, rng: np.random.Generator) -> "Head":
        return cls(
            size=np.exp(np.clip(rng.normal(0, 0.025, 3), -0.05, 0.05)).astype(np.float32),
            warp=Waves.make(rng, 105.0, 10, 0.4),
            bend=rng.normal(0, 1.5, (10, 3)),
            folds=Waves.make(rng, GYRUS, 36, 0.35),
            branches=Waves.make(rng, 1.4 * GYRUS, 24, 0.35),
            slow=Waves.make(rng, 38.0, 16, 0.4),
            twist=np.concatenate([np.ones((16, 1)), rng.normal(0, 2.6, (16, 3))], 1),
            fine=Waves.make(rng, 11.0, 16),
            folia=Waves.make(rng, 30.0, 12, 0.4),
            ventricles=rng.uniform(0.9, 1.6),
            sulci=rng.uniform(0.7, 1.4),
        )

    def place(self, points: Points) -> Points:
        """Returns the positions of this head's points in the average head, which all functions below describe."""
        return tuple(
            (coordinate + displacement) / factor
            for coordinate, displacement, factor in zip(points, self.warp.mixed(points, self.bend), self.size)
        )


def outlines(points: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the distances to the cerebrum (both halves together), the cerebellum and the brain stem."""
    x, y, z = points
    x_abs = np.abs(x)
    ahead = (y + 17) / 87
    # Each half is an egg that is broader at the back, so that there is a notch between the halves at both ends. Its base is flat, and
    # higher over the cerebellum.
    egg = (x_abs - 9) * (1 + 0.05 * ahead + 0.02 * ahead**2)
    body = ellipse(tilted((egg, y, z), (0, -17, 14), 3), (0, 0, 0), (58, 87, 62))
    base = 9 * soft(y + 38, 50) - 22 + 0.12 * np.minimum(y + 60, 0) + 0.0035 * np.maximum(y - 8, 0) ** 2 - 0.1 * x_abs - z
    temporal = ellipse(tilted((x_abs, y, z), (40, -15, -18), 14), (0, 0, 0), (27, 45, 24))
    cerebrum = union(-union(-body, -base, 9), temporal, 5)
    cerebellum = ellipse(tilted((x_abs, y, z), (21, -61, -36), 12), (0, 0, 0), (32, 35, 27))
    pons = ellipse(points, (0, -27, -34), (17, 14, 16))
    stem = union(pons, tube(points, (0, -22, -8, 15), (0, -30, -42, 12), (0, -40, -80, 8)), 8)
    return cerebrum, cerebellum, stem


def tissues(
    head: Head, points: Points, depth: np.ndarray, inward: np.ndarray, part: np.ndarray, width: float
) -> dict[str, np.ndarray]:
    """Returns the fractions of TISSUES at n flat points, which add up to 1.

    Args:
        head: the person.
        points: [n] each.
        depth: [n], mm below the surface of the part.
        inward: [3, n], the direction in which the depth increases.
        part: [n], CEREBRUM, CEREBELLUM or STEM.
        width: the width in mm over which a voxel blurs an edge.
    """
    out = {name: np.zeros(depth.shape, np.float32) for name in TISSUES}
    for number, build in ((CEREBRUM, _cerebrum), (CEREBELLUM, _cerebellum), (STEM, _stem)):
        selected = np.flatnonzero(part == number)
        for name, amount in build(
            head, [coordinate[selected] for coordinate in points], depth[selected], inward[:, selected], width
        ).items():
            out[name][selected] = amount
    out["wm"] = np.asarray(1 - sum(out.values()))
    deep = np.flatnonzero((ellipse(points, (0, -20, 0), (48, 64, 40)) < 0) | (part == STEM))
    centre = {name: values[deep] for name, values in out.items()}
    for name, amount in _centre(head, [coordinate[deep] for coordinate in points], width):
        overlay(centre, name, amount)
    for name, values in centre.items():
        out[name][deep] = values
    return out


def _cerebrum(head: Head, points: Points, depth: np.ndarray, inward: np.ndarray, width: float) -> dict[str, np.ndarray]:
    x, y, z = points
    x_abs = np.abs(x)
    # The halves are separate in the midplane, except in the ellipse that the corpus callosum surrounds.
    middle = x + 0.9 * head.folia((0 * x, y, z))
    inner_ellipse = ellipse((y, z), (-6, 6), (39, 21))
    wall = np.hypot(middle, np.minimum(inner_ellipse, 0))
    medial = wall < depth
    inward = np.where(medial, np.stack([np.sign(middle), 0 * x, 0 * x]), inward)
    below = np.where(medial, wall, depth)

    # Sulci go down from the surface, almost at right angles: the noise is nearly that of the nearest point of the surface.
    surface_points = [coordinate - 0.62 * np.minimum(below, 40) * direction for coordinate, direction in zip(points, inward)]
    surface_points[0] = surface_points[0] + _INDEPENDENT * np.sign(middle)  # the halves are folded differently
    vary, *twist = head.slow.mixed(surface_points, head.twist)
    surface_points = [coordinate + shift for coordinate, shift in zip(surface_points, twist)]
    deepest = np.clip(SULCUS * (0.8 + 0.3 * vary), 0, 36)
    # No sulcus cuts the corpus callosum.
    deepest = np.where(medial, np.minimum(deepest, 0.85 * np.maximum(inner_ellipse, 0)), deepest)
    primary = np.hypot(_sheet(head.folds, surface_points, inward), np.maximum(below - deepest, 0))
    shallow = np.maximum(below - 0.55 * deepest * (1 - 0.6 * vary), 0)
    secondary = np.hypot(_sheet(head.branches, surface_points, inward), shallow) + 0.3
    gap = head.sulci * (0.27 + 0.45 * np.exp(-below / 12) + 1.1 * np.exp(-below / 3))
    sulcus = np.minimum(primary, secondary) - gap
    surface = np.minimum(np.minimum(depth - 0.6, wall - 0.9), np.minimum(sulcus, _sylvian(head, points, vary)))

    csf, cortex = soft(surface, width), soft(surface - CORTEX - 0.3 * head.fine(points), width)
    # There is neither fluid nor cortex where the halves are joined.
    bridge = soft(np.maximum(ellipse((y, z), (-8, 2), (44, 24)), x_abs - 22 - np.clip(0.6 * z, -9, 4) - 2 * head.fine(points)), 6)
    sinus = soft(np.hypot(middle, depth - 1.2) - 1.8, width) * (z > 0)
    csf, cortex = csf * (1 - bridge), cortex * (1 - bridge)
    return {"csf": csf * (1 - sinus), "gm": (cortex - csf) * (1 - sinus), "vessel": sinus}


def _sheet(folds: Waves, u: Points, inward: np.ndarray) -> np.ndarray:
    """Returns the distance along the surface to where the noise is zero, limited where the noise hardly changes."""
    value, gradient = folds.with_gradient(u)
    gradient -= (gradient * inward).sum(0) * inward
    return np.abs(value) / np.sqrt((gradient * gradient).sum(0) + (0.3 * 2 * np.pi / GYRUS) ** 2)


def _sylvian(head: Head, points: Points, vary: np.ndarray) -> np.ndarray:
    """Returns the distance to the fissure that enters from the side and rises to the back, and to the gap over the insula."""
    x, y, z = points
    x_abs = np.abs(x)
    rise = z - 2 + 0.42 * (y + 8) - 3 * vary
    beyond = np.hypot(np.maximum(np.maximum(-38 - y, y - 26), 0), np.maximum(39 - x_abs, 0))
    opening = np.hypot(rise, beyond) - 0.3 - 0.5 * head.sulci * np.clip(1 + y / 30, 0.4, 2)
    over = np.maximum(ellipse((y, z), (0, 1), (22, 14)), 0)
    insula = np.hypot(x_abs - 39 - 1.5 * vary + 0.006 * (y + 2) ** 2, over) - 0.3 - 0.4 * head.sulci
    return union(opening, insula, 3)


def _cerebellum(head: Head, points: Points, depth: np.ndarray, inward: np.ndarray, width: float) -> dict[str, np.ndarray]:
    """Returns the tissues of the cerebellum: leaves between fissures that fan out from the fourth ventricle."""
    x, y, z = points
    back, up = -(y + 42), z + 33
    fan = np.abs(np.sin(13 * np.arctan2(up, back) + 0.9 * head.folia(points)))
    leaf = fan * np.maximum(np.sqrt(back * back + up * up + 0.2 * x * x), 4) / 13
    fissure = np.hypot(leaf, np.maximum(depth - _FISSURE, 0)) - 0.5
    # The leaves are thin, so that a coarse grid shows their mean.
    visible = min(max(2.2 - 0.7 * width, 0.0), 1.0)
    csf = np.maximum(soft(depth - 0.6, width), 0.7 * visible * soft(fissure, width))
    grey = 0.45 + 0.55 * visible * soft(np.minimum(fissure, depth) - 2, width)
    return {"csf": csf, "gm": np.where(depth > _FISSURE, 0.2, 1) * grey * (1 - csf)}


def _stem(head: Head, points: Points, depth: np.ndarray, inward: np.ndarray, width: float) -> dict[str, np.ndarray]:
    csf = soft(depth - 0.3, width)
    return {"csf": csf, "stem": 1 - csf}


def _centre(head: Head, points: Points, width: float) -> Sequence[tuple[str, np.ndarray]]:
    """Returns nuclei, ventricles, cisterns and plexus, each of which covers those before it."""
    x, y, z = points
    x_abs, ventricles = np.abs(x), head.ventricles
    mirrored = (x_abs, y, z)
    hippocampus = tube(mirrored, (25, -10, -20, 5.5), (29, -24, -14, 5), (25, -36, -3, 3.5))
    thalamus = ellipse(mirrored, (11.5, -18, 7), (9.5, 15, 9.5))
    caudate = union(
        ellipse(mirrored, (14, 12, 7), (6, 11, 9)), tube(mirrored, (15, 10, 14, 4), (19, -14, 21, 3), (25, -34, 16, 1.5)), 3
    )
    putamen = ellipse((x_abs + 0.18 * y, y, z), (27, 3, 1), (5.5, 16, 10))
    pallidum = ellipse((x_abs + 0.25 * y, y, z), (20, -3, -1), (4, 9, 7))
    # The body of the lateral ventricle is higher than wide, and leans outwards.
    body = tube(
        (x_abs, y, 0.8 * z - 0.25 * x_abs),
        *((13, 31, 0, 1.3 * ventricles), (7.5, 19, 4, 3.7 * ventricles), (4, 0, 13, 3.3 * ventricles)),
        *((10, -24, 13, 3.6 * ventricles), (21, -38, 5.5, 4.3 * ventricles), (26, -64, 0, 2 * ventricles)),
    )
    horn = tube(
        mirrored,
        (22, -38, 12, 4 * ventricles),
        (32, -34, -2, 2.4 * ventricles),
        (35, -16, -15, 1.6 * ventricles),
        (31, -7, -19, 1.8 * ventricles),
    )
    lateral = np.maximum(union(body, horn, 3), 0.5 - x_abs)
    third, fourth = ellipse(mirrored, (0, -14, -1), (1.7 * ventricles, 14, 10)), ellipse(mirrored, (0, -45, -32), (7, 5.5, 9))
    cisterns = np.minimum(ellipse(mirrored, (0, 2, -19), (13, 9, 7)), ellipse(mirrored, (0, -40, -3), (6, 4, 7)))
    plexus = tube(mirrored, (20, -34, 15, 1.6), (23, -42, 10, 2.6), (28, -40, 2, 1.2))
    nuclei = soft(np.minimum(np.minimum(thalamus, caudate), putamen), max(width, 2.0))
    return (
        ("gm", soft(hippocampus, width)),
        ("nuclei", np.maximum(nuclei, 0.7 * soft(pallidum, width))),
        ("csf", soft(np.minimum(np.minimum(lateral, third), np.minimum(fourth, cisterns)), width)),
        ("vessel", soft(np.maximum(plexus, lateral + 0.5), width)),
    )
