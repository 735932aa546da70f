"""Writes the reference outputs in tests/goldens with the installed MONAI, so that parity is tested without torch.

    python -m tools.make_goldens            every case of the installed MONAI: "legacy…" with MONAI <= 1.4, all others with a newer one
    python -m tools.make_goldens v2 2d      some of them

Run it once with MONAI >= 1.5 and once with MONAI 1.4, each in a separate environment; jax is not needed. A file contains the
configuration, names and shapes of the state dict, versions, and samples and statistics of every intermediate. It contains no weights,
which are computed from a seed (golden_weights.py).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools import golden_weights, reference

GOLDENS = Path(__file__).parents[1] / "tests" / "goldens"
SEED = 20220104
LOGITS, INTERMEDIATE = 4096, 48  # the number of stored values of the logits and of each intermediate

SMALL: dict[str, Any] = {"in_channels": 4, "out_channels": 3, "feature_size": 12}
OPTIONS: dict[str, Any] = {
    "depths": (2, 4, 2, 2),
    "window_size": (7, 7, 5),
    "qkv_bias": False,
    "mlp_ratio": 2.0,
    "norm_name": "group",
    "num_groups": 4,
    "patch_norm": True,
    "normalize": False,
}
# No two axes have the same size, and there are six voxels at 1/32 resolution. An instance norm over two voxels would return little more
# than the sign of their difference, which multiplies rounding errors by a hundred.
VOLUME = (1, 64, 96, 32)
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {  # fields, input [b, *grid]
    "merging": (SMALL, VOLUME),
    "mergingv2": ({**SMALL, "downsample": "mergingv2"}, VOLUME),
    "v2": ({**SMALL, "use_v2": True}, VOLUME),
    "batch": ({**SMALL, "norm_name": "batch"}, VOLUME),
    "options": ({**SMALL, **OPTIONS}, VOLUME),
    "2d": ({**SMALL, "in_channels": 1, "out_channels": 2, "spatial_dims": 2, "feature_size": 24}, (2, 96, 64)),
    "legacy": ({**SMALL, "downsample": "legacy"}, VOLUME),
    "legacy_v2": ({**SMALL, "in_channels": 1, "out_channels": 14, "downsample": "legacy", "use_v2": True}, VOLUME),
}


def make(fields: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns the content of one file."""
    net = reference.network(fields)
    reference.fill(net, SEED)
    x = golden_weights.volume((*shape, fields["in_channels"]), SEED)
    with torch.no_grad():
        _, intermediates = reference.record(net, reference.channels_first(x))
    logits = intermediates.pop("logits")
    tensors = {name: value.numpy() for name, value in net.state_dict().items()}
    weights = {name: value for name, value in tensors.items() if not name.endswith(golden_weights.COMPUTED)}
    about = {
        "config": fields,
        "shape": x.shape,
        "seed": SEED,
        "versions": reference.VERSIONS,
        "weights": golden_weights.digest(weights),
        "state": {name: value.shape for name, value in tensors.items()},
        "names": list(intermediates),
    }
    samples = [np.resize(golden_weights.sample(value, INTERMEDIATE), INTERMEDIATE) for value in intermediates.values()]
    return {
        "about": np.array(json.dumps(about)),
        "samples": np.stack(samples),
        "statistics": np.stack([golden_weights.statistics(value) for value in intermediates.values()]),
        "logits": golden_weights.sample(logits, LOGITS),
        "logits_statistics": golden_weights.statistics(logits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "cases", nargs="*", help=f"some of {', '.join(CASES)}; by default all that the installed MONAI can compute"
    )
    names = parser.parse_args().cases or [name for name in CASES if name.startswith("legacy") == reference.OLD]
    if unknown := sorted(set(names) - set(CASES)):
        parser.error(f"unknown {', '.join(unknown)}; the cases are {', '.join(CASES)}")
    GOLDENS.mkdir(exist_ok=True)
    for name in names:
        try:
            content = make(*CASES[name])
        except reference.Unsupported as error:
            parser.error(f"{name}: {error}")
        path = GOLDENS / f"{name}.npz"
        np.savez_compressed(path, **content)
        print(f"{name}: {path.stat().st_size / 1e3:.0f} kB, MONAI {reference.VERSIONS['monai']}")


if __name__ == "__main__":
    main()
