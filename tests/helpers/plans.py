"""Made-up data sets and a linear model of the memory of a training step, for the tests of the planner."""

import math

from swinunetr_jax.training.plan.fingerprint import CaseFacts, ChannelFacts, Fingerprint
from swinunetr_jax.training.plan.search import Step

# Memory of the training step of a float32 network of 12 features, compiled for a CPU: bytes per voxel of a sample, and other bytes.
VOXEL_BYTES, REST_BYTES = 1070.0, 108e6


def made_up(shape, spacing=(1.0, 1.0, 1.0), cases=20, channels=("MRI",), box_share=0.5, other_spacings=()) -> Fingerprint:
    """Returns the fingerprint of equal cases, of which the last have `other_spacings`."""
    spacings = [spacing] * (cases - len(other_spacings)) + list(other_spacings)
    facts = tuple(
        CaseFacts(f"case{n}", shape, case_spacing, ((0, shape[0]), (0, shape[1]), (0, shape[2])), box_share, {1: 10}, {1: 1})
        for n, case_spacing in enumerate(spacings)
    )
    return Fingerprint("RAS", tuple(ChannelFacts(name, 50.0, 20.0, -100.0, 40.0, 200.0, 1000) for name in channels), facts)


def linear_bytes(step: Step) -> float:
    """Returns the bytes of a step by a model that is linear in its voxels."""
    network = step.network
    voxel = VOXEL_BYTES * network.feature_size / 12
    voxel *= 0.55 if network.dtype == "bfloat16" else 1.0
    voxel *= 0.6 if network.use_checkpoint else 1.0
    return REST_BYTES * (network.feature_size / 12) ** 2 + voxel * step.batch * math.prod(step.roi)
