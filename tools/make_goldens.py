"""Writes the reference outputs in tests/goldens with the installed MONAI, so that parity is tested without torch.

    python -m tools.make_goldens            every case of the installed MONAI: "legacy…" with MONAI <= 1.4, all others with a newer one
    python -m tools.make_goldens v2 2d      some of them

Run it once with MONAI >= 1.5 and once with MONAI 1.4, each in a separate environment; jax is not needed. The cases "hyena…" need MONAI
1.6 and nvsubquadratic 0.2, which asks for a newer PyTorch than it needs: `pip install --no-deps nvsubquadratic==0.2.0 omegaconf` and
`antlr4-python3-runtime==4.9.3`.

A file contains the configuration, names and shapes of the state dict, versions, and samples and statistics of every intermediate. A
"hyena…" file also has samples of the gradient of each parameter. It contains no weights, which are computed from a seed
(golden_weights.py).
"""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools import golden_weights, reference

GOLDENS = Path(__file__).parents[1] / "tests" / "goldens"
SEED = 20220104
LOGITS, INTERMEDIATE, GRADIENT = (
    4096,
    48,
    8,
)  # the number of stored values of the logits, of each intermediate and of each gradient

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
# The first stage has 32 × 48 × 16 tokens, so that its coordinates go beyond 1.
HYENA: dict[str, Any] = {
    "depths": (1, 1, 1, 1),
    "hyena_kernel_size": 5,
    "hyena_kernel_mlp_dim": 16,
    "hyena_kernel_layers": 2,
    "hyena_mask_max_attenuation": 0.05,
    "hyena_fft_padding": "zero",
    "hyena_grid_type": "double",
    "hyena_l_cache": 12,
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
    "hyena": ({**SMALL, "hyena_stages": (True, False, True, False), **HYENA}, VOLUME),
    "hyena_2d": ({**SMALL, "spatial_dims": 2, "hyena_stages": (True, True, True, True), "depths": (1, 1, 1, 1)}, (2, 96, 64)),
    "legacy": ({**SMALL, "downsample": "legacy"}, VOLUME),
    "legacy_v2": ({**SMALL, "in_channels": 1, "out_channels": 14, "downsample": "legacy", "use_v2": True}, VOLUME),
}


def make(fields: dict[str, Any], shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns the content of one file."""
    net = reference.network(fields)
    reference.fill(net, SEED)
    tensors = {
        name: value.numpy().copy() for name, value in net.state_dict().items()
    }  # a Hyena stage limits its masks in each pass
    x = golden_weights.volume((*shape, fields["in_channels"]), SEED)
    with torch.no_grad():
        _, intermediates = reference.record(net, reference.channels_first(x))
    logits = intermediates.pop("logits")
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
    if is_hyena(fields):
        about["gradients"], gradients = gradients_of(net, x, fields["out_channels"])
    else:
        gradients = {}
    samples = [np.resize(golden_weights.sample(value, INTERMEDIATE), INTERMEDIATE) for value in intermediates.values()]
    return {
        "about": np.array(json.dumps(about)),
        "samples": np.stack(samples),
        "statistics": np.stack([golden_weights.statistics(value) for value in intermediates.values()]),
        "logits": golden_weights.sample(logits, LOGITS),
        "logits_statistics": golden_weights.statistics(logits),
        **gradients,
    }


def gradients_of(net: Any, x: np.ndarray, out_channels: int) -> tuple[list[str], dict[str, Any]]:
    """Returns the names of the parameters, and samples and statistics of their gradients.

    The leaky ReLU has slope 1, because values near zero could otherwise change the gradients by 1 %, see test_parity.py.
    """
    for module in net.modules():
        if isinstance(module, torch.nn.LeakyReLU):
            module.negative_slope = 1.0
    cotangent = golden_weights.volume((*x.shape[:-1], out_channels), SEED + 1)
    (net(reference.channels_first(x)) * reference.channels_first(cotangent)).sum().backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in net.named_parameters()}
    samples = [np.resize(golden_weights.sample(value, GRADIENT), GRADIENT) for value in gradients.values()]
    return list(gradients), {
        "gradients": np.stack(samples),
        "gradient_statistics": np.stack([golden_weights.statistics(value) for value in gradients.values()]),
    }


def is_hyena(fields: dict[str, Any]) -> bool:
    return "hyena_stages" in fields


def can_compute(name: str) -> bool:
    """Returns whether the installed packages can compute a case."""
    if is_hyena(CASES[name][0]):
        return find_spec("nvsubquadratic") is not None
    return name.startswith("legacy") == reference.OLD


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "cases", nargs="*", help=f"some of {', '.join(CASES)}; by default all that the installed MONAI can compute"
    )
    names = parser.parse_args().cases or list(filter(can_compute, CASES))
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
