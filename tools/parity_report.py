"""Reports the largest and the mean difference of every intermediate between this project and the installed MONAI.

    python -m tools.parity_report --feature-size 48 --size 96 96 96
    python -m tools.parity_report --checkpoint model.pt --downsample merging --size 96 96 96

Without a checkpoint the weights are computed from a seed and differ from their initial values in every tensor. They are saved to a PyTorch
file and read by the converter. Legacy checkpoints need an installed MONAI <= 1.4.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import torch
import tyro

from swinunetr_jax import InputError, console, open_checkpoint
from swinunetr_jax.config import SwinUNETRConfig
from swinunetr_jax.weights.load import save_params
from tools import golden_weights, reference


@dataclass
class Options:
    """The network and the input to compare."""

    size: tuple[int, ...] = (64, 64, 64)
    """Spatial size of the input, a multiple of 32 on each axis; two sizes for a 2-D network."""
    batch: int = 1
    checkpoint: Path | None = None
    """Weights to use instead of random ones; the architecture is then that of the file."""
    downsample: Literal["legacy", "merging", "mergingv2"] = "merging"
    in_channels: int = 4
    out_channels: int = 3
    feature_size: int = 24
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    window_size: tuple[int, ...] = (7,)
    norm: Literal["instance", "batch", "group"] = "instance"
    num_groups: int | None = None
    use_v2: bool = False
    qkv_bias: bool = True
    patch_norm: bool = False
    normalize: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Computation type of our network; that of MONAI is float32."""
    seed: int = 0
    json: bool = False
    """Print JSON instead of a table."""

    def fields(self) -> dict[str, Any]:
        """Returns the fields of the network's configuration."""
        window = self.window_size * len(self.size) if len(self.window_size) == 1 else self.window_size
        config = SwinUNETRConfig(
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            spatial_dims=len(self.size),
            feature_size=self.feature_size,
            depths=self.depths,
            window_size=window,
            norm_name=self.norm,
            num_groups=self.num_groups,
            use_v2=self.use_v2,
            qkv_bias=self.qkv_bias,
            patch_norm=self.patch_norm,
            normalize=self.normalize,
            downsample=self.downsample,
        )
        return {name: tuple(value) if isinstance(value, list) else value for name, value in config.to_dict().items()}


def compare(options: Options) -> list[dict[str, Any]]:
    """Returns a row for each intermediate, in the order of the forward pass.

    Raises:
        InputError: an option or the checkpoint cannot be used.
        reference.Unsupported: the installed MONAI has no such network.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pt"
        open_options: dict[str, Any] = {
            "downsample": options.downsample,
            "normalize": options.normalize,
            "dtype": options.dtype,
        }
        if options.num_groups:
            open_options["num_groups"] = options.num_groups
        if options.checkpoint:
            checkpoint = open_checkpoint(options.checkpoint, **open_options)
            config = checkpoint.config
            assert isinstance(config, SwinUNETRConfig)  # any other network is refused by `open_checkpoint`
            save_params(path, config, checkpoint.params, to="monai")
            fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in config.to_dict().items()}
            net = reference.network(fields)
            net.load_state_dict(torch.load(path, weights_only=True), strict=True)
        else:
            fields = options.fields()
            net = reference.network(fields)
            reference.fill(net, options.seed)
            torch.save(net.state_dict(), path)
        SwinUNETRConfig(**fields).check_spatial(options.size)
        x = golden_weights.volume((options.batch, *options.size, fields["in_channels"]), options.seed)
        with torch.no_grad():
            _, theirs = reference.record(net, reference.channels_first(x))
        del net  # frees memory, which is scarce at 128³
        model = open_checkpoint(path, **open_options).model()
    intermediates = jax.jit(lambda model, x: model.forward(x)[1])(model, x)
    if set(intermediates) != set(theirs):
        raise AssertionError(f"only one library has {', '.join(sorted(set(intermediates) ^ set(theirs)))}")
    rows = []
    for name in list(theirs):  # in the order of the forward pass, which jit does not preserve
        ours, expected = np.asarray(intermediates.pop(name), np.float32), theirs.pop(name)
        error = np.abs(ours - expected)
        scale = float(np.abs(expected).max())
        row = {"name": name, "shape": list(expected.shape), "scale": scale, "max_error": float(error.max())}
        rows.append(row | {"mean_error": float(error.mean()), "relative": float(error.max()) / scale})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as a Markdown table."""
    lines = ["| intermediate | shape | largest value | max error | mean error | max error / largest value |", "| --- " * 6 + "|"]
    for row in rows:
        shape = " × ".join(map(str, row["shape"][1:]))
        figures = f"{row['scale']:.3g} | {row['max_error']:.1e} | {row['mean_error']:.1e} | {row['relative']:.1e}"
        lines.append(f"| {row['name']} | {shape} | {figures} |")
    return "\n".join(lines)


def main(options: Options) -> None:
    jax.config.update("jax_default_matmul_precision", "highest")
    try:
        rows = compare(options)
    except (InputError, reference.Unsupported) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    versions = reference.VERSIONS | {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    print(json.dumps({"versions": versions, "rows": rows}, indent=1) if options.json else f"{table(rows)}\n\n{versions}")


if __name__ == "__main__":
    console.configure_streams()
    main(tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__))
